"""The worker over a real spool: order of stages, stable bytes, faults, fairness, stopping."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from sqlalchemy.exc import SQLAlchemyError

from mta import refusals
from mta.breakdowns import BREAKDOWNS
from mta.delivery import Lease
from mta.message import (
    Deferred,
    Delivered,
    DeliveryState,
    Failed,
    Message,
    Origin,
    Outcome,
    Phase,
    Stage,
    Target,
    TargetKind,
)
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.worker import Worker, WorkerOptions
from trust.refusals import Refused
from trust.store.database import Database, StoreUnavailableError

from .conftest import Clock, MakeSpool, submission

AT_ONCE = RetrySchedule(pauses=(0.01,), jitter=0.0, lifetime=100.0)


class Recorder:
    """A target that answers as scripted, then takes everything."""

    def __init__(self, *script: Outcome | Exception) -> None:
        self.script = list(script)
        self.seen: list[Message] = []

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message)
        answer = self.script.pop(0) if self.script else Delivered("250 taken")
        if isinstance(answer, Exception):
            raise answer
        return answer


class Mark:
    """A stage that writes its name and the phase into the content, or answers as scripted."""

    def __init__(self, name: str, *script: Refused | Exception) -> None:
        self.name, self.script, self.runs = name, list(script), 0

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        self.runs += 1
        if self.script:
            answer = self.script.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        content = message.content + f" {self.name}:{phase.value}".encode()
        return replace(message, content=content, facts={**message.facts, self.name: "ran"})


@asynccontextmanager
async def working(spool: Spool, stages: Sequence[Stage], target: Target, **options: float) -> AsyncIterator[Worker]:
    options = {"poll_seconds": 0.2, "pause_after_error_seconds": 0.01} | options
    targets = dict.fromkeys(TargetKind, target)
    worker = Worker(spool, stages, targets, WorkerOptions(**options))  # type: ignore[arg-type]
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        await worker.stop(5)
        await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the spool tells nobody but its worker
            await asyncio.sleep(0.005)


def ended(spool: Spool, n: int) -> Callable[[], bool]:
    def check() -> bool:
        counts = spool.counts()
        return counts[DeliveryState.DELIVERED] + counts[DeliveryState.FAILED] == n

    return check


@pytest.mark.parametrize(
    ("origin", "target", "phases"),
    [
        (Origin.MLLP, TargetKind.SMTP, "enrich protect"),
        (Origin.SUBMISSION, TargetKind.SMTP, "enrich protect"),
        (Origin.SUBMISSION, TargetKind.MAILBOX, "enrich protect open screen"),
        (Origin.OPERATOR, TargetKind.MAILBOX, "open screen"),
        (Origin.COLLECTED, TargetKind.MAILBOX, "open screen"),
        (Origin.MLLP, TargetKind.DOSSIER, ""),
        (Origin.SYSTEM, TargetKind.SMTP, "protect"),
        (Origin.SYSTEM, TargetKind.MAILBOX, "protect open screen"),
        (Origin.SYSTEM, TargetKind.MLLP, ""),
    ],
)
async def test_each_road_has_its_phases(make_spool: MakeSpool, origin: Origin, target: TargetKind, phases: str) -> None:
    spool, recorder = make_spool(schedule=AT_ONCE), Recorder()
    spool.accept(submission(origin=origin, target=target, content=b"c"))
    async with working(spool, [Mark("a"), Mark("b")], recorder):
        await until(ended(spool, 1))
    expected = b"c" + b"".join(f" a:{phase} b:{phase}".encode() for phase in phases.split())
    assert [message.content for message in recorder.seen] == [expected]


async def test_every_retry_sends_the_same_bytes(make_spool: MakeSpool) -> None:
    later = Deferred(Refused(refusals.UNREACHABLE))
    spool, recorder, stage = make_spool(schedule=AT_ONCE), Recorder(later, later), Mark("once")
    spool.accept(submission(envelope_id="E1", flags=("RET=HDRS",)))
    async with working(spool, [stage], recorder):
        await until(ended(spool, 1))
    assert len(recorder.seen) == 3
    assert len({(m.content, m.message_id, m.delivery_id) for m in recorder.seen}) == 1
    assert stage.runs == 2, "one run for each of the two phases, none for the retries"
    assert [m.repeated for m in recorder.seen] == [False, True, True]
    assert all(m.facts == {"once": "ran", "dsn.envid": "E1", "dsn.ret": "HDRS"} for m in recorder.seen)


async def test_refusals_of_stages_and_targets_end_or_defer(
    make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    spool, recorder = make_spool(schedule=AT_ONCE), Recorder(Failed(Refused(refusals.REMOTE_REFUSED, "550 no")))
    stage = Mark("s", Refused(refusals.DIRECTORY_UNAVAILABLE), Refused(refusals.HEADER_INVALID))
    first = spool.accept(submission(key="1"))
    async with working(spool, [stage], recorder):
        await until(ended(spool, 1))
        second = spool.accept(submission(key="2"))
        await until(ended(spool, 2))
    assert [step.code for step in spool.steps(first.spool_id) if step.code] == [
        "mta.directory-unavailable",
        "mta.header-invalid",
    ]
    (record,) = spool.deliveries(second.spool_id)
    assert (record.state, record.code, record.detail) == (DeliveryState.FAILED, "mta.remote-refused", "550 no")
    assert f"delivery {record.delivery_id} failed: mta.remote-refused" in caplog.text, "an operator sees what failed"
    assert "550 no" not in caplog.text and record.recipient not in caplog.text


async def test_a_bug_is_retried_and_logged_without_content(
    make_spool: MakeSpool, caplog: pytest.LogCaptureFixture
) -> None:
    spool = make_spool(schedule=AT_ONCE)
    recorder, stage = Recorder(ValueError("body says DURAND")), Mark("s", KeyError("Subject: DURAND"))
    kept = spool.accept(submission())
    with caplog.at_level(logging.DEBUG):
        async with working(spool, [stage], recorder):
            await until(ended(spool, 1))
    assert [step.detail for step in spool.steps(kept.spool_id) if step.code] == ["KeyError", "ValueError"]
    assert "KeyError" in caplog.text
    assert "DURAND" not in caplog.text


async def test_what_raises_each_time_is_parked_and_stands_in_nobodys_way(make_spool: MakeSpool) -> None:
    class Poisoned(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            await super().deliver(message)
            if b"poison" in message.content:
                raise RecursionError("Subject: DURAND")
            return Delivered()

    spool, target = make_spool(schedule=AT_ONCE), Poisoned()
    poison = spool.accept(submission(key="poison", content=b"poison"))
    async with working(spool, [], target, per_destination=1):
        for n in range(10):
            spool.accept(submission(key=str(n)))
        await until(ended(spool, 10))
        await until(lambda: spool.counts()[DeliveryState.PARKED] == 1)
    assert len([message for message in target.seen if b"poison" in message.content]) == BREAKDOWNS
    (record,) = spool.deliveries(poison.spool_id)
    assert (record.code, record.detail) == ("mta.parked", "mta.internal-error RecursionError")


async def test_what_never_gets_prepared_is_parked(make_spool: MakeSpool) -> None:
    class Endless:
        async def apply(self, message: Message, phase: Phase) -> Message | Refused:
            await asyncio.Event().wait()
            raise AssertionError

    spool = make_spool(schedule=AT_ONCE)
    kept = spool.accept(submission())
    async with working(spool, [Endless()], Recorder(), attempt_seconds=0.3, lease_seconds=30):
        await until(lambda: spool.counts()[DeliveryState.PARKED] == 1)
    assert {step.code for step in spool.steps(kept.spool_id)} == {"", "mta.internal-error", "mta.parked"}


@pytest.mark.parametrize("failure", [StoreUnavailableError("full"), OSError("full")])
async def test_a_store_that_fails_for_long_parks_nothing(make_spool: MakeSpool, failure: Exception) -> None:
    spool, target = make_spool(schedule=AT_ONCE), Recorder(*[failure] * 2 * BREAKDOWNS)
    spool.accept(submission())
    async with working(spool, [], target):
        await until(ended(spool, 1))
    assert spool.counts()[DeliveryState.DELIVERED] == 1


async def test_a_clock_that_jumps_forward_makes_nothing_be_sent_twice(make_spool: MakeSpool, clock: Clock) -> None:
    """A virtual machine that slept longer than a lease wakes up in the middle of a delivery."""
    gate = asyncio.Event()

    class Gated(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            self.seen.append(message)
            await gate.wait()
            return Delivered()

    spool, target = make_spool(schedule=AT_ONCE, clock=clock), Gated()
    kept = spool.accept(submission())
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(poll_seconds=0.02), clock)
    running = asyncio.create_task(worker.run())
    await until(lambda: len(target.seen) == 1)
    clock.now += 86_400
    looks = 0
    next_due = spool.next_due

    def counting(*arguments: object) -> float | None:
        nonlocal looks
        looks += 1
        return next_due(*arguments)  # type: ignore[arg-type]

    spool.next_due = counting  # type: ignore[method-assign]
    await until(lambda: looks >= 3)
    gate.set()
    await until(ended(spool, 1))
    await worker.stop(5)
    await running
    assert len(target.seen) == 1
    assert [step.kind for step in spool.steps(kept.spool_id)] == ["accept", "attempt", "prepare", "delivered"]


async def test_at_work_only_while_it_runs_and_reaches_the_spool(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise StoreUnavailableError("locked")

    spool = make_spool()
    worker = Worker(
        spool, [], {}, WorkerOptions(poll_seconds=0.02, stalled_seconds=0.2, pause_after_error_seconds=0.01)
    )
    assert not worker.at_work
    running = asyncio.create_task(worker.run())
    await until(lambda: worker.at_work)
    with monkeypatch.context() as broken:
        broken.setattr(spool, "claim", locked)
        await until(lambda: not worker.at_work)
    await until(lambda: worker.at_work)
    await worker.stop(1)
    await running
    assert not worker.at_work


async def test_a_hanging_attempt_is_cut_before_its_lease_ends(make_spool: MakeSpool) -> None:
    class Hanging(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            self.seen.append(message)
            if len(self.seen) == 1:
                await asyncio.Event().wait()
            return Delivered()

    spool, target = make_spool(schedule=AT_ONCE), Hanging()
    kept = spool.accept(submission())
    async with working(spool, [], target, attempt_seconds=0.1, lease_seconds=30):
        await until(ended(spool, 1))
    assert "mta.attempt-timeout" in {step.code for step in spool.steps(kept.spool_id)}


async def test_a_slow_destination_does_not_delay_another(make_spool: MakeSpool) -> None:
    gate = asyncio.Event()

    class Slow(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            if message.recipient.endswith("@slow.example"):
                await gate.wait()
            return await super().deliver(message)

    spool, target = make_spool(schedule=AT_ONCE), Slow()
    for n in range(60):
        spool.accept(submission("b@slow.example", key=f"slow{n}"))
    async with working(spool, [], target, per_destination=2, concurrency=4, batch=5):
        for n in range(20):
            spool.accept(submission("b@fast.example", key=f"fast{n}"))
        await until(lambda: len(target.seen) == 20)
        assert {message.recipient for message in target.seen} == {"b@fast.example"}
        gate.set()
        await until(ended(spool, 80))
    assert len({message.delivery_id for message in target.seen}) == len(target.seen) == 80


async def test_stopping_gives_back_what_was_not_begun_and_lets_run_what_was(make_spool: MakeSpool) -> None:
    gate = asyncio.Event()

    class Gated(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            self.seen.append(message)
            await gate.wait()
            return Delivered()

    spool, target = make_spool(schedule=AT_ONCE), Gated()
    for n in range(6):
        spool.accept(submission(key=str(n)))
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(per_destination=2))
    running = asyncio.create_task(worker.run())
    await until(lambda: len(target.seen) == 2)
    stopping = asyncio.create_task(worker.stop(5))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    await running
    assert spool.counts()[DeliveryState.DELIVERED] == 2
    assert len(spool.claim(10, 60)) == 4, "due at once, under nobody's lease"


async def test_a_stuck_delivery_does_not_hold_up_the_stop(make_spool: MakeSpool) -> None:
    class Stuck(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            self.seen.append(message)
            await asyncio.Event().wait()
            raise AssertionError

    spool, target = make_spool(schedule=AT_ONCE), Stuck()
    spool.accept(submission())
    worker = Worker(spool, [], {TargetKind.SMTP: target})
    running = asyncio.create_task(worker.run())
    await until(lambda: bool(target.seen))
    await worker.stop(0.05)
    await running
    assert spool.recover() == 0, "given back in good order: no breakdown"
    (lease,) = spool.claim(1, 60)
    assert (lease.attempts, lease.breakdowns) == (0, 0)


async def test_what_was_delivered_is_settled_when_the_store_comes_back(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk between the destination's yes and our note of it must not send a second copy."""
    spool, recorder = make_spool(schedule=AT_ONCE), Recorder()
    settle, failures = spool.begin_settle, [StoreUnavailableError("full")] * 3

    def failing(lease: Lease, outcome: Outcome) -> Future[bool]:
        if failures:
            raise failures.pop()
        return settle(lease, outcome)

    monkeypatch.setattr(spool, "begin_settle", failing)
    spool.accept(submission())
    async with working(spool, [], recorder):
        await until(ended(spool, 1))
    assert len(recorder.seen) == 1
    assert spool.counts()[DeliveryState.DELIVERED] == 1


