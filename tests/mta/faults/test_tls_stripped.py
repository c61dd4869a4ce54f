"""Somebody in between takes STARTTLS away, or answers in its place: nothing is ever sent in the clear."""

from __future__ import annotations

import pytest

from .conftest import Road


async def test_starttls_is_not_offered(road: Road) -> None:
    road.server.answers["EHLO"] = "250-name\r\n250 PIPELINING"
    numbers = road.send(3)
    assert "not offered" in await road.deferral("mta.tls-unavailable")
    assert {command.split()[0] for command in road.server.commands} == {"EHLO"}
    road.server.answers.clear()
    await road.delivered(3)
    road.once(numbers)


@pytest.mark.parametrize("answer", ["454 4.7.0 not now", "502 5.5.1 what", "250 fine, go on in the clear"])
async def test_starttls_is_refused(road: Road, answer: str) -> None:
    road.server.answers["STARTTLS"] = answer
    road.send()
    await road.deferral("mta.tls-unavailable")
    assert {command.split()[0] for command in road.server.commands} <= {"EHLO", "STARTTLS"}


async def test_the_handshake_is_answered_in_the_clear(road: Road) -> None:
    """220, and then SMTP goes on as if there had been a handshake."""
    road.server.context = None
    road.server.answers["EHLO"] = "250-name\r\n250 STARTTLS"
    road.server.answers["STARTTLS"] = "220 go"
    road.send()
    outcome = await road.outcome()
    assert outcome.reason.refusal.code in ("mta.tls-unavailable", "mta.connection-lost")
    assert not any(command.startswith("MAIL") for command in road.server.commands)


async def test_what_was_announced_in_the_clear_is_forgotten(road: Road) -> None:
    """A middle man announces PIPELINING and SIZE 1; what counts is said under TLS."""
    clear = iter(["250-name\r\n250-SIZE 1\r\n250-LIMITS MAILMAX=1\r\n250 STARTTLS"])
    road.server.answers["EHLO"] = lambda _: next(clear, "250-name\r\n250 8BITMIME")
    numbers = road.send(3)
    assert await road.delivered(3) == []
    road.once(numbers)
    assert not any("SIZE=" in command for command in road.server.commands)
