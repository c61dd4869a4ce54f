"""The process the crash tests kill: accepts what it reads on stdin, delivers to a file that knows delivery ids.

Not a test itself. Arguments: the directory that holds the vault, the database, the blobs and the mailbox file; then
`boundaries` for a process whose children kill themselves at one commit after the other, or `accept` for one that only
accepts.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, event

from mta.delivery import NewDelivery, Submission
from mta.message import Delivered, DeliveryState, Message, Origin, Outcome, Phase, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.worker import Worker
from trust.store import database as database_module
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


class Protecting:
    """Like encryption: never the same bytes twice."""

    async def apply(self, message: Message, phase: Phase) -> Message:
        return (
            replace(message, content=message.content + secrets.token_bytes(16)) if phase is Phase.PROTECT else message
        )


class File:
    """Recognises a delivery it has had, as a mailbox with a duplicate rule does; logs every call. Poison kills it."""

    def __init__(self, root: Path) -> None:
        self.calls = os.open(root / "calls", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self.box = root / "box"
        self.box.mkdir(exist_ok=True)

    async def deliver(self, message: Message) -> Outcome:
        if b"poison" in message.content:
            os._exit(1)
        digest = sha256(message.content).hexdigest()
        os.write(self.calls, f"{message.delivery_id} {digest}\n".encode())
        await asyncio.sleep(0)
        try:
            (self.box / message.delivery_id).symlink_to(message.recipient)  # name and content in one atomic step
        except FileExistsError:
            return Delivered("known")
        return Delivered("new")


def submission(key: str) -> Submission:
    """To two recipients; some are laid down as files, the others as rows."""
    return Submission(
        origin=Origin.MLLP,
        sender="labo@op1.example",
        peer="lab",
        content=b"report " + key.encode() + bytes(300_000 if key.endswith("0") else 0),
        content_type="message/rfc822",
        deliveries=(
            NewDelivery(f"{key}a@op2.example", TargetKind.SMTP),
            NewDelivery(f"{key}b@op3.example", TargetKind.SMTP),
        ),
        dedup_key=key,
        message_id_domain="op1.example",
    )


def accept_from_stdin(spool: Spool) -> None:
    for line in sys.stdin:
        spool.accept(submission(line.strip()))
        os.write(1, line.encode())


def opened(root: Path) -> tuple[Database, Spool]:
    vault = KeyVault.open(root / "vault")
    database = Database(f"sqlite:///{root / 'relais.db'}")
    blobs = BlobStore(root / "blobs", vault, database)
    return database, Spool(database, blobs, vault, node="n", schedule=RetrySchedule())


def main(root: Path) -> None:
    _, spool = opened(root)
    spool.recover()
    threading.Thread(target=accept_from_stdin, args=(spool,), daemon=True).start()
    worker = Worker(spool, [Protecting()], {TargetKind.SMTP: File(root)})
    asyncio.run(worker.run())


async def accept_and_deliver(root: Path, keys: list[str], end: Callable[[Database], None]) -> None:
    """Accept, writing down what was acknowledged, and deliver; returns when nothing waits any more."""
    database, spool = opened(root)
    end(database)
    spool.recover()
    worker = Worker(spool, [Protecting()], {TargetKind.SMTP: File(root)})
    drained, loop = asyncio.Event(), asyncio.get_running_loop()
    spool.listen(lambda: loop.call_soon_threadsafe(drained.set))
    running = asyncio.create_task(worker.run())
    acknowledged = os.open(root / "acknowledged", os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
    for key in keys:
        await asyncio.to_thread(spool.accept, submission(key))
        os.write(acknowledged, f"{key}\n".encode())
    while spool.counts()[DeliveryState.READY]:
        await drained.wait()
        drained.clear()
    await worker.stop(5)
    await running


def killed_at(number: int, *, told: bool) -> Callable[[Database], None]:
    """Kill this process at its `number`-th commit: before it, or after it and before anybody is told."""
    committed = 0

    def commit(_: Connection) -> None:
        nonlocal committed
        committed += 1
        if committed == number and not told:
            os.kill(os.getpid(), signal.SIGKILL)

    def telling(set_result: Callable[..., None]) -> Callable[..., None]:
        def tell(future: object, result: object) -> None:
            if committed >= number and told and threading.current_thread().name == "database-writer":
                os.kill(os.getpid(), signal.SIGKILL)
            set_result(future, result)

        return tell

    def end(database: Database) -> None:
        event.listen(database.engine, "commit", commit)
        for kind in (Future, database_module._Answer):
            kind.set_result = telling(kind.set_result)  # type: ignore[method-assign]

    return end


def boundaries(root: Path) -> None:
    """At every commit of the same work, on either side of it; then the next process goes on, and the sender repeats.
    Prints how many there were."""
    for number in range(1, 1000):
        survived = 0
        for side in ("before", "after"):
            keys = [f"{number}{side}{each}" for each in range(2)]
            survived += _child(root, keys, killed_at(number, told=side == "after"))
            if not _child(root, keys, lambda _: None):
                raise SystemExit("the next process does not go on")
        if survived == 2:
            print(number - 1)
            return


def _child(root: Path, keys: list[str], end: Callable[[Database], None]) -> bool:
    """Whether it came to its end."""
    child = os.fork()
    if child == 0:
        asyncio.run(accept_and_deliver(root, keys, end))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


if __name__ == "__main__":
    match sys.argv[2:]:
        case ["boundaries"]:
            boundaries(Path(sys.argv[1]))
        case ["accept"]:
            accept_from_stdin(opened(Path(sys.argv[1]))[1])
        case _:
            main(Path(sys.argv[1]))
