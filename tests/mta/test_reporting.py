"""The reporter over a real spool: everybody told once, failures tried again, nobody in another's way."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mta.delivery import EndedDelivery, NewDelivery
from mta.message import Delivered, TargetKind
from mta.refusals import ADDRESS_INVALID
from mta.reporting import EndConsumer, Reporter, ReporterOptions
from mta.spool import Spool
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError

from .conftest import MakeSpool, submission

FAST = ReporterOptions(
    batch=4, poll_seconds=0.2, consumer_seconds=0.2, first_pause_seconds=0.01, longest_pause_seconds=0.05
)


class Recorder:
    """Takes note of what it is told; `script` answers first."""

    def __init__(self, *script: Exception) -> None:
        self.script = list(script)
        self.told: list[EndedDelivery] = []

    async def ended(self, delivery: EndedDelivery) -> None:
        self.told.append(delivery)
        if self.script:
            raise self.script.pop(0)


@asynccontextmanager
async def reporting(spool: Spool, *consumers: EndConsumer, options: ReporterOptions = FAST) -> AsyncIterator[Reporter]:
    reporter = Reporter(spool, consumers, options)
    running = asyncio.create_task(reporter.run())
    try:
        yield reporter
    finally:
        await reporter.stop()
        await running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - consumers tell nobody
            await asyncio.sleep(0.005)


def deliver(spool: Spool) -> int:
    """Let every due delivery end well."""
    leases = spool.claim(100, 60)
    for lease in leases:
        assert spool.settle(lease, Delivered("250 ok"))
    return len(leases)


def recipients(told: Sequence[EndedDelivery]) -> list[str]:
    return [delivery.recipient for delivery in told]


async def test_every_end_is_told_once_to_everybody(make_spool: MakeSpool) -> None:
    spool, one, two = make_spool(), Recorder(), Recorder()
    spool.accept(submission("a@op2.example", "b@op2.example"))
    assert deliver(spool) == 2
    async with reporting(spool, one, two, options=ReporterOptions(poll_seconds=60)):
        await until(lambda: not spool.ended(10))
        spool.accept(submission("c@op2.example", key="2"))
        await until(lambda: deliver(spool))
        await until(lambda: len(two.told) == 3 and not spool.ended(10))
    expected = ["a@op2.example", "b@op2.example", "c@op2.example"]
    assert sorted(recipients(one.told)) == sorted(recipients(two.told)) == expected


async def test_who_was_refused_at_acceptance_is_told_too(make_spool: MakeSpool) -> None:
    spool, recorder = make_spool(), Recorder()
    refused = NewDelivery("279035121518989", TargetKind.SMTP, Refused(ADDRESS_INVALID))
    async with reporting(spool, recorder, options=ReporterOptions(poll_seconds=60)):
        for n in range(2):
            wanted = submission("b@op2.example", key=str(n))
            await asyncio.to_thread(spool.accept, replace(wanted, deliveries=(*wanted.deliveries, refused)))
            await until(lambda n=n: len(recorder.told) == n + 1)
    assert {(each.recipient, each.delivered, each.code) for each in recorder.told} == {
        ("279035121518989", False, "mta.address-invalid")
    }


async def test_one_that_fails_does_not_stop_the_others(make_spool: MakeSpool, caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Recorder):
        broken = True

        async def ended(self, delivery: EndedDelivery) -> None:
            await super().ended(delivery)
            if self.broken and delivery.recipient.startswith("bad"):
                raise ValueError("DURAND")

    spool, picky, other = make_spool(), Picky(), Recorder()
    for n in range(20):
        spool.accept(submission(f"bad{n}@op2.example", key=f"b{n}"))
    for n in range(20):
        spool.accept(submission(f"good{n}@op2.example", key=f"g{n}"))
    deliver(spool)
    with caplog.at_level(logging.DEBUG):
        async with reporting(spool, picky, other):
            await until(lambda: len(spool.ended(100)) == 20)
            assert all(name.startswith("bad") for name in recipients(spool.ended(100)))
            await until(lambda: max(Counter(recipients(picky.told)).values()) >= 3)
            picky.broken = False
            await until(lambda: not spool.ended(100))
    assert "DURAND" not in caplog.text
    assert len(set(recipients(other.told))) == 40, "the second consumer hears what the first could not take"
    assert max(count for name, count in Counter(recipients(picky.told)).items() if name.startswith("good")) == 1


async def test_a_consumer_that_hangs_is_cut(make_spool: MakeSpool) -> None:
    class Hanging(Recorder):
        async def ended(self, delivery: EndedDelivery) -> None:
            await super().ended(delivery)
            if len(self.told) == 1:
                await asyncio.Event().wait()

    spool, hanging = make_spool(), Hanging()
    spool.accept(submission())
    deliver(spool)
    async with reporting(spool, hanging):
        await until(lambda: not spool.ended(10))
    assert len(hanging.told) == 2


async def test_a_store_that_breaks_for_a_while(make_spool: MakeSpool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, recorder = make_spool(), Recorder()
    spool.accept(submission())
    deliver(spool)
    failures = {"ended": [StoreUnavailableError("full")], "reported": [StoreUnavailableError("full")] * 2}
    for name, queue in failures.items():
        real = getattr(spool, name)

        def failing(argument: object, real: Callable[..., object] = real, queue: list[Exception] = queue) -> object:
            if queue:
                raise queue.pop()
            return real(argument)

        monkeypatch.setattr(spool, name, failing)
    async with reporting(spool, recorder):
        await until(lambda: len(recorder.told) == 3 and not spool.ended(10))


async def test_stop_lets_the_batch_under_way_end(make_spool: MakeSpool) -> None:
    gate = asyncio.Event()

    class Gated(Recorder):
        async def ended(self, delivery: EndedDelivery) -> None:
            await super().ended(delivery)
            await gate.wait()

    spool, gated = make_spool(), Gated()
    for n in range(6):
        spool.accept(submission(key=str(n)))
    deliver(spool)
    reporter = Reporter(spool, [gated], ReporterOptions(batch=2))
    running = asyncio.create_task(reporter.run())
    await until(lambda: len(gated.told) == 2)
    stopping = asyncio.create_task(reporter.stop())
    await asyncio.sleep(0)
    gate.set()
    await stopping
    await running
    assert len(spool.ended(10)) == 4


async def test_stop_before_start(make_spool: MakeSpool) -> None:
    reporter = Reporter(make_spool(), [])
    await reporter.stop()
    await reporter.run()
