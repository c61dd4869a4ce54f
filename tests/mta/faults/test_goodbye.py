"""A connection that is not needed any more is ended as RFC 5321 §4.1.1.10 demands: with QUIT, never without a word."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mta.smtp.pool import PoolOptions

from .conftest import BOUND, GATE, LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


@pytest.mark.parametrize("why", ["idle", "MAILMAX", "crowd"])
async def test_quit_before_closing(road: Road, why: str) -> None:
    options = PoolOptions(GATE, idle_seconds=0.05 if why == "idle" else 60)
    if why == "crowd":
        options = replace(options, idle_per_destination=0)
    road.target._pool.options = options
    if why == "MAILMAX":
        road.server.features = (*road.server.features, "LIMITS MAILMAX=1")
    numbers = road.send()
    await road.delivered()
    async with asyncio.timeout(BOUND):
        await asyncio.gather(*road.server._tasks)  # one for each connection that is open
    road.once(numbers)
    assert road.server.commands[-1] == "QUIT"
    assert road.target.connections == 0
    assert road.target.counts.broken == 0