async def test_a_store_that_fails_does_not_hold_up_the_stop(
    make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StoreUnavailableError("full")

    gate = asyncio.Event()

    class Gated(Recorder):
        async def deliver(self, message: Message) -> Outcome:
            self.seen.append(message)
            await gate.wait()
            return Delivered()

    spool, target = make_spool(schedule=AT_ONCE), Gated()
    for n in range(3):
        spool.accept(submission(key=str(n)))
    monkeypatch.setattr(spool, "begin_settle", failing)
    monkeypatch.setattr(spool, "release", failing)
    worker = Worker(spool, [], {TargetKind.SMTP: target}, WorkerOptions(per_destination=1))
    running = asyncio.create_task(worker.run())
    await until(lambda: len(target.seen) == 1)
    gate.set()
    async with asyncio.timeout(5):
        await worker.stop(0.5)
        await running
    assert len(target.seen) == 1
    assert spool.recover() == 3


async def test_who_is_woken_without_end_works_all_the_same(make_spool: MakeSpool) -> None:
    """Each message with a refused recipient wakes the worker: it must not only look, and look again."""
    spool, target = make_spool(), Recorder()
    for n in range(20):
        spool.accept(submission(key=str(n)))
    over = threading.Event()

    def wake() -> None:
        while not over.wait(0.0002):
            spool._tell()

    waking = threading.Thread(target=wake)
    waking.start()
    try:
        async with working(spool, [], target):
            await until(lambda: len(target.seen) == 20)
    finally:
        over.set()
        waking.join()


def test_a_lease_shorter_than_an_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="lease"):
        WorkerOptions(attempt_seconds=10, lease_seconds=10)


