"""Several real `relais serve` processes of one operator on one PostgreSQL, a mailbox server that counts, and a client.

Each node has its own state directory; vault and configuration are what an operator brings to a new machine. The mailbox
server speaks LMTP and drops a second copy of a delivery by its id, as Dovecot's Sieve does.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

from config import demonstration
from config.control import ControlError, ask
from config.demonstration import OPERATORS, World
from config.migrations import upgrade
from tests.support.loops import on_a_loop_of_its_own
from tests.support.postgresql import PostgresServer
from tests.support.private import free_port, give, service_directory, start_unprivileged, until
from trust.accounts import Accounts
from trust.store.database import Database
from trust.vault import KeyVault

LABORATORY, TOWN = OPERATORS
SENDER = LABORATORY.mailboxes[0].address
RECIPIENT = TOWN.mailboxes[0].address
_DELIVERY = re.compile(rb"^X-Relais-Delivery: *(\S+)", re.I | re.M)
_NUMBER = re.compile(rb"^X-Number: *(\S+)", re.I | re.M)


class MailboxServer:
    """LMTP on a Unix socket. `boxes`: what was filed, by number, each delivery once; `refusing`: answer 451."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deliveries: dict[str, str] = {}
        self.repeated = 0
        self.refusing = False
        self._stack = ExitStack()
        self._stack.enter_context(on_a_loop_of_its_own(self._listening()))

    @property
    def filed(self) -> Counter[str]:
        return Counter(self.deliveries.copy().values())

    def close(self) -> None:
        self._stack.close()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._serve, self.path, limit=1 << 24)
        self.path.chmod(0o777)
        yield
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(b"220 sink LMTP\r\n")
            recipients = 0
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"LHLO":
                    writer.write(b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
                elif verb == b"DATA":
                    writer.write(b"354 go\r\n")
                    content = await reader.readuntil(b"\r\n.\r\n")
                    writer.write((b"451 4.2.0 later\r\n" if self.refusing else self._file(content)) * recipients)
                    recipients = 0
                elif verb == b"QUIT":
                    writer.write(b"221 bye\r\n")
                    break
                else:
                    recipients += verb == b"RCPT"
                    if verb == b"RSET":
                        recipients = 0
                    writer.write(b"250 ok\r\n")
                await writer.drain()

    def _file(self, content: bytes) -> bytes:
        delivery, number = _DELIVERY.search(content), _NUMBER.search(content)
        assert delivery is not None
        known = delivery[1].decode() in self.deliveries
        self.repeated += known
        self.deliveries[delivery[1].decode()] = number[1].decode() if number else "notification"
        return b"250 2.0.0 filed\r\n"


class Farm:
    """Configuration, vault and accounts of the town's operator, and its nodes."""

    def __init__(self, place: Path, postgresql: PostgresServer) -> None:
        self.place, self.postgresql = place, postgresql
        self.url = postgresql.fresh()
        self.world = World(place / "world")
        self.world.state.mkdir()
        demonstration.prepare(self.world)
        self.home = self.world.of(TOWN)
        vault = KeyVault.open(self.home / "vault")
        database = Database(self.url)
        upgrade(database)
        accounts = Accounts(database, vault)
        for mailbox in TOWN.mailboxes:
            accounts.create(mailbox.address, [mailbox.address], None)
        database.close()
        self.world.state.chmod(0o755)
        self.mailboxes = MailboxServer(place / "lmtp")
        self.nodes: dict[str, Node] = {}
        give(self.world.state)

    def node(self, name: str, *, port: int | None = None, number: int | None = None, patience: float = 5.0) -> Node:
        state = self.place / (name if number is None else name.rpartition(".")[0] or name)
        made = Node(self, name, state, port or free_port(), number, patience)
        self.nodes[name] = made
        return made

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
            node.hang_up()
        self.mailboxes.close()


class Node:
    """One process."""

    def __init__(self, farm: Farm, name: str, state: Path, port: int, number: int | None, patience: float) -> None:
        self.farm, self.name, self.state, self.port, self.number = farm, name, state, port, number
        self.patience = patience
        self.path = farm.place / f"{state.name}.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.extra: tuple[str, ...] = ()
        self.clients: list[smtplib.SMTP] = []
        self.log = farm.place / f"{name}.log"

    def configure(self, *extra: str) -> None:
        world, home, text = self.farm.world, self.farm.home, json.dumps
        lines = [
            "[operator]",
            f"name = {text(TOWN.name, ensure_ascii=False)}",
            f"host = {text(TOWN.host)}",
            f"domains = {text(list(TOWN.domains))}",
            f"postmaster = {text(TOWN.postmaster)}",
            f"state = {text(str(self.state))}",
            "[identity]",
            'environment = "test"',
            "[trust]",
            f"anchors = {text(str(world.anchors))}",
            f"intermediates = {text(str(world.intermediates))}",
            f"list = {text(str(world.trust_list))}",
            f"list_signer = {text(world.list_signer.read_text(), ensure_ascii=False)}",
            f"operator_chain = {text(str(home / 'operator.pem'))}",
            f"operator_key = {text(str(home / 'operator.key'))}",
            "[directory]",
            'uri = "ldaps://127.0.0.1:9"',
            f"ca = {text(str(world.anchors))}",
            "[operators]",
            'host = "127.0.0.1"',
            f"port = {self.port}",
            "[mailboxes]",
            f"lmtp_socket = {text(str(self.farm.mailboxes.path))}",
            f"authentication_socket = {text(str(self.state / 'authentication.sock'))}",
            f"home = {text(str(self.state / 'mail'))}",
            "[revocation]",
            'outbound = "off"',
            'operators = "off"',
            'inbound = "off"',
            'list = "off"',
            "[keys]",
            f"vault = {text(str(home / 'vault'))}",
            "[store]",
            f"url = {text(self.farm.url)}",
            f"node = {text(self.state.name)}",
            f"patience_seconds = {self.patience}",
            "[journal]",
            f"heads = {text(str(self.state / 'heads.jsonl'))}",
            "[spool]",
            "first_retry_seconds = 1",
            "longest_retry_seconds = 2",
            "drain_seconds = 3",
            *extra,
        ]
        self.path.write_text("\n".join(lines) + "\n")
        self.path.chmod(0o644)

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        self.configure(*self.extra)
        self.state.mkdir(exist_ok=True)
        give(self.state)
        control = self.control
        control.unlink(missing_ok=True)
        which = [] if self.number is None else ["--process", str(self.number)]
        with self.log.open("ab") as log:
            self.process = start_unprivileged(
                [sys.executable, "-P", "-m", "config", "serve", "--config", str(self.path), *which],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    @property
    def control(self) -> Path:
        return self.state / (f"control-{self.number}.sock" if self.number else "control.sock")

    def wait_ready(self, seconds: float = 60.0) -> None:
        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(self.log.read_text()[-3000:])
            try:
                return bool(ask(self.control, "ping", seconds=2.0))
            except ControlError:
                return False

        until(ready, seconds, f"{self.name} ready")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait(20)

    def lose(self) -> None:
        """The machine is gone with everything on it."""
        self.kill()
        shutil.rmtree(self.state, ignore_errors=True)

    def stop(self, seconds: float = 30.0) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(seconds)

    def logged(self, event: str) -> list[dict[str, object]]:
        found = []
        for line in self.log.read_text().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event") == event:
                    found.append(entry)
        return found

    def hang_up(self) -> None:
        """Close every connection of `connect`."""
        for client in self.clients:
            client.close()
        self.clients.clear()

    def connect(self, timeout: float = 20.0) -> smtplib.SMTP:
        """As the laboratory's operator, under TLS."""
        context = ssl.create_default_context(cafile=str(self.farm.world.anchors))
        ours = self.farm.world.of(LABORATORY)
        context.load_cert_chain(ours / "operator.pem", ours / "operator.key")
        client = smtplib.SMTP("localhost", self.port, LABORATORY.host, timeout)
        self.clients.append(client)
        client.starttls(context=context)
        client.ehlo(LABORATORY.host)
        return client


def mail(number: str, size: int = 200) -> bytes:
    return (
        (
            f"From: {SENDER}\r\nTo: {RECIPIENT}\r\nSubject: {number}\r\nX-Number: {number}\r\n"
            f"Message-ID: <{number}@{LABORATORY.host}>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\n\r\n"
        ).encode()
        + (b"0123456789abcdef" * 4 + b"\r\n") * (size // 66)
        + b"\r\n"
    )


@contextmanager
def farm(postgresql: PostgresServer) -> Iterator[Farm]:
    with service_directory() as place:
        made = Farm(place, postgresql)
        try:
            yield made
        finally:
            made.close()
