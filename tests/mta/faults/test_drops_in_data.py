"""The connection ends in the middle of a message's content: the server cannot have taken it, it is sent again."""

from __future__ import annotations

import pytest

from tests.support.fault_proxy import Fault, Harm

from .conftest import Road


@pytest.mark.parametrize(
    "faults",
    [(Fault(harm, up=100_000),) for harm in (Harm.CLOSE, Harm.RESET, Harm.GARBAGE)],
    ids=lambda faults: faults[0].harm.name,
)
async def test_a_message_cut_in_its_content_is_sent_again(road: Road) -> None:
    numbers = road.send(size=12_000_000)  # more than the buffers on the way hold: its end was not sent yet
    assert "taken" not in await road.deferral("mta.connection-lost")
    await road.delivered()
    road.once(numbers)
    assert road.target.counts.unknown == 0


@pytest.mark.parametrize(
    "faults", [(Fault(Harm.HANG, up=100_000),), (Fault(Harm.SWALLOW, up=100_000, slow_reader=True),)]
)
async def test_a_server_that_takes_no_more_of_a_message_is_left(road: Road) -> None:
    numbers = road.send(size=8_000_000)
    assert "timeout" in await road.deferral("mta.connection-lost")
    await road.delivered()
    road.once(numbers)


@pytest.mark.parametrize("faults", [(Fault(Harm.CLOSE, up=250_000),)])
async def test_what_stood_behind_a_message_that_was_cut_loses_no_attempt(road: Road) -> None:
    """Small messages around one that is cut: all arrive once, and only the connection's own message was deferred."""
    numbers = road.send(5) + road.send(size=400_000) + road.send(5)
    deferred = await road.delivered(11)
    road.once(numbers)
    assert len(deferred) <= 1
