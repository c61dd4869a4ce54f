"""Replies without an end: lines that go on, a megabyte in one line, an octet now and then."""

from __future__ import annotations

import tracemalloc

import pytest

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])

ENDLESS = b"250-and one more\r\n" * 200_000


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "MAIL", "final"])
async def test_a_multi_line_reply_that_never_ends(road: Road, verb: str) -> None:
    road.server.answers[verb] = ENDLESS
    numbers = road.send()
    tracemalloc.start()
    try:
        outcome = await road.outcome()
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
    assert outcome.reason.refusal.code in ("mta.connection-lost", "mta.unreachable")
    assert len(outcome.reason.detail) < 300
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "RCPT", "final"])
@pytest.mark.parametrize("end", [b"", b"\r\n"])
async def test_a_reply_line_of_a_megabyte(road: Road, verb: str, end: bytes) -> None:
    road.server.answers[verb] = b"250 " + b"x" * 1_000_000 + end
    numbers = road.send()
    outcome = await road.outcome()
    assert outcome.reason.refusal.code in ("mta.connection-lost", "mta.unreachable")
    assert len(outcome.reason.detail) < 300
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)


async def test_a_long_multi_line_reply_that_ends_is_a_reply(road: Road) -> None:
    road.server.answers["RCPT"] = b"250-2.1.5 yes\r\n" * 100 + b"250 2.1.5 yes\r\n"
    numbers = road.send(3)
    assert await road.delivered(3) == []
    road.once(numbers)
