"""DANE: only what DNSSEC proves counts, and then the certificate must be the one that is named."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta.dns import DnsOptions, Resolver
from mta.smtp.dane import Dane
from mta.smtp.routes import Route, Router
from tests.support.dns_server import DnsServer, Fault, dns_server
from trust.refusals import Refused

from .trust_space import TrustSpace

HOST, TLSA = "mx.op2.example", "_25._tcp.mx.op2.example"
SECURE = {"op2.example", HOST, TLSA}


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    async with dns_server() as server:
        server.add("op2.example", "MX", f"10 {HOST}.")
        server.add(HOST, "A", "192.88.98.1")
        server.authenticated |= SECURE
        yield server


async def routed(dns: DnsServer) -> Route | Refused:
    resolver = Resolver(DnsOptions((dns.address,), seconds=1.0, try_seconds=0.3))
    try:
        return await Router(resolver, requirements=(Dane(resolver).require,)).route("op2.example")
    finally:
        await resolver.close()


@pytest.fixture
async def session(space: TrustSpace) -> AsyncIterator[ssl.SSLObject]:
    """A handshake with operator two."""
    listening = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0, ssl=space.server("two"))
    port = listening.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=space.client("one"), server_hostname="x")
    yield writer.get_extra_info("ssl_object")
    writer.transport.abort()
    listening.close()


def leaf(session: ssl.SSLObject) -> bytes:
    der = session.getpeercert(binary_form=True)
    assert der is not None
    return der


def spki(der: bytes) -> bytes:
    return (
        x509.load_der_x509_certificate(der).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )


def doubt(route: Route | Refused, session: ssl.SSLObject) -> Refused | None:
    assert isinstance(route, Route), route
    return route.hosts[0].doubt(session)


async def test_every_way_to_name_the_right_certificate(dns: DnsServer, session: ssl.SSLObject) -> None:
    der = leaf(session)
    for selector, selected in ((0, der), (1, spki(der))):
        for matching, data in (
            (0, selected),
            (1, hashlib.sha256(selected).digest()),
            (2, hashlib.sha512(selected).digest()),
        ):
            dns.records[TLSA, "TLSA"] = [f"3 {selector} {matching} {data.hex()}"]
            route = await routed(dns)
            assert isinstance(route, Route)
            assert route.hosts[0].doubts, "it was looked at"
            assert doubt(route, session) is None


async def test_another_certificate_is_refused(dns: DnsServer, session: ssl.SSLObject) -> None:
    wrong = hashlib.sha256(b"another key").hexdigest()
    dns.add(TLSA, "TLSA", f"3 1 1 {wrong}", f"2 0 1 {wrong}")
    refused = doubt(await routed(dns), session)
    assert refused is not None
    assert refused.refusal.code == "mta.host-unproven"
    right = hashlib.sha256(spki(leaf(session))).hexdigest()
    dns.add(TLSA, "TLSA", f"3 1 1 {right}")
    assert doubt(await routed(dns), session) is None, "one of several is enough: keys are rolled over"


async def test_an_anchor_says_nothing_without_the_hosts_name(
    dns: DnsServer, session: ssl.SSLObject, space: TrustSpace
) -> None:
    anchor = hashlib.sha256(space.authority.root.public_bytes(Encoding.DER)).hexdigest()
    dns.add(TLSA, "TLSA", f"2 0 1 {anchor}")
    assert doubt(await routed(dns), session) is not None


@pytest.mark.parametrize("missing", sorted(SECURE))
async def test_what_dnssec_does_not_prove_is_nothing(dns: DnsServer, missing: str) -> None:
    dns.add(TLSA, "TLSA", "3 1 1 " + "00" * 32)
    dns.authenticated.discard(missing)
    route = await routed(dns)
    assert isinstance(route, Route)
    assert route.hosts[0].doubts == ()


@pytest.mark.parametrize("record", ["0 1 1 " + "00" * 32, "1 0 1 " + "00" * 32, "3 7 1 " + "00" * 32, "3 1 9 00"])
async def test_records_that_mean_nothing_here(dns: DnsServer, record: str) -> None:
    dns.add(TLSA, "TLSA", record)
    route = await routed(dns)
    assert isinstance(route, Route)
    assert route.hosts[0].doubts == ()


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENT])
async def test_records_that_are_kept_from_us_are_waited_for(dns: DnsServer, fault: Fault) -> None:
    dns.faults[TLSA] = fault
    refused = await routed(dns)
    assert isinstance(refused, Refused)
    assert refused.refusal.code == "mta.dns-unavailable"


# Whom an anchor vouches for


async def shaken(space: TrustSpace, context: ssl.SSLContext) -> ssl.SSLObject:
    listening = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=space.client("one"), server_hostname="x")
    session: ssl.SSLObject = writer.get_extra_info("ssl_object")
    writer.transport.abort()
    listening.close()
    return session


def named(space: TrustSpace, host: str, *more: x509.Certificate) -> ssl.SSLContext:
    """A server with a certificate for `host`, that presents `more` beside its own chain."""
    issued = space.authority.issue_operator("named", "Operateur nomme", "10B0000001", [host])
    chain = issued.pem_chain() + b"".join(each.public_bytes(Encoding.PEM) for each in more)
    space._write("named", chain, issued.pem_key())
    return space.server("named")


def anchored(certificate: x509.Certificate) -> str:
    return "2 0 1 " + hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


async def test_an_anchor_counts_only_in_the_path_that_was_verified(dns: DnsServer, space: TrustSpace) -> None:
    """Anybody can put the certificate of somebody's authority beside his own, which that one has not issued."""
    elsewhere = type(space.authority).create("Ailleurs").root
    session = await shaken(space, named(space, HOST, elsewhere))
    dns.add(TLSA, "TLSA", anchored(elsewhere))
    assert doubt(await routed(dns), session) is not None
    dns.add(TLSA, "TLSA", anchored(space.authority.root))
    assert doubt(await routed(dns), session) is None
    dns.records[TLSA, "TLSA"] = [anchored(space.authority.intermediate)]
    assert doubt(await routed(dns), session) is None


async def test_the_name_below_an_anchor_may_be_the_domains_own(dns: DnsServer, space: TrustSpace) -> None:
    """RFC 7672 section 3.2.2: the MX record is proved too, so the domain it stands for is as good as the host."""
    dns.add(TLSA, "TLSA", anchored(space.authority.root))
    assert doubt(await routed(dns), await shaken(space, named(space, "op2.example"))) is None
    assert doubt(await routed(dns), await shaken(space, named(space, "op3.example"))) is not None


async def test_a_host_that_is_an_alias(dns: DnsServer, session: ssl.SSLObject) -> None:
    """RFC 7672 section 2.2.3: the records of what it stands for, else its own."""
    real, its_tlsa = "real.op2.example", "_25._tcp.real.op2.example"
    dns.records.pop((HOST, "A"))
    dns.add(HOST, "CNAME", f"{real}.")
    dns.add(real, "A", "192.88.98.1")
    dns.authenticated |= {real, its_tlsa}
    wrong = "3 1 1 " + "00" * 32
    right = "3 1 1 " + hashlib.sha256(spki(leaf(session))).hexdigest()
    dns.add(TLSA, "TLSA", wrong)
    assert doubt(await routed(dns), session) is not None
    dns.add(its_tlsa, "TLSA", right)
    assert doubt(await routed(dns), session) is None
