"""One SMTP server session, on aiosmtpd's command loop with our own commands.

What is ours and why: `DATA` reads blocks (aiosmtpd reads lines, five times slower) and ends at CRLF.CRLF only, refusing
bare CR and LF; `MAIL` and `RCPT` keep DSN parameters as sent; `AUTH` asks off the event loop; replies carry enhanced
status codes (RFC 2034). Policy is the door's: who may come in, for whom, and what happens to the content.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hmac
import logging
import re
import secrets
import ssl
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from aiosmtpd import smtp as aiosmtpd_smtp

from mta import refusals
from mta.message import TargetKind
from mta.smtp.address import PathCommand, parse_path, valid_envid, valid_notify, valid_orcpt
from mta.smtp.content import crlf_only, lines_fit
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.tls import peer_name

log = structlog.get_logger(__name__)

# aiosmtpd logs every command and address, in which a patient's identity may stand
logging.getLogger("mail.log").addFilter(lambda record: False)
logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)

_BLOCK = 64 * 1024
_END = b"\r\n.\r\n"
_DEFAULT_ENHANCED = {
    "454": "4.7.0",
    "500": "5.5.2",
    "501": "5.5.4",
    "502": "5.5.1",
    "503": "5.5.1",
    "504": "5.5.4",
    "530": "5.7.0",
    "555": "5.5.4",
}


class _CommandSizes(dict[str, int]):
    """Octets of a command line: ORCPT and ENVID are long (RFC 3461 §4), AUTH longer (RFC 4954 §4).

    aiosmtpd shares one dict between sessions, clears it for each and adds to it at every EHLO; this one stays.
    """

    def __missing__(self, command: str) -> int:
        return 512

    def clear(self) -> None:
        pass


_COMMAND_SIZES = _CommandSizes(MAIL=2048, RCPT=2048, AUTH=4000)
_COMMAND_SIZES_WITH_TOKENS = _CommandSizes(MAIL=2048, RCPT=2048, AUTH=12288)
"""RFC 4954 §4: a token does not fit in less."""
_TOKEN_FAILED = b64encode(b'{"status":"invalid_token","schemes":"bearer"}').decode()
"""RFC 7628 §3.2.2"""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost."""

    message_bytes: int = 25 * 1024 * 1024
    recipients: int = 100
    hops: int = 30
    connections: int = 200
    """At the same time, per door."""
    idle_seconds: float = 300.0
    """Between two commands (RFC 5321 §4.5.3.2.7)."""
    data_seconds: float = 900.0
    """For one whole DATA, however slowly it trickles."""
    stranger_seconds: float = 60.0
    """To say who one is, by certificate or password; whoever does not would hold a place others wait for."""
    authentication_failures: int = 10
    """Per connection; more than lock an account, so that its owner is told that it is locked."""
    commands: int = 10_000
    """Of one kind per connection."""


@dataclass(frozen=True, slots=True)
class RecipientRequest:
    """One accepted RCPT."""

    address: str
    target: TargetKind
    notify: str
    orcpt: str


@dataclass(slots=True)
class Transaction:
    """What was said since MAIL."""

    sender: str | None = None
    """None before MAIL; empty for the null reverse-path."""
    ret: str = ""
    envid: str = ""
    recipients: list[RecipientRequest] = field(default_factory=list)


class Policy(Protocol):
    """What a door decides. All methods run on the event loop and take what blocks to threads."""

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None: ...

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        """Asked only where the session offers tokens; `login` may be empty."""
        ...

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None: ...

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused: ...

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        """The positive reply to the final dot, only when the message is safely kept; or why it is not."""
        ...

    def refused(self, session: DoorSession, step: str, refused: Refused) -> None:
        """Told of every refusal of the catalogue, before the client is; `step` is the SMTP command."""
        ...


