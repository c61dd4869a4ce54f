"""The final reply comes after our patience, or never: nobody can know whether the message was taken. It is repeated,
counted, and told as what it is."""

from __future__ import annotations

import asyncio

import pytest

from mta.message import Deferred
from mta.smtp.pool import MAYBE_TAKEN
from tests.support.fault_proxy import Fault, Harm

from .conftest import Road


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


async def test_a_server_that_takes_every_copy_without_a_word_gets_few(road: Road) -> None:
    road.server.answers["final"] = asyncio.Event()
    road.send()
    words = [await road.deferral("mta.connection-lost") for _ in range(5)]
    assert all(MAYBE_TAKEN in each for each in words)
    assert road.target.counts.unknown == 2, "one repeat soon, and then ever less often"
    assert sum(command.startswith("MAIL") for command in road.server.commands) == 2


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
