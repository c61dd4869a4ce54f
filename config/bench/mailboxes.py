"""`relais bench mailboxes`: what serving our mailboxes adds to Dovecot's own time.

Three Dovecots run side by side: ours as the product sets it up, reached through `LmtpTarget`; one alone, which does the
same to each mail (encryption, Sieve against second copies, size limits, rights) for static users with a static key; and
a bare one without any of it. The latter two are reached by the least LMTP client there can be. Turns alternate.
Deliveries: over eight connections, mails of 20 KB. Idle: as many TLS sessions as the scale says on ours and on the one
alone, in IDLE; mails come in at an even pace, and the time from handing a mail over until its session hears of it is
taken. With
`fs.inotify.max_user_instances` at its usual 128, fewer sessions are measured. Started as root, everything runs as user
`relais`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import pwd
import random
import resource
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from config.bench.child import BenchError, end
from config.bench.report import Bar, percentile, result, row
from config.migrations import upgrade
from config.ports import choose
from config.privileges import PrivilegeError, drop
from mta.mailboxes.authentication import AuthenticationSocket, is_held
from mta.mailboxes.dovecot import DovecotOptions, MailboxRealm, PrivateDovecot
from mta.mailboxes.dovecot_text import ONCE, RIGHTS
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.mailbox_keys import MailboxKeys
from mta.mailboxes.registry import Registry
from mta.mailboxes.serving import Serving
from mta.message import Delivered, Message, Origin
from trust.accounts import Accounts
from trust.catalogue import AUTHENTICATION_FAILED
from trust.identities import Identity, Service
from trust.issuing import DemonstrationAuthority
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

_DOMAIN = "bench.mssante.test"
_CONNECTIONS = 8
"""As many as `LmtpOptions` allows by default."""
_SIZE = 20_000
_RATED = 20
"""Mailboxes of the deliveries."""
_PASSWORD = "bench"  # noqa: S105 - of nobody
_LOGINS = 8
"""Sign-ins under way at once."""
_SILENCE = 20.0
"""Seconds after which a notice that did not come makes the measurement impossible."""
_BARE = """\
base_dir = {state}/run
state_dir = {state}/run
instance_name = bare-{imaps}
protocols = imap lmtp
listen = 127.0.0.1
log_path = {state}/log
default_internal_user = {user}
default_login_user = {user}
default_internal_group = $default_internal_user
mail_uid = {user}
mail_gid = {user}
first_valid_uid = 1
first_valid_gid = 1
ssl = required
ssl_cert = <{chain}
ssl_key = <{key}
mail_location = sdbox:~/mail
mail_max_userip_connections = 100
{plugins}
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = home={state}/mail/%u {fields}
}}
service anvil {{
  chroot =
}}
service imap-login {{
  chroot =
  service_count = 0
  client_limit = 2048
  process_min_avail = 1
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service imap {{
  process_limit = 2048
}}
service lmtp {{
  unix_listener lmtp {{
    mode = 0600
  }}
}}
protocol lmtp {{
  mail_fsync = always
  postmaster_address = postmaster@localhost
  {sieve}
}}
"""
_SAME_WORK = """\
mail_temp_dir = /dev/shm
mail_plugins = mail_crypt acl quota zlib
quota_full_tempfail = yes
plugin {{
  mail_crypt_save_version = 2
  acl = vfile:{rights}
  acl_globals_only = yes
  quota = count:Boite:ns=
  quota_vsizes = yes
  quota_rule = *:bytes=5368709120
  sieve = file:~/sieve;active=~/.dovecot.sieve
  sieve_before = {once}
  sieve_duplicate_max_period = 14d
  sieve_global_extensions = +duplicate
}}
"""


@dataclass(frozen=True, slots=True)
class Scale:
    deliveries: int
    """In one turn, of each."""
    runs: int
    sessions: int
    pace: int
    """Deliveries a second over the idle sessions."""
    idle_seconds: float
    """Of one turn, of each."""


SCALES = {
    "quick": Scale(deliveries=200, runs=3, sessions=500, pace=50, idle_seconds=4.0),
    "full": Scale(deliveries=2_000, runs=5, sessions=500, pace=50, idle_seconds=30.0),
}
_IDLE = "idle_500_added_p99_ms"
BARS = {
    "lmtp_vs_dovecot": Bar(0.9, 0.9, "ratio"),
    _IDLE: Bar(300.0, 100.0, at_most=True, from_n=500),
}

Deliver = Callable[[str, int], Awaitable[None]]
"""One mail with a number into a mailbox; raises `BenchError` when it was not taken."""


@dataclass(slots=True)
class Side:
    """One of the Dovecots."""

    name: str
    imaps_port: int
    lmtp: Path
    deliver: Deliver
    heard: dict[str, asyncio.Event] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)


def mailboxes(scale: str, chosen: Scale | None = None) -> dict[str, Any]:
    """Raises `BenchError`. Started as root, this process is user `relais` afterwards."""
    place = Path(tempfile.mkdtemp(prefix="relais-bench-"))
    try:
        if shutil.which("dovecot", path="/usr/sbin:/usr/bin") is None:
            raise BenchError("Dovecot is not installed: apt install dovecot-imapd dovecot-lmtpd dovecot-sieve")
        try:
            drop(place)
        except PrivilegeError as error:
            raise BenchError(str(error)) from error
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
        wanted = chosen or SCALES[scale]
        rows = asyncio.run(_measured(place, replace(wanted, sessions=min(wanted.sessions, _watchable()))))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return result("mailboxes", scale, [BARS[each["id"]].judge(each) if each["id"] in BARS else each for each in rows])


async def _measured(place: Path, scale: Scale) -> list[dict[str, Any]]:
    chain, key = await asyncio.to_thread(_certificate, place)
    ports = await asyncio.to_thread(choose, ("ours", "teams", "alone", "bare"), place / "ports.json", {})
    tls = ssl.create_default_context(cafile=str(place / "anchor.pem"))
    async with (
        _ours(place, chain, key, ports, scale.sessions) as ours,
        _alone(place / "alone", chain, key, ports["alone"], same_work=True) as alone,
        _alone(place / "bare", chain, key, ports["bare"], same_work=False) as bare,
    ):
        for side in (ours, alone, bare):
            await _rate(side.deliver, 40)  # every mailbox is there, every process started
        for _ in range(scale.runs):
            for side in (ours, alone, bare):
                side.rates.append(await _rate(side.deliver, scale.deliveries))
        for side in (ours, alone):
            await _listen(side, scale.sessions, tls)
        for turn in range(scale.runs):
            for side in (ours, alone):
                waited = await _notices(side, scale, random.Random(turn))  # noqa: S311 - an order, no secret
                side.p99.append(percentile(waited, 99.0))
                side.p50.append(percentile(waited, 50.0))
    added = [max(0.0, mine - theirs) for mine, theirs in zip(ours.p99, alone.p99, strict=True)]
    n = int(scale.pace * scale.idle_seconds)
    return [
        row(
            "lmtp_vs_dovecot",
            ours.rates,
            "1/s",
            scale.deliveries,
            reference="dovecot alone",
            reference_values=alone.rates,
        ),
        row(
            "lmtp_vs_bare_storage",
            ours.rates,
            "1/s",
            scale.deliveries,
            reference="dovecot without encryption, Sieve or limits",
            reference_values=bare.rates,
        ),
        {**row(_IDLE, added, "ms", scale.sessions), "deliveries": n},
        row("idle_p99_ms", ours.p99, "ms", n, reference="dovecot alone", reference_values=alone.p99),
        row("idle_p50_ms", ours.p50, "ms", n, reference="dovecot alone", reference_values=alone.p50),
    ]


def _watchable() -> int:
    """Sessions on each side that the kernel lets wait for their mail: each needs an inotify instance (inotify(7)), or
    Dovecot looks every half minute only."""
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    return max(1, (limit - 28) // 2)


# --- The two sides ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _ours(place: Path, chain: Path, key: Path, ports: Mapping[str, int], sessions: int) -> AsyncIterator[Side]:
    """With accounts and records in a database, as the product has them."""
    vault = await asyncio.to_thread(KeyVault.create, place / "vault")
    realm = MailboxRealm((_DOMAIN,), place / "authentication", place / "mail")
    database = await asyncio.to_thread(Database, f"sqlite:///{place / 'accounts.db'}")
    accounts = Accounts(database, vault)
    await asyncio.to_thread(_furnish, accounts, sessions)

    def sign_in(address: str, _password: str, _client: str, _service: Service) -> Identity | Refused:
        """Everybody: what a password costs (argon2id) is not what is measured."""
        return accounts.by_address(address) or Refused(AUTHENTICATION_FAILED)

    authentication = AuthenticationSocket(
        realm.authentication_socket,
        accounts,
        realm.home_of,
        sign_in,
        serving=Serving(vault, Registry(accounts, vault), accounts.by_address),
    )
    dovecot = PrivateDovecot(
        DovecotOptions(place / "dovecot", ports["ours"], chain, key, (realm,), loopback_port=ports["teams"])
    )
    await asyncio.to_thread(dovecot.prepare)
    await authentication.start()
    target = LmtpTarget(
        LmtpOptions(
            "bench",
            dovecot.lmtp_socket,
            connections=_CONNECTIONS,
            idle_connections=_CONNECTIONS,
            is_held=functools.partial(is_held, realm.home_of),
        )
    )

    async def deliver(address: str, number: int) -> None:
        outcome = await target.deliver(_message(address, number))
        if not isinstance(outcome, Delivered):
            raise BenchError(f"a mail was not taken: {outcome.reason.detail}")

    try:
        async with _running(dovecot.command(), dovecot.ready):
            yield Side("ours", ports["ours"], dovecot.lmtp_socket, deliver)
    finally:
        await target.close()
        await authentication.stop()
        await asyncio.to_thread(dovecot.clear)
        await asyncio.to_thread(database.close)


def _furnish(accounts: Accounts, sessions: int) -> None:
    upgrade(accounts.database)
    addresses = [f"rate{number}@{_DOMAIN}" for number in range(_RATED)]
    addresses += [f"idle{number}@{_DOMAIN}" for number in range(sessions)]
    accounts.database.transact(lambda connection: [accounts.put(connection, each, [each]) for each in addresses])


@asynccontextmanager
async def _alone(state: Path, chain: Path, key: Path, port: int, *, same_work: bool) -> AsyncIterator[Side]:
    (state / "run").mkdir(mode=0o755, parents=True)
    configuration = state / "dovecot.conf"
    user = pwd.getpwuid(os.geteuid()).pw_name
    plugins = fields = ""
    if same_work:
        (state / "once.sieve").write_text(ONCE)
        (state / "rights.acl").write_text(RIGHTS)
        plugins = _SAME_WORK.format(rights=state / "rights.acl", once=state / "once.sieve")
        vault = await asyncio.to_thread(KeyVault.create, state / "vault")
        ring = MailboxKeys(vault).ring(f"all@{_DOMAIN}", state / "key")
        fields = " ".join(f"{name}={value}" for name, value in ring.fields().items())
    configuration.write_text(
        _BARE.format(
            state=state,
            imaps=port,
            user=user,
            chain=chain,
            key=key,
            plugins=plugins,
            fields=fields,
            sieve="mail_plugins = $mail_plugins sieve" if same_work else "",
        )
    )
    lmtp = state / "run" / "lmtp"
    idle: asyncio.LifoQueue[_Lmtp] = asyncio.LifoQueue()
    opened: list[_Lmtp] = []

    async def deliver(address: str, number: int) -> None:
        if idle.empty() and len(opened) < _CONNECTIONS:
            connection = _Lmtp()
            opened.append(connection)
            await connection.open(lmtp)
        else:
            connection = await idle.get()
        await connection.deliver(address, _message(address, number).content)
        idle.put_nowait(connection)

    try:
        async with _running(["/usr/sbin/dovecot", "-F", "-c", str(configuration)], lmtp.exists):
            yield Side(state.name, port, lmtp, deliver)
    finally:
        for each in opened:
            each.close()


@asynccontextmanager
async def _running(command: list[str], ready: Callable[[], bool]) -> AsyncIterator[None]:
    process = await asyncio.to_thread(subprocess.Popen, command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20.0
        while not await asyncio.to_thread(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("a Dovecot did not start")
            await asyncio.sleep(0.05)
        yield
    finally:
        await asyncio.to_thread(end, process, 20.0)


class _Lmtp:
    """The least client: MAIL, RCPT and DATA in one write (RFC 2920), then the mail."""

    async def open(self, path: Path) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(path)
        await self._reader.readline()
        self._writer.write(b"LHLO bench\r\n")
        while (await self._reader.readline())[3:4] == b"-":
            pass

    async def deliver(self, address: str, content: bytes) -> None:
        self._writer.write(f"MAIL FROM:<a@{_DOMAIN}>\r\nRCPT TO:<{address}>\r\nDATA\r\n".encode())
        answers = [await self._reader.readline() for _ in range(3)]
        if not answers[2].startswith(b"354"):
            raise BenchError(f"the bare Dovecot refused: {answers[1][:60]!r}")
        self._writer.write(content + b".\r\n")
        await self._writer.drain()
        if not (await self._reader.readline()).startswith(b"250"):
            raise BenchError("the bare Dovecot refused a mail")

    def close(self) -> None:
        self._writer.close()


# --- What is measured -------------------------------------------------------------------------------------------------


async def _rate(deliver: Deliver, count: int) -> float:
    """Deliveries a second over `_CONNECTIONS` at a time, into 20 mailboxes."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await deliver(f"rate{number % _RATED}@{_DOMAIN}", number)

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_CONNECTIONS)))
    return count / (time.perf_counter() - began)