class DoorSession(aiosmtpd_smtp.SMTP):
    """One connection."""

    command_size_limits = _COMMAND_SIZES
    line_length_limit = 4096
    """Of the command reader; DATA has its own limits."""

    def __init__(
        self,
        policy: Policy,
        context: ssl.SSLContext,
        hostname: str,
        limits: Limits,
        *,
        offers_authentication: bool,
        on_open: Callable[[DoorSession], bool],
        on_close: Callable[[DoorSession], None],
        offers_tokens: bool = False,
    ) -> None:
        if offers_tokens:
            self.command_size_limits = _COMMAND_SIZES_WITH_TOKENS
            self.line_length_limit = 3 * 4096 + 2
        super().__init__(
            _Hooks(self),
            data_size_limit=limits.message_bytes,
            hostname=hostname,
            ident="ESMTP Relais",
            tls_context=context,
            require_starttls=True,
            timeout=limits.idle_seconds,
            command_call_limit=limits.commands,
            loop=asyncio.get_running_loop(),
        )
        self._policy = policy
        self._limits = limits
        self._offers_authentication = offers_authentication
        self._offers_tokens = offers_tokens
        self._on_open = on_open
        self._on_close = on_close
        self._turned_away = False
        self._greeted = False
        self._failures = 0
        self._refused_login: tuple[str, bytes, Refused] | None = None
        self._digest_key = secrets.token_bytes(32)
        self._patience: asyncio.TimerHandle | None = None
        self.client = ""
        """Its IP address, for the log."""
        self.transaction = Transaction()
        self.identity: object | None = None
        """Who authenticated, as the policy put it."""

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._original_transport is None and not self._on_open(self):
            self._turned_away = True
            assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams only
            transport.write(b"421 4.3.2 Too many connections, try again later\r\n")
            transport.close()
            return
        if self._patience is None:
            peer = transport.get_extra_info("peername")
            self.client = str(peer[0]) if peer else ""
            self._patience = self.loop.call_later(self._limits.stranger_seconds, self._end_stranger)
        super().connection_made(transport)

    def _end_stranger(self) -> None:
        known = self.identity if self._offers_authentication else self.certificate_name()
        if known is None:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._turned_away:
            return
        self._on_close(self)
        if self._patience is not None:
            self._patience.cancel()
        if self.transport is not None:
            super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self._turned_away:
            super().data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._turned_away else super().eof_received()

    def close(self) -> None:
        """End the session without a word."""
        if self.transport is not None:
            self.transport.close()

    def _create_envelope(self) -> Transaction:  # type: ignore[override]
        self.transaction = Transaction()
        return self.transaction

    def certificate_name(self) -> DistinguishedName | None:
        """The name in the client's verified certificate."""
        session = self.tls
        return None if session is None else peer_name(session)

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS layer, once there is one."""
        found: ssl.SSLObject | None = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        return found

    async def push(self, status: str | bytes) -> None:
        """Reply, with the enhanced status code RFC 2034 asks of every 2xx, 4xx and 5xx reply but the greeting."""
        text = status.decode("ascii", "replace") if isinstance(status, bytes) else status
        code, _, words = text.partition(" ")
        if not self._greeted:
            self._greeted = True
        elif len(code) == 3 and code[0] in "245" and words[:2] != f"{code[0]}.":
            text = f"{code} {_DEFAULT_ENHANCED.get(code, f'{code[0]}.0.0')} {words}"
        await super().push(text.encode("ascii", "replace"))

    async def _refuse(self, step: str, refused: Refused) -> None:
        self._policy.refused(self, step, refused)
        await self.push(refused.reply)

    # Commands

    async def smtp_EHLO(self, hostname: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if not hostname:
            await self.push("501 Syntax: EHLO hostname")
            return
        self._create_envelope()
        assert self.session is not None  # noqa: S101 - set when the connection was made
        self.session.extended_smtp = True
        self.session.host_name = hostname
        words = [self.hostname, f"SIZE {self._limits.message_bytes}", "PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"]
        words.append("DSN")
        if not self._tls_protocol:
            words.append("STARTTLS")
        elif self._offers_authentication:
            words.append("AUTH PLAIN LOGIN" + (" XOAUTH2 OAUTHBEARER" if self._offers_tokens else ""))
        lines = [f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]
        self._writer.write("\r\n".join(lines).encode("ascii") + b"\r\n")
        await self._writer.drain()

    async def smtp_STARTTLS(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if self._tls_protocol:
            await self.push("503 TLS is already active")
            return
        await super().smtp_STARTTLS(arg)

    async def smtp_VRFY(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        await self.push("252 2.5.0 Addresses are not verified here, try RCPT")

    async def smtp_AUTH(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        """PLAIN and LOGIN (RFC 4954, RFC 4616), and where tokens are taken XOAUTH2 and OAUTHBEARER (RFC 7628), under
        TLS only."""
        if not self._offers_authentication or not self._tls_protocol:
            await self.push("502 AUTH is not available here")
            return
        if await self.check_helo_needed("EHLO"):
            return
        if self.identity is not None or self.transaction.sender is not None:
            await self.push("503 AUTH is not possible now")
            return
        mechanism, _, initial = (arg or "").partition(" ")
        match mechanism.upper():
            case "PLAIN":
                credentials = await self._sasl_plain(initial.strip())
            case "LOGIN":
                credentials = await self._sasl_login(initial.strip())
            case "XOAUTH2" | "OAUTHBEARER" if self._offers_tokens:
                await self._authenticate_token(initial.strip())
                return
            case _:
                await self.push("504 5.5.4 Unknown mechanism, use PLAIN or LOGIN")
                return
        if credentials is None:
            await self.push("501 5.5.2 The authentication exchange is malformed")
            return
        refused = self._refused_before(mechanism.upper(), *credentials)
        if refused is None:
            refused = await self._policy.authenticate(self, *credentials)
            if refused is None:
                await self.push("235 2.7.0 Authentication successful")
                return
            self._refused_login = (mechanism.upper(), self._digest(*credentials), refused)
        await self._refuse_login(refused)

    async def _authenticate_token(self, initial: str) -> None:
        data = _base64(initial.encode()) if initial else await self._challenge("")
        said = None if data is None else bearer_of(data)
        if said is None:
            await self.push("501 5.5.2 The authentication exchange is malformed")
            return
        refused = await self._policy.authenticate_token(self, *said)
        if refused is None:
            await self.push("235 2.7.0 Authentication successful")
            return
        await self._challenge(_TOKEN_FAILED)  # whatever the client answers, the reply follows (RFC 7628 §3.2.3)
        await self._refuse_login(refused)

    async def _refuse_login(self, refused: Refused) -> None:
        await self._refuse("AUTH", refused)
        self._failures += 1
        if self._failures >= self._limits.authentication_failures:
            self.close()

    def _refused_before(self, mechanism: str, login: str, password: str) -> Refused | None:
        """The answer to the same words by another mechanism a moment ago: clients go through all that are offered, and
        one wrong password must not count twice."""
        if self._refused_login is None:
            return None
        tried, digest, refused = self._refused_login
        self._refused_login = None
        return refused if tried != mechanism and digest == self._digest(login, password) else None

    def _digest(self, login: str, password: str) -> bytes:
        words = f"{len(login)}:{login}{password}".encode()
        return hmac.digest(self._digest_key, words, "sha256")

    async def _sasl_plain(self, initial: str) -> tuple[str, str] | None:
        data = _base64(initial.encode()) if initial else await self._challenge("")
        parts = [] if data is None else data.split(b"\0")
        if len(parts) != 3 or parts[0] not in (b"", parts[1]):  # RFC 4616 §2: nobody acts for somebody else here
            return None
        return _credentials(parts[1], parts[2])

    async def _sasl_login(self, initial: str) -> tuple[str, str] | None:
        login = _base64(initial.encode()) if initial else await self._challenge("VXNlcm5hbWU6")
        if login is None:
            return None
        password = await self._challenge("UGFzc3dvcmQ6")
        return None if password is None else _credentials(login, password)

    async def _challenge(self, encoded: str) -> bytes | None:
        await self.push(f"334 {encoded}")
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            self.close()
            return None
        return _base64(line.strip())

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if await self.check_helo_needed():
            return
        if self._offers_authentication and self.identity is None:
            await self._refuse("MAIL", Refused(refusals.AUTHENTICATION_REQUIRED))
            return
        if self.transaction.sender is not None:
            await self.push("503 5.5.1 A transaction is already open, use RSET")
            return
        path = parse_path(arg or "", "FROM")
        if path is None:
            await self.push("501 5.1.7 Syntax: MAIL FROM:<address> [parameters]")
            return
        wrong = self._mail_parameters(path)
        if isinstance(wrong, Refused):
            await self._refuse("MAIL", wrong)
            return
        if wrong:
            await self.push(wrong)
            return
        refused = await self._policy.check_sender(self, path.address)
        if refused is not None:
            await self._refuse("MAIL", refused)
            return
        self.transaction.sender = path.address
        self.transaction.ret = path.parameters.get("RET", "").upper()
        self.transaction.envid = path.parameters.get("ENVID", "")
        await self.push("250 2.1.0 Sender accepted")

    def _mail_parameters(self, path: PathCommand) -> str | Refused:
        """What refuses them, empty when they are right."""
        for name, value in path.parameters.items():
            match name:
                case "SIZE":
                    if not value.isdigit() or len(value) > 20:
                        return "501 5.5.4 SIZE takes a number"
                    if int(value) > self._limits.message_bytes:
                        return Refused(refusals.MESSAGE_TOO_LARGE)
                case "BODY":
                    if value.upper() not in ("7BIT", "8BITMIME"):
                        return "501 5.5.4 BODY is 7BIT or 8BITMIME"
                case "RET":
                    if value.upper() not in ("FULL", "HDRS"):
                        return "501 5.5.4 RET is FULL or HDRS"
                case "ENVID":
                    if not valid_envid(value):
                        return "501 5.5.4 ENVID is at most 100 characters of xtext"
                case "AUTH" if self._offers_authentication:
                    pass  # RFC 4954 §5: a claim about somebody else, which we do not pass on
                case _:
                    return "555 5.5.4 Unknown MAIL parameter"
        return ""

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if await self.check_helo_needed():
            return
        if self.transaction.sender is None:
            await self.push("503 5.5.1 MAIL first")
            return
        path = parse_path(arg or "", "TO", postmaster_domain=self.hostname)
        if path is None:
            await self.push("501 5.1.3 Syntax: RCPT TO:<address> [parameters]")
            return
        notify, orcpt = path.parameters.pop("NOTIFY", None), path.parameters.pop("ORCPT", None)
        if (notify is not None and not valid_notify(notify)) or (orcpt is not None and not valid_orcpt(orcpt)):
            await self.push("501 5.5.4 Malformed NOTIFY or ORCPT")
            return
        if path.parameters:
            await self.push("555 5.5.4 Unknown RCPT parameter")
            return
        if len(self.transaction.recipients) >= self._limits.recipients:
            await self._refuse("RCPT", Refused(refusals.TOO_MANY_RECIPIENTS))
            return
        target = await self._policy.check_recipient(self, path.address)
        if isinstance(target, Refused):
            await self._refuse("RCPT", target)
            return
        known = any(each.address.lower() == path.address.lower() for each in self.transaction.recipients)
        if not known:
            self.transaction.recipients.append(
                RecipientRequest(path.address, target, (notify or "").upper(), orcpt or "")
            )
        await self.push("250 2.1.5 Recipient accepted")

    async def smtp_DATA(self, arg: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if await self.check_helo_needed():
            return
        if not self.transaction.recipients:
            await self.push("503 5.5.1 RCPT first")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        try:
            async with asyncio.timeout(self._limits.data_seconds):
                content = await self._read_content()
        except TimeoutError:
            await self.push("421 4.4.2 DATA took too long")
            self.close()
            return
        transaction = self.transaction
        reply = content if isinstance(content, Refused) else await self._policy.accept(self, transaction, content)
        self._create_envelope()
        if isinstance(reply, Refused):
            await self._refuse("DATA", reply)
        else:
            await self.push(reply)

    async def _read_content(self) -> bytes | Refused:
        """The content without dot-stuffing; what follows the final dot stays in the reader for the next command."""
        body = bytearray(b"\r\n")  # so that a dot on the first line is one like any other
        too_large = False
        limit = self._limits.message_bytes
        # asyncio gives no public way to read more at once, nor to put back what was read too far
        reader: Any = self._reader
        reader._limit = _BLOCK
        try:
            while True:
                start = max(0, len(body) - len(_END) + 1)
                block = await reader.read(_BLOCK)
                if not block:
                    raise ConnectionResetError
                self._reset_timeout()
                body += block
                end = body.find(_END, start)
                if end >= 0:
                    break
                if len(body) > limit + limit // 64 + _BLOCK:  # dots doubled on every other line at worst are refused
                    too_large = True
                    del body[: -len(_END) + 1]
        finally:
            reader._limit = self.line_length_limit
        reader._buffer[:0] = body[end + len(_END) :]
        if too_large:
            return Refused(refusals.MESSAGE_TOO_LARGE)
        del body[end + 2 :]
        content = bytes(body.replace(b"\r\n.", b"\r\n"))[2:]
        if len(content) > limit:
            return Refused(refusals.MESSAGE_TOO_LARGE)
        if not crlf_only(content):
            return Refused(refusals.LINE_ENDINGS)
        if not lines_fit(content):
            return Refused(refusals.LINE_TOO_LONG)
        return content


class _Hooks:
    """aiosmtpd asks its handler only about errors."""

    def __init__(self, session: DoorSession) -> None:
        self._session = session

    async def handle_exception(self, error: Exception) -> str:
        """Nothing of the error is logged but its kind: its text may quote the session."""
        if isinstance(error, aiosmtpd_smtp.TLSSetupException):
            cause = error.__cause__ or error.__context__
            reason = cause.reason if isinstance(cause, ssl.SSLError) else type(cause).__name__
            log.warning("smtp.tls-failed", client=self._session.client, reason=reason)
        else:
            log.error("smtp.command-failed", client=self._session.client, exc_info=error)
        return Refused(refusals.SPOOL_UNAVAILABLE).reply


def _base64(data: bytes) -> bytes | None:
    if data == b"=":
        return b""  # RFC 4954 §4: an empty initial response
    with contextlib.suppress(binascii.Error, ValueError):
        return b64decode(data, validate=True)
    return None


def bearer_of(data: bytes) -> tuple[str, str] | None:
    """Login (may be empty) and token of a first client message of XOAUTH2 or OAUTHBEARER; None when it is neither.

    `user=<login>^Aauth=Bearer <token>^A^A`, or `n,a=<login>,^A[host=...^A][port=...^A]auth=Bearer <token>^A^A`
    (RFC 7628 §3.1, RFC 5801 §4).
    """
    with contextlib.suppress(UnicodeDecodeError):
        first, *pairs = data.decode().split("\x01")
        if len(pairs) < 3 or pairs[-2:] != ["", ""]:
            return None
        said = [pair.partition("=")[::2] for pair in pairs[:-2]]
        if first.startswith("user="):
            login = first.removeprefix("user=")
        elif re.fullmatch(r"n,(a=[^,]*)?,", first):
            login = first[2:-1].removeprefix("a=").replace("=2C", ",").replace("=3D", "=")
        else:
            return None
        tokens = [value for name, value in said if name == "auth"]
        if len(tokens) == 1 and tokens[0][:7].lower() == "bearer " and tokens[0][7:].strip():
            return login, tokens[0][7:].strip()
    return None


def _credentials(login: bytes, password: bytes) -> tuple[str, str] | None:
    with contextlib.suppress(UnicodeDecodeError):
        return login.decode(), password.decode()
    return None
