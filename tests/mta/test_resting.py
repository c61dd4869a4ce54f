"""What waits for a destination that is down, or that a person holds, waits quietly: on disk, in the trace and for the
processor; and nothing begins any more that was merely in hand."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import func, select

from directory.partners import PartnerBook
from directory.records import Partner
from mta.message import Deferred, Delivered, DeliveryState, Message, Outcome, Target, TargetKind
from mta.queue import Actor, Queue
from mta.queue_listing import Wanted
from mta.schedule import RetrySchedule
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from mta.spool import Spool
from mta.tables import deliveries, steps
from mta.worker import Worker, WorkerOptions
from tests.mta.test_worker import until
from trust.journal import Journal
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool, submission
from .trust_space import Listed, TrustSpace

THERE = "smtp:op2.example"
ACTOR = Actor("A. Operator", "they asked us to stop")
DAY = 86400.0
SCHEDULE = RetrySchedule(pauses=(60.0, 600.0, 3600.0))


class Watched:
    """A target that tells of every outcome."""

    def __init__(self, target: SmtpTarget) -> None:
        self.target = target
        self.resting, self.probing, self.places = target.resting, target.probing, target.places
        self.outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self.asked = 0

    async def deliver(self, message: Message) -> Outcome:
        self.asked += 1
        outcome = await self.target.deliver(message)
        self.outcomes.put_nowait(outcome)
        return outcome


class Ahead:
    """The event loop's clock and the spool's, some time ahead of the machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.seconds)

    def __call__(self) -> float:
        return time.time() + self.seconds


@pytest.fixture
async def ahead(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ahead]:
    with monkeypatch.context() as patched:
        yield Ahead(patched)


@pytest.fixture
def nobody() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@asynccontextmanager
async def working(spool: Spool, target: Target, clock: Callable[[], float], **options: float) -> AsyncIterator[Worker]:
    worker = Worker(spool, (), {TargetKind.SMTP: target}, WorkerOptions(**options), clock)  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.stop(2)
        await running


@pytest.fixture
def down(space: TrustSpace, listed: Listed, nobody: int) -> Callable[[], Watched]:
    book = PartnerBook([Partner("op2.example", "127.0.0.1", nobody)])
    options = SmtpTargetOptions("gate.op1.example")
    return lambda: Watched(SmtpTarget(book, lambda: listed, space.client("one"), options))


def written(database: Database) -> dict[str, int]:
    """Steps by their kind."""
    query = select(steps.c.kind, func.count()).group_by(steps.c.kind)
    return {row[0]: row[1] for row in database.read(lambda connection: connection.execute(query).all())}


def leased(database: Database) -> int:
    query = select(func.count()).where(deliveries.c.lease.is_not(None))
    return database.read(lambda connection: connection.scalar(query)) or 0


async def days_of_silence(
    spool: Spool, database: Database, target: Watched, ahead: Ahead, *, waiting: int, days: float
) -> None:
    spool._schedule = RetrySchedule(pauses=(60.0, 600.0, 3600.0), lifetime=days * DAY)
    for number in range(waiting):
        spool.accept(submission(key=str(number)))
    probes = 0
    async with working(spool, target, ahead, poll_seconds=60.0) as worker:
        while ahead.seconds < days * DAY:
            async with asyncio.timeout(2 * DAY):
                outcome = await target.outcomes.get()
            assert isinstance(outcome, Deferred)
            if outcome.tried:
                probes += 1
                await until(lambda: not leased(database))
                ahead.seconds += 601.0  # longer than any rest
                worker.wake()
        worker._expired_at = float("-inf")
        ahead.seconds += DAY
        worker.wake()
        while spool.counts()[DeliveryState.READY]:
            worker._expired_at = float("-inf")
            worker.wake()
            await asyncio.sleep(0.02)
    while not target.outcomes.empty():
        probes += target.outcomes.get_nowait().tried  # type: ignore[union-attr]
    lines = written(database)
    assert lines["accept"] == waiting
    assert lines["failed"] == waiting, "each sender is told"
    # what had begun beside the first that failed: when it went down, and a day after anybody had asked
    beside = 2 * 8
    assert lines["deferred"] <= probes
    assert lines["attempt"] <= probes + beside, "what was claimed and not begun leaves nothing"
    assert lines.get("release", 0) <= beside
    assert lines["prepare"] <= min(waiting, probes + beside)
    assert sum(lines.values()) <= 2 * waiting + 3 * (probes + beside)
    assert target.asked <= probes + 16, "a probe is one delivery"