async def _listen(side: Side, sessions: int, tls: ssl.SSLContext) -> None:
    """That many sessions signed in and in IDLE; each notice of mail sets its event."""
    places = asyncio.Semaphore(_LOGINS)

    async def begin(number: int) -> None:
        address = f"idle{number}@{_DOMAIN}"
        async with places:
            reader, writer = await asyncio.open_connection("127.0.0.1", side.imaps_port, ssl=tls)
            said = base64.b64encode(f"\0{address}\0{_PASSWORD}".encode()).decode()
            writer.write(f"a AUTHENTICATE PLAIN {said}\r\nb SELECT INBOX\r\nc IDLE\r\n".encode())
            while not (line := await reader.readline()).startswith(b"+ "):
                if not line or line[:4] in (b"a NO", b"b NO", b"c BA"):
                    raise BenchError(f"an idle session was refused: {line[:60]!r}")
        heard = side.heard[address] = asyncio.Event()
        tasks.append(asyncio.create_task(_hear(reader, writer, heard)))

    tasks: list[asyncio.Task[None]] = []
    await asyncio.gather(*(begin(number) for number in range(sessions)))
    _LISTENING.update(tasks)
    for task in tasks:
        task.add_done_callback(_LISTENING.discard)


_LISTENING: set[asyncio.Task[None]] = set()


