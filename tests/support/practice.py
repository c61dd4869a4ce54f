"""A practice beside two real operators: its mailboxes there, its keys, its connector, and the line between them."""

from __future__ import annotations

import asyncio
import contextlib
import imaplib
import json
import signal
import smtplib
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from email.utils import make_msgid
from pathlib import Path
from typing import Any

from config.control import ControlError, ask
from config.demonstration import World
from config.settings import load
from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryOptions
from tests.support.fault_proxy import FaultProxy, proxying
from tests.support.private import free_port, give, service_directory, until
from tests.support.running import Running
from trust.issuing import DemonstrationAuthority
from trust.vault import KeyUse, KeyVault

PASSWORD = "le mot de passe d'en haut"
HERE = "local-seulement"


@dataclass(frozen=True)
class Mailbox:
    """One at an operator of the demonstration."""

    address: str
    operator: str
    submission: str
    """Endpoint: `submissions-ville` and the like."""
    tls: str


TOWN = Mailbox("jeanne.exemple@medecin.mssante.fr", "ville", "submissions", "implicit")
CLINIC = Mailbox("jeanne.exemple@ch-bellevue.mssante.fr", "laboratoire", "submission", "starttls")


def _endpoint(up: Running, mailbox: Mailbox) -> int:
    """Any account of the same operator says where mail is submitted there."""
    role = "gp" if mailbox.operator == "ville" else "hospital"
    return int(up.account(role)[mailbox.submission]["port"])


def enroll(up: Running, mailbox: Mailbox, authority: DemonstrationAuthority, vault: KeyVault) -> None:
    """The operator opens an account, the directory publishes the keys; practice and operator both hold them."""
    theirs = KeyVault.open(up.state / mailbox.operator / "vault")
    for use, kind in ((KeyUse.SIGNING, "p256"), (KeyUse.ENCRYPTION, "rsa3072")):
        issued = authority.issue_mailbox(mailbox.address, "Dr Jeanne EXEMPLE", use.value, kind)  # type: ignore[arg-type]
        for each in (vault, theirs):
            each.install(mailbox.address, use, issued.key, issued.certificate, issued.chain)
    give(up.state / mailbox.operator / "vault")
    up.ask(
        mailbox.operator,
        "account.create",
        name=mailbox.address,
        addresses=[mailbox.address],
        password=PASSWORD,
        by="test",
    )
    # what it opens it leaves as it was signed: the practice has eyes of its own
    up.ask(
        mailbox.operator,
        "mailbox.preferences",
        name=mailbox.address,
        values={"verdict_line": "no", "summary": "no"},
        by="test",
    )
    settings = load(up.state / mailbox.operator / "relais.toml").settings.directory
    directory = Directory(
        DirectoryOptions(
            uri=settings.uri,
            base=settings.base,
            bind_dn=settings.writer_dn,
            password=(up.state / mailbox.operator / settings.writer_password_file).read_text(),
            ca_file=Path(settings.ca),
        )
    )
    try:
        directory.publish(
            Recipient(
                address=mailbox.address,
                kind=MailboxKind.PER,
                display_name="Dr Jeanne EXEMPLE",
                encryption_certificates=vault.certificates(mailbox.address, KeyUse.ENCRYPTION),
                signing_certificates=vault.certificates(mailbox.address, KeyUse.SIGNING),
                id_nat="801234569999",
                profession="10",
                organisation="Cabinet",
            )
        )
    finally:
        directory.close()


@dataclass
class Line:
    """What joins a practice to its operators."""

    proxies: dict[str, FaultProxy] = field(default_factory=dict)
    _ports: dict[str, int] = field(default_factory=dict)

    async def cut(self) -> None:
        """Whatever was open ends without a word, and nothing new comes through."""
        for name, proxy in self.proxies.items():
            self._ports[name], proxy.target = proxy.target, 1
            await proxy.end()

    def mend(self) -> None:
        for name, proxy in self.proxies.items():
            proxy.target = self._ports[name]