async def test_what_waits_for_a_destination_that_is_down_fills_no_trace(
    make_spool: MakeSpool, database: Database, down: Callable[[], Watched], ahead: Ahead
) -> None:
    spool = make_spool(clock=ahead)
    await days_of_silence(spool, database, down(), ahead, waiting=60, days=0.4)


@pytest.mark.proof
@pytest.mark.timeout(300)
async def test_five_days_with_a_thousand_waiting(
    make_spool: MakeSpool, database: Database, down: Callable[[], Watched], ahead: Ahead
) -> None:
    spool = make_spool(clock=ahead)
    await days_of_silence(spool, database, down(), ahead, waiting=1000, days=5)


async def test_new_mail_for_a_destination_that_rests_wakes_nobody(
    make_spool: MakeSpool, database: Database, down: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, target = make_spool(schedule=SCHEDULE), down()
    looks = 0
    real = spool.claim

    def counting(*arguments: object, **more: object) -> object:
        nonlocal looks
        looks += 1
        return real(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(spool, "claim", counting)
    async with working(spool, target, time.time, poll_seconds=30.0):
        await asyncio.to_thread(spool.accept, submission(key="first"))
        await target.outcomes.get()
        await until(lambda: target.resting() == {THERE} and not leased(database))
        await asyncio.sleep(0.1)  # the looks that follow the deferral
        before = looks
        for number in range(50):
            await asyncio.to_thread(spool.accept, submission(key=str(number)))
        await asyncio.sleep(0.1)
        assert looks == before
        await asyncio.to_thread(spool.accept, submission("x@op1.example", key="elsewhere"))
        await until(lambda: target.asked == 2)


class Slow:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = asyncio.Event()

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message.recipient)
        await self.gate.wait()
        return Delivered()


@pytest.mark.parametrize("handed", [False, True], ids=["claimed", "handed over"])
@pytest.mark.parametrize("what", ["destination", "deliveries"])
async def test_what_is_in_hand_and_not_begun_is_held_with_the_rest(
    make_spool: MakeSpool, database: Database, blobs: BlobStore, vault: KeyVault, what: str, handed: bool
) -> None:
    spool, target = make_spool(schedule=SCHEDULE), Slow()
    queue = Queue(spool, database, blobs, vault, Journal(vault, "n1"), node="n1")
    if not handed:
        for number in range(20):
            spool.accept(submission(key=str(number)))
    async with working(spool, target, time.time, poll_seconds=30.0, per_destination=2) as worker:
        if handed:
            await until(lambda: worker.at_work)
            for number in range(20):
                await asyncio.to_thread(spool.accept, submission(key=str(number)))
        await until(lambda: len(target.seen) == 2)
        if what == "destination":
            acted = await asyncio.to_thread(queue.hold_destination, THERE, ACTOR)
            assert acted.refused is None
        else:
            page = await asyncio.to_thread(queue.page, Wanted())
            ids = [each.delivery_id for each in page.deliveries]
            assert all(each.refused is None for each in await asyncio.to_thread(queue.hold, ids, ACTOR))
        target.gate.set()
        await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 2)
        await until(lambda: not leased(database))
        assert len(target.seen) == 2, "nothing else was begun"
        if what == "destination":
            await asyncio.to_thread(queue.release_destination, THERE, ACTOR)
        else:
            await asyncio.to_thread(queue.release, ids, ACTOR)
        await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 20)
    assert len(target.seen) == 20


async def test_a_hold_of_another_node_is_found_out(
    make_spool: MakeSpool, database: Database, blobs: BlobStore, vault: KeyVault
) -> None:
    spool, target = make_spool(schedule=SCHEDULE), Slow()
    other = Queue(make_spool(node="n2"), database, blobs, vault, Journal(vault, "n2"), node="n2")
    for number in range(20):
        spool.accept(submission(key=str(number)))
    async with working(spool, target, time.time, poll_seconds=0.05, per_destination=2):
        await until(lambda: len(target.seen) == 2)
        await asyncio.to_thread(other.hold_destination, THERE, ACTOR)
        await until(lambda: leased(database) == 2)
        target.gate.set()
        await until(lambda: not leased(database))
        assert len(target.seen) == 2
        await asyncio.to_thread(other.release_destination, THERE, ACTOR)
        await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 20)
