"""The server says what is not so: takes what was not sent, takes and hangs up, answers what nobody asked."""

from __future__ import annotations

import pytest

from mta.message import MAYBE_TAKEN, Deferred, Delivered
from tests.support.fault_proxy import Fault, Harm

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


async def test_a_250_followed_by_hanging_up_counts(road: Road) -> None:
    numbers = road.send(6)
    lines = road.server.answers
    lines["final"] = lambda number: (road.server.taken.update([number]), b"250 2.0.0 queued\r\n")[1]
    lines["MAIL"] = lambda _: None if road.server.taken else "250 fine"
    for _ in range(6):
        outcome = await road.outcome()
        if isinstance(outcome, Delivered):
            break
    lines.pop("MAIL")
    deferred = await road.delivered(5)
    assert not any(MAYBE_TAKEN in each.reason.detail for each in deferred)
    road.once(numbers)


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("MAIL", b"354 go on\r\n"),
        ("RCPT", b"354 go on\r\n"),
        ("DATA", b"250 taken already\r\n"),
        ("DATA", b"354 go\r\n250 2.0.0 taken before you said anything\r\n"),
        ("MAIL", b"250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n"),
        ("final", b"354 more\r\n"),
        ("final", b"999 what\r\n"),
        ("final", b"250-a\r\n550 b\r\n"),
    ],
)
async def test_a_reply_that_fits_nothing_delivers_nothing(road: Road, verb: str, said: bytes) -> None:
    road.server.answers[verb] = said
    numbers = road.send()
    outcome = await road.outcome()
    assert isinstance(outcome, Deferred), "believed"
    assert outcome.reason.refusal.code == "mta.connection-lost"
    road.server.answers.clear()
    await road.delivered()
    road.once(numbers)


async def test_two_replies_to_one_message_do_not_answer_for_the_next(road: Road) -> None:
    """A second 250 would be taken for the next message's: the connection ends, and the next is sent elsewhere."""
    road.server.answers["final"] = lambda number: (
        road.server.taken.update([number]),
        b"250 2.0.0 queued\r\n250 2.0.0 and the next one too\r\n",
    )[1]
    numbers = road.send(5)
    for _ in range(40):
        await road.outcome()
        if len(road.server.taken) == 5:
            break
    heard = set(road.server.taken)
    assert heard == set(numbers), "none was taken for delivered that the server had not seen"


@pytest.mark.parametrize("faults", [(Fault(Harm.GARBAGE, up=5000),)])
async def test_garbage_in_a_tls_stream(road: Road) -> None:
    numbers = road.send(3, size=20_000)
    await road.delivered(3)
    assert set(road.server.taken) == set(numbers)
