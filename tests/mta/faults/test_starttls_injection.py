"""Octets in the clear behind the 220 of STARTTLS, put there by anybody, are never taken for the server's (D33)."""

from __future__ import annotations

import pytest

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


@pytest.mark.parametrize(
    "behind",
    [
        b"250-name\r\n250 PIPELINING\r\n",
        b"250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 queued\r\n",
        b"half a li",
        b"220 again\r\n",
        b"\r\n",
        b"\x16\x03",
    ],
)
async def test_nothing_behind_the_220_is_believed(road: Road, behind: bytes) -> None:
    road.server.answers["STARTTLS"] = b"220 go\r\n" + behind
    numbers = road.send()
    await road.deferral("mta.connection-lost")
    assert not road.server.taken
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)


async def test_replies_before_any_question_end_the_connection(road: Road) -> None:
    road.server.answers["greeting"] = b"220 ready\r\n250-name\r\n250 STARTTLS\r\n220 go\r\n"
    road.send()
    outcome = await road.outcome()
    assert outcome.reason.refusal.code in ("mta.connection-lost", "mta.unreachable")
    assert not road.server.taken
