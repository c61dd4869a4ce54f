"""What is accepted goes straight to the worker that has a place for it, and is no less safe for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import replace

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import OperationalError

from mta.delivery import Lease
from mta.handover import HELD_BYTES, HandOver
from mta.message import Delivered, DeliveryState, Message, Outcome, TargetKind
from mta.returns import Returns
from mta.spool import Spool
from mta.tables import deliveries, held_destinations
from mta.worker import Worker, WorkerOptions
from trust.store.database import Database, StoreUnavailableError

from .conftest import MakeSpool, submission

DESTINATION = "smtp:op2.example"


class Taker:
    """Takes what it is given and lets it lie."""

    def __init__(self) -> None:
        self.leases: list[Lease] = []
        self.cancelled: list[str] = []
        self.missing: list[str] = []
        self.full = False

    def reserve(self, destination: str) -> float | None:
        return None if self.full else 100.0

    def take(self, lease: Lease, content: bytes) -> None:
        self.leases.append(lease)

    def cancel(self, destination: str) -> None:
        self.cancelled.append(destination)

    def missed(self, destination: str) -> None:
        self.missing.append(destination)


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def spool(make_spool: MakeSpool, taker: Taker) -> Spool:
    made = make_spool()
    made.hand_over_to(taker)
    return made


def test_it_is_kept_under_an_ordinary_lease(spool: Spool, taker: Taker) -> None:
    kept = spool.accept(submission())
    (lease,) = taker.leases
    assert spool.claim(10, 60) == [], "nobody else gets it"
    assert [step.kind for step in spool.steps(kept.spool_id)] == ["accept", "attempt"]
    (record,) = spool.deliveries(kept.spool_id)
    assert (record.delivery_id, record.message_id, record.recipient) == (
        lease.delivery_id,
        lease.message_id,
        lease.recipient,
    )
    assert spool.content(lease) == submission().content
    assert spool.settle(lease, Delivered())
    assert not spool.settle(lease, Delivered()), "it is stale now"
    assert spool.counts()[DeliveryState.DELIVERED] == 1


def test_what_a_claim_gives_and_what_is_handed_over_are_the_same(spool: Spool, taker: Taker) -> None:
    spool.accept(submission(key="a"))
    taker.full = True
    spool.accept(submission(key="b"))
    assert taker.missing == [taker.leases[0].destination]
    (claimed,) = spool.claim(10, 60)
    (handed,) = taker.leases
    different = {"delivery_id", "spool_id", "message_id", "accepted_at", "counts_from", "content_blob", "token"}
    different |= {"expires"}
    for name in Lease.__dataclass_fields__:
        if name not in different:
            assert getattr(claimed, name) == getattr(handed, name), name


def test_a_crash_leaves_what_a_crash_always_leaves(spool: Spool, taker: Taker) -> None:
    kept = spool.accept(submission())
    assert spool.recover() == 1
    (again,) = spool.claim(10, 60)
    assert (again.spool_id, again.breakdowns) == (kept.spool_id, 1)
    assert not spool.settle(taker.leases[0], Delivered())


def test_nothing_begins_for_a_held_destination(spool: Spool, taker: Taker, database: Database) -> None:
    taker.full = True
    spool.accept(submission(key="a"))
    name = database.read(lambda connection: connection.scalar(select(deliveries.c.destination)))
    database.transact(
        lambda c: c.execute(insert(held_destinations).values(destination=name, held_at=0.0, sealed=b"")).rowcount
    )
    taker.full = False
    kept = spool.accept(submission(key="b"))
    assert (taker.leases, taker.cancelled) == ([], [name])
    assert [step.kind for step in spool.steps(kept.spool_id)] == ["accept"]
    assert database.read(lambda c: c.scalars(select(deliveries.c.lease)).all()) == [None, None]


def test_the_place_is_free_again_when_it_is_not_kept(
    spool: Spool, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = spool.accept(submission())
    assert spool.accept(submission()).spool_id == first.spool_id
    assert len(taker.cancelled) == 1, "a repeat is not handed over"

    def failing(*_: object) -> Future[object]:
        future: Future[object] = Future()
        future.set_exception(StoreUnavailableError("full"))
        return future

    monkeypatch.setattr(spool._database, "submit_together", failing)
    with pytest.raises(StoreUnavailableError):
        spool.accept(submission(key="other"))
    assert len(taker.cancelled) == 2
    assert len(taker.leases) == 1


def handover(room: int = 10, idle: bool = False) -> tuple[HandOver, list[str]]:
    said: list[str] = []
    made = HandOver(
        60.0,
        lambda _, promised: promised < room,
        lambda _: idle,
        lambda: said.append("begin"),
        lambda: said.append("wake"),
    )
    made.open()
    return made, said


def test_nothing_overtakes_what_waits() -> None:
    made, said = handover(room=2)
    assert made.reserve(DESTINATION) is None, "the spool was not looked at yet"
    made.looked(True, ())
    assert made.reserve(DESTINATION) == 60.0
    assert made.reserve(DESTINATION) == 60.0
    assert made.reserve(DESTINATION) is None, "no room"
    made.cancel(DESTINATION)
    assert made.reserve(DESTINATION) is None, "one waits already"
    assert made.reserve("smtp:other") == 60.0
    made.missed(DESTINATION)
    assert (made.behind(), said) == (True, [])
    assert (made.behind(beside=[DESTINATION, "smtp:other"]), made.behind(beside=["smtp:other"])) == (False, True)
    made.looked(False, ())
    assert made.reserve("smtp:third") is None, "there is more than was claimed"
    made.looked(True, [DESTINATION])
    assert made.reserve(DESTINATION) is None, "it was left out"
    assert made.reserve("smtp:third") == 60.0
    made.close()
    assert made.reserve("smtp:third") is None


def test_an_idle_destination_has_the_spool_looked_at() -> None:
    made, said = handover(idle=True)
    made.missed(DESTINATION)
    assert said == ["wake"]


def test_contents_are_held_up_to_a_limit_and_given_once(spool: Spool, taker: Taker) -> None:
    made, _ = handover()
    spool.accept(submission(key="a"))
    spool.accept(submission(key="b"))
    a, b = taker.leases
    made.hold(a, bytes(HELD_BYTES - 1))
    made.hold(b, b"xx")
    assert made.content(b) is None
    assert made.content(a) is not None
    assert made.content(a) is None
    made.hold(b, b"xx")
    assert made.content(b) == b"xx"


def test_what_was_accepted_is_never_taken_for_what_was_prepared(spool: Spool, taker: Taker) -> None:
    """Held under one lease and left there, it would be sent in clear under the next."""
    made, _ = handover()
    spool.accept(submission())
    (lease,) = taker.leases
    made.take(lease, b"in clear")
    again = replace(lease, token="n1:other", prepared_blob="t" + "0" * 32)
    assert made.content(again) is None
    made.hold(again, b"encrypted")
    assert made.content(again) == b"encrypted"


async def test_what_cannot_be_read_ahead_is_tried_all_the_same(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leased and forgotten, it would wait until the lease is over."""
    spool, target = make_spool(), Slow()
    target.gate.set()
    for number in range(3):
        spool.accept(submission(key=str(number)))

    def failing(_: object) -> None:
        raise OperationalError("SELECT", None, Exception("disk I/O error"))

    monkeypatch.setattr(spool, "small_contents", failing)
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(poll_seconds=30))
    running = asyncio.create_task(worker.run())
    await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 3)
    await worker.stop(5)
    await running


