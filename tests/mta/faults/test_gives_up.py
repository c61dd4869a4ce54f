"""Whoever hands a message over does not wait any longer (the attempt's time is over, the process ends): nobody else's
message suffers, nothing is left behind, and what was sent whole is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mta.message import MAYBE_TAKEN, Deferred, Delivered, Message, Outcome
from mta.smtp.client import SmtpConnection, Timeouts, Transaction
from mta.smtp.pool import Job, PoolOptions
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from tests.mta.test_targets import MESSAGE

from .conftest import BOUND, GATE, Road

PATIENT = Timeouts(connect=5, greeting=5, tls=5, command=5, block=5, final=5)


@pytest.fixture
async def target(road: Road) -> SmtpTarget:
    """Beside the worker's own: told what to do directly."""
    made = road.target
    made._pool.options = PoolOptions(replace(GATE, connections=1, first_connections=1), rescue_seconds=60)
    made._options = SmtpTargetOptions("gate.op1.example", PATIENT, made._pool.options)
    return made


def numbered(number: str) -> Message:
    content = f"From: a@labo.example\r\nX-Number: {number}\r\n\r\nbody\r\n".encode()
    return replace(MESSAGE, content=content, delivery_id=number)


async def given_up(task: asyncio.Task[object]) -> object:
    """The outcome, if there is one all the same."""
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return None


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "final"])
async def test_at_each_step_nothing_is_left_behind(road: Road, target: SmtpTarget, step: str) -> None:
    reached = asyncio.Event()
    hold = asyncio.Event()
    road.server.answers[step] = lambda _: (reached.set(), hold)[1]
    task = asyncio.create_task(target.deliver(numbered("1")))
    await asyncio.wait_for(reached.wait(), BOUND)
    outcome = await given_up(task)
    assert target.counts.unknown == (step == "final"), "what was sent whole may have been taken"
    assert isinstance(outcome, Deferred) == (step == "final"), "and whoever gave it up must write that down"
    road.server.answers.clear()
    hold.set()
    assert isinstance(await target.deliver(numbered("2")), Delivered)
    assert road.server.taken["2"] == 1
    await target.close()
    await asyncio.sleep(0)
    assert target.connections == 0, "no place in the pool is lost"


@pytest.mark.parametrize(("before", "pause"), [(0, 0), (1, 3600), (2, 14400), (3, 57600), (9, 57600)])
async def test_what_was_sent_whole_is_repeated_ever_less_often(
    road: Road, target: SmtpTarget, before: int, pause: float
) -> None:
    road.server.answers["final"] = asyncio.Event()
    task = asyncio.create_task(target.deliver(replace(numbered("1"), unanswered=before)))
    await asyncio.wait_for(road.server.whole.wait(), BOUND)
    outcome = await given_up(task)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.detail.endswith(MAYBE_TAKEN)
    assert outcome.retry_after == pause


async def test_being_stopped_in_the_middle_of_an_answer_is_kept(road: Road) -> None:
    """Given back as if nothing had been sent, a copy would follow at the next start, and one at each."""
    road.target._options = replace(road.target._options, timeouts=PATIENT)
    road.server.answers["final"] = asyncio.Event()
    road.send()
    await asyncio.wait_for(road.server.whole.wait(), BOUND)
    assert road.worker is not None
    await road.worker.stop(0.01)
    (spool_id,) = road.spool_ids()
    last = road.spool.steps(spool_id)[-1]
    assert (last.kind, last.code) == ("deferred", "mta.connection-lost")
    assert last.detail.endswith(MAYBE_TAKEN)


@pytest.mark.parametrize("who", ["first", "second"])
async def test_the_other_message_on_the_connection_arrives_once(
    road: Road, target: SmtpTarget, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """Two on one connection, the second behind the first, whose answer is still to come; one of them is given up."""
    hold = asyncio.Event()
    road.server.answers["final"] = lambda number: hold if number == "1" else "250 queued"
    assert isinstance(await target.deliver(numbered("0")), Delivered)
    behind = asyncio.Event()
    begin = SmtpConnection.begin

    def watched(connection: SmtpConnection, transaction: Transaction, token: object) -> None:
        begin(connection, transaction, token)
        if b"X-Number: 2" in transaction.content:
            behind.set()

    monkeypatch.setattr(SmtpConnection, "begin", watched)
    first = asyncio.create_task(target.deliver(numbered("1")))
    second = asyncio.create_task(target.deliver(numbered("2")))
    await asyncio.wait_for(behind.wait(), BOUND)
    assert target.connections == 1
    await given_up(first if who == "first" else second)
    hold.set()
    left = second if who == "first" else first
    assert isinstance(await asyncio.wait_for(left, BOUND), Delivered)
    assert road.server.taken["2" if who == "first" else "1"] == 1, "not a second time"
    assert target.counts.unknown == (who == "first")


async def test_an_answer_in_the_very_moment_of_giving_up_counts(road: Road, target: SmtpTarget) -> None:
    """Cancelled after the 250 was read and before anybody heard of it: unheard, the message would be sent again."""
    tasks: list[asyncio.Task[object]] = []
    end = Job.end

    class Hasty(Job):
        def end(self, outcome: Outcome) -> None:
            end(self, outcome)
            tasks[0].cancel()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mta.smtp.target.Job", Hasty)
        tasks.append(asyncio.create_task(target.deliver(numbered("1"))))
        assert isinstance(await tasks[0], Delivered)
    assert road.server.taken["1"] == 1


async def test_one_message_that_cannot_be_looked_at_is_one_messages_trouble(road: Road, target: SmtpTarget) -> None:
    admit = target._admit

    def broken(connection: SmtpConnection, domain: str, transaction: Transaction) -> object:
        if b"X-Number: 1" in transaction.content:
            raise RuntimeError("a bug")
        return admit(connection, domain, transaction)

    target._admit = broken
    outcomes = await asyncio.gather(*(target.deliver(numbered(number)) for number in "0123"))
    assert [type(each) for each in outcomes] == [Delivered, Deferred, Delivered, Delivered]
    assert target.connections <= 1
