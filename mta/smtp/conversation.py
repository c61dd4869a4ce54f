"""The conversation around mail transactions: PROXY header, TLS, greeting, command lines, AUTH, errors, and the end.

aiosmtpd reads commands and calls the method of each name; `mta.smtp.session` adds the transactions. Every reply but
those to HELO and EHLO carries an enhanced status code (RFC 2034).
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import ssl
from abc import abstractmethod

import structlog

from mta.smtp.connection import Connection, LineTooLongError, SessionEnded
from mta.smtp.policy import SessionOptions
from mta.smtp.proxy_protocol import MAX_HEADER, ProxyHeaderError, is_proxy, read_header
from mta.smtp.sasl import MECHANISMS, TOKEN_FAILED, Claim, PasswordClaim, TokenClaim, decoded, encoded
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.tls import peer_name

log = structlog.get_logger(__name__)

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
_OTHER_PROTOCOLS = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE"})
"""A browser that was talked into speaking to this port goes on with whatever its page says."""


class _Longest(dict[str, int]):
    """Octets of a command line without its end: ORCPT and ENVID are long (RFC 3461 §4), AUTH longer (RFC 4954 §4)."""

    def __missing__(self, command: str) -> int:
        return 510


_LONGEST = _Longest(MAIL=2046, RCPT=2046, AUTH=3998)
_LONGEST_WITH_TOKENS = _Longest(_LONGEST, AUTH=12286)
"""RFC 4954 §4: a token does not fit in less."""


class _UnreadableError(Exception):
    """A line that is no command; its text is the reply."""


class Conversation(Connection):
    """One connection, in which nothing can be sent yet."""

    protocol = "ESMTP"
    command_size_limit = _LONGEST["HELO"]

    def __init__(self, context: ssl.SSLContext, options: SessionOptions) -> None:
        super().__init__(
            options.limits,
            context,
            hostname=options.hostname,
            ident=f"{self.protocol} Relais",
            require_starttls=options.requires_tls,
            command_call_limit=options.limits.commands,
        )
        # now: aiosmtpd empties, for all sessions, those it finds when it begins
        self.command_size_limits = _LONGEST_WITH_TOKENS if "XOAUTH2" in options.mechanisms else _LONGEST
        self._options = options
        self._greeted = self._draining = False
        self._errors = self._failures = 0
        self._refused_login: tuple[str, bytes, Refused] | None = None
        self._digest_key = b""
        self._patience: asyncio.TimerHandle | None = None
        self.peer = self.client = ""
        """The IP addresses at the other end, and, which a proxy may have said, of the client."""
        self.identity: object | None = None
        """Who authenticated, as the policy put it."""
        self.certified = False
        """Whether `identity` showed a certificate."""
        self.machine = False
        """Whether it is a machine's mailbox that did."""
        self.refusals = 0
        """How often something was refused for good."""

    @property
    def helo(self) -> str:
        """The name the client gave itself; unproven."""
        return self.session.host_name or ""

    @property
    def busy(self) -> bool:
        """Content is coming in, or being kept: what must not be cut off."""
        return False

    @property
    def begun(self) -> bool:
        """A transaction is open."""
        return False

    @abstractmethod
    def opened(self) -> bool:
        """Whether there is room for one connection more."""

    @abstractmethod
    def closed(self) -> None:
        """The session is over."""

    @abstractmethod
    async def admitted(self) -> Refused | None:
        """Why this client may not come in."""

    @abstractmethod
    async def judge(self, claim: Claim) -> Refused | None:
        """Why this claim is not believed."""

    @abstractmethod
    def words(self, refused: Refused) -> str:
        """The reply that says so."""

    @abstractmethod
    def told(self, step: str, refused: Refused) -> float:
        """Of every refusal of the catalogue, before the client; how many seconds the client waits for it."""

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams only
        name = transport.get_extra_info("peername")
        self.peer = self.client = str(name[0]) if isinstance(name, tuple) and name else ""
        if not self.opened():
            if not self._options.implicit_tls:
                transport.write(b"421 4.3.2 Too many connections, try again later\r\n")
            transport.close()
            return
        self._patience = self.loop.call_later(self._limits.stranger_seconds, self._end_stranger)
        super().connection_made(transport)

    def _end_stranger(self) -> None:
        if (self.identity if self._options.mechanisms else self.certificate_name()) is None:
            self._end_now("421 4.4.2 You did not say who you are, closing the connection")

    async def _handle_client(self) -> None:
        try:
            await self._begin()
            await super()._handle_client()
        except ConnectionError:
            pass
        except Exception as error:  # before the first command
            log.error("smtp.session-failed", client=self.client, error=type(error).__name__)
        finally:
            self.reset()
            if self._patience is not None:
                self._patience.cancel()
            self.close()
            self.closed()

    async def handle_exception(self, error: Exception) -> str:
        """aiosmtpd's, which it asks for the reply, quotes the error; a bug ends this session only."""
        if isinstance(error, _UnreadableError):
            return str(error)
        log.error("smtp.session-failed", client=self.client, error=type(error).__name__)
        return "421 4.3.0 Something went wrong here, try again later"

    async def _begin(self) -> None:
        """Everything before the greeting."""
        if is_proxy(self.peer, self._options.proxies):
            await self._read_proxy_header()
        refused = await self.admitted()
        if refused is not None:
            self.end("" if self._options.implicit_tls else self.words(refused))
        if self._options.implicit_tls:
            await self._secure(keep=True)

    async def _read_proxy_header(self) -> None:
        data = b""
        try:
            async with asyncio.timeout(self._limits.handshake_seconds):
                while (header := read_header(data)) is None:
                    if len(data) > MAX_HEADER:
                        raise ProxyHeaderError("header too long")
                    data += await self._reader.read(MAX_HEADER)
        except ProxyHeaderError as error:
            log.warning("smtp.proxy-header-refused", proxy=self.peer, reason=str(error))
            self.end()
        except TimeoutError:
            log.warning("smtp.proxy-header-refused", proxy=self.peer, reason="none came in time")
            self.end()
        self._reader.feed_data(data[header.length :])
        self.client = header.source or self.client

    async def _secure(self, *, keep: bool = False) -> None:
        try:
            await self.start_tls(self._limits.handshake_seconds, keep=keep)
        except OSError as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            log.warning("smtp.tls-failed", client=self.client, reason=reason)
            raise SessionEnded from error

    def certificate_name(self) -> DistinguishedName | None:
        """The name in the client's verified certificate, where the door demands one."""
        session = self.tls
        return None if session is None else peer_name(session)

    # Ending

    def drain(self) -> None:
        """End as soon as no content is coming in or being kept: now, or after its reply."""
        self._draining = True
        if not self.busy:
            self.cut()

    def cut(self) -> None:
        """End now, not without a word: content whose reply has not been said is the client's to repeat."""
        self._end_now("421 4.3.2 Shutting down, try again in a moment")

    def _end_now(self, text: str) -> None:
        if self._greeted:
            self.say(text)
        self.close()

    async def ended(self) -> None:
        """Until everything of this session is over."""
        if self._handler_coroutine is not None:
            await asyncio.wait([self._handler_coroutine])

    # Lines

    def say(self, text: str) -> None:
        """Reply, with the enhanced status code RFC 2034 asks of every 2xx, 4xx and 5xx reply but to the greeting."""
        self._greeted = True
        code, _, words = text.partition(" ")
        if code[0] in "245" and code != "220" and words != self.hostname and words[:2] != f"{code[0]}.":
            text = f"{code} {_DEFAULT_ENHANCED.get(code, f'{code[0]}.0.0')} {words}"
        super().say(text)

    async def push(self, status: str) -> None:  # type: ignore[override]
        """Reply. What is refused for its form counts as an error; after 221 and 421 nothing more is heard."""
        if status[:3] in ("221", "421"):
            self.end(status)
        self.say(status)
        if status[0] == "5":
            await self._count_error()

    async def _count_error(self) -> None:
        self._errors += 1
        if self._errors >= self._limits.errors:
            self.end("421 4.7.0 Too many errors, closing the connection")
        if self._errors > self._limits.free_failures:
            await self._wait_out(self._limits.tarpit_seconds)

    async def _wait_out(self, seconds: float) -> None:
        """Slowly, for whoever tries things out; nothing more is read meanwhile than fits in the buffer."""
        if seconds > 0:
            await self.flush()
            await asyncio.sleep(seconds)

    async def _refuse(self, step: str, refused: Refused) -> None:
        self.refusals += refused.refusal.smtp >= 500
        await self._wait_out(self.told(step, refused))
        if refused.refusal.smtp == 421:
            self.end(self.words(refused))
        self.say(self.words(refused))

    async def next_command(self) -> bytes:
        """aiosmtpd bears with line ends of all kinds, and with five unknown commands whatever they are."""
        if self._draining and not self.busy:
            self.cut()
        try:
            line = await self.read_line()
        except LineTooLongError:
            raise _UnreadableError("500 5.5.2 Command line too long") from None
        text = _command_text(line)
        if text is None:
            raise _UnreadableError("500 5.5.2 Commands are one line of text that ends with CRLF")
        verb = text.partition(" ")[0].upper()
        if verb in _OTHER_PROTOCOLS or verb.endswith(":"):
            self.end("421 4.7.0 This is SMTP, closing the connection")
        if verb not in self._smtp_methods:
            raise _UnreadableError("500 5.5.1 Command not recognized")
        if not text.isascii() and verb not in ("MAIL", "RCPT"):
            raise _UnreadableError("500 5.5.2 Only ASCII may stand here")
        return line

    # Greeting; HELO, NOOP, RSET and QUIT are aiosmtpd's

    async def smtp_EHLO(self, hostname: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if not hostname:
            await self.push("501 5.5.4 Your hostname must stand here")
            return
        self.reset()
        self.session.host_name, self.session.extended_smtp = hostname, True
        *words, last = self.hostname, *self.keywords()
        self._unsent += "".join(f"250-{word}\r\n" for word in words).encode("ascii")
        self._unsent += f"250 {last}\r\n".encode("ascii")

    def keywords(self) -> list[str]:
        """What is offered now."""
        words = [f"SIZE {self._limits.message_bytes}", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        words += ["DSN", "CHUNKING", f"LIMITS RCPTMAX={self._limits.recipients}"]
        if self.tls is None:
            return [*words, "STARTTLS"]
        words.append("REQUIRETLS")  # RFC 8689 §4: under TLS only
        if offered := self._offered():
            words.append(f"AUTH {' '.join(offered)}")
        return words

    def _offered(self) -> list[str]:
        """The mechanisms, only under TLS."""
        tls = self.tls
        if tls is None:
            return []
        shown = tls.getpeercert(binary_form=True) is not None
        return [name for name in self._options.mechanisms if name != "EXTERNAL" or shown]

    async def smtp_STARTTLS(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if self.tls is not None:
            await self.push("503 5.5.1 TLS is already active")
        elif argument:
            await self.push("501 5.5.4 Syntax: STARTTLS")
        else:
            self.say("220 2.0.0 Ready to start TLS")
            await self._secure()

    async def smtp_VRFY(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        await self.push("252 2.5.0 Addresses are not verified here, try RCPT")

    async def smtp_HELP(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        await self.push("214 2.0.0 RFC 5321")

    # AUTH

    async def smtp_AUTH(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        """RFC 4954, under TLS only. aiosmtpd's asks for the password on the event loop and wants names in capitals."""
        if not self._options.mechanisms:
            await self.push("502 5.5.1 AUTH is not available here")
            return
        if not self.session.extended_smtp:
            await self.push("503 5.5.1 Error: send EHLO first")
            return
        if self.identity is not None or self.begun:
            await self.push("503 5.5.1 AUTH is not possible now")
            return
        name, _, initial = (argument or "").partition(" ")
        name = name.upper()
        offered = self._offered()
        if name not in offered:
            await self.push(f"504 5.5.4 Unknown mechanism, use {' or '.join(offered)}")
            return
        claim = await self._claim(name, initial.strip(" "))
        if claim is None:
            await self.push("501 5.5.2 The authentication exchange is malformed")
            return
        refused = self._refused_before(name, claim)
        if refused is None:
            refused = await self.judge(claim)
            if refused is None:
                await self.push("235 2.7.0 Authentication successful")
                return
            if isinstance(claim, PasswordClaim):
                self._refused_login = (name, self._digest(claim), refused)
        if isinstance(claim, TokenClaim) and refused.refusal.permanent:  # else nothing is wrong with the token
            await self._challenge(TOKEN_FAILED)  # whatever the client answers, the reply follows (RFC 7628 §3.2.3)
        await self._refuse("AUTH", refused)
        self._failures += 1
        if self._failures >= self._limits.authentication_failures:
            self.end("421 4.7.0 Too many refused logins, closing the connection")

    async def _claim(self, name: str, initial: str) -> Claim | None:
        first = decoded(initial) if initial else None
        if initial and first is None:
            return None
        exchange = MECHANISMS[name](first)
        try:
            challenge = next(exchange)
            while True:
                answer = await self._challenge(challenge)
                if answer is None:
                    return None
                challenge = exchange.send(answer)
        except StopIteration as end:
            claim: Claim | None = end.value
            return claim

    async def _challenge(self, challenge: bytes) -> bytes | None:
        self.say(f"334 {encoded(challenge)}")
        try:
            line = await self.read_line()
        except LineTooLongError:
            return None
        if line == b"\r\n":
            return b""  # RFC 4954 §8: an answer may be empty; `=` stands for that after AUTH only
        text = _command_text(line)
        return None if text is None or not text.isascii() else decoded(text.strip(" "))

    def _refused_before(self, mechanism: str, claim: Claim) -> Refused | None:
        """The answer to the same words by another mechanism a moment ago: clients go through all that are offered, and
        one wrong password must not count twice."""
        if self._refused_login is None or not isinstance(claim, PasswordClaim):
            return None
        tried, digest, refused = self._refused_login
        self._refused_login = None
        return refused if tried != mechanism and digest == self._digest(claim) else None

    def _digest(self, claim: PasswordClaim) -> bytes:
        self._digest_key = self._digest_key or secrets.token_bytes(32)  # few sessions need one
        words = f"{len(claim.login)}:{claim.login}{claim.password}".encode()
        return hmac.digest(self._digest_key, words, "sha256")


def _command_text(line: bytes) -> str | None:
    """A command without its end; None when it is not one line of text that ends with CRLF."""
    if not line.endswith(b"\r\n") or line.count(b"\r") > 1:
        return None
    try:
        text = line[:-2].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and text.strip(" ") else None
