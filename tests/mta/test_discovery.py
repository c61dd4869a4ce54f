"""The HTTPS door of discovery: what it tells whom, what strangers may cost it, and what it never tells.

Over real TLS with the standard library's client, and raw sockets where a client misbehaves.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import plistlib
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from mta.mailboxes import discovery_door
from mta.mailboxes.autoconfig import autoconfig
from mta.mailboxes.autodiscover import autodiscover
from mta.mailboxes.discovery_door import DiscoveryDoor, DiscoveryOptions
from mta.mailboxes.discovery_page import page
from mta.mailboxes.mobileconfig import profile
from mta.mailboxes.services import AddressBook, ClientServices, Security, Service
from tests.support.private import until
from trust.issuing import DemonstrationAuthority, Issued
from trust.softkeys import CertifiedKey, SoftwareKey
from trust.tls import followed_service_server, service_server_context

OURS, THEIRS = "dr.lopez@cabinet.example", "dr.lopez@ailleurs.example"
PATIENT = "279035121518989@patient.example"
SERVICES = ClientServices(
    name="Opérateur <d'essai> & fils",
    domains=("cabinet.example", "patient.example"),
    imap=Service("mail.cabinet.example", 993),
    submission=(Service("mail.cabinet.example", 465), Service("mail.cabinet.example", 587, Security.STARTTLS)),
    site=Service("localhost", 443),
    patient_domains=frozenset({"patient.example"}),
    address_book=AddressBook(Service("annuaire.example", 636), "dc=mssante,dc=fr", "cn=carnet,cn=lecteurs"),
    mta_sts="version: STSv1\r\nmode: enforce\r\nmx: mail.cabinet.example\r\nmax_age: 604800\r\n",
)
REQUEST = (
    '<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"><Request>'
    "<EMailAddress>{}</EMailAddress><AcceptableResponseSchema>"
    "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a</AcceptableResponseSchema>"
    "</Request></Autodiscover>"
)


@pytest.fixture(scope="module")
def authority() -> DemonstrationAuthority:
    return DemonstrationAuthority.create("essai")


@pytest.fixture(scope="module")
def issued(authority: DemonstrationAuthority) -> Issued:
    return authority.issue_server(["localhost"], ["127.0.0.1"])


@pytest.fixture
def files(tmp_path: Path, authority: DemonstrationAuthority, issued: Issued) -> tuple[Path, Path, Path]:
    """Chain, key, anchor."""
    paths = (tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    from cryptography.hazmat.primitives.serialization import Encoding

    for path, content in zip(
        paths, (issued.pem_chain(), issued.pem_key(), authority.root.public_bytes(Encoding.PEM)), strict=True
    ):
        path.write_bytes(content)
    return paths


@pytest.fixture
def signer(issued: Issued) -> Callable[[], CertifiedKey]:
    return lambda: CertifiedKey(SoftwareKey(issued.key), issued.certificate, issued.chain)  # type: ignore[arg-type]


class Opened:
    def __init__(self, door: DiscoveryDoor, port: int, ca: Path) -> None:
        self.door, self.port, self.ca = door, port, ca

    async def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        return await asyncio.to_thread(self._ask, path, method, body)

    def _ask(self, path: str, method: str, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=10, context=context)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    async def plain(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def secure(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=str(self.ca))
        return await asyncio.open_connection("localhost", self.port, ssl=context)


@pytest.fixture
async def opened(
    files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey], request: pytest.FixtureRequest
) -> AsyncIterator[Opened]:
    options = getattr(request, "param", DiscoveryOptions())
    door = DiscoveryDoor(SERVICES, service_server_context(files[0], files[1]), signer, options)
    port = await door.start("127.0.0.1", 0)
    yield Opened(door, port, files[2])
    await door.stop()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes until the door closes."""
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        return b""


# What it tells


