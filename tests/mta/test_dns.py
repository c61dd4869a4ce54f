"""The resolver over a real server on loopback: what is there, what is not, what nobody can say, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mta.dns import DnsOptions, MxRecord, Resolver, State, TlsaRecord
from tests.support.dns_server import DnsServer, Fault, dns_server

from .conftest import Clock


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with dns_server() as running:
        yield running


def resolver(server: DnsServer, clock: Clock | None = None, **options: object) -> Resolver:
    quick = DnsOptions((server.address,), seconds=1.0, try_seconds=0.3, **options)  # type: ignore[arg-type]
    return Resolver(quick, clock=clock) if clock else Resolver(quick)


async def test_what_is_there(server: DnsServer) -> None:
    server.add("op.example", "MX", "20 mx2.op.example.", "10 MX1.op.example.")
    server.add("none.example", "MX", "0 .")
    server.add("mx1.op.example", "A", "192.0.2.1", "192.0.2.2")
    server.add("mx1.op.example", "AAAA", "2001:db8::1")
    server.add("_25._tcp.mx1.op.example", "TLSA", "3 1 1 " + "ab" * 32)
    server.text("op.example", "v=spf1 " + "a" * 300)
    server.add("1.2.0.192.in-addr.arpa", "PTR", "MX1.op.example.")
    asking = resolver(server)
    mx = await asking.lookup("OP.example.", "mx")
    assert mx.exchanges == (MxRecord(10, "mx1.op.example"), MxRecord(20, "mx2.op.example"))
    assert (mx.state, mx.authenticated, mx.ttl, mx.name) == (State.FOUND, False, 60, "op.example")
    assert (await asking.lookup("none.example", "MX")).exchanges == (MxRecord(0, ""),)
    assert sorted((await asking.lookup("mx1.op.example", "A")).texts) == ["192.0.2.1", "192.0.2.2"]
    assert (await asking.lookup("mx1.op.example", "AAAA")).texts == ("2001:db8::1",)
    tlsa = await asking.lookup("_25._tcp.mx1.op.example", "TLSA")
    assert tlsa.associations == (TlsaRecord(3, 1, 1, bytes.fromhex("ab" * 32)),)
    assert (await asking.lookup("op.example", "TXT")).texts == ("v=spf1 " + "a" * 300,)
    assert (await asking.lookup("1.2.0.192.in-addr.arpa", "PTR")).texts == ("mx1.op.example",)


async def test_what_is_not_there_is_known_not_to_be(server: DnsServer) -> None:
    server.add("op.example", "A", "192.0.2.1")
    asking = resolver(server)
    for name in ("nowhere.example", "op.example"):
        for _ in range(2):
            answer = await asking.lookup(name, "MX")
            assert (answer.state, answer.records) == (State.NONE, ())
        assert server.count(name, "MX") == 1
    for impossible in ("a" * 64 + ".example", "a..example", "", ".".join(["a" * 60] * 5), "é.example"):
        assert (await asking.lookup(impossible, "A")).state in (State.NONE, State.TEMPORARY)
    for impossible in ("a" * 64 + ".example", "a..example", ".".join(["a" * 60] * 5), "é.example"):
        assert (await asking.lookup(impossible, "A")).state is State.NONE


async def test_an_unknown_type_is_a_bug(server: DnsServer) -> None:
    with pytest.raises(ValueError, match="HINFO"):
        await resolver(server).lookup("op.example", "HINFO")


async def test_names_with_odd_octets_are_asked_for_as_they_are(server: DnsServer) -> None:
    server.add("a\\@b\\\\c.example", "A", "192.0.2.7")
    assert (await resolver(server).lookup("a@b\\c.example", "A")).texts == ("192.0.2.7",)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.SILENT,
        Fault.SERVFAIL,
        Fault.REFUSED,
        Fault.GARBAGE,
        Fault.WRONG_ID,
        Fault.WRONG_QUESTION,
        Fault.TRUNCATED_AND_CUT,
    ],
)
async def test_nobody_can_say(server: DnsServer, fault: Fault) -> None:
    """In time, as a value, and not asked again at once."""
    server.add("op.example", "A", "192.0.2.1")
    server.faults["op.example"] = fault
    clock = Clock()
    asking = resolver(server, clock)
    async with asyncio.timeout(1.5):
        assert (await asking.lookup("op.example", "A")).state is State.TEMPORARY
    asked = len(server.asked)
    assert (await asking.lookup("op.example", "A")).state is State.TEMPORARY
    assert len(server.asked) == asked
    del server.faults["op.example"]
    clock.now += 31
    assert (await asking.lookup("op.example", "A")).state is State.FOUND


async def test_what_does_not_fit_comes_over_tcp(server: DnsServer) -> None:
    server.text("op.example", "x" * 4000)
    server.faults["op.example"] = Fault.TRUNCATED
    assert (await resolver(server).lookup("op.example", "TXT")).texts == ("x" * 4000,)
    assert [transport for _, _, transport in server.asked] == ["udp", "tcp"]


async def test_no_server_at_all() -> None:
    answer = await Resolver(DnsOptions(("127.0.0.1:1",), seconds=0.5)).lookup("op.example", "A")
    assert answer.state is State.TEMPORARY


@pytest.mark.parametrize("server", ["dns.example", "127.0.0.1:0", "127.0.0.1:x", "[::1", "1.2.3.4:5:6", ""])
def test_a_server_is_an_address(server: str) -> None:
    with pytest.raises(ValueError, match="name server"):
        Resolver(DnsOptions((server,)))


async def test_answers_are_remembered_for_their_time(server: DnsServer) -> None:
    server.add("op.example", "A", "192.0.2.1")
    clock = Clock()
    asking = resolver(server, clock, longest_negative_ttl=20)
    assert (await asking.lookup("op.example", "A")).ttl == 60
    clock.now += 59
    assert (await asking.lookup("op.example", "A")).ttl == 1
    assert server.count("op.example", "A") == 1
    clock.now += 1
    await asking.lookup("op.example", "A")
    assert server.count("op.example", "A") == 2
    assert (await asking.lookup("nowhere.example", "A")).ttl == 20
    clock.now += 20
    server.add("nowhere.example", "A", "192.0.2.2")
    assert (await asking.lookup("nowhere.example", "A")).state is State.FOUND


async def test_so_many_and_no_more_are_remembered(server: DnsServer) -> None:
    asking = resolver(server, entries=3)
    for number in range(5):
        await asking.lookup(f"n{number}.example", "A")
    for number in (4, 3, 2, 0):
        await asking.lookup(f"n{number}.example", "A")
    assert [server.count(f"n{number}.example", "A") for number in range(5)] == [2, 1, 1, 1, 1]


async def test_a_stranger_s_long_answers_do_not_fill_the_memory(server: DnsServer) -> None:
    clock = Clock()
    asking = resolver(server, clock, octets=10_000)
    for number in range(5):
        server.text(f"n{number}.example", "x" * 4000)
        server.faults[f"n{number}.example"] = Fault.TRUNCATED
    for number in (0, 1, 2, 3, 4, 4, 3, 0):
        assert (await asking.lookup(f"n{number}.example", "TXT")).texts == ("x" * 4000,)
    assert [server.count(f"n{number}.example", "TXT") // 2 for number in range(5)] == [2, 1, 1, 1, 1]
    clock.now += 3600
    server.text("n9.example", "y")
    for name in ("n0.example", "n3.example", "n9.example"):
        await asking.lookup(name, "TXT")
    assert asking._octets <= 10_000


async def test_the_same_question_is_asked_once(server: DnsServer) -> None:
    """And whoever asked first may go away."""
    server.add("op.example", "A", "192.0.2.1")
    server.slow["op.example"] = 0.1
    asking = resolver(server)
    first = asyncio.create_task(asking.lookup("op.example", "A"))
    others = [asyncio.create_task(asking.lookup("op.example", "A")) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert {(await other).state for other in others} == {State.FOUND}
    assert server.count("op.example", "A") == 1


async def test_ad_is_believed_from_this_machine_only(server: DnsServer) -> None:
    server.add("op.example", "A", "192.0.2.1")
    server.authenticated = {"op.example", "nowhere.example"}
    assert (await resolver(server).lookup("op.example", "A")).authenticated
    assert (await resolver(server).lookup("nowhere.example", "A")).authenticated
    assert not (await resolver(server, trust_ad=False).lookup("op.example", "A")).authenticated
    assert not Resolver(DnsOptions(("192.0.2.53", "127.0.0.1")))._believes
    assert Resolver(DnsOptions(("[::1]:53", "127.0.0.1")))._believes


async def test_an_alias_is_followed_and_told(server: DnsServer) -> None:
    server.add("www.example", "CNAME", "real.example.")
    server.add("real.example", "A", "192.0.2.1")
    answer = await resolver(server).lookup("www.example", "A")
    assert (answer.texts, answer.name) == (("192.0.2.1",), "real.example")
    server.add("dangling.example", "CNAME", "nowhere.example.")
    assert (await resolver(server).lookup("dangling.example", "A")).state is State.NONE
    server.add("loop.example", "CNAME", "loop.example.")
    assert (await resolver(server).lookup("loop.example", "A")).state is State.TEMPORARY


async def test_closing_gives_up_what_is_under_way(server: DnsServer) -> None:
    server.faults["op.example"] = Fault.SILENT
    asking = resolver(server)
    waiting = asyncio.create_task(asking.lookup("op.example", "A"))
    await asyncio.sleep(0.05)
    await asking.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
