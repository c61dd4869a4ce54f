"""The destination is not there, or takes nobody: one message probes, the others wait and lose no attempt."""

from __future__ import annotations

import asyncio

import pytest

from mta.message import DeliveryState
from mta.smtp.gate import GateOptions
from mta.smtp.pool import PoolOptions
from tests.support.fault_proxy import Fault, Harm

from .conftest import BOUND, LONG, Road

pytestmark = pytest.mark.parametrize("timeouts", [LONG], ids=["long"])


async def test_nobody_listens_and_then_somebody_does(road: Road) -> None:
    port, road.proxy.target = road.proxy.target, 9  # the proxy hangs up at once: nothing listens behind it
    numbers = road.send(30)
    for _ in range(3):
        await road.deferral("mta.unreachable")
    tried = [each for spool_id in road.spool_ids() for each in road.spool.deliveries(spool_id) if each.attempts]
    assert len(tried) <= 3 + 1, "each rest is ended by one probe"
    road.proxy.target = port
    deferred = await road.delivered(30)
    assert len(deferred) <= 2
    road.once(numbers)


@pytest.mark.parametrize("answer", ["554 5.3.2 go away", "421 4.3.2 not now", None, b"SSH-2.0-nonsense\r\n", b"\r\n"])
@pytest.mark.parametrize("verb", ["greeting", "EHLO"])
async def test_a_server_that_serves_nobody(road: Road, verb: str, answer: str | bytes | None) -> None:
    road.server.answers[verb] = answer
    numbers = road.send(8)
    outcome = await road.outcome()
    assert outcome.reason.refusal.code in ("mta.unreachable", "mta.remote-deferred", "mta.connection-lost")
    del road.server.answers[verb]
    deferred = await road.delivered(8)
    assert len(deferred) <= 2, "seven of eight were never tried against it"
    road.once(numbers)


async def test_an_operator_who_knows_better_ends_the_rest(road: Road) -> None:
    rests = GateOptions(first_rest_seconds=3600, longest_rest_seconds=3600)
    road.target._pool.options = PoolOptions(rests)
    port, road.proxy.target = road.proxy.target, 9
    numbers = road.send(3)
    await road.deferral("mta.unreachable")
    assert road.target.resting() == {"smtp:op2.example"}
    road.proxy.target = port
    assert road.worker is not None
    road.target.try_now()
    assert road.target.places("smtp:op2.example") == 1, "one probes"
    road.worker.wake()
    await road.delivered(3)
    road.once(numbers)
    assert road.target.places("smtp:op2.example") is None


async def test_a_destination_that_rests_stops_no_other(road: Road) -> None:
    """Messages to a domain nobody can reach, and one behind them to a domain that is there."""
    road.send(40, recipient="a@nowhere.example")
    numbers = road.send()
    async with asyncio.timeout(BOUND):
        while not road.server.taken:  # deferrals of the others come and go
            await road.outcome()
    road.once(numbers)


async def test_what_waits_for_a_destination_that_never_comes_back_ends_in_time(road: Road) -> None:
    """Also what nobody tried: the sender must learn of it."""
    road.proxy.target = 9
    road.send(20)
    await road.deferral("mta.unreachable")
    road.expire_at_once()
    async with asyncio.timeout(BOUND):
        while road.spool.counts()[DeliveryState.READY]:
            await road.ended.wait()
            road.ended.clear()
    codes = {each.code for spool_id in road.spool_ids() for each in road.spool.deliveries(spool_id)}
    assert codes == {"mta.expired"}
    assert not road.server.taken


async def test_one_refused_recipient_burdens_nobody(road: Road) -> None:
    road.server.answers["RCPT"] = lambda line: "550 5.1.1 unknown" if "nobody" in line else "250 fine"
    road.send(10, recipient="nobody@op2.example")
    numbers = road.send(10)
    kinds = [type(await road.outcome()).__name__ for _ in range(20)]
    assert sorted(kinds) == ["Delivered"] * 10 + ["Failed"] * 10
    del road.server.taken[""]  # RFC 2920: nothing was sent to nobody
    road.once(numbers)
    assert road.server.connections <= 3, "a refusal ends no connection"


@pytest.mark.parametrize("faults", [(Fault(Harm.RESET, up=1), Fault(Harm.RESET, down=1), Fault(Harm.CLOSE, up=1500))])
async def test_connections_reset_at_every_stage_of_the_beginning(road: Road) -> None:
    numbers = road.send(4)
    deferred = await road.delivered(4)
    assert 1 <= len(deferred) <= 3
    road.once(numbers)
