"""A real Dovecot run as an ordinary user from the generated configuration, with accounts and teams in memory."""

from __future__ import annotations

import asyncio
import imaplib
import os
import pwd
import smtplib
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from directory.records import MailboxKind
from mta.mailboxes.authentication import AuthenticationSocket
from mta.mailboxes.dovecot import (
    DELIVERY_HEADER,
    DovecotOptions,
    MailboxRealm,
    PrivateDovecot,
    mail_location,
)
from mta.mailboxes.records import MailboxRecord, Member, MemberRight
from mta.mailboxes.serving import Serving, ServingOptions
from tests.support.private import free_port, give, service_directory, service_ids, start_unprivileged, until
from trust.accounts import Identity
from trust.refusals import HL7Code, Refusal, Refused
from trust.vault import KeyVault

PASSWORD = "pass word/é$"

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


@dataclass
class Registry:
    """Records and members in memory."""

    records: dict[str, MailboxRecord] = field(default_factory=dict)
    teams: dict[str, dict[str, MemberRight]] = field(default_factory=dict)

    def find(self, address: str) -> MailboxRecord | None:
        return self.records.get(address)

    def members(self, address: str) -> tuple[Member, ...]:
        return tuple(Member(login, rights) for login, rights in self.teams.get(address, {}).items())

    def shared_with(self, login: str) -> tuple[tuple[str, MemberRight], ...]:
        return tuple((team, members[login]) for team, members in self.teams.items() if login in members)

    def put(self, address: str, kind: MailboxKind = MailboxKind.PER, **changes: object) -> None:
        known = self.records.get(address) or MailboxRecord(address=address, kind=kind, label="x")
        self.records[address] = replace(known, **changes)  # type: ignore[arg-type]


class GivenAway(Serving):
    """What it writes belongs to the service user, whom the gateway would be."""

    def fields(self, address: str, home: Path, member: str = "", service: str = "") -> dict[str, str] | None:
        try:
            return super().fields(address, home, member, service)
        finally:
            if (ids := service_ids()) is not None:
                for each in home.iterdir():
                    if each.is_file():
                        os.chown(each, *ids, follow_symlinks=False)


class SocketInThread:
    """An `AuthenticationSocket` on an event loop of its own; what it makes is given to the service user."""

    def __init__(
        self,
        realm: MailboxRealm,
        accounts: Accounts,
        vault: KeyVault,
        registry: Registry,
        options: ServingOptions,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.tickets: set[tuple[str, str]] = set()
        # Asked each time: a test may break it.
        self.serving = GivenAway(vault, registry, lambda address: accounts.by_address(address), options)  # noqa: PLW0108
        self.server = AuthenticationSocket(
            realm.authentication_socket,
            accounts,
            self.home_of,
            tokens=accounts.by_token,
            serving=self.serving,
            tickets=lambda address, secret: (address, secret) in self.tickets,
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


class Client(imaplib.IMAP4_SSL):
    """Leaves no socket open, also when the server said BYE."""

    def __exit__(self, *raised: object) -> None:
        try:
            super().__exit__(*raised)
        finally:
            self.file.close()
            self.sock.close()


@dataclass
class Running:
    options: DovecotOptions
    dovecot: PrivateDovecot
    process: subprocess.Popen[bytes]
    laboratory: Accounts
    hospital: Accounts
    sockets: list[SocketInThread]
    vault: KeyVault
    registry: Registry

    def imap(self) -> Client:
        context = ssl.create_default_context(cafile=str(self.options.certificate_chain))
        return Client("127.0.0.1", self.options.imaps_port, ssl_context=context, timeout=20)

    def log_in(self, user: str, password: str) -> Client:
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

    def texts(self, user: str, password: str = PASSWORD) -> list[bytes]:
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
def a_dovecot(quota_bytes: int = 0, vault: KeyVault | None = None) -> Iterator[Running]:
    with service_directory() as root:
        chain, key = write_certificate(root)
        vault = vault or KeyVault.create(root / "vault")
        registry = Registry()
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
            loopback_port=free_port(),
            tokens=True,
            failure_delay=0,
            user=pwd.getpwuid(ids[0]).pw_name if ids else "",
        )
        laboratory = Accounts(
            {
                "labo@ville.mssante.test": PASSWORD,
                "medecin@ville.mssante.test": PASSWORD,
                "garde@ville.mssante.test": PASSWORD,
                "o'neil+a=b@ville.mssante.test": PASSWORD,
                f"{PATIENT}@patient.mssante.test": PASSWORD,
            }
        )
        hospital = Accounts({"service@hopital.mssante.test": PASSWORD})
        dovecot = PrivateDovecot(options)
        dovecot.prepare()
        serving = ServingOptions(quota_bytes, mail_location(dovecot.memory))
        sockets = [
            SocketInThread(realm, accounts, vault, registry, serving)
            for realm, accounts in ((ville, laboratory), (hopital, hospital))
        ]
        give(root)
        process = start_unprivileged(dovecot.command())
        running = Running(options, dovecot, process, laboratory, hospital, sockets, vault, registry)
        try:
            until(dovecot.ready, what="Dovecot")
            yield running
        finally:
            running.process.terminate()
            running.process.wait(10)
            for server in sockets:
                server.close()
            dovecot.clear()
