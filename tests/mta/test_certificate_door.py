"""A machine's certificate opens its mailbox over IMAP, and no longer than it is believed; with a real Dovecot."""

from __future__ import annotations

import asyncio
import imaplib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from directory.records import MailboxKind
from mta.mailboxes.certificate_door import CertificateDoor, CertificateDoorOptions, Passes
from mta.mailboxes.records import MemberRight
from tests.support.dovecot import Client, Running, a_dovecot
from tests.support.private import until
from trust.accounts import Identity
from trust.catalogue import ACCOUNT_DISABLED, CERTIFICATE_REFUSED
from trust.issuing import DemonstrationAuthority, Issued
from trust.refusals import Refused
from trust.tls import service_server_context

MACHINE = "labo@ville.mssante.test"
OTHER = "medecin@ville.mssante.test"
TEAM = "garde@ville.mssante.test"
LOGIN = "automate@machines.test"
"""Of the machine: looks like an address, and is none of its own."""


@dataclass
class SignIn:
    """Whose a certificate is, by serial number; what `trust.accounts` does with a validator."""

    owners: dict[int, Identity]
    refused: Refused | None = None
    broken: bool = False
    asked: list[str] = field(default_factory=list)

    def __call__(self, shown: Sequence[bytes], login: str) -> Identity | Refused:
        self.asked.append(login)
        if self.broken:
            raise OSError("the database of labo@ville.mssante.test is away")
        found = self.owners.get(x509.load_der_x509_certificate(shown[0]).serial_number) if shown else None
        if found is None or self.refused is not None:
            return self.refused or Refused(CERTIFICATE_REFUSED)
        return found if login in ("", found.login, *found.addresses, TEAM) else Refused(CERTIFICATE_REFUSED)


@dataclass
class Open:
    running: Running
    door: CertificateDoor
    sign_in: SignIn
    root: Path
    loop: asyncio.AbstractEventLoop

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.running.options.certificate_chain))
        if name:
            context.load_cert_chain(self.root / f"{name}.pem", self.root / f"{name}.key")
        return context

    def imap(self, name: str = "machine") -> Client:
        return Client("127.0.0.1", self.door.port, ssl_context=self.context(name), timeout=20)

    def signed_in(self, wanted: str = "", name: str = "machine") -> Client:
        client = self.imap(name)
        try:
            client.authenticate("EXTERNAL", lambda _: wanted.encode())
        except imaplib.IMAP4.error:
            client.shutdown()
            raise
        return client


