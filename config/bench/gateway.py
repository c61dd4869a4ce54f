"""The road alone, as a process of its own: door, spool, worker, LMTP target, put together as `config/wiring.py` does.

Two things stand in for what a load program cannot do or a benchmark cannot have: the door speaks SMTP in the clear and
asks nobody who he is, for `smtp-source` knows neither TLS nor passwords; and the recipient's certificate comes from
memory, not from LDAP. All else is the product's own code with its default settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from config import allocator, logs, privileges
from config.bench.child import BenchError, Cost, cost_of_tree
from config.bench.smtp_load import RECIPIENT, SENDER
from config.sections import SpoolSettings

_START_SECONDS = 60.0
CONFIGURATION = (
    "SQLite WAL synchronous=FULL with group commit, content encrypted at rest, default settings, one process; the door "
    "in the clear without authentication, deliveries over the product's LMTP target"
)
"""Said in the benchmark's rows."""


class Gateway:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, started: float) -> None:
        self._process = process
        self.port = port
        self.started_seconds = started
        """From the start of the process to its first look at the queue."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def cost(self) -> Cost:
        """Since it started; peak memory since the last `reset_peak`."""
        return cost_of_tree(self._process.pid)

    def reset_peak(self) -> float:
        """Forget its peak memory, see proc(5), clear_refs; returns what it holds now, in units of 2**20 octets."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        return self.cost().peak_mb


@contextmanager
def gateway(state: Path, sink: int, *, protect: bool = False, work: bool = True) -> Iterator[Gateway]:
    """Start one in `state`, new or from before; everything goes to the LMTP sink on port `sink`.

    `protect`: mail is signed, encrypted and DKIM-signed on its way. `work` false: it is kept and not delivered. Raises
    `BenchError` when it does not start.
    """
    state.mkdir(parents=True, exist_ok=True)
    options = json.dumps({"state": str(state), "sink": sink, "protect": protect, "work": work})
    began = time.monotonic()
    with (state.parent / f"{state.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "config.bench.gateway", options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd="/",
        )
    try:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        line = process.stdout.readline()
        if not line:
            said = (state.parent / f"{state.name}.log").read_text(errors="replace").splitlines()
            raise BenchError(f"the gateway did not start: {' '.join(said[-3:])}")
        yield Gateway(process, int(json.loads(line)["port"]), time.monotonic() - began)
    finally:
        process.terminate()
        try:
            process.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def _serve(state: Path, sink: int, protect: bool, work: bool) -> None:
    from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
    from mta.message import Stage, TargetKind
    from mta.schedule import RetrySchedule
    from mta.smtp.door import DoorOptions
    from mta.spool import Spool
    from mta.worker import Worker, WorkerOptions
    from trust.store import metadata
    from trust.store.blobs import BlobStore
    from trust.store.database import Database
    from trust.vault import KeyVault

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        database = Database(f"sqlite:///{state / 'relais.db'}")
        stack.callback(database.close)
        metadata.create_all(database.engine)
        place = state / "vault"
        vault = KeyVault.open(place) if KeyVault.exists(place) else KeyVault.create(place)
        blobs = BlobStore(state / "blobs", vault, database)
        spool = Spool(database, blobs, vault, node="bench", schedule=RetrySchedule())
        await asyncio.to_thread(spool.recover)
        lmtp = LmtpTarget(LmtpOptions("bench", host="127.0.0.1", port=sink))
        stack.push_async_callback(lmtp.close)
        stages: list[Stage] = [_protection(state, database)] if protect else []
        if work:
            places = SpoolSettings().concurrency
            options = WorkerOptions(concurrency=4 * places, per_destination=places)
            worker = Worker(spool, stages, {TargetKind.SMTP: lmtp}, options)
            running = asyncio.create_task(worker.run())
            stack.callback(running.cancel)
            stack.push_async_callback(worker.stop, 5.0)
        door = _clear_door()(spool, DoorOptions("bench"))
        stack.push_async_callback(door.stop)
        port = await door.start("127.0.0.1", 0)
        if work:
            while not worker.at_work:  # noqa: ASYNC110 - it rings nobody's bell
                await asyncio.sleep(0.005)
        allocator.collect_rarely()
        sys.stdout.write(json.dumps({"port": port}) + "\n")
        sys.stdout.flush()
        await stop.wait()


def _clear_door() -> Any:
    from mta.message import Origin, TargetKind
    from mta.smtp.door import DoorOptions, OperatorDoor
    from mta.smtp.session import DoorSession
    from mta.spool import Spool
    from trust.refusals import Refused

    class ClearDoor(OperatorDoor):
        """Anybody on loopback may send to anybody."""

        origin = Origin.SUBMISSION

        def __init__(self, spool: Spool, options: DoorOptions) -> None:
            import ssl

            nobody: Any = None
            super().__init__(spool, nobody, nobody, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), options)

        def _session(self, **options: Any) -> DoorSession:
            session = super()._session(**options)
            session.require_starttls = False
            return session

        async def check_sender(self, session: DoorSession, sender: str) -> Refused | None:
            return None

        async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
            return TargetKind.SMTP

        def _peer(self, session: DoorSession) -> str:
            return "bench"

    return ClearDoor


def _protection(state: Path, database: Any) -> Any:
    """The protect stage with an RSA-2048 key for the one sender and a certificate for the one recipient."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from config.bench.holders import Holders
    from directory.partners import PartnerBook
    from directory.records import MailboxKind, Recipient
    from mta.agreements import Agreements
    from mta.correspondents import Correspondents
    from mta.protecting import ProtectStage
    from mta.smtp.address import domain_of
    from smime.dkim import DkimKey
    from trust.certificates import CertificateValidator

    def key() -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, 2048)

    holders = Holders(state / "holders")
    holders.holder(SENDER, key())
    recipient = Recipient(RECIPIENT, MailboxKind.PER, "", (holders.certificate(RECIPIENT, key()),))
    dkim = DkimKey(domain_of(SENDER), "bench", key())

    class InMemory:
        def resolve(self, address: str) -> Recipient | None:
            return recipient if address == RECIPIENT else None

    agreements = Agreements(PartnerBook(()), Correspondents(database, holders.vault))
    validator = CertificateValidator([holders.root], [holders.intermediate])
    return ProtectStage(holders.vault, InMemory(), validator, lambda _: dkim, "bench", agreements)


def _main() -> None:
    options = json.loads(sys.argv[1])
    state = Path(options["state"])
    privileges.drop(state)
    logs.configure("INFO")
    allocator.keep_freed_memory()
    asyncio.run(_serve(state, options["sink"], options["protect"], options["work"]))


if __name__ == "__main__":
    os.umask(0o077)
    _main()