class Slow:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = asyncio.Event()

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message.content.decode())
        await self.gate.wait()
        return Delivered()


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_worker_is_handed_what_it_has_places_for_and_finds_the_rest(make_spool: MakeSpool) -> None:
    spool, target = make_spool(), Slow()
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(per_destination=2, poll_seconds=30))
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.at_work)
    await asyncio.to_thread(spool.accept, submission(key="first"))
    await until(lambda: len(target.seen) == 1)
    for number in range(30):
        await asyncio.to_thread(spool.accept, submission(key=str(number)))
    await until(lambda: len(target.seen) == 2)
    target.gate.set()
    await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 31)
    await asyncio.to_thread(spool.accept, submission(key="last"))
    await until(lambda: spool.counts()[DeliveryState.DELIVERED] == 32)
    await worker.stop(5)
    await running
    assert len(target.seen) == 32


async def test_what_was_handed_over_and_not_begun_is_given_back_at_the_end(make_spool: MakeSpool) -> None:
    spool, target = make_spool(), Slow()
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(per_destination=1, poll_seconds=30))
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.at_work)
    for number in range(6):
        await asyncio.to_thread(spool.accept, submission(key=str(number)))
    await until(lambda: len(target.seen) == 1)
    await worker.stop(0.05)
    await running
    assert spool.recover() == 0, "all leases were given back"
    assert len(spool.claim(10, 60)) == 6
    await asyncio.to_thread(spool.accept, submission(key="late"))
    assert len(spool.claim(10, 60)) == 1, "a worker that has stopped is handed nothing"


async def test_results_come_back_to_the_loop_together(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, calls = asyncio.get_running_loop(), []
    real = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    returns, work = Returns(), [Future() for _ in range(20)]
    awaited = [returns.of(each) for each in work]
    awaited[3].cancel()
    work[2].cancel()
    for number, each in enumerate(work):
        if number != 2:
            each.set_exception(ValueError("no")) if number == 5 else each.set_result(number)
    async with asyncio.timeout(5):
        assert [await each for number, each in enumerate(awaited) if number not in (2, 3, 5)][-1] == 19
        with pytest.raises(ValueError, match="no"):
            await awaited[5]
    assert awaited[2].cancelled()
    assert len(calls) == 1
