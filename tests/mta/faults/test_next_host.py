"""A domain has several hosts and the preferred one cannot be used, for whatever reason: the next one is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.dns import DnsOptions, Resolver
from mta.message import Delivered
from mta.smtp.pool import PoolOptions
from mta.smtp.routes import Router
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from tests.mta.test_targets import MESSAGE
from tests.mta.trust_space import Listed, TrustSpace
from tests.support.dns_server import dns_server
from tests.support.fault_proxy import Fault, Harm
from tests.support.mail_server import MailServer

from .conftest import GATE, SHORT, Road

BAD = "127.0.0.2"


@pytest.fixture
async def bad(road: Road, space: TrustSpace) -> AsyncIterator[MailServer]:
    """A mail server at another address, at the same port."""
    server = MailServer(space.server("two"))
    listening = await asyncio.start_server(server.serve, BAD, road.proxy.port, limit=2**20)
    yield server
    listening.close()
    await server.end()


@pytest.fixture
async def routed(road: Road, space: TrustSpace, listed: Listed, bad: MailServer) -> AsyncIterator[Road]:
    async with dns_server() as dns:
        dns.add("op2.example", "MX", "10 bad.op2.example.", "20 mx.op2.example.")
        dns.add("bad.op2.example", "A", BAD)
        dns.add("mx.op2.example", "A", "127.0.0.1")
        resolver = Resolver(DnsOptions((dns.address,)))
        router = Router(resolver, internal_hosts=frozenset({"mx.op2.example", "bad.op2.example"}), port=road.proxy.port)
        options = SmtpTargetOptions("gate.op1.example", SHORT, PoolOptions(GATE))
        road.target = road.watched.target = SmtpTarget(
            PartnerBook([Partner("op2.example")]), lambda: listed, space.client("one"), options, router=router
        )
        yield road
        await road.target.close()
        await resolver.close()


@pytest.mark.parametrize("name", ["rogue", "service"])
async def test_the_preferred_host_is_no_operators(routed: Road, bad: MailServer, space: TrustSpace, name: str) -> None:
    bad.context = space.service() if name == "service" else space.server(name)
    numbers = routed.send(3)
    assert await routed.delivered(3) == []
    routed.once(numbers)
    assert not any(command.startswith("MAIL") for command in bad.commands)


async def test_the_preferred_host_is_not_believed(routed: Road, bad: MailServer, space: TrustSpace) -> None:
    """Its certificate is revoked, as the validator finds out only after the handshake."""
    issued = bad.context = space.server("one")  # listed, for another domain

    def judge(shown: Sequence[bytes]) -> str:
        return "revoked" if shown[0] == spoken else ""

    spoken = await certificate(routed, space)
    assert issued is bad.context
    routed.target._judge = judge
    numbers = routed.send(3)
    assert await routed.delivered(3) == []
    routed.once(numbers)


async def certificate(routed: Road, space: TrustSpace) -> bytes:
    """That of operator one."""
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    listening = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0, ssl=space.server("one"))
    port = listening.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=space.client("two"), server_hostname="x")
    done.set_result(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    writer.transport.abort()
    listening.close()
    return await done


@pytest.mark.parametrize("verb", ["greeting", "EHLO", "STARTTLS"])
@pytest.mark.parametrize("answer", ["421 4.3.2 not now", "554 5.3.2 never", None, b"junk\r\n"])
async def test_the_preferred_host_serves_nobody(routed: Road, bad: MailServer, verb: str, answer: Any) -> None:
    bad.answers[verb] = answer
    numbers = routed.send(2)
    assert await routed.delivered(2) == []
    routed.once(numbers)


@pytest.mark.parametrize("silent", [True, False])
async def test_each_address_of_a_configured_name_is_tried(
    road: Road, bad: MailServer, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """The first address takes the connection and says nothing, or is not there: it must not use up all the time."""
    bad.answers["greeting"] = asyncio.Event() if silent else None
    asked: list[str] = []

    async def look(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in (BAD, "127.0.0.1")]

    road.target._partners = PartnerBook([Partner("op2.example", "mail.op2.example", road.proxy.port)])
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look)
    assert isinstance(await road.target.deliver(MESSAGE), Delivered)
    assert asked == ["mail.op2.example"]
    assert bad.connections == 1


@pytest.mark.parametrize("host", ["mx..op2.example", "a" * 70 + ".example", "nowhere.invalid"])
async def test_a_configured_name_that_leads_nowhere(road: Road, host: str) -> None:
    road.target._partners = PartnerBook([Partner("op2.example", host, 25)])
    road.send()
    await road.deferral("mta.unreachable")


@pytest.mark.parametrize("faults", [(Fault(Harm.CLOSE, up=1), Fault(Harm.RESET, down=300))])
async def test_the_last_host_breaks_too(routed: Road, bad: MailServer) -> None:
    bad.answers["greeting"] = None
    numbers = routed.send(3)
    await routed.delivered(3)
    routed.once(numbers)
