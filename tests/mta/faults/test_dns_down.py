"""The DNS does not say where mail goes: it waits, and goes out when the DNS is back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.dns import DnsOptions, Resolver
from mta.smtp.pool import PoolOptions
from mta.smtp.routes import Router
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from tests.mta.trust_space import Listed, TrustSpace
from tests.support.dns_server import DnsServer, Fault, dns_server

from .conftest import GATE, SHORT, Road


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.ttl = 1
        yield server


@pytest.fixture
async def routed(road: Road, dns: DnsServer, space: TrustSpace, listed: Listed) -> AsyncIterator[Road]:
    """The same road, whose partner has no host of its own: MX records lead to it."""
    dns.add("op2.example", "MX", "10 dead.op2.example.", "20 mx.op2.example.")
    dns.add("dead.op2.example", "A", "127.0.0.2")  # nobody listens there on that port
    dns.add("mx.op2.example", "A", "127.0.0.1")
    resolver = Resolver(DnsOptions((dns.address,), seconds=0.5, try_seconds=0.2, failure_ttl=0))
    router = Router(resolver, internal_hosts=frozenset({"mx.op2.example", "dead.op2.example"}), port=road.proxy.port)
    options = SmtpTargetOptions("gate.op1.example", SHORT, PoolOptions(GATE))
    road.target = road.watched.target = SmtpTarget(
        PartnerBook([Partner("op2.example")]), lambda: listed, space.client("one"), options, router=router
    )
    yield road
    await road.target.close()
    await resolver.close()


async def test_mail_goes_to_the_next_exchange_when_the_first_is_dead(routed: Road) -> None:
    numbers = routed.send(5)
    assert await routed.delivered(5) == []
    routed.once(numbers)


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.SERVFAIL, Fault.GARBAGE])
@pytest.mark.parametrize("name", ["op2.example", "mx.op2.example"])
async def test_mail_waits_until_the_dns_is_back(routed: Road, dns: DnsServer, fault: Fault, name: str) -> None:
    dns.faults[name] = fault
    dns.faults["dead.op2.example"] = fault
    numbers = routed.send(2)
    await routed.deferral("mta.dns-unavailable")
    assert routed.server.connections == 0
    dns.faults.clear()
    await routed.delivered(2)
    routed.once(numbers)


async def test_a_domain_outside_the_trust_list_is_not_even_asked_for(routed: Road, dns: DnsServer) -> None:
    routed.send(recipient="a@elsewhere.example")
    await routed.deferral("mta.peer-not-operator")
    assert not dns.asked