class Full:
    """A target that finds the database full when it answers."""

    def __init__(self, database: Database, expected: int) -> None:
        self.seen: list[str] = []
        self._database, self._expected = database, expected
        self.all_here = asyncio.Event()

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message.delivery_id)
        if len(self.seen) == self._expected:
            pages = "PRAGMA max_page_count={}"
            self._database.transact(lambda c: c.exec_driver_sql(pages.format(1)).scalar())  # no more than it has
            with pytest.raises((StoreUnavailableError, SQLAlchemyError)):
                self._database.transact(lambda c: c.exec_driver_sql("CREATE TABLE filling AS SELECT zeroblob(1000000)"))
            self.all_here.set()
        await self.all_here.wait()
        return Delivered("x" * 500)


async def test_what_was_delivered_while_the_database_was_full_is_not_delivered_again(
    make_spool: MakeSpool, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    spool, target = make_spool(), Full(database, 40)
    for number in range(40):
        spool.accept(submission(key=str(number)))
    async with working(spool, [], target, per_destination=40, pause_after_error_seconds=0.02):
        await asyncio.wait_for(target.all_here.wait(), 10)
        await until(lambda: "could not be settled" in caplog.text)
        await asyncio.to_thread(
            database.transact, lambda c: c.exec_driver_sql("PRAGMA max_page_count=1000000").scalar()
        )
        await until(ended(spool, 40))
    assert len(target.seen) == 40