class Practice:
    """One `relais connect`."""

    def __init__(self, state: Path, up: Running) -> None:
        self.state = state
        self.up = up
        self.imaps, self.submissions = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def write(self, line: Line, *, revoked: str = "soft") -> None:
        up = self.up
        directory = load(up.state / "ville" / "relais.toml").settings.directory
        world = World(up.state)
        (self.state / "inbox").mkdir(mode=0o700)
        (self.state / "outbox").mkdir(mode=0o700)
        (self.state / "local.password").write_text(HERE)
        (self.state / "directory.password").write_text((up.state / "ville" / directory.password_file).read_text())
        (self.state / "upstream.password").write_text(PASSWORD)
        text = json.dumps
        lines = [
            "[connect]",
            f"anchors = {text(str(world.anchors))}",
            f"intermediates = {text(str(world.intermediates))}",
            f"imaps_port = {self.imaps}",
            f"submissions_port = {self.submissions}",
            'inbox_folder = "inbox"',
            "[connect.directory]",
            f'uri = "ldaps://127.0.0.1:{line.proxies["ldaps"].port}"',
            f"bind_dn = {text(directory.bind_dn)}",
            'password_file = "directory.password"',
        ]
        for each in (TOWN, CLINIC):
            lines += [
                "[[connect.accounts]]",
                f"address = {text(each.address)}",
                'imap_host = "localhost"',
                f"imap_port = {line.proxies['imaps'].port}",
                f"smtp_port = {line.proxies[each.operator].port}",
                f"smtp_tls = {text(each.tls)}",
                'password_file = "upstream.password"',
                *(['outbox = "outbox"'] if each is CLINIC else []),
            ]
        lines += ["[revocation]", f"outbound = {text(revoked)}", "[spool]", "first_retry_seconds = 1"]
        lines += ["longest_retry_seconds = 2", "[identity]", 'environment = "test"']
        (self.state / "relais.toml").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        output = (self.state.parent / "connect.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "config", "connect", "--state", str(self.state), "--log-level", "INFO"],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        output.close()

        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"relais connect ended: {self.said()}")
            try:
                ask(self.state / "control.sock", "ping", seconds=2.0)
                with self.imap(TOWN):
                    return True
            except (ControlError, OSError, imaplib.IMAP4.error):
                return False

        until(ready, 60.0, "relais connect")

    def said(self) -> str:
        """The ends of its logs."""
        logs = [self.state.parent / "connect.log", *self.state.glob("log/*.log")]
        return "\n".join(each.read_text(errors="replace")[-3000:] for each in logs if each.exists())

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(40)

    def ask(self, call: str, **arguments: Any) -> Any:
        return ask(self.state / "control.sock", call, **arguments)

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.state / "local-ca.pem"))

    @contextmanager
    def imap(self, mailbox: Mailbox, folder: str = "INBOX") -> Iterator[imaplib.IMAP4_SSL]:
        """The local mailbox, as the mail program of the practice has it."""
        client = imaplib.IMAP4_SSL("127.0.0.1", self.imaps, ssl_context=self.context, timeout=20)
        with _session(client, mailbox.address, HERE, folder):
            yield client

    @contextmanager
    def upstream(self, mailbox: Mailbox, folder: str = "INBOX") -> Iterator[imaplib.IMAP4_SSL]:
        """The mailbox at the operator, past the line."""
        endpoint = self.up.endpoints["imaps"]
        context = ssl.create_default_context(cafile=self.up.endpoints["ca_file"])
        client = imaplib.IMAP4_SSL(endpoint["host"], endpoint["port"], ssl_context=context, timeout=20)
        with _session(client, mailbox.address, PASSWORD, folder):
            yield client

    def mails(self, mailbox: Mailbox) -> list[EmailMessage]:
        with self.imap(mailbox) as client:
            return _mails(client)

    def left_upstream(self, mailbox: Mailbox) -> list[EmailMessage]:
        with self.upstream(mailbox) as client:
            return _mails(client)

    def submit(self, mailbox: Mailbox, mail: EmailMessage, *rcpt_options: str) -> None:
        with smtplib.SMTP_SSL("localhost", self.submissions, context=self.context, timeout=20) as client:
            client.login(mailbox.address, HERE)
            client.send_message(mail, rcpt_options=rcpt_options)

    def got(self, mailbox: Mailbox, mail: EmailMessage) -> list[EmailMessage]:
        """The copies of this mail in the local mailbox."""
        return [each for each in self.mails(mailbox) if each["Message-ID"] == mail["Message-ID"]]

    def wait(self, mailbox: Mailbox, mail: EmailMessage, seconds: float = 30.0) -> EmailMessage:
        return self.wait_for(mailbox, ("HEADER", "Message-ID", mail["Message-ID"]), seconds)

    def wait_for(self, mailbox: Mailbox, search: tuple[str, ...], seconds: float = 30.0) -> EmailMessage:
        """The first local mail that is found so; waited for."""
        with self.imap(mailbox) as client:

            def there() -> bool:
                client.noop()
                return bool(client.search(None, *search)[1][0])

            try:
                until(there, seconds, "mail in the local mailbox")
            except TimeoutError as error:
                raise AssertionError(self.said()) from error
            return _mails(client, search)[0]

    def files(self) -> list[dict[str, Any]]:
        """What the practice software finds."""
        return [json.loads(each.read_text()) for each in sorted((self.state / "inbox").glob("*.json"))]


