"""The final reply comes after our patience, or never: nobody can know whether the message was taken. It is repeated,
counted, and told as what it is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta import refusals
from mta.message import MAYBE_TAKEN, Deferred, TargetKind
from mta.schedule import LONGEST_ASKED, RetrySchedule
from mta.smtp.pool import PoolOptions
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from mta.worker import Worker, WorkerOptions
from tests.mta.conftest import Clock, MakeSpool, submission
from tests.mta.test_worker import until
from tests.mta.trust_space import Listed, TrustSpace
from tests.support.fault_proxy import Fault, Harm
from trust.refusals import Refused

from .conftest import GATE, SHORT, Road, Watched


async def test_a_final_reply_after_our_patience(road: Road) -> None:
    late = asyncio.Event()
    road.server.answers["final"] = late
    (number,) = road.send()
    assert MAYBE_TAKEN in await road.deferral("mta.connection-lost")
    assert road.target.counts.unknown == 1
    del road.server.answers["final"]
    late.set()  # and its 250 reaches nobody
    await road.delivered()
    assert road.server.taken[number] in (1, 2)
    assert road.target.counts.unknown == 1, "repeated once"


@pytest.mark.parametrize("faults", [(Fault(Harm.SWALLOW),), (Fault(Harm.HALF_CLOSE),), (Fault(Harm.RESET),)])
async def test_a_final_reply_that_is_lost_on_the_way(road: Road) -> None:
    """The one case in which a message arrives twice: the 250 was said and never heard."""
    road.server.on_whole = road.proxy.strike
    (number,) = road.send()
    # the strike and the reply race each other but for swallowing, which drops whatever is later
    outcome = await road.outcome()
    road.server.on_whole = lambda: None
    if isinstance(outcome, Deferred):
        assert MAYBE_TAKEN in outcome.reason.detail
        await road.delivered()
        assert road.server.taken[number] == 2
        assert road.target.counts.unknown == 1
    else:
        road.once([number])


async def test_a_server_that_takes_every_copy_without_a_word_gets_few(
    road: Road, make_spool: MakeSpool, space: TrustSpace, listed: Listed
) -> None:
    """One repeat soon, and then ever less often: also when another node goes on with it, that knows nothing of the
    first two but what is in the database."""
    road.server.answers["final"] = asyncio.Event()
    road.spool._schedule = replace(road.spool._schedule, lifetime=5 * 86400.0)
    road.send()
    words = [await road.deferral("mta.connection-lost") for _ in range(2)]
    assert all(MAYBE_TAKEN in each for each in words)
    began = time.time()
    assert road.worker is not None
    await road.worker.stop(5)
    (spool_id,) = road.spool_ids()
    assert 3590 < road.spool.deliveries(spool_id)[0].due - began < 3610
    later = Later()
    spool = make_spool(node="n2", schedule=road.spool._schedule, clock=later)
    target = SmtpTarget(
        PartnerBook([Partner("op2.example", "127.0.0.1", road.proxy.port)]),
        lambda: listed,
        space.client("one"),
        SmtpTargetOptions("gate.op1.example", SHORT, PoolOptions(GATE)),
    )
    watched = road.watched = Watched(target)
    worker = Worker(spool, (), {TargetKind.SMTP: watched}, WorkerOptions(poll_seconds=0.05), later)
    running = asyncio.create_task(worker.run())
    assert spool.next_due() is not None
    for seconds, pause in ((3700.0, 14400.0), (3700.0 + 14500.0, 57600.0)):
        assert target.counts.unknown == (pause > 14400), "not before its time"
        later.seconds = seconds
        worker.wake()
        assert MAYBE_TAKEN in await road.deferral("mta.connection-lost")
        await until(lambda pause=pause: abs(spool.deliveries(spool_id)[0].due - later() - pause) < 30)
    await worker.stop(5)
    await running
    await target.close()
    assert sum(command.startswith("MAIL") for command in road.server.commands) == 4


class Later:
    """A clock that runs, some time ahead."""

    seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


def test_the_pause_a_target_asks_for_is_no_sign_of_a_clock_set_back(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock, schedule=RetrySchedule())
    spool.accept(submission())
    (lease,) = spool.claim(1, 60)
    unreachable = Deferred(Refused(refusals.CONNECTION_LOST, MAYBE_TAKEN), retry_after=10 * LONGEST_ASKED)
    assert spool.settle(lease, unreachable)
    clock.now += LONGEST_ASKED - 1
    assert spool.claim(1, 60) == []
    clock.now += 2
    (again,) = spool.claim(1, 60)
    assert (again.attempts, again.unanswered) == (1, 1)
    assert spool.settle(again, unreachable)
    clock.now -= 86400
    assert spool.claim(1, 60) == []
    (again,) = spool.claim(1, 60)
    assert again.unanswered == 2, "what a clock that was ahead wrote is due now"


async def test_what_stood_behind_it_is_surely_not_taken_and_goes_elsewhere(road: Road) -> None:
    hold = asyncio.Event()
    road.server.answers["final"] = lambda number: hold if number == "3" else "250 queued"
    numbers = road.send(12)
    deferred = await road.delivered(11)
    road.server.answers.clear()
    if not deferred:
        deferred = await road.delivered()
    assert [MAYBE_TAKEN in each.reason.detail for each in deferred] == [True]
    assert road.target.counts.unknown == 1
    assert all(road.server.taken[number] == 1 for number in numbers)
