"""IMAP for who shows a certificate: SASL EXTERNAL (RFC 4422 appendix A) in front of Dovecot.

Dovecot 2.3 tells nobody more of a client's certificate than a name in it: which certificate it was, and whether it was
revoked since, could not be asked. So the handshake ends here, `trust` judges the certificate, and the session then is
Dovecot's: this door signs in with a pass good for one moment and one address, and hands octets on in both directions.
While the session lasts the certificate is judged again and again; the session ends when it is believed no longer, or
its account or mailbox was closed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import re
import secrets
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import structlog

from trust.catalogue import CERTIFICATE_REFUSED
from trust.identities import CertificateSignIn, Identity
from trust.lockout import network_of
from trust.refusals import Refused
from trust.tls import Context, in_force, presented

_CAPABILITY = "CAPABILITY IMAP4rev1 SASL-IR ID LOGINDISABLED AUTH=EXTERNAL"
_LINE_LIMIT = 8192
_COMMANDS = 20
"""Before signing in."""
_COMMAND = re.compile(r"([!-$&'*+,-[\]-z|}~]{1,64}) ([A-Za-z]{1,20})(?: (.*))?")
"""Tag, command, the rest (RFC 3501 §9; whatever else is in the tag is the client's)."""
_BLOCK = 64 * 1024
_LAST_WORDS_SECONDS = 5.0
"""For what Dovecot said before it closed to reach the client."""
_THREADS = 4

log = structlog.get_logger(__name__)


class Passes:
    """What this door signs in with at Dovecot: each opens one address once, within `seconds`. Thread-safe."""

    def __init__(self, seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._given: dict[str, tuple[str, float]] = {}

    def give(self, address: str) -> str:
        secret = secrets.token_urlsafe(32)
        now = self._clock()
        with self._lock:
            self._given = {key: value for key, value in self._given.items() if value[1] > now}
            self._given[secret] = (address.lower(), now + self._seconds)
        return secret

    def take(self, address: str, secret: str) -> bool:
        """Whether it is one for this address; it is none any more."""
        with self._lock:
            known, until = self._given.get(secret, ("", 0.0))
            if until <= self._clock() or not hmac.compare_digest(known.encode(), address.lower().encode()):
                return False
            del self._given[secret]
        return True


@dataclass(frozen=True, slots=True)
class CertificateDoorOptions:
    dovecot_host: str
    dovecot_port: int
    """Where Dovecot speaks IMAPS."""
    dovecot_tls: ssl.SSLContext
    """Believes Dovecot's certificate."""
    dovecot_name: str = ""
    """Name that certificate must have; empty: `dovecot_host`."""
    recheck_seconds: float = 60.0
    """How often the certificate of an open session is judged again."""
    stranger_seconds: float = 30.0
    """For the handshake, and for each command before signing in."""
    connections: int = 512
    connections_per_client: int = 64
    """Of one network (`trust.lockout.network_of`), so that nobody takes all the places."""


class CertificateDoor:
    """A listener. `start`, and `stop` at the end, which ends what is open."""

    def __init__(
        self, options: CertificateDoorOptions, tls: Context, sign_in: CertificateSignIn, passes: Passes
    ) -> None:
        """`tls`: `trust.tls.service_server_context` with client anchors."""
        self._options = options
        self._tls = tls
        self._sign_in = sign_in
        self._passes = passes
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="imap-certificates")
        self._networks: Counter[str] = Counter()
        self.ended = 0
        """Sessions ended because their certificate was believed no longer."""
        self.told: Counter[str] = Counter()
        """What clients were told: signed-in, later, full, or the code of a refusal."""

    async def start(self, host: str, port: int) -> None:
        """Raises OSError when it cannot listen."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_LINE_LIMIT)

    @property
    def port(self) -> int:
        assert self._server is not None  # noqa: S101 - asked once it listens
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._sessions)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await asyncio.to_thread(self._executor.shutdown)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = str((writer.get_extra_info("peername") or ("",))[0])
        network = network_of(client) or client
        full = len(self._sessions) >= self._options.connections
        if full or self._networks[network] >= self._options.connections_per_client:
            self.told["full"] += 1
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as one
        self._sessions.add(task)
        self._networks[network] += 1
        try:
            async with asyncio.timeout(self._options.stranger_seconds):
                await writer.start_tls(in_force(self._tls))
            await self._session(client, reader, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):  # gone, too slow, a line past the limit
            pass
        except asyncio.CancelledError:
            pass  # by `stop` only; asyncio would log it
        finally:
            self._sessions.discard(task)
            self._networks[network] -= 1
            if not self._networks[network]:
                del self._networks[network]
            writer.transport.abort()

    async def _session(self, client: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shown = presented(writer.get_extra_info("ssl_object"))
        writer.write(f"* OK [{_CAPABILITY}] Relais ready.\r\n".encode())
        for _ in range(_COMMANDS):
            command = _COMMAND.fullmatch(await self._line(reader, writer))
            if command is None:
                writer.write(b"* BAD This is not a command.\r\n")
                continue
            tag, name, rest = command[1], command[2].upper(), command[3] or ""
            if name == "AUTHENTICATE":
                opened = await self._authenticate(tag, rest, shown, client, reader, writer)
                if opened is not None:
                    await self._serve(*opened, shown, reader, writer)
                    return
                continue
            writer.write(_answer(tag, name).encode())
            if name == "LOGOUT":
                await writer.drain()
                return
        writer.write(b"* BYE Too many commands before signing in.\r\n")
        await writer.drain()

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        async with asyncio.timeout(self._options.stranger_seconds):
            await writer.drain()
            line = await reader.readuntil(b"\n")
        return line.rstrip(b"\r\n").decode("ascii", "replace")

    async def _authenticate(
        self,
        tag: str,
        rest: str,
        shown: Sequence[bytes],
        client: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter] | None:
        """As whom, and the connection to Dovecot signed in for them; None when the client was refused."""
        mechanism, _, initial = rest.partition(" ")
        if mechanism.upper() != "EXTERNAL":
            writer.write(f"{tag} NO [CANNOT] Only EXTERNAL: sign in with a certificate.\r\n".encode())
            return None
        if not initial:
            writer.write(b"+ \r\n")
            initial = await self._line(reader, writer)
        wanted = _unencoded(initial)
        if wanted is None:
            writer.write(f"{tag} BAD Not an authorization identity.\r\n".encode())
            return None
        try:
            found: Identity | Refused | None = Refused(CERTIFICATE_REFUSED, "none")
            if shown:
                found = await self._judge(shown, wanted)
        except Exception as error:  # its database is away, a bug: later, and no word of whom
            log.error("imap-certificates.sign-in-failed", error=type(error).__name__)
            found = None
        if found is None:
            self.told["later"] += 1
            writer.write(f"{tag} NO [UNAVAILABLE] Nobody can be signed in now: try again later.\r\n".encode())
            return None
        if isinstance(found, Identity) and not found.addresses:
            found = Refused(CERTIFICATE_REFUSED, "no mailbox")
        if isinstance(found, Refused):
            self.told[found.refusal.code] += 1
            log.warning("imap-certificates.refused", client=client, refused=found.refusal.code, detail=found.detail)
            writer.write(f"{tag} NO [AUTHENTICATIONFAILED] This certificate opens no mailbox.\r\n".encode())
            return None
        try:
            async with asyncio.timeout(self._options.stranger_seconds):
                greeted, dovecot = await self._open(found, wanted.strip().lower(), tag, writer)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            greeted = dovecot = None
        if greeted is None or dovecot is None:
            self.told["later"] += 1
            log.warning("imap-certificates.not-opened", client=client, account=found.id)
            writer.write(f"{tag} NO [UNAVAILABLE] The mailbox cannot be opened now: try again later.\r\n".encode())
            return None
        self.told["signed-in"] += 1
        log.info("imap-certificates.signed-in", client=client, account=found.id)
        return wanted, greeted, dovecot

    async def _judge(self, shown: Sequence[bytes], wanted: str) -> Identity | Refused:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._sign_in, shown, wanted)

    async def _open(
        self, found: Identity, wanted: str, tag: str, writer: asyncio.StreamWriter
    ) -> tuple[asyncio.StreamReader | None, asyncio.StreamWriter | None]:
        """Signed in at Dovecot, whose answer the client has been told; or nothing."""
        options, own = self._options, found.addresses[0]
        # Somebody else's: a team's, of which Dovecot is told who opens it, with the rights that member has.
        team = "" if wanted in ("", found.login, *found.addresses) else wanted
        address = wanted if wanted in found.addresses else own
        reader, dovecot = await asyncio.open_connection(
            options.dovecot_host,
            options.dovecot_port,
            ssl=options.dovecot_tls,
            server_hostname=options.dovecot_name or options.dovecot_host,
            limit=_BLOCK,
        )
        try:
            await reader.readuntil(b"\n")
            said = base64.b64encode(f"{team}\0{address}\0{self._passes.give(address)}".encode()).decode()
            dovecot.write(f"{tag} AUTHENTICATE PLAIN {said}\r\n".encode())
            while True:
                line = await reader.readuntil(b"\n")
                if line.startswith(b"* CAPABILITY"):
                    continue  # it comes again in the tagged answer
                if line.startswith(f"{tag} OK".encode()):
                    writer.write(line)
                    return reader, dovecot
                if not line.startswith(b"*"):
                    break
        except BaseException:
            dovecot.transport.abort()
            raise
        dovecot.transport.abort()
        return None, None

    async def _serve(
        self,
        wanted: str,
        greeted: asyncio.StreamReader,
        dovecot: asyncio.StreamWriter,
        shown: Sequence[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Until either side closes, or the certificate is believed no longer."""
        tasks = [
            asyncio.create_task(_hand_on(reader, dovecot)),
            asyncio.create_task(_hand_on(greeted, writer)),
            asyncio.create_task(self._until_refused(shown, wanted)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[1].done():  # Dovecot has closed: its last words, and the end of TLS
                writer.close()
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_SECONDS):
                        await writer.wait_closed()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            dovecot.transport.abort()

    async def _until_refused(self, shown: Sequence[bytes], wanted: str) -> None:
        while True:
            await asyncio.sleep(self._options.recheck_seconds)
            try:
                found = await self._judge(shown, wanted)
            except Exception as error:  # a database that is away now refuses nobody who is in
                log.error("imap-certificates.recheck-failed", error=type(error).__name__)
                continue
            if isinstance(found, Refused):
                self.ended += 1
                log.warning("imap-certificates.session-ended", refused=found.refusal.code, detail=found.detail)
                return


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_BLOCK):
            writer.write(data)
            await writer.drain()


def _answer(tag: str, name: str) -> str:
    match name:
        case "CAPABILITY":
            return f"* {_CAPABILITY}\r\n{tag} OK Capability completed.\r\n"
        case "NOOP":
            return f"{tag} OK NOOP completed.\r\n"
        case "ID":
            return f'* ID ("name" "Relais")\r\n{tag} OK ID completed.\r\n'
        case "LOGOUT":
            return f"* BYE Logging out.\r\n{tag} OK Logout completed.\r\n"
        case "LOGIN":
            return f"{tag} NO [PRIVACYREQUIRED] Passwords are not taken here: sign in with AUTHENTICATE EXTERNAL.\r\n"
        case _:
            return f"{tag} BAD Sign in first: AUTHENTICATE EXTERNAL.\r\n"


def _unencoded(initial: str) -> str | None:
    """The authorization identity of a client's response; `=` is the empty one (RFC 4959 §3), `*` gives up."""
    if initial == "=" or not initial:
        return ""
    try:
        wanted = base64.b64decode(initial, validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return wanted if wanted.isprintable() else None