@pytest.mark.parametrize("path", ["/mail/config-v1.1.xml", "/.well-known/autoconfig/mail/config-v1.1.xml"])
async def test_autoconfiguration_is_the_same_whoever_asks(opened: Opened, path: str) -> None:
    answers = [await opened.ask(f"{path}?emailaddress={each}") for each in (OURS, THEIRS, PATIENT, "%00<x>")]
    assert {status for status, _, _ in answers} == {200}
    assert {body for _, _, body in answers} == {autoconfig(SERVICES)}
    assert answers[0][1]["content-type"].startswith("text/xml")
    provider = etree.fromstring(answers[0][2]).find("emailProvider")
    assert provider is not None
    assert provider.findtext("displayName") == SERVICES.name
    assert [(each.findtext("port"), each.findtext("socketType")) for each in provider.findall("outgoingServer")] == [
        ("465", "SSL"),
        ("587", "STARTTLS"),
    ]
    assert {each.text for each in provider.iter("username")} == {"%EMAILADDRESS%"}


def test_tokens_are_told_of_where_they_are_taken() -> None:
    ways = [each.text for each in etree.fromstring(autoconfig(SERVICES)).iter("authentication")]
    assert set(ways) == {"password-cleartext"}
    ways = [each.text for each in etree.fromstring(autoconfig(replace(SERVICES, tokens=True))).iter("authentication")]
    assert ways[:2] == ["password-cleartext", "OAuth2"]


async def test_no_answer_tells_whether_a_mailbox_exists(opened: Opened) -> None:
    """Any address of our domains gets the same answer but for itself; any other none of it."""
    some = "x" * len("dr.lopez") + "@cabinet.example"
    pages = [(await opened.ask(f"/?email={each}"))[2].decode() for each in (OURS, some)]
    assert pages[0].replace(OURS, "@@").replace(quote(OURS), "@@") == pages[1].replace(some, "@@").replace(
        quote(some), "@@"
    )
    assert THEIRS.encode() not in (await opened.ask(f"/?email={THEIRS}"))[2]
    found = [
        (await opened.ask("/autodiscover/autodiscover.xml", "POST", REQUEST.format(each).encode()))[2]
        for each in (OURS, some)
    ]
    assert found[0].replace(OURS.encode(), b"@@") == found[1].replace(some.encode(), b"@@")


async def test_the_page_repeats_nothing_that_is_no_address_of_ours(opened: Opened) -> None:
    for evil in ("%3Cscript%3E@cabinet.example", "a%22onload=x@cabinet.example", "a@cabinet.example%0d%0aSet-Cookie:x"):
        status, headers, body = await opened.ask(f"/?email={evil}")
        assert status == 200
        assert b"<script" not in body
        assert b"onload" not in body
        assert "set-cookie" not in headers
    status, headers, body = await opened.ask(f"/?email={OURS}")
    assert OURS.encode() in body
    assert b"Op\xc3\xa9rateur &lt;d&#x27;essai&gt; &amp; fils" in body
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers


async def test_the_profile_without_an_address_asks_for_it(opened: Opened) -> None:
    status, headers, body = await opened.ask(f"/profil.mobileconfig?email={THEIRS}")
    assert (status, headers["content-type"]) == (200, "application/x-apple-aspen-config")
    assert THEIRS.encode() not in body
    parts = {each["PayloadType"]: each for each in plistlib.loads(profile(SERVICES, ""))["PayloadContent"]}
    assert "EmailAddress" not in parts["com.apple.mail.managed"]


def test_a_profile_replaces_itself_and_no_other_mailbox() -> None:
    def identifiers(address: str) -> tuple[Any, ...]:
        read = plistlib.loads(profile(SERVICES, address))
        mail = read["PayloadContent"][0]
        return read["PayloadIdentifier"], read["PayloadUUID"], mail["PayloadIdentifier"], mail["PayloadUUID"]

    assert identifiers(PATIENT) == identifiers(PATIENT)
    assert not set(identifiers(PATIENT)) & set(identifiers(OURS))
    assert not any("279035121518989" in each for each in identifiers(PATIENT))


