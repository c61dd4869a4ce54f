"""PROXY headers, alone and at a door."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mta.smtp.door import OperatorDoor, SubmissionDoor
from mta.smtp.proxy_protocol import ProxyHeader, ProxyHeaderError, read_header
from mta.spool import Spool
from trust.accounts import Accounts
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw
from .test_doors import LOCAL, OPTIONS, QUICK, plain
from .trust_space import Listed, TrustSpace

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25\r\n"
V2 = (
    SIGNATURE + b"\x21\x11" + struct.pack("!H", 12) + bytes([192, 0, 2, 7, 192, 0, 2, 8]) + struct.pack("!HH", 1234, 25)
)
V2_6 = SIGNATURE + b"\x21\x21" + struct.pack("!H", 39) + socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + bytes(7)
LOCAL_V2 = SIGNATURE + b"\x20\x00" + struct.pack("!H", 0)
BEHIND = replace(OPTIONS, proxies=(ip_network("127.0.0.0/8"),))


@pytest.mark.parametrize(
    ("header", "source"),
    [
        (V1, "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::8 1234 25\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", ""),
        (b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", ""),
        (V2, "192.0.2.7"),
        (V2_6, "2001:db8::7"),
        (LOCAL_V2, ""),
    ],
)
def test_headers(header: bytes, source: str) -> None:
    assert read_header(header + b"EHLO x\r\n") == ProxyHeader(source, len(header))
    for cut in range(1, len(header)):
        assert read_header(header[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO x\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1234\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25 \r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 65536\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.8 01234 25\r\n",
        b"PROXY TCP4 2001:db8::7 192.0.2.8 1234 25\r\n",
        b"PROXY TCP4 192.0.2.7\r 192.0.2.8 1234 25\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25\n",
        b"PROXY TCP4 \xff 192.0.2.8 1234 25\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::8 1234 25\r\n",
        b"PROXY UDP4 192.0.2.7 192.0.2.8 1234 25\r\n",
        b"PROXY " + b"x" * 120,
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
        b"\r\n\r\n\x00\r\nQUIX",
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError):
        read_header(data)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda tail: SIGNATURE + tail)))
def test_nothing_else_is_raised(data: bytes) -> None:
    try:
        found = read_header(data)
    except ProxyHeaderError:
        return
    assert found is None or found.length <= len(data)


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@asynccontextmanager
async def connected(port: int, first: bytes) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Raw(reader, writer)
    client.send(first)
    try:
        yield client
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_door_believes_its_proxy_and_logs_the_client(spool: Spool, space: TrustSpace, listed: Listed) -> None:
    door = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), BEHIND)
    port = await door.start("127.0.0.1", 0)
    try:
        for header in (V1, V2):
            async with connected(port, header) as client:
                assert (await client.reply()).startswith("220")
                await client.say("EHLO x")
                await client.start_tls(space.client("two"))
                await client.say("EHLO x")
                with capture_logs() as logs:
                    assert (await client.say("MAIL FROM:<labo@op1.example>")).startswith("550")
                assert [line["client"] for line in logs] == ["192.0.2.7"]
        for header in (b"EHLO x\r\n", b"PROXY TCP4 x y 1 2\r\n", SIGNATURE + b"\x31\x11\x00\x00"):
            with capture_logs() as logs:
                async with connected(port, header) as client:
                    assert await client.closed()
            assert [line["event"] for line in logs] == ["smtp.proxy-header-refused"]
    finally:
        await door.stop()


async def test_nobody_else_claims_an_address(spool: Spool, space: TrustSpace, listed: Listed) -> None:
    elsewhere = replace(OPTIONS, proxies=(ip_network("192.0.2.0/24"),))
    door = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), elsewhere)
    port = await door.start("127.0.0.1", 0)
    try:
        async with connected(port, V1) as client:
            assert (await client.reply()).startswith("220")
            assert (await client.reply()).startswith("500")
    finally:
        await door.stop()


@pytest.mark.parametrize("header", [V1, V2, LOCAL_V2])
async def test_tls_may_follow_in_the_same_packet(
    header: bytes, spool: Spool, space: TrustSpace, database: Database, vault: KeyVault
) -> None:
    """Implicit TLS behind a proxy: the ClientHello comes together with the header, or in pieces after it."""
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example"], "mot de passe")
    door = SubmissionDoor(
        spool, accounts, LOCAL.__contains__, "op1.example".__eq__, lambda domain: False, space.service(), BEHIND
    )
    port = await door.start("127.0.0.1", 0, implicit_tls=True)

    def converse(step: int) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = space.anonymous().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            pending = header
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    data = pending + outgoing.read()
                    pending = b""
                    for start in range(0, len(data), step):
                        connection.sendall(data[start : start + step])
                    incoming.write(connection.recv(65536))
            connection.sendall(pending + outgoing.read())
            words = b""
            for line in (b"", b"EHLO x\r\n", plain("gris", "mot de passe").encode() + b"\r\n"):
                if line:
                    tls.write(line)
                    connection.sendall(outgoing.read())
                while True:
                    try:
                        words += tls.read(65536)
                        if words.endswith(b"\n"):
                            break
                    except ssl.SSLWantReadError:
                        incoming.write(connection.recv(65536))
            return words

    try:
        for step in (10_000, 30):
            words = await asyncio.to_thread(converse, step)
            assert words.startswith(b"220 ")
            assert b"\r\n235 2.7.0" in words
    finally:
        await door.stop()
