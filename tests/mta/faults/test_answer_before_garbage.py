"""The answer to a message came whole, and nonsense behind it in the same breath: the answer counts, or the message
would be sent twice."""

from __future__ import annotations

import pytest

from mta.message import Delivered, Failed

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])

NONSENSE = [b"\x00\xff\xfe garbage\r\n", b"999 what\r\n", b"x" * 5000, b"250 2.0.0 and the next one too\r\n", b"\r\n"]


@pytest.mark.parametrize("more", NONSENSE)
async def test_a_250_before_nonsense_is_a_250(road: Road, more: bytes) -> None:
    road.server.answers["final"] = lambda number: (
        road.server.taken.update([number]),
        b"250 2.0.0 queued\r\n" + more,
    )[1]
    numbers = road.send()
    assert isinstance(await road.outcome(), Delivered)
    road.once(numbers)
    assert road.target.counts.unknown == 0


@pytest.mark.parametrize("more", NONSENSE)
async def test_a_refusal_before_nonsense_is_a_refusal(road: Road, more: bytes) -> None:
    road.server.answers["final"] = b"554 5.7.1 never\r\n" + more
    road.send()
    assert isinstance(await road.outcome(), Failed)
