"""Parts of the road alone: the spool under a hundred producers, one connection's deliveries, a queue a million long."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from config import privileges
from config.bench.report import row
from config.bench.smtp_load import RECIPIENT, SENDER, mail, sink
from config.migrations import metadata
from mta.delivery import NewDelivery, Submission
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.message import Delivered, DeliveryState, Message, Origin, TargetKind
from mta.priority import Priority
from mta.returns import Returns
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.tables import deliveries, messages, steps
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.store.direct import insertion
from trust.vault import KeyVault

PRODUCERS = 100
_ENQUEUED_BYTES = 1_000
_AT_ONCE = 2
"""Deliveries offered to the connection: the one under way and the one whose envelope goes with its end."""
_CHUNK = 5_000
_DESTINATIONS = 1_000


def enqueue(count: int, runs: int) -> list[dict[str, Any]]:
    """`Spool.begin_accept` by a hundred tasks of one event loop, as doors call it, each waiting until its message is on
    disk; and `Spool.accept` by a hundred threads."""
    tasks, threads = [], []
    with _spool() as spool, ThreadPoolExecutor(PRODUCERS) as pool:
        for run in range(runs + 1):
            tasks.append(asyncio.run(_by_tasks(spool, f"t{run}", count)))
            threads.append(_by_threads(spool, pool, f"p{run}", count))
    unit = f"messages/s of {_ENQUEUED_BYTES} bytes, {PRODUCERS} producers"
    return [
        row("enqueue_durable_ps", tasks[1:], f"{unit} on one event loop", count),
        row("enqueue_durable_threads_ps", threads[1:], f"{unit} in threads of their own", count),
    ]


async def _by_tasks(spool: Spool, tag: str, count: int) -> float:
    content, returns = mail(_ENQUEUED_BYTES, 0), Returns()
    numbers = iter(range(count))

    async def produce() -> None:
        for number in numbers:
            await returns.of(spool.begin_accept(_submission(f"{tag}-{number}", content)))

    began = time.monotonic()
    await asyncio.gather(*(produce() for _ in range(PRODUCERS)))
    return count / (time.monotonic() - began)


def _by_threads(spool: Spool, pool: ThreadPoolExecutor, tag: str, count: int) -> float:
    content = mail(_ENQUEUED_BYTES, 0)

    def produce(first: int) -> None:
        for number in range(first, count, PRODUCERS):
            spool.accept(_submission(f"{tag}-{number}", content))

    began = time.monotonic()
    list(pool.map(produce, range(PRODUCERS)))
    return count / (time.monotonic() - began)


def deliver(count: int, size: int, runs: int) -> list[dict[str, Any]]:
    """The product's LMTP client over one connection to smtp-sink."""
    with sink() as into:
        rates = [asyncio.run(_deliver(into.port, count, size)) for _ in range(runs)]
    return [row("deliver_10k_ps", rates, "messages/s, one connection, smtp-sink", count)]


async def _deliver(port: int, count: int, size: int) -> float:
    target = LmtpTarget(LmtpOptions("bench", host="127.0.0.1", port=port, connections=1))
    content = mail(size, 0)
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            outcome = await target.deliver(
                Message(
                    message_id="<m@bench.invalid>",
                    spool_id="s",
                    delivery_id=str(number),
                    origin=Origin.SUBMISSION,
                    sender=SENDER,
                    recipient=RECIPIENT,
                    content=content,
                    content_type="message/rfc822",
                    accepted_at=0.0,
                )
            )
            if not isinstance(outcome, Delivered):
                raise RuntimeError("the sink refused")

    began = time.monotonic()
    try:
        await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    finally:
        await target.close()
    return count / (time.monotonic() - began)


def fill(state: Path, count: int) -> None:
    """A gateway's state with so many deliveries that wait for a later try, at a thousand destinations; rows as the
    spool writes them, sealed values as long."""
    state.mkdir(parents=True)
    (state / privileges.MARK).touch()  # it is given to the user the gateway runs as
    vault = KeyVault.create(state / "vault")
    database = Database(f"sqlite:///{state / 'relais.db'}")
    try:
        metadata.create_all(database.engine)
        sealed = vault.seal(json.dumps({"recipient": "x" * 100}).encode(), b"filler")
        for first in range(0, count, _CHUNK):
            numbers = range(first, min(first + _CHUNK, count))
            database.transact(lambda connection, numbers=numbers: _fill(connection, numbers, sealed))  # type: ignore[misc]
    finally:
        database.close()


def _fill(connection: Connection, numbers: range, sealed: bytes) -> None:
    at, later = time.time() - 3600.0, RetrySchedule().longest_pause
    message_rows, delivery_rows, step_rows = [], [], []
    for number in numbers:
        spool_id, delivery_id = f"{int(at * 1000):012x}{number:020x}", f"{int(at * 1000):012x}f{number:019x}"
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        message_rows.append(
            {
                "id": spool_id,
                "node": "bench",
                "origin": Origin.SUBMISSION.value,
                "envelope": sealed,
                "content_blob": f"t{spool_id}",
                "content_type": "message/rfc822",
                "size": 10_000,
                "accepted_at": at,
                "dedup_key": digest,
                "reply": sealed,
                "external_id": "",
                "peer_pseudonym": "",
            }
        )
        delivery_rows.append(
            {
                "id": delivery_id,
                "spool_id": spool_id,
                "ordinal": 0,
                "target": TargetKind.SMTP.value,
                "destination": f"smtp:d{number % _DESTINATIONS}.bench.invalid",
                "recipient": sealed,
                "message_id": f"<{digest[:32]}@bench.invalid>",
                "state": DeliveryState.READY.value,
                "attempts": 1,
                # as late as the schedule allows: what is due later still is taken for the work of a wrong clock
                "due": time.time() + later,
                "lease": None,
                "prepared_blob": None,
                "facts": "{}",
                "code": "mta.unreachable",
                "detail": "connect: timeout",
                "ended_at": None,
                "reported": False,
                "priority": Priority.NORMAL.value,
            }
        )
        for kind in ("accept", "attempt", "deferred"):
            step = {"spool_id": spool_id, "delivery_id": "" if kind == "accept" else delivery_id, "at": at}
            step_rows.append({**step, "node": "bench", "kind": kind, "code": "", "detail": ""})
    for table, rows in ((messages, message_rows), (deliveries, delivery_rows), (steps, step_rows)):
        insertion(table, *rows[0]).many(connection, rows)


@contextmanager
def _spool() -> Iterator[Spool]:
    """One of its own, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="relais-bench-") as place:
        database = Database(f"sqlite:///{Path(place) / 'relais.db'}")
        try:
            metadata.create_all(database.engine)
            vault = KeyVault.create(Path(place) / "vault")
            blobs = BlobStore(Path(place) / "blobs", vault, database)
            yield Spool(database, blobs, vault, node="bench", schedule=RetrySchedule())
        finally:
            database.close()


def _submission(key: str, content: bytes) -> Submission:
    return Submission(
        origin=Origin.SUBMISSION,
        sender=SENDER,
        peer="bench",
        content=content,
        content_type="message/rfc822",
        deliveries=(NewDelivery(RECIPIENT, TargetKind.SMTP),),
        dedup_key=key,
        message_id_domain="bench.invalid",
        message_id=f"<{key}@bench.invalid>",
    )