def test_the_page_sends_nobody_to_a_cloud_and_says_who_logs_in_to_the_address_book() -> None:
    shown = page(SERVICES, OURS).decode()
    assert "Outlook : version classique pour Windows seulement." in shown
    assert "Identifiant : cn=carnet,cn=lecteurs" in shown
    assert "Identifiant" not in page(replace(SERVICES, address_book=None), OURS).decode()


def test_a_link_holds_no_patient() -> None:
    assert b"?email=" in page(SERVICES, OURS)
    assert b"?email=" not in page(SERVICES, PATIENT)
    assert SERVICES.link(OURS) == "https://localhost/?email=dr.lopez%40cabinet.example"
    assert SERVICES.link(PATIENT) == SERVICES.link() == "https://localhost/"


@pytest.mark.parametrize(
    "path", ["/autodiscover/autodiscover.xml", "/Autodiscover/Autodiscover.xml", "/AutoDiscover/AutoDiscover.xml"]
)
async def test_outlook_is_told_in_its_way(opened: Opened, path: str) -> None:
    status, _, body = await opened.ask(path, "POST", REQUEST.format(OURS.upper()).encode())
    assert status == 200
    protocols = etree.fromstring(body).xpath("//*[local-name()='Protocol']")
    assert isinstance(protocols, list)
    told = [{etree.QName(each).localname: each.text for each in one} for one in protocols]  # type: ignore[union-attr]
    assert [(each["Type"], each["Server"], each["Port"], each["SSL"]) for each in told] == [
        ("IMAP", "mail.cabinet.example", "993", "on"),
        ("SMTP", "mail.cabinet.example", "465", "on"),
    ]
    assert {each["LoginName"] for each in told} == {OURS}


async def test_outlooks_newer_way_leads_to_the_older(opened: Opened) -> None:
    _, _, body = await opened.ask(f"/autodiscover/autodiscover.json?Email={OURS}&Protocol=AutodiscoverV1")
    assert json.loads(body)["Url"] == "https://localhost/autodiscover/autodiscover.xml"


@pytest.mark.parametrize(
    "request_body",
    [
        b"",
        b"<",
        REQUEST.format(THEIRS).encode(),
        REQUEST.format("&lt;x>").encode(),
        b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a><EMailAddress>&e;@cabinet.example</EMailAddress></a>',
        b'<!DOCTYPE a [<!ENTITY e "dr.lopez">]><a><EMailAddress>&e;@cabinet.example</EMailAddress></a>',
        b"<a>" + b"<b>" * 2000,
        b"\xff\xfe\x00",
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
    ],
)
def test_what_is_no_request_gets_one_answer(request_body: bytes) -> None:
    answer = autodiscover(request_body, SERVICES)
    assert answer == autodiscover(b"<a/>", SERVICES)
    assert b"600" in answer


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: REQUEST.format(text).encode()))
def test_no_request_of_outlooks_raises(request_body: bytes) -> None:
    etree.fromstring(autodiscover(request_body, SERVICES))


@given(
    st.text(max_size=100) | st.text("abAB.@\"'<>&%+-é \r\n", max_size=60).map(lambda text: f"{text}@cabinet.example")
)
def test_what_is_taken_for_an_address_breaks_nothing(text: str) -> None:
    address = SERVICES.our_address(text)
    assert re.fullmatch(r"|[!-~]+@(cabinet|patient)\.example", address)
    shown = page(SERVICES, address).decode()
    assert shown.count("<a ") == page(SERVICES, "").decode().count("<a ")
    plistlib.loads(profile(SERVICES, address))


async def test_the_policy_of_our_domains_and_nothing_where_there_is_none(
    opened: Opened, files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey]
) -> None:
    assert (await opened.ask("/.well-known/mta-sts.txt"))[2].startswith(b"version: STSv1\r\nmode: enforce\r\n")
    door = DiscoveryDoor(replace(SERVICES, mta_sts=""), service_server_context(files[0], files[1]), signer)
    other = Opened(door, await door.start("127.0.0.1", 0), files[2])
    assert (await other.ask("/.well-known/mta-sts.txt"))[0] == 404
    assert (await other.ask("/autorites.pem"))[0] == 404
    await door.stop()


