"""The host answers with somebody else's certificate: nothing is said to it, whoever certified it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mta.trust_space import TrustSpace

from .conftest import LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


@pytest.mark.parametrize("name", ["rogue", "one"])
async def test_an_operator_that_is_not_this_domains(road: Road, space: TrustSpace, name: str) -> None:
    right, road.server.context = road.server.context, space.server(name)
    numbers = road.send(2)
    await road.deferral("mta.peer-not-operator")
    assert not any(command.startswith("MAIL") for command in road.server.commands)
    road.server.context = right
    await road.target.close()
    while not all(road.server.taken[number] for number in numbers):
        await road.outcome()
    road.once(numbers)


async def test_the_same_name_certified_by_somebody_else(road: Road, space: TrustSpace, tmp_path: Path) -> None:
    foreign = TrustSpace(tmp_path, type(space.authority).create("Ailleurs"))
    foreign.operator("two")
    right, road.server.context = road.server.context, foreign.server("two")
    numbers = road.send(5)
    await road.deferral("mta.tls-unavailable")
    assert {command.split()[0] for command in road.server.commands} == {"EHLO", "STARTTLS"}
    road.server.context = right
    deferred = await road.delivered(5)
    assert len(deferred) <= 2
    road.once(numbers)


async def test_no_certificate_that_chains_to_anything(road: Road, space: TrustSpace) -> None:
    road.server.context = space.service()
    road.send()
    outcome = await road.outcome()
    assert outcome.reason.refusal.code in ("mta.peer-not-operator", "mta.tls-unavailable")
    assert not road.server.taken
