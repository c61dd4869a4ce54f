"""A real Dovecot, run as an ordinary user from the generated configuration, spoken to over IMAPS and LMTP."""

from __future__ import annotations

import asyncio
import imaplib
import os
import pwd
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mta.mailboxes.authentication import AuthenticationSocket
from mta.mailboxes.dovecot import (
    DELIVERY_HEADER,
    DovecotConfigurationError,
    DovecotOptions,
    MailboxRealm,
    PrivateDovecot,
)
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.sessions import end_sessions
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from tests.support.private import free_port, give, service_directory, service_ids, start_unprivileged, until
from trust.accounts import Identity
from trust.refusals import HL7Code, Refusal, Refused

WRONG = Refused(Refusal("test.wrong", 535, "5.7.8", HL7Code.AE, "207", "906", "Wrong.", "Faux."))
PATIENT = "279035121518989"
LOCK_AFTER = 3
TOKEN = "e30." + "x" * 4000 + ".x"
"""As long as those of Pro Santé Connect."""


@dataclass
class Accounts:
    """Accounts in memory with lock-out after three failures."""

    passwords: dict[str, str]
    failures: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def authenticate(self, login: str, password: str) -> Identity | Refused:
        self.asked.append((login, password))
        if self.failures.get(login, 0) >= LOCK_AFTER:
            return WRONG
        if self.passwords.get(login) != password:
            self.failures[login] = self.failures.get(login, 0) + 1
            return WRONG
        return Identity("opaque", login, (login,))

    def by_address(self, address: str) -> Identity | None:
        return Identity("opaque", address, (address,)) if address in self.passwords else None

    def by_token(self, login: str, token: str) -> Identity | Refused:
        return Identity("opaque", login, (login,)) if token == TOKEN and login in self.passwords else WRONG


