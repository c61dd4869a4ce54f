"""The destination takes the connection and says nothing more: every wait ends, and the message is tried again."""

from __future__ import annotations

import asyncio
import time

import pytest

from .conftest import LONG, SHORT, Road


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ("greeting", "mta.unreachable"),
        ("EHLO", "mta.connection-lost"),
        ("STARTTLS", "mta.connection-lost"),
        ("MAIL", "mta.connection-lost"),
        ("RCPT", "mta.connection-lost"),
        ("DATA", "mta.connection-lost"),
    ],
)
async def test_silence_at_each_step_is_waited_for_so_long_and_no_longer(road: Road, step: str, code: str) -> None:
    road.server.answers[step] = asyncio.Event()
    began = time.monotonic()
    numbers = road.send()
    assert "timeout" in await road.deferral(code)
    assert time.monotonic() - began < SHORT.connect + SHORT.command + 2
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)
    assert road.target.counts.unknown == 0


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA"])
async def test_a_server_without_pipelining_that_hangs(road: Road, step: str) -> None:
    road.server.features = ("8BITMIME",)
    road.server.answers[step] = asyncio.Event()
    numbers = road.send()
    assert f"{step}: timeout" in await road.deferral("mta.connection-lost")
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)


@pytest.mark.parametrize("timeouts", [LONG], ids=["long"])
async def test_one_message_the_server_chews_on_slows_no_other(road: Road) -> None:
    """The server answers every message at once but one; what stood behind that one goes elsewhere."""
    slow = asyncio.Event()
    road.server.answers["final"] = lambda number: slow if number == "10" else "250 queued"
    numbers = road.send(60)
    await road.delivered(59)
    assert road.server.taken["10"] == 0
    slow.set()
    await road.delivered()
    road.once(numbers)
    assert road.target.counts.unknown == 0
