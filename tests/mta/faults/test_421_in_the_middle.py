"""421 wherever it may come: the server closes, and no message suffers for another one's connection."""

from __future__ import annotations

import itertools

import pytest

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "final"])
@pytest.mark.parametrize("pipelining", [True, False])
async def test_421_once_at_each_step(road: Road, verb: str, pipelining: bool) -> None:
    if not pipelining:
        road.server.features = ("8BITMIME",)
    times = itertools.count()
    road.server.answers[verb] = lambda _: "421 4.3.2 shutting down" if next(times) == 4 else _usual(verb)
    numbers = road.send(20)
    deferred = await road.delivered(20)
    assert len(deferred) <= 1
    if verb != "final":
        assert not deferred, "a connection that had served: the message goes over another one"
    road.once(numbers)
    assert road.target.counts.unknown == 0


async def test_421_to_every_further_connection_is_a_limit_that_is_kept(road: Road) -> None:
    """A server that takes one connection at a time: everything goes over that one, and nothing is deferred."""
    road.server.answers["greeting"] = lambda _: "421 4.7.0 too many connections" if road.server.open > 1 else "220 go"
    numbers = road.send(60)
    assert await road.delivered(60) == []
    road.once(numbers)


async def test_421_to_everything_is_a_destination_that_rests(road: Road) -> None:
    road.server.answers["MAIL"] = "421 4.3.2 maintenance"
    numbers = road.send(10)
    for _ in range(3):
        await road.deferral("mta.connection-lost")
    del road.server.answers["MAIL"]
    await road.delivered(10)
    road.once(numbers)


def _usual(verb: str) -> str:
    return "354 go" if verb == "DATA" else "250 fine"