async def _hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while line := await reader.readline():
            if b"EXISTS" in line:
                heard.set()
    writer.close()


async def _notices(side: Side, scale: Scale, order: random.Random) -> list[float]:
    """Milliseconds from handing over until the notice, of mails at an even pace into sessions that wait for none."""
    count = int(scale.pace * scale.idle_seconds)
    addresses: list[str] = []
    while len(addresses) < count:
        addresses += order.sample(sorted(side.heard), len(side.heard))
    began = time.perf_counter()

    async def one(number: int) -> float:
        address, heard = addresses[number], side.heard[addresses[number]]
        await asyncio.sleep(max(0.0, began + number / scale.pace - time.perf_counter()))
        heard.clear()
        handed = time.perf_counter()
        await side.deliver(address, number)
        try:
            async with asyncio.timeout(_SILENCE):
                await heard.wait()
        except TimeoutError:
            raise BenchError("a session was told nothing of its mail") from None
        return 1000.0 * (time.perf_counter() - handed)

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def _message(address: str, number: int) -> Message:
    head = (
        f"X-Relais-Delivery: {time.time_ns()}-{number}\r\nFrom: a@{_DOMAIN}\r\nTo: {address}\r\nSubject: {number}\r\n"
    )
    body = (b"x" * 76 + b"\r\n") * (_SIZE // 78)
    return Message(
        message_id=f"<{number}@{_DOMAIN}>",
        spool_id=str(number),
        delivery_id=str(number),
        origin=Origin.OPERATOR,
        sender=f"a@{_DOMAIN}",
        recipient=address,
        content=head.encode() + b"\r\n" + body,
        content_type="message/rfc822",
        accepted_at=time.time(),
    )


def _certificate(place: Path) -> tuple[Path, Path]:
    authority = DemonstrationAuthority.create("Bench")
    issued = authority.issue_server([], ["127.0.0.1"])
    chain, key = place / "chain.pem", place / "key.pem"
    pem = serialization.Encoding.PEM
    chain.write_bytes(b"".join(each.public_bytes(pem) for each in (issued.certificate, *issued.chain)))
    key.write_bytes(issued.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    key.chmod(0o600)
    (place / "anchor.pem").write_bytes(authority.root.public_bytes(pem))
    return chain, key
