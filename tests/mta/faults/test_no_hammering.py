"""A destination that fails is not tried again as fast as the machine can: not by the pool, not by the worker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mta.message import Deferred
from tests.mta.test_targets import MESSAGE

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


@pytest.mark.parametrize(
    "more", [b"250 and another one\r\n", b"220 hello\r\n", b"nonsense\r\n", b"421 4.3.2 closing\r\n", b"\x00" * 3000]
)
async def test_a_server_that_says_too_much_after_ehlo(road: Road, more: bytes) -> None:
    """The connection is over before a message could begin on it: that is a destination that fails, not one that waits
    for another connection at once."""
    clear = iter([b"250-name\r\n250 STARTTLS\r\n"] * 1000)
    secured = b"250-name\r\n250 8BITMIME\r\n" + more
    turn = iter([True, False] * 1000)
    road.server.answers["EHLO"] = lambda _: next(clear) if next(turn) else secured
    numbers = road.send(5)
    for _ in range(2):
        assert isinstance(await road.outcome(), Deferred)
    assert road.server.connections <= 3, "one for each attempt"
    road.server.answers.clear()
    await road.delivered(5)
    road.once(numbers)


async def test_a_judge_that_breaks_counts_as_an_attempt(road: Road) -> None:
    """Given back without an attempt it would be claimed again at once, for ever."""
    asked = 0

    def judge(_: object) -> str:
        nonlocal asked
        asked += 1
        raise OSError("its disk is gone")

    road.target._judge = judge
    numbers = road.send(3)
    words = [await road.outcome() for _ in range(3)]
    assert all(isinstance(each, Deferred) and each.reason.refusal.code == "mta.internal-error" for each in words), words
    assert asked <= 4
    road.target._judge = None
    await road.delivered(3)
    road.once(numbers)


async def test_a_message_whose_judgement_outlasts_every_connection_is_told(road: Road) -> None:
    """Each time the judge has spoken its connection is gone: the message goes elsewhere a few times, then it waits."""
    target = road.target

    async def slow(connection: Any) -> None:
        connection.abort()
        await asyncio.sleep(0)

    target._admit = lambda connection, domain, transaction: slow(connection)
    async with asyncio.timeout(5):
        outcome = await target.deliver(MESSAGE)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal.code == "mta.connection-lost"
    assert target.connections == 0


async def test_closing_opens_nothing(road: Road) -> None:
    """What stood innocently behind a message that is cut at the end would go elsewhere: there is no elsewhere."""
    hold = asyncio.Event()
    road.server.answers["final"] = lambda number: hold if number == "3" else "250 queued"
    road.send(12)
    await road.delivered(2)
    (old,) = road.target._pool._destinations.values()
    await road.target.close()
    await road.worker.stop(5)
    assert old.connections == 0
    assert not old._jobs