async def test_the_authorities_are_the_roots_a_device_needs(
    files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey], authority: DemonstrationAuthority
) -> None:
    services = replace(SERVICES, authorities=(authority.root, authority.intermediate))
    door = DiscoveryDoor(services, service_server_context(files[0], files[1]), signer)
    opened = Opened(door, await door.start("127.0.0.1", 0), files[2])
    given = x509.load_pem_x509_certificates((await opened.ask("/autorites.pem"))[2])
    assert given == [authority.root, authority.intermediate]
    kinds = [each["PayloadType"] for each in plistlib.loads(profile(services, OURS))["PayloadContent"]]
    assert kinds[:2] == ["com.apple.security.root", "com.apple.security.pkcs1"]
    await door.stop()


# What it refuses


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/mail/config-v1.1.xml/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/etc/passwd", 404),
        ("POST", "/", 405),
        ("GET", "/autodiscover/autodiscover.xml", 405),
        ("DELETE", "/mail/config-v1.1.xml", 405),
    ],
)
async def test_what_is_not_there_is_not_repeated(opened: Opened, method: str, path: str, status: int) -> None:
    found, headers, body = await opened.ask(path, method)
    assert (found, body) == (status, f"{status}\n".encode())
    assert headers["x-content-type-options"] == "nosniff"


async def test_a_body_without_end_is_cut(opened: Opened) -> None:
    try:
        status = (await opened.ask("/autodiscover/autodiscover.xml", "POST", b"x" * 100_000))[0]
    except ConnectionError:  # it was still writing when the door had said no and gone
        status = 413
    assert status == 413
    assert (await opened.ask("/"))[0] == 200


async def test_an_endless_head_is_cut(opened: Opened) -> None:
    reader, writer = await opened.secure()
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
    assert b"200" not in (await ended(reader))[:20]
    writer.transport.abort()


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\x00" * 40_000, b"EHLO x\r\n"]
)
async def test_what_is_no_tls_ends(opened: Opened, noise: bytes) -> None:
    reader, writer = await opened.plain()
    writer.write(noise)
    assert b"HTTP" not in await ended(reader)
    writer.transport.abort()
    assert (await opened.ask("/"))[0] == 200


async def test_a_request_in_the_same_flight_as_the_handshake_is_answered(opened: Opened) -> None:
    """TLS 1.3: the client's Finished and its first request arrive together."""
    context = ssl.create_default_context(cafile=str(opened.ca))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await opened.plain()
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await asyncio.wait_for(reader.read(65536), 5))
    tls.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    writer.write(outgoing.read())
    incoming.write(await ended(reader))
    assert tls.read(12) == b"HTTP/1.1 200"
    writer.transport.abort()


@pytest.mark.parametrize("opened", [DiscoveryOptions(handshake_seconds=0.3)], indirect=True)
async def test_a_handshake_that_never_comes_is_not_waited_for(opened: Opened) -> None:
    reader, writer = await opened.plain()
    assert await ended(reader) == b""
    writer.transport.abort()


@pytest.mark.parametrize("opened", [DiscoveryOptions(seconds=0.5)], indirect=True)
async def test_a_request_that_trickles_is_not_waited_for(opened: Opened) -> None:
    reader, writer = await opened.secure()
    writer.write(b"GET / HT")
    assert await ended(reader) == b""
    writer.transport.abort()


