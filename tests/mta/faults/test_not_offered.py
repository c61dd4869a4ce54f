"""What the message needs and the other server does not offer: told at once, never sent as if it were offered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta.message import Delivered, Failed, Message
from tests.mta.test_targets import MESSAGE

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])

UTF8_HEADER = "From: a@labo.example\r\nSubject: résultat\r\nX-Number: 1\r\n\r\nbody\r\n".encode()
UTF8_BODY = "From: a@labo.example\r\nX-Number: 1\r\n\r\nrésultat\r\n".encode()


def message(content: bytes, *flags: str) -> Message:
    return replace(MESSAGE, content=content, flags=flags)


async def test_a_header_in_utf8_goes_where_it_is_taken_and_says_so(road: Road) -> None:
    road.server.features = (*road.server.features, "SMTPUTF8")
    assert isinstance(await road.target.deliver(message(UTF8_HEADER, "SMTPUTF8")), Delivered)
    (mail,) = (each for each in road.server.commands if each.startswith("MAIL"))
    assert mail.endswith(" SMTPUTF8")


async def test_a_header_in_utf8_does_not_go_elsewhere(road: Road) -> None:
    outcome = await road.target.deliver(message(UTF8_HEADER, "SMTPUTF8"))
    assert isinstance(outcome, Failed)
    assert (outcome.reason.refusal.code, outcome.reason.refusal.enhanced) == ("mta.smtputf8-unsupported", "5.6.7")
    assert not any(each.startswith("MAIL") for each in road.server.commands)


@pytest.mark.parametrize("content", [UTF8_BODY, b"From: a@labo.example\r\nX-Number: 1\r\n\r\nbody\r\n"])
async def test_what_does_not_need_it_does_not_ask_for_it(road: Road, content: bytes) -> None:
    """Its sender said SMTPUTF8 to us as it does for every message; this one travels everywhere."""
    assert isinstance(await road.target.deliver(message(content, "SMTPUTF8")), Delivered)
    assert not any("SMTPUTF8" in each for each in road.server.commands)


async def test_an_old_clients_header_travels_as_it_always_did(road: Road) -> None:
    assert isinstance(await road.target.deliver(message(UTF8_HEADER)), Delivered)


@pytest.mark.parametrize("ret", ["FULL", "hdrs", "FULL\r\nRSET", "FULL ENVID=x", "NONE"])
async def test_what_is_wished_for_is_a_wish(road: Road, ret: str) -> None:
    road.server.features = (*road.server.features, "DSN")
    wishing = replace(MESSAGE, content=UTF8_BODY, facts={"dsn.ret": ret})
    assert isinstance(await road.target.deliver(wishing), Delivered)
    (mail,) = (each for each in road.server.commands if each.startswith("MAIL"))
    assert (" RET=" in mail) == (ret in ("FULL", "hdrs"))
    assert mail.count("ENVID=") == 1