@contextmanager
def _session(client: imaplib.IMAP4_SSL, user: str, password: str, folder: str) -> Iterator[None]:
    try:
        client.login(user, password)
        client.select(folder)
        yield
    finally:
        with contextlib.suppress(imaplib.IMAP4.error, OSError):
            client.logout()


def _mails(client: imaplib.IMAP4_SSL, search: tuple[str, ...] = ("ALL",)) -> list[EmailMessage]:
    _, found = client.search(None, *search)
    mails = []
    for number in found[0].split():
        _, parts = client.fetch(number.decode(), "(BODY.PEEK[])")
        if not isinstance(parts[0], tuple):  # removed since the search
            continue
        mails.append(message_from_bytes(parts[0][1], _class=EmailMessage, policy=default))  # type: ignore[arg-type]
    return mails


def letter(sender: str, to: str, text: str = "Bonjour,\nvoici la suite.\n") -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = f"Jeanne EXEMPLE <{sender}>"
    mail["To"] = to
    mail["Subject"] = "Suite de la prise en charge"
    mail["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2])
    mail.set_content(text)
    mail.add_attachment(b"%PDF-1.4\n%%EOF\n", maintype="application", subtype="pdf", filename="compte rendu.pdf")
    return mail


@asynccontextmanager
async def practice(up: Running) -> AsyncIterator[tuple[Practice, Line]]:
    """A new one, with mailboxes of its own at both operators; not started. On the loop its line lives on."""
    async with AsyncExitStack() as stack:
        line = Line()
        ports = {
            "imaps": int(up.endpoints["imaps"]["port"]),
            "ldaps": int(up.endpoints["ldaps"]["port"]),
            **{each.operator: _endpoint(up, each) for each in (TOWN, CLINIC)},
        }
        for name, port in ports.items():
            line.proxies[name] = await stack.enter_async_context(proxying(port))
        place = stack.enter_context(service_directory())
        state = place / "cabinet"
        state.mkdir(mode=0o700)
        (state / ".relais-state").touch()
        vault = KeyVault.create(state / "vault")
        authority = DemonstrationAuthority.load(World(up.state).authority)
        for each in (TOWN, CLINIC):
            await asyncio.to_thread(enroll, up, each, authority, vault)
        made = Practice(state, up)
        made.write(line)
        try:
            yield made, line
        finally:
            await asyncio.to_thread(made.stop)
