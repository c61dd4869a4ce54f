"""A server and a network that do one thing wrong after another, by chance: nothing is lost, nothing is taken for
delivered that was not taken, and there are never more second copies than were counted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from mta.message import Deferred, Delivered, Failed
from mta.smtp.gate import GateOptions
from mta.smtp.pool import PoolOptions
from tests.support.fault_proxy import Fault, Harm
from tests.support.mail_server import Answer

from .conftest import Road

USUAL = {"greeting": "220 ready", "STARTTLS": "220 go", "DATA": "354 go"}
PLACES = 3
PATIENCE = 30.0


def by_chance(verb: str, chance: random.Random) -> Callable[[str], Answer]:
    usual = USUAL.get(verb, "250 2.0.0 fine")
    wrong: list[Answer] = [None, "421 4.3.2 bye", "451 4.3.0 later", b"junk\r\n", f"{usual}\r\n250 more"]
    if verb != "final":  # which a server that says such a thing has not taken, or nobody could say what is right
        wrong += [b"250-x\r\n", b""]
    return lambda _: usual if chance.random() < 0.85 else chance.choice(wrong)


async def told(road: Road) -> bool:
    """Whether one more was delivered."""
    outcome = await road.outcome()
    assert not isinstance(outcome, Failed), outcome
    assert not isinstance(outcome, Deferred) or outcome.reason.refusal.code != "mta.internal-error", outcome
    return isinstance(outcome, Delivered)


async def story(road: Road, seed: int, messages: int) -> None:
    chance = random.Random(seed)
    if seed % 3 == 0:
        road.server.features = ("8BITMIME",)
    pool = road.target._pool
    road.target._options = replace(road.target._options, unanswered_pauses=(0.0,))  # an hour is too long
    gate = GateOptions(first_rest_seconds=0.02, longest_rest_seconds=0.05)
    pool.options = PoolOptions(gate, PLACES, idle_seconds=0.03, grow_seconds=0.01, rescue_seconds=0.05)
    pool._places = PLACES
    for verb in ("greeting", "STARTTLS", "MAIL", "RCPT", "DATA", "final"):
        road.server.answers[verb] = by_chance(verb, chance)
    harms = [Fault(chance.choice(list(Harm)), up=chance.randrange(1, 30_000)) for _ in range(messages // 2)]
    road.proxy.faults.extend(fault for harm in harms for fault in (harm, Fault()))
    numbers = [road.send(size=chance.choice([100, 100, 3000, 200_000]))[0] for _ in range(messages)]
    delivered = 0
    async with asyncio.timeout(PATIENCE):
        while delivered < messages // 2:
            delivered += await told(road)
        road.server.answers.clear()
        road.proxy.faults.clear()
        while delivered < messages:
            delivered += await told(road)
    assert set(numbers) <= set(road.server.taken)
    copies = sum(times - 1 for number, times in road.server.taken.items() if number)
    assert copies <= road.target.counts.unknown
    await road.target.close()
    assert pool.connections == 0


async def test_a_short_story(road: Road) -> None:
    await story(road, 23, 16)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(12))
async def test_many_stories(road: Road, seed: int) -> None:
    await story(road, seed, 40)