@pytest.mark.parametrize("opened", [DiscoveryOptions(connections=3, connections_per_network=3)], indirect=True)
async def test_connections_are_counted_from_their_first_octet_to_their_end(opened: Opened) -> None:
    held = [await opened.plain() for _ in range(3)]
    reader, writer = await opened.plain()
    assert await ended(reader) == b""  # the fourth
    writer.transport.abort()
    for _, each in held:
        each.transport.abort()

    async def lets_in() -> bool:
        try:
            return (await opened.ask("/"))[0] == 200
        except OSError:
            return False

    async with asyncio.timeout(5):
        while not await lets_in():
            pass


def behind(*networks: str) -> DiscoveryOptions:
    return DiscoveryOptions(connections_per_network=1, proxies=tuple(map(ip_network, networks)))


def shaken(port: int, ca: Path, header: bytes) -> socket.socket:
    """A connection whose handshake is done, `header` before it in the same packet as the ClientHello."""
    context = ssl.create_default_context(cafile=str(ca))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(header + outgoing.read())
                header = b""
                octets = connection.recv(65536)
                if not octets:
                    raise ConnectionResetError from None
                incoming.write(octets)
        tls.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.sendall(outgoing.read())
        while True:
            try:
                assert tls.read(12) == b"HTTP/1.1 200"
                return connection
            except ssl.SSLWantReadError:
                octets = connection.recv(65536)
                if not octets:
                    raise ConnectionResetError from None
                incoming.write(octets)
    except BaseException:
        connection.close()
        raise


V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes([198, 51, 100, 9, 127, 0, 0, 1, 0, 80, 1, 187])


@pytest.mark.parametrize("opened", [behind("127.0.0.0/8")], indirect=True)
async def test_behind_a_load_balancer_each_network_counts_for_itself(opened: Opened) -> None:
    headers = (b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n", b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", V2)
    held = [await asyncio.to_thread(shaken, opened.port, opened.ca, header) for header in headers]
    for header in headers:  # one of each is there
        with pytest.raises(OSError):
            await asyncio.to_thread(shaken, opened.port, opened.ca, header)
    for each in held:
        each.close()
    gate = opened.door._gate
    await asyncio.to_thread(until, lambda: not (gate._open or gate._of))


@pytest.mark.parametrize("opened", [behind("127.0.0.0/8")], indirect=True)
async def test_a_load_balancer_must_say_for_whom_it_connects(opened: Opened) -> None:
    for noise in (b"\x16\x03\x01" + b"\x00" * 40, b"PROXY TCP4 x y 1 2\r\n", b"EHLO x\r\n" * 4, V2[:12] + b"\x31" * 4):
        reader, writer = await opened.plain()
        writer.write(noise)
        assert await ended(reader) == b""
        writer.transport.abort()
    reader, writer = await opened.plain()  # goes in the middle of its header
    writer.write(b"PROXY TCP4 192.0")
    writer.transport.abort()
    gate = opened.door._gate
    await asyncio.to_thread(until, lambda: not (gate._open or gate._of or gate._tasks))


@pytest.mark.parametrize("opened", [behind("192.0.2.0/24")], indirect=True)
async def test_nobody_else_says_for_whom_he_connects(opened: Opened) -> None:
    with pytest.raises(OSError):
        await asyncio.to_thread(shaken, opened.port, opened.ca, V2)
    assert (await opened.ask("/"))[0] == 200


