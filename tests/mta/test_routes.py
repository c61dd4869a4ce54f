"""Routes out of the DNS, asked of a DNS server of our own: preference, null MX, our own names, and every way in which
records try to lead where mail must not go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mta.dns import DnsOptions, Resolver
from mta.smtp.routes import MAX_ADDRESSES, MAX_HOSTS, Route, Router
from tests.support.dns_server import DnsServer, Fault, dns_server
from trust.refusals import Refused

PUBLIC, PUBLIC6 = "192.88.98.1", "2a01:db8::1"
DOMAIN = "op2.example"


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.add("mx1.op2.example", "A", PUBLIC)
        server.add("mx2.op2.example", "A", "192.88.98.2")
        yield server


async def routed(dns: DnsServer, **options: object) -> Route | Refused:
    resolver = Resolver(DnsOptions((dns.address,), seconds=1.0, try_seconds=0.3))
    try:
        return await Router(resolver, **options).route(DOMAIN)  # type: ignore[arg-type]
    finally:
        await resolver.close()


def refused(route: Route | Refused) -> str:
    assert isinstance(route, Refused), route
    return route.refusal.code


def names(route: Route | Refused) -> list[str]:
    assert isinstance(route, Route), route
    return [host.name for host in route.hosts]


async def test_exchanges_in_the_order_of_their_preference(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "20 mx2.op2.example.", "10 mx1.op2.example.")
    route = await routed(dns)
    assert names(route) == ["mx1.op2.example", "mx2.op2.example"]
    assert isinstance(route, Route)
    assert [host.addresses for host in route.hosts] == [(PUBLIC,), ("192.88.98.2",)]
    assert {host.port for host in route.hosts} == {25}


async def test_equals_share_the_load_and_the_connections(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "10 mx2.op2.example.", "10 mx1.op2.example.")
    routes = [await routed(dns) for _ in range(20)]
    assert len({tuple(names(route)) for route in routes}) == 2
    assert len({route.key for route in routes if isinstance(route, Route)}) == 1


async def test_without_mx_the_domain_itself(dns: DnsServer) -> None:
    dns.add(DOMAIN, "A", PUBLIC)
    dns.add(DOMAIN, "AAAA", PUBLIC6)
    route = await routed(dns)
    assert names(route) == [DOMAIN]
    assert isinstance(route, Route)
    assert route.hosts[0].addresses == (PUBLIC6, PUBLIC)


async def test_null_mx_is_final(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "0 .")
    dns.add(DOMAIN, "A", PUBLIC)
    route = await routed(dns)
    assert refused(route) == "mta.no-mail-accepted"
    assert isinstance(route, Refused)
    assert route.refusal.permanent
    assert route.refusal.enhanced == "5.1.10"


async def test_null_mx_beside_others_is_nonsense_and_is_passed_over(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "0 .", "10 mx1.op2.example.")
    assert names(await routed(dns)) == ["mx1.op2.example"]


async def test_mail_never_comes_back_to_us(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "10 mx1.op2.example.", "20 gate.op1.example.", "30 mx2.op2.example.")
    dns.add("gate.op1.example", "A", "192.88.98.9")
    assert names(await routed(dns, own_names=frozenset({"gate.op1.example"}))) == ["mx1.op2.example"]


@pytest.mark.parametrize(
    "exchange",
    ["127.0.0.1.", "10.0.0.1.", "1.", "0x7f000001.", "2130706433.", "[192\\.88\\.98\\.1].", "a\\032b.example."],
)
async def test_an_address_is_no_exchange(dns: DnsServer, exchange: str) -> None:
    dns.add(DOMAIN, "MX", f"10 {exchange}")
    assert refused(await routed(dns)) == "mta.host-refused"
    assert dns.asked == [(DOMAIN, "MX", "udp")]


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("A", "127.0.0.1"),
        ("A", "10.1.2.3"),
        ("A", "172.16.0.1"),
        ("A", "192.168.1.1"),
        ("A", "169.254.169.254"),
        ("A", "0.0.0.0"),
        ("A", "100.64.0.1"),
        ("A", "224.0.0.1"),
        ("A", "255.255.255.255"),
        ("AAAA", "::1"),
        ("AAAA", "::ffff:10.0.0.1"),
        ("AAAA", "fe80::1"),
        ("AAAA", "fd00::1"),
        ("AAAA", "64:ff9b::a00:1"),
        ("AAAA", "2002:0a00:0001::1"),
    ],
)
async def test_internal_addresses_are_not_gone_to(dns: DnsServer, kind: str, address: str) -> None:
    dns.add(DOMAIN, "MX", "10 inside.op2.example.")
    dns.add("inside.op2.example", kind, address)
    assert refused(await routed(dns)) == "mta.host-refused"
    allowed = await routed(dns, internal_hosts=frozenset({"inside.op2.example"}))
    assert names(allowed) == ["inside.op2.example"]


async def test_an_internal_exchange_beside_a_public_one_is_left_out(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "10 inside.op2.example.", "20 mx1.op2.example.")
    dns.add("inside.op2.example", "A", "10.0.0.1", "192.168.0.1")
    assert names(await routed(dns)) == ["mx1.op2.example"]


async def test_many_exchanges_and_addresses_are_cut(dns: DnsServer) -> None:
    for number in range(40):
        dns.add(DOMAIN, "MX", f"10 h{number}.op2.example.")
        dns.add(f"h{number}.op2.example", "A", *(f"192.88.97.{n}" for n in range(1, 20)))
    route = await routed(dns)
    assert len(names(route)) == MAX_HOSTS
    assert isinstance(route, Route)
    assert all(len(host.addresses) == MAX_ADDRESSES for host in route.hosts)


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.SERVFAIL, Fault.REFUSED, Fault.GARBAGE])
@pytest.mark.parametrize("name", [DOMAIN, "mx1.op2.example"])
async def test_a_dns_that_does_not_answer_is_waited_for(dns: DnsServer, name: str, fault: Fault) -> None:
    dns.add(DOMAIN, "MX", "10 mx1.op2.example.")
    dns.faults[name] = fault
    route = await routed(dns)
    assert refused(route) == "mta.dns-unavailable"
    assert isinstance(route, Refused)
    assert not route.refusal.permanent


async def test_one_exchange_nobody_knows_does_not_stop_the_others(dns: DnsServer) -> None:
    dns.add(DOMAIN, "MX", "10 mx1.op2.example.", "20 mx2.op2.example.")
    dns.faults["mx1.op2.example"] = Fault.SERVFAIL
    assert names(await routed(dns)) == ["mx2.op2.example"]


async def test_a_domain_the_dns_does_not_know_waits(dns: DnsServer) -> None:
    """The signed list says that it exists: a broken resolver is the likelier reason."""
    assert refused(await routed(dns)) == "mta.host-refused"


def test_what_is_configured_needs_no_dns() -> None:
    route = Route.static("10.0.0.5", 2525)
    assert route.hosts[0].addresses == ("10.0.0.5",)


async def test_of_too_many_equals_always_the_same_are_chosen(dns: DnsServer) -> None:
    """Or with each message connections would be shared with others, and what is known of them forgotten."""
    for number in range(3 * MAX_HOSTS):
        dns.add(DOMAIN, "MX", f"10 h{number}.op2.example.")
        dns.add(f"h{number}.op2.example", "A", PUBLIC)
    routes = [await routed(dns) for _ in range(4)]
    assert len({route.key for route in routes if isinstance(route, Route)}) == 1
    assert len({tuple(names(route)) for route in routes}) > 1, "but not in the same order"