class SocketInThread:
    """An `AuthenticationSocket` on an event loop of its own; what it makes is given to the service user."""

    def __init__(self, realm: MailboxRealm, accounts: Accounts) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = AuthenticationSocket(
            realm.authentication_socket, accounts, self.home_of, tokens=accounts.by_token
        )
        self.realm = realm
        self.start()

    def home_of(self, address: str) -> Path | None:
        home = self.realm.home_of(address)
        if home is not None:
            home.mkdir(mode=0o700, exist_ok=True)
            if (ids := service_ids()) is not None:
                os.chown(home, *ids)
        return home

    def run(self, job: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(job(), self.loop).result(10)  # type: ignore[arg-type]

    def start(self) -> None:
        self.run(self.server.start)
        give(self.server.path.parent)
        ids = service_ids()
        if ids is not None:
            os.chown(self.server.path, *ids)

    def close(self) -> None:
        self.run(self.server.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@dataclass
class Running:
    options: DovecotOptions
    dovecot: PrivateDovecot
    process: subprocess.Popen[bytes]
    laboratory: Accounts
    hospital: Accounts
    sockets: list[SocketInThread]

    def imap(self) -> imaplib.IMAP4_SSL:
        context = ssl.create_default_context(cafile=str(self.options.certificate_chain))
        return imaplib.IMAP4_SSL("127.0.0.1", self.options.imaps_port, ssl_context=context, timeout=20)

    def log_in(self, user: str, password: str) -> imaplib.IMAP4_SSL:
        client = self.imap()
        try:
            client.authenticate("PLAIN", lambda _: f"\0{user}\0{password}".encode())
        except imaplib.IMAP4.error:
            client.shutdown()
            raise
        return client

    def deliver(self, recipient: str, text: str, identity: str = "", subject: str = "Compte rendu") -> tuple[int, str]:
        """The LMTP reply to RCPT when it refuses, else to DATA."""
        header = f"{DELIVERY_HEADER}: {identity}\r\n" if identity else ""
        message = f"{header}Subject: {subject}\r\nMessage-ID: <{PATIENT}@x.invalid>\r\n\r\n{text}\r\n"
        with smtplib.LMTP(str(self.dovecot.lmtp_socket)) as lmtp:
            lmtp.ehlo()
            lmtp.mail("relay@ville.mssante.test")
            code, reply = lmtp.rcpt(recipient)
            if code == 250:
                code, reply = lmtp.data(message.encode())
        return code, reply.decode()

    def texts(self, user: str, password: str = "pass word/é$") -> list[bytes]:
        with self.log_in(user, password) as client:
            client.select("INBOX")
            numbers = client.search(None, "ALL")[1][0].split()
            return [client.fetch(n, "(BODY.PEEK[TEXT])")[1][0][1].strip() for n in numbers]

    def restart(self) -> None:
        self.dovecot.prepare()
        give(self.options.state)
        self.process = start_unprivileged(self.dovecot.command())
        until(self.dovecot.ready, what="Dovecot")


def write_certificate(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = directory / "chain.pem", directory / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, private


@contextmanager
def a_dovecot() -> Iterator[Running]:
    with service_directory() as root:
        chain, key = write_certificate(root)
        (root / "auth").mkdir()
        ville = MailboxRealm(("ville.mssante.test", "patient.mssante.test"), root / "auth/ville", root / "mail/ville")
        hopital = MailboxRealm(("hopital.mssante.test",), root / "auth/hopital", root / "mail/hopital")
        ids = service_ids()
        options = DovecotOptions(
            state=root / "dovecot",
            imaps_port=free_port(),
            certificate_chain=chain,
            key=key,
            realms=(ville, hopital),
            managesieve_port=free_port(),
            tokens=True,
            failure_delay=0,
            user=pwd.getpwuid(ids[0]).pw_name if ids else "",
        )
        laboratory = Accounts(
            {
                "labo@ville.mssante.test": "pass word/é$",
                "medecin@ville.mssante.test": "pass word/é$",
                "garde@ville.mssante.test": "pass word/é$",
                "o'neil+a=b@ville.mssante.test": "pass word/é$",
                f"{PATIENT}@patient.mssante.test": "pass word/é$",
            }
        )
        hospital = Accounts({"service@hopital.mssante.test": "pass word/é$"})
        dovecot = PrivateDovecot(options)
        dovecot.prepare()
        sockets = [SocketInThread(ville, laboratory), SocketInThread(hopital, hospital)]
        give(root)
        running = Running(options, dovecot, start_unprivileged(dovecot.command()), laboratory, hospital, sockets)
        try:
            until(dovecot.ready, what="Dovecot")
            yield running
        finally:
            running.process.terminate()
            running.process.wait(10)
            for server in sockets:
                server.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


def test_mail_comes_in_by_lmtp_and_out_by_imaps(running: Running) -> None:
    code, reply = running.deliver("Labo@Ville.mssante.test", "premier", "one")
    assert code == 250, reply
    assert running.texts("labo@ville.mssante.test") == [b"premier"]
    assert running.laboratory.asked[-1] == ("labo@ville.mssante.test", "pass word/é$")


def test_a_repeated_delivery_is_filed_once_and_unmarked_mail_always(running: Running) -> None:
    for text, identity in (("a", "same"), ("a", "same"), ("b", "other"), ("c", ""), ("c", "")):
        assert running.deliver("medecin@ville.mssante.test", text, identity)[0] == 250
    assert running.texts("medecin@ville.mssante.test") == [b"a", b"b", b"c", b"c"]


def test_a_delivery_is_recognised_in_the_mailbox_when_sieve_forgot_it() -> None:
    """Dovecot killed after it filed a mail and before it noted that: only the mailbox knows."""
    with a_dovecot() as running:
        _recognised_in_the_mailbox(running)


def _recognised_in_the_mailbox(running: Running) -> None:
    address = "garde@ville.mssante.test"
    since = datetime.now(UTC).timestamp() - 60

    def notes() -> list[Path]:
        home = running.options.realms[0].home_of(address)
        assert home is not None
        return list(home.rglob(".dovecot.lda-dupes"))

    def message(identity: str, recipient: str = address, *, repeated: bool = True) -> Message:
        content = f"{DELIVERY_HEADER}: {identity}\r\nSubject: x\r\n\r\n{identity}\r\n".encode()
        return Message(
            message_id="<m@x.invalid>",
            spool_id="s",
            delivery_id=identity,
            origin=Origin.OPERATOR,
            sender="",
            recipient=recipient,
            content=content,
            content_type="message/rfc822",
            accepted_at=since,
            repeated=repeated,
        )

    async def deliver(wanted: Message, socket: Path = running.dovecot.search_socket) -> Outcome:
        lmtp = LmtpTarget(LmtpOptions("relay", running.dovecot.lmtp_socket, search_socket=socket))
        try:
            return await lmtp.deliver(wanted)
        finally:
            await lmtp.close()

    assert isinstance(asyncio.run(deliver(message("gap-1", repeated=False))), Delivered)
    assert notes()
    for note in notes():
        note.unlink()
    assert asyncio.run(deliver(message("gap-1"))) == Delivered("already filed")
    assert isinstance(asyncio.run(deliver(message("gap-2"))), Delivered), "never filed: delivered now"
    texts = running.texts(address)
    assert [sum(name in text for text in texts) for name in (b"gap-1", b"gap-2")] == [1, 1]
    nobody = asyncio.run(deliver(message("gap-3", "personne@ville.mssante.test")))
    assert isinstance(nobody, Failed), "who is unknown holds nothing: LMTP says why"
    silent = asyncio.run(deliver(message("gap-4"), running.options.state / "nothing"))
    assert isinstance(silent, Deferred), "without the witness nothing is filed"
    assert not any(b"gap-4" in text for text in running.texts(address))


def test_the_same_delivery_identity_reaches_two_mailboxes(running: Running) -> None:
    for recipient in ("service@hopital.mssante.test", f"{PATIENT}@patient.mssante.test"):
        assert running.deliver(recipient, "both", "shared-identity")[0] == 250
        assert b"both" in running.texts(recipient)


def test_folders_have_their_special_use(running: Running) -> None:
    with running.log_in("service@hopital.mssante.test", "pass word/é$") as client:
        listing = b"\n".join(client.list()[1])
    for use, name in ((b"\\Sent", b"Sent"), (b"\\Drafts", b"Drafts"), (b"\\Trash", b"Trash"), (b"\\Junk", b"Junk")):
        assert re.search(re.escape(use) + rb"[^\n]*" + name, listing)


def test_a_stored_message_is_served_byte_for_byte(running: Running) -> None:
    original = b"Subject: =?utf-8?q?B?=\r\n\r\n.dot\r\n\r\nline with trailing space \r\n\xe9\r\n"
    with running.log_in("service@hopital.mssante.test", "pass word/é$") as client:
        assert client.append("Drafts", None, None, original)[0] == "OK"
        client.select("Drafts")
        assert client.fetch("1", "(BODY[])")[1][0][1] == original


@pytest.mark.parametrize(
    "user", ["labo@ville.mssante.test", "nobody@ville.mssante.test", "labo@elsewhere.test", "labo", "a/b@ville.test"]
)
def test_wrong_password_or_unknown_user_is_refused_alike(running: Running, user: str) -> None:
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        running.log_in(user, "wrong")
    running.laboratory.failures.clear()


def test_lock_out_is_seen_through_imap(running: Running) -> None:
    user = "service@hopital.mssante.test"
    for _ in range(LOCK_AFTER):
        with pytest.raises(imaplib.IMAP4.error):
            running.log_in(user, "wrong")
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        running.log_in(user, "pass word/é$")
    running.hospital.failures.clear()
    running.log_in(user, "pass word/é$").logout()


def test_an_address_with_what_names_have(running: Running) -> None:
    user = "o'neil+a=b@ville.mssante.test"
    assert running.deliver(user, "bonjour")[0] == 250
    assert len(running.texts(user)) == 1


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_an_access_token_opens_a_mailbox(running: Running, mechanism: str) -> None:
    user = "labo@ville.mssante.test"

    def words(token: str) -> bytes:
        first = f"user={user}" if mechanism == "XOAUTH2" else f"n,a={user},"
        return f"{first}\x01auth=Bearer {token}\x01\x01".encode()

    with running.imap() as client:
        assert client.authenticate(mechanism, lambda _: words(TOKEN))[0] == "OK"
        assert client.select("INBOX")[0] == "OK"
    for wrong in (TOKEN[:-1], "pass word/é$"):
        client = running.imap()
        said = iter([words(wrong), b"\x01"])
        with pytest.raises(imaplib.IMAP4.error):
            client.authenticate(mechanism, lambda _, said=said: next(said))
        client.shutdown()
    with pytest.raises(imaplib.IMAP4.error):
        running.log_in(user, TOKEN)
    running.laboratory.failures.clear()


def test_open_sessions_end_when_asked(running: Running) -> None:
    users = ["labo@ville.mssante.test", "medecin@ville.mssante.test", "garde@ville.mssante.test"]
    open_ones = [running.log_in(user, "pass word/é$") for user in users]
    assert end_sessions(running.dovecot.search_socket, [*users[:2], "o'neil+a=b@ville.mssante.test"])
    for client in open_ones[:2]:
        with pytest.raises((imaplib.IMAP4.abort, OSError)):
            client.noop()
        client.shutdown()
    assert open_ones[2].noop()[0] == "OK"
    for pattern in ("*", "?arde@ville.mssante.test", "a\tb", "é", ""):
        assert not end_sessions(running.dovecot.search_socket, [pattern])
    assert open_ones[2].noop()[0] == "OK"
    assert not end_sessions(running.dovecot.search_socket.with_name("absent"), users)
    assert end_sessions(running.dovecot.search_socket, [])
    open_ones[2].logout()


def test_a_password_is_shown_only_to_the_gateway_of_its_domain(running: Running) -> None:
    running.log_in("service@hopital.mssante.test", "pass word/é$").logout()
    assert all(not login.endswith("hopital.mssante.test") for login, _ in running.laboratory.asked)
    assert all(login.endswith("hopital.mssante.test") for login, _ in running.hospital.asked)


@pytest.mark.parametrize(
    "recipient",
    ["nobody@ville.mssante.test", "labo@elsewhere.test", "labo+x@ville.mssante.test", "o'x@ville.mssante.test"],
)
def test_unknown_recipient_is_refused_for_good(running: Running, recipient: str) -> None:
    code, reply = running.deliver(recipient, "lost")
    assert (code, reply[:5]) == (550, "5.1.1")


def test_without_its_gateway_mail_waits_and_sign_in_is_unavailable() -> None:
    with a_dovecot() as running:
        laboratory = running.sockets[0]
        laboratory.run(laboratory.server.stop)
        code, _ = running.deliver("labo@ville.mssante.test", "early", "again")
        assert code == 451
        assert running.deliver("nobody@ville.mssante.test", "early")[0] == 451
        with pytest.raises(imaplib.IMAP4.error, match="UNAVAILABLE"):
            running.log_in("labo@ville.mssante.test", "secret-wörd")
        # The other operator's people notice nothing.
        running.log_in("service@hopital.mssante.test", "pass word/é$").logout()
        assert running.deliver("service@hopital.mssante.test", "unharmed")[0] == 250
        laboratory.start()
        until(lambda: running.deliver("labo@ville.mssante.test", "early", "again")[0] == 250, what="delivery")
        assert running.texts("labo@ville.mssante.test") == [b"early"]
        log = running.dovecot.log.read_text()
        assert "Failed to lookup" in log
        assert "secret" not in log


def test_an_account_database_that_fails_means_later() -> None:
    with a_dovecot() as running:

        def broken(address: str) -> None:
            raise OSError("database is away")

        running.laboratory.by_address = broken  # type: ignore[method-assign]
        assert running.deliver("labo@ville.mssante.test", "early")[0] == 451


def test_killed_dovecot_starts_again_with_its_mail(running: Running) -> None:
    user = f"{PATIENT}@patient.mssante.test"
    assert running.deliver(user, "kept", "before-kill")[0] == 250
    before = running.texts(user)
    assert running.dovecot.running() == running.process.pid
    running.process.send_signal(signal.SIGKILL)
    running.process.wait(10)
    assert running.dovecot.running() is None
    running.restart()
    assert running.deliver(user, "kept", "before-kill")[0] == 250
    assert running.texts(user) == before
    assert running.deliver(user, "after", "after-kill")[0] == 250
    assert running.texts(user) == [*before, b"after"]


def test_prepare_leaves_a_running_dovecot_alone(running: Running) -> None:
    running.dovecot.clear()  # nor does clearing up touch its sockets
    running.dovecot.prepare()
    give(running.options.state)
    assert running.dovecot.ready()
    assert running.deliver("labo@ville.mssante.test", "still here")[0] == 250


def test_nothing_runs_as_root_and_nothing_but_imaps_listens(running: Running) -> None:
    pids = subprocess.run(
        ["pgrep", "-P", str(running.process.pid)], check=True, capture_output=True, text=True
    ).stdout.split()
    for pid in [str(running.process.pid), *pids]:
        uid = int(re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1])
        assert uid != 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", 143), timeout=1):
        pass
    assert running.dovecot.lmtp_socket.stat().st_mode & 0o777 == 0o600


def test_scripts_of_people_are_offered_after_starttls_and_cannot_send_mail(running: Running) -> None:
    port = running.options.managesieve_port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client, client.makefile("rb") as lines:
        greeting = b""
        while not greeting.endswith(b'ready."\r\n'):
            greeting += lines.readline()
    assert b'"STARTTLS"' in greeting
    extensions = re.search(rb'"SIEVE" "([^"]*)"', greeting)[1].split()
    assert b"fileinto" in extensions
    assert not {b"vacation", b"enotify", b"reject", b"duplicate"} & set(extensions)


def test_old_tls_and_plaintext_are_refused(running: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", running.options.imaps_port)) as plain, pytest.raises(OSError):
        context.wrap_socket(plain)
    with socket.create_connection(("127.0.0.1", running.options.imaps_port), timeout=5) as plain:
        plain.sendall(b"a1 CAPABILITY\r\n")
        assert not plain.recv(100).startswith(b"*")


def test_no_patient_in_logs_nor_directory_names(running: Running) -> None:
    user = f"{PATIENT}@patient.mssante.test"
    assert running.deliver(user, "x", subject=f"Résultats de {PATIENT}".encode().decode("latin1"))[0] == 250
    running.texts(user)
    with pytest.raises(imaplib.IMAP4.error):
        running.log_in(user, "hunter2")
    running.laboratory.failures.clear()
    until(lambda: "Disconnected" in running.dovecot.log.read_text())
    log = running.dovecot.log.read_text()
    for secret in (PATIENT, "Compte rendu", "Résultats", "hunter2", "pass word"):
        assert secret not in log
    for realm in running.options.realms:
        assert not [path for path in realm.home.rglob("*") if PATIENT in str(path)]
    assert not re.search(r"\b(Error|Fatal|Panic|Warning): (?!.*(fd limit|Killed with signal 15))", log), log


@pytest.mark.parametrize(
    "change",
    [
        {"user": "root"},
        {"state": Path("/tmp/a b")},
        {"state": Path("relative")},
        {"key": Path("/tmp/x\nssl = no")},
        {"realms": (MailboxRealm(("*",), Path("/tmp/s"), Path("/tmp/h")),)},
        {"realms": (MailboxRealm(("A.test",), Path("/tmp/s"), Path("/tmp/h")),)},
        {"realms": (MailboxRealm(("a.test", "a.test"), Path("/tmp/s"), Path("/tmp/h")),)},
    ],
)
def test_unsafe_options_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    options: dict[str, object] = {
        "state": tmp_path,
        "imaps_port": 1,
        "certificate_chain": tmp_path / "c",
        "key": tmp_path / "k",
        "realms": (),
        "user": "daemon",
    }
    with pytest.raises(DovecotConfigurationError):
        PrivateDovecot(DovecotOptions(**(options | change))).prepare()
    assert not (tmp_path / "dovecot.conf").exists()


def test_realm_hides_addresses_and_knows_only_its_domains() -> None:
    realm = MailboxRealm(("a.test",), Path("/s"), Path("/h"))
    assert realm.home_of("X@A.test") == realm.home_of("x@a.test") != realm.home_of("y@a.test")
    assert realm.home_of("x@b.test") is None
    assert "279" not in str(realm.home_of(f"{PATIENT}@a.test"))[:6]