async def test_a_body_that_is_none_is_no_error_of_ours(opened: Opened) -> None:
    """After the answer, in the middle of the body: whoever wants to fill a log would do that."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    reader, writer = await opened.secure()
    writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n405\n"), 5)).startswith(b"HTTP/1.1 405")
    writer.write(b"no chunk\r\n")
    await ended(reader)
    writer.transport.abort()
    assert told == []


async def test_signatures_that_wait_are_bounded(
    files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking and going away does not make people wait behind it; once it is done, they are served."""
    monkeypatch.setattr(discovery_door, "_SIGNATURES", 3)
    begun, go = threading.Event(), threading.Event()

    def slow() -> CertifiedKey:
        begun.set()
        go.wait(20)
        return signer()

    door = DiscoveryDoor(SERVICES, service_server_context(files[0], files[1]), slow)
    opened = Opened(door, await door.start("127.0.0.1", 0), files[2])
    try:
        for number in range(1, 4):
            _, writer = await opened.secure()
            writer.write(b"GET /profil.mobileconfig HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.to_thread(until, lambda number=number: len(door._state.tasks) == number and begun.is_set())
            writer.transport.abort()
        async with asyncio.timeout(10):
            assert (await opened.ask("/profil.mobileconfig"))[0] == 503
        assert (await opened.ask("/"))[0] == 200
        go.set()
        await asyncio.to_thread(until, lambda: not door._state.tasks)
        assert (await opened.ask("/profil.mobileconfig"))[0] == 200
    finally:
        go.set()
        await door.stop()


async def test_clients_that_go_at_once_leave_nothing_behind(opened: Opened) -> None:
    for turn in range(20):
        _, writer = await (opened.secure() if turn % 2 else opened.plain())
        writer.write(b"G" * turn)
        writer.transport.abort()
    gate, state = opened.door._gate, opened.door._state
    await asyncio.to_thread(until, lambda: not (gate._open or gate._of or gate._tasks or state.connections))


async def test_a_renewed_certificate_is_shown_at_the_next_connection(
    files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey], authority: DemonstrationAuthority
) -> None:
    context = followed_service_server("discovery", files[0], files[1])
    door = DiscoveryDoor(SERVICES, context, signer)
    port = await door.start("127.0.0.1", 0)

    def shown() -> bytes | None:
        client = ssl.create_default_context(cafile=str(files[2]))
        with (
            socket.create_connection(("localhost", port), 5) as raw,
            client.wrap_socket(raw, server_hostname="localhost") as tls,
        ):
            return tls.getpeercert(binary_form=True)

    before = await asyncio.to_thread(shown)
    renewed = authority.issue_server(["localhost"])
    files[1].write_bytes(renewed.pem_key())
    files[0].write_bytes(renewed.pem_chain())
    assert context.look()
    assert await asyncio.to_thread(shown) not in (before, None)
    await door.stop()


async def test_a_key_that_cannot_sign_takes_only_the_profile_away(
    files: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> CertifiedKey:
        raise OSError("no key")

    door = DiscoveryDoor(SERVICES, service_server_context(files[0], files[1]), broken)
    opened = Opened(door, await door.start("127.0.0.1", 0), files[2])
    assert (await opened.ask(f"/profil.mobileconfig?email={OURS}"))[0] == 503
    assert (await opened.ask("/"))[0] == 200
    await door.stop()


async def test_nobody_is_named_in_the_logs(
    opened: Opened, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        for path in (f"/?email={PATIENT}", f"/nothing/{PATIENT}", f"/autodiscover/autodiscover.json/v1.0/{PATIENT}"):
            await opened.ask(path)
        await opened.ask("/autodiscover/autodiscover.xml", "POST", REQUEST.format(PATIENT).encode())
    captured = capsys.readouterr()
    assert "279035121518989" not in caplog.text + captured.out + captured.err


async def test_stopping_ends_what_is_open(files: tuple[Path, Path, Path], signer: Callable[[], CertifiedKey]) -> None:
    door = DiscoveryDoor(SERVICES, service_server_context(files[0], files[1]), signer)
    opened = Opened(door, await door.start("127.0.0.1", 0), files[2])
    pending, (reader, writer) = await opened.plain(), await opened.secure()
    await asyncio.wait_for(door.stop(), 5)
    assert await ended(reader) == b""
    assert await ended(pending[0]) == b""
    writer.transport.abort()
    pending[1].transport.abort()


@pytest.mark.parametrize(("host", "port"), [("", 1), ("a b", 1), ("-a", 1), ("a" * 64, 1), ("a", 0), ("a", 65536)])
def test_a_service_is_a_host_and_a_port(host: str, port: int) -> None:
    with pytest.raises(ValueError, match="host name"):
        Service(host, port)