def write(root: Path, name: str, issued: Issued) -> None:
    chain = (issued.certificate, *issued.chain)
    (root / f"{name}.pem").write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
    (root / f"{name}.key").write_bytes(
        issued.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    root = tmp_path_factory.mktemp("certificates")
    authority = DemonstrationAuthority.create("Autorité d'essai")
    machine = authority.issue_operator("labo", "Laboratoire", "1750000001", ["labo.test"])
    stranger = authority.issue_operator("autre", "Autre", "1750000002", ["autre.test"])
    write(root, "machine", machine)
    write(root, "stranger", stranger)
    anchors = root / "anchors.pem"
    anchors.write_bytes(authority.root.public_bytes(serialization.Encoding.PEM))
    sign_in = SignIn({machine.certificate.serial_number: Identity("m", LOGIN, (MACHINE,))})
    with a_dovecot() as running:
        running.registry.put(TEAM, MailboxKind.ORG)
        running.registry.teams[TEAM] = {MACHINE: MemberRight.READ}  # whose login is its address to the test's accounts
        realm = running.sockets[0]
        passes = Passes()
        realm.server._tickets = passes.take
        options = CertificateDoorOptions(
            "127.0.0.1",
            running.options.imaps_port,
            ssl.create_default_context(cafile=str(running.options.certificate_chain)),
            recheck_seconds=0.2,
            stranger_seconds=5.0,
        )
        tls = service_server_context(running.options.certificate_chain, running.options.key, anchors)
        door = CertificateDoor(options, tls, sign_in, passes)
        asyncio.run_coroutine_threadsafe(door.start("127.0.0.1", 0), realm.loop).result(10)
        try:
            yield Open(running, door, sign_in, root, realm.loop)
        finally:
            asyncio.run_coroutine_threadsafe(door.stop(), realm.loop).result(10)


@pytest.fixture(autouse=True)
def believed(opened: Open) -> Iterator[None]:
    yield
    opened.sign_in.refused, opened.sign_in.broken = None, False


@pytest.mark.parametrize("wanted", ["", MACHINE, LOGIN])
def test_a_certificate_opens_its_mailbox(opened: Open, wanted: str) -> None:
    opened.running.deliver(MACHINE, "for the machine")
    with opened.signed_in(wanted) as client:
        assert client.select("INBOX")[0] == "OK"
        assert b"for the machine" in client.fetch("1", "(BODY[TEXT])")[1][0][1]
        assert "IDLE" in client.capability()[1][0].decode()


def test_idle_and_large_mail_pass(opened: Open) -> None:
    with opened.signed_in() as client:
        content = b"Subject: x\r\n\r\n" + b"0123456789" * 7 + b"\r\n"
        content += b"line\r\n" * 400_000
        assert client.append("Drafts", None, None, content)[0] == "OK"
        client.select("Drafts")
        assert client.fetch("1", "(BODY[])")[1][0][1] == content
        client.select("INBOX")
        client.send(b"i1 IDLE\r\n")
        assert client.readline().startswith(b"+")
        opened.running.deliver(MACHINE, "news")
        while b"EXISTS" not in client.readline():
            pass
        client.send(b"DONE\r\n")
        while not client.readline().startswith(b"i1 OK"):
            pass


def test_everything_dovecot_said_arrives_before_the_end(opened: Open) -> None:
    """A slow client that asks for a large mail and to be let go, in one breath."""
    content = b"Subject: x\r\n\r\n" + b"line of a large mail\r\n" * 400_000
    with opened.signed_in() as client:
        assert client.append("Junk", None, None, content)[0] == "OK"
    with (
        socket.create_connection(("127.0.0.1", opened.door.port), timeout=20) as plain,
        opened.context("machine").wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"a AUTHENTICATE EXTERNAL =\r\n")
        heard = b""
        while b"a OK" not in heard:
            heard += client.recv(4096)
        client.sendall(b"b SELECT Junk\r\nc FETCH 1 BODY.PEEK[]\r\nd LOGOUT\r\n")
        heard = client.recv(1)
        time.sleep(1.0)  # meanwhile Dovecot has said it all, and closed
        while data := client.recv(65536):  # raises on an end without close_notify
            heard += data
    assert content in heard
    assert b"\r\nd OK" in heard


@pytest.mark.parametrize(("name", "wanted"), [("", ""), ("stranger", ""), ("stranger", MACHINE), ("machine", OTHER)])
def test_nobody_else_comes_in(opened: Open, name: str, wanted: str) -> None:
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        opened.signed_in(wanted, name)


def test_a_member_opens_the_team_with_a_members_rights(opened: Open) -> None:
    opened.running.deliver(TEAM, "for all")
    with opened.signed_in(TEAM) as client:
        assert client.select("INBOX")[0] == "OK"
        assert b"for all" in client.fetch("1", "(BODY[TEXT])")[1][0][1]
        assert client.append("INBOX", None, None, b"Subject: x\r\n\r\nx\r\n")[0] == "NO", "only reads"
    del opened.running.registry.teams[TEAM][MACHINE]
    try:
        with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            opened.signed_in(TEAM)
    finally:
        opened.running.registry.teams[TEAM][MACHINE] = MemberRight.READ


@pytest.mark.parametrize("refusal", [CERTIFICATE_REFUSED, ACCOUNT_DISABLED])
def test_a_session_ends_when_its_certificate_is_revoked(opened: Open, refusal: object) -> None:
    client = opened.signed_in()
    client.select("INBOX")
    client.send(b"i1 IDLE\r\n")
    assert client.readline().startswith(b"+")
    before = opened.door.ended
    opened.sign_in.refused = Refused(refusal, "revoked")
    began = time.monotonic()
    with suppress(OSError):
        while client.readline():
            pass
    assert time.monotonic() - began < 5
    client.shutdown()
    assert opened.door.ended == before + 1
    with pytest.raises(imaplib.IMAP4.error):
        opened.signed_in()


def test_a_database_that_is_away_refuses_nobody_who_is_in(opened: Open) -> None:
    with opened.signed_in() as client:
        opened.sign_in.broken = True
        asked = len(opened.sign_in.asked)
        until(lambda: len(opened.sign_in.asked) > asked + 1)
        assert client.noop()[0] == "OK"
        with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            opened.signed_in()


def test_what_comes_before_signing_in_is_bounded(opened: Open) -> None:
    def say(*lines: bytes) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", opened.door.port), timeout=10) as plain,
            opened.context("machine").wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            heard = client.recv(4096)
            try:
                client.sendall(b"".join(lines))
                while data := client.recv(4096):
                    heard += data
            except OSError:
                pass
            return heard

    assert b"BYE" in say(*[b"a NOOP\r\n"] * 30)
    assert b"a OK" not in say(b"x" * 20_000 + b"\r\n")
    heard = say(
        b"a LOGIN labo secret\r\n",
        b"b AUTHENTICATE PLAIN AGEAYg==\r\n",
        b"c SELECT INBOX\r\n",
        b"d AUTHENTICATE EXTERNAL \xff\xfe\r\n",
        b"e AUTHENTICATE EXTERNAL bGFibwBsYWJv\r\n",
        b"\r\n",
        b"f AUTHENTICATE EXTERNAL\r\n*\r\n",
        b"g ID NIL\r\nh CAPABILITY\r\ni LOGOUT\r\n",
    )
    for each in (b"a NO", b"b NO", b"c BAD", b"d BAD", b"e BAD", b"f BAD", b"g OK", b"h OK", b"i OK"):
        assert b"\r\n" + each in heard, heard


def test_one_network_does_not_take_all_the_places(opened: Open) -> None:
    options = replace(opened.door._options, connections_per_client=1)
    door = CertificateDoor(options, opened.door._tls, opened.sign_in, opened.door._passes)
    asyncio.run_coroutine_threadsafe(door.start("127.0.0.1", 0), opened.loop).result(10)
    here = Open(opened.running, door, opened.sign_in, opened.root, opened.loop)
    try:
        with here.signed_in():
            assert door.connections == 1
            with pytest.raises(OSError):
                here.imap()
        until(lambda: door.connections == 0)
        here.signed_in().logout()
        assert door.told == {"signed-in": 2, "full": 1}
    finally:
        asyncio.run_coroutine_threadsafe(door.stop(), opened.loop).result(10)


def test_a_pass_opens_one_address_once_and_not_late() -> None:
    now = [0.0]
    passes = Passes(30.0, lambda: now[0])
    secret = passes.give("A@x.test")
    assert not passes.take("b@x.test", secret)
    assert not passes.take("a@x.test", "")
    assert passes.take("a@x.test", secret)
    assert not passes.take("a@x.test", secret)
    late = passes.give("a@x.test")
    now[0] = 31.0
    assert not passes.take("a@x.test", late)


def test_without_dovecot_the_answer_is_later(opened: Open) -> None:
    nothing = socket.socket()
    nothing.bind(("127.0.0.1", 0))
    options = CertificateDoorOptions("127.0.0.1", nothing.getsockname()[1], ssl.create_default_context())
    door = CertificateDoor(options, opened.door._tls, opened.sign_in, Passes())
    asyncio.run_coroutine_threadsafe(door.start("127.0.0.1", 0), opened.loop).result(10)
    try:
        with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            Open(opened.running, door, opened.sign_in, opened.root, opened.loop).signed_in()
    finally:
        asyncio.run_coroutine_threadsafe(door.stop(), opened.loop).result(10)
        nothing.close()
