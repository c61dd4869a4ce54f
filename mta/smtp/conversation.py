"""The conversation around mail transactions: PROXY header, TLS, greeting, command lines, AUTH, errors, and the end.

`mta.smtp.session` adds the transactions. Every reply but the greeting carries an enhanced status code (RFC 2034).
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import ssl
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

import structlog

from mta import refusals
from mta.smtp.connection import Connection, LineTooLongError
from mta.smtp.policy import SessionOptions
from mta.smtp.proxy_protocol import MAX_HEADER, ProxyHeader, ProxyHeaderError, read_header
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
_LONGEST = {"MAIL": 2048, "RCPT": 2048, "AUTH": 4000}
"""Octets of a command line: ORCPT and ENVID are long (RFC 3461 §4), AUTH longer (RFC 4954 §4); others 512."""
_LONGEST_TOKEN = 12288
"""RFC 4954 §4: a token does not fit in less."""
_BEFORE_TLS = frozenset({"EHLO", "HELO", "STARTTLS", "NOOP", "RSET", "QUIT", "HELP"})
_GOODBYE_SECONDS = 5.0
_OTHER_PROTOCOLS = frozenset({"GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "DELETE"})
"""A browser that was talked into speaking to this port goes on with whatever its page says."""


class SessionEnded(Exception):  # noqa: N818 - nothing went wrong
    """The session is over; the last reply has been written."""


class Conversation(Connection):
    """One connection, in which nothing can be sent yet."""

    protocol = "ESMTP"

    def __init__(
        self,
        context: ssl.SSLContext,
        options: SessionOptions,
    ) -> None:
        super().__init__()
        self.hostname = options.hostname
        self._context = context
        self._options = options
        self._limits = options.limits
        self._task: asyncio.Task[None] | None = None
        self._greeted = False
        self._extended = False
        self._proxied = False
        self.require_starttls = options.requires_tls
        self.helo = ""
        """The name the client gave itself; unproven."""
        self._draining = False
        self._errors = self._failures = 0
        self._counts: Counter[str] = Counter()
        self._refused_login: tuple[str, bytes, Refused] | None = None
        self._digest_key = secrets.token_bytes(32)
        self._patience: asyncio.TimerHandle | None = None
        self.client = ""
        """Its IP address, for the log."""
        self.identity: object | None = None
        """Who authenticated, as the policy put it."""
        self.refusals = 0
        """How often something was refused for good."""
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "HELO": self.smtp_HELO,
            "EHLO": self.smtp_EHLO,
            "STARTTLS": self.smtp_STARTTLS,
            "AUTH": self.smtp_AUTH,
            "RSET": self.smtp_RSET,
            "NOOP": self.smtp_NOOP,
            "VRFY": self.smtp_VRFY,
            "HELP": self.smtp_HELP,
            "QUIT": self.smtp_QUIT,
        }

    @property
    def busy(self) -> bool:
        """Content is coming in, or being kept: what must not be cut off."""
        return False

    @property
    def begun(self) -> bool:
        """A transaction is open."""
        return False

    def reset(self) -> None:
        """Forget what was said since MAIL."""

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
    def told(self, step: str, refused: Refused) -> float:
        """Of every refusal of the catalogue, before the client; how many seconds the client waits for it."""

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client = self.peer
        self._proxied = _within(self.peer, self._options.proxies)
        if not self.opened():
            if not self._options.implicit_tls:
                self.write(b"421 4.3.2 Too many connections, try again later\r\n")
            self.close()
            return
        self._patience = self._loop.call_later(self._limits.stranger_seconds, self._end_stranger)
        self._task = self._loop.create_task(self._run())

    def _end_stranger(self) -> None:
        if (self.identity if self._options.mechanisms else self.certificate_name()) is None:
            self._abandon()

    def _abandon(self) -> None:
        """End the session without waiting for anything, also in the middle of a handshake."""
        if self._transport is not None:
            self._transport.abort()

    async def _run(self) -> None:
        try:
            await self._begin()
            while not self._draining or self.busy:
                await self._serve_one()
            self._shut_down()
        except (ConnectionError, SessionEnded):
            pass
        except TimeoutError:
            self._say("421 4.4.2 Too slow, closing the connection")
        except Exception as error:  # a bug ends this session only; the client may try again
            log.error("smtp.session-failed", client=self.client, error=type(error).__name__)
            self._say(Refused(refusals.SPOOL_UNAVAILABLE).reply)
        finally:
            self.reset()
            if self._patience is not None:
                self._patience.cancel()
            self.close()
            self._loop.call_later(_GOODBYE_SECONDS, self._abandon)  # a client that does not fetch the last reply
            self.closed()

    async def _begin(self) -> None:
        """Everything before the first command."""
        limits = self._limits
        if self._proxied:
            reader = _ProxyReader()
            try:
                await self.read_header(reader, limits.handshake_seconds)
            except ProxyHeaderError as error:
                log.warning("smtp.proxy-header-refused", proxy=self.peer, reason=str(error))
                raise SessionEnded from error
            except TimeoutError:
                log.warning("smtp.proxy-header-refused", proxy=self.peer, reason="none came in time")
                raise SessionEnded from None
            if reader.header is not None and reader.header.source:
                self.client = reader.header.source
        refused = await self.admitted()
        if refused is not None:
            if not self._options.implicit_tls:
                self._greeted = True
                self._say(refused.reply)
            raise SessionEnded
        if self._options.implicit_tls:
            await self._secure(keep=True)
        self._say(f"220 {self.hostname} {self.protocol} Relais")

    async def _secure(self, *, keep: bool = False) -> None:
        try:
            await self.start_tls(self._context, self._limits.handshake_seconds, keep=keep)
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
            self._shut_down()

    def cut(self) -> None:
        """End now, not without a word: content whose reply has not been said is the client's to repeat."""
        self._shut_down()

    def _shut_down(self) -> None:
        if self._greeted:
            self._say("421 4.3.2 Shutting down, try again in a moment")
        self.close()

    async def ended(self) -> None:
        """Until everything of this session is over."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # Lines

    def _say(self, text: str) -> None:
        """Reply, with the enhanced status code RFC 2034 asks of every 2xx, 4xx and 5xx reply but the greeting."""
        code, _, words = text.partition(" ")
        if not self._greeted:
            self._greeted = True
        elif code[0] in "245" and words[:2] != f"{code[0]}.":
            text = f"{code} {_DEFAULT_ENHANCED.get(code, f'{code[0]}.0.0')} {words}"
        self.write(text.encode("ascii", "replace") + b"\r\n")

    async def push(self, text: str) -> None:
        """Reply. What is refused for its form counts as an error."""
        self._say(text)
        if text[0] == "5":
            await self._count_error()
        elif self.much_unsent:
            await self.flush(self._limits.idle_seconds)

    async def _count_error(self) -> None:
        self._errors += 1
        if self._errors >= self._limits.errors:
            self._say("421 4.7.0 Too many errors, closing the connection")
            raise SessionEnded
        if self._errors > self._limits.free_failures:
            await self._wait_out(self._limits.tarpit_seconds)

    async def _wait_out(self, seconds: float) -> None:
        """Slowly, for whoever tries things out; nothing more is read meanwhile than fits in the buffer."""
        if seconds > 0:
            await self.flush(self._limits.idle_seconds)
            await asyncio.sleep(seconds)

    async def _refuse(self, step: str, refused: Refused) -> None:
        self.refusals += refused.refusal.smtp >= 500
        await self._wait_out(self.told(step, refused))
        self._say(refused.reply)
        if refused.refusal.smtp == 421:
            raise SessionEnded
        if self.much_unsent:
            await self.flush(self._limits.idle_seconds)

    async def _serve_one(self) -> None:
        longest = _LONGEST_TOKEN if "XOAUTH2" in self._options.mechanisms else _LONGEST["AUTH"]
        try:
            line = await self.read_line(longest, self._limits.idle_seconds)
        except LineTooLongError:
            await self.push("500 5.5.2 Command line too long")
            return
        text = _command_text(line)
        if text is None:
            await self.push("500 5.5.2 Commands are one line of text that ends with CRLF")
            return
        verb, _, argument = text.partition(" ")
        verb = verb.upper()
        if verb in _OTHER_PROTOCOLS or verb.endswith(":"):
            self._say("421 4.7.0 This is SMTP, closing the connection")
            raise SessionEnded
        if len(line) > (longest if verb == "AUTH" else _LONGEST.get(verb, 512)):
            await self.push("500 5.5.2 Command line too long")
            return
        command = self._commands.get(verb)
        if command is None:
            await self.push("500 5.5.1 Command not recognized")
            return
        if not text.isascii() and verb not in ("MAIL", "RCPT"):
            await self.push("500 5.5.2 Only ASCII may stand here")
            return
        if self.require_starttls and verb not in _BEFORE_TLS and self.tls is None:
            await self.push("530 5.7.0 Must issue a STARTTLS command first")
            return
        self._counts[verb] += 1
        if self._counts[verb] > self._limits.commands:
            self._say(f"421 4.7.0 {verb} sent too many times")
            raise SessionEnded
        await command(argument.strip(" "))

    # Greeting

    async def smtp_HELO(self, argument: str) -> None:  # noqa: N802 - named after the command
        if not argument:
            await self.push("501 5.5.4 Syntax: HELO hostname")
            return
        self.reset()
        self.helo, self._extended = argument, False
        await self.push(f"250 {self.hostname}")

    async def smtp_EHLO(self, argument: str) -> None:  # noqa: N802 - named after the command
        if not argument:
            await self.push("501 5.5.4 Syntax: EHLO hostname")
            return
        self.reset()
        self.helo, self._extended = argument, True
        words = [self.hostname, f"SIZE {self._limits.message_bytes}", "PIPELINING", "8BITMIME", "SMTPUTF8"]
        words += ["ENHANCEDSTATUSCODES", "DSN", "CHUNKING", f"LIMITS RCPTMAX={self._limits.recipients}"]
        if self.tls is None:
            words.append("STARTTLS")
        else:
            words.append("REQUIRETLS")  # RFC 8689 §4: under TLS only
            if offered := self._offered():
                words.append(f"AUTH {' '.join(offered)}")
        self.write("".join(f"250-{word}\r\n" for word in words[:-1]).encode("ascii"))
        self.write(f"250 {words[-1]}\r\n".encode("ascii"))

    def _offered(self) -> list[str]:
        """The mechanisms, only under TLS."""
        tls = self.tls
        if tls is None:
            return []
        shown = tls.getpeercert(binary_form=True) is not None
        return [name for name in self._options.mechanisms if name != "EXTERNAL" or shown]

    async def smtp_STARTTLS(self, argument: str) -> None:  # noqa: N802 - named after the command
        if self.tls is not None:
            await self.push("503 5.5.1 TLS is already active")
        elif argument:
            await self.push("501 5.5.4 Syntax: STARTTLS")
        else:
            self._say("220 2.0.0 Ready to start TLS")
            await self._secure()
            self.reset()
            self.helo, self._extended = "", False

    async def smtp_NOOP(self, argument: str) -> None:  # noqa: N802 - named after the command
        await self.push("250 2.0.0 OK")

    async def smtp_RSET(self, argument: str) -> None:  # noqa: N802 - named after the command
        if argument:
            await self.push("501 5.5.4 Syntax: RSET")
            return
        self.reset()
        await self.push("250 2.0.0 OK")

    async def smtp_VRFY(self, argument: str) -> None:  # noqa: N802 - named after the command
        await self.push("252 2.5.0 Addresses are not verified here, try RCPT")

    async def smtp_HELP(self, argument: str) -> None:  # noqa: N802 - named after the command
        await self.push("214 2.0.0 RFC 5321")

    async def smtp_QUIT(self, argument: str) -> None:  # noqa: N802 - named after the command
        if argument:
            await self.push("501 5.5.4 Syntax: QUIT")
            return
        self._say("221 2.0.0 Bye")
        raise SessionEnded

    # AUTH

    async def smtp_AUTH(self, argument: str) -> None:  # noqa: N802 - named after the command
        """RFC 4954, under TLS only."""
        if not self._options.mechanisms:
            await self.push("502 5.5.1 AUTH is not available here")
            return
        if not self._extended:
            await self.push("503 5.5.1 Error: send EHLO first")
            return
        if self.identity is not None or self.begun:
            await self.push("503 5.5.1 AUTH is not possible now")
            return
        name, _, initial = argument.partition(" ")
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
        if isinstance(claim, TokenClaim):
            await self._challenge(TOKEN_FAILED)  # whatever the client answers, the reply follows (RFC 7628 §3.2.3)
        await self._refuse("AUTH", refused)
        self._failures += 1
        if self._failures >= self._limits.authentication_failures:
            raise SessionEnded

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
        self._say(f"334 {encoded(challenge)}")
        try:
            line = await self.read_line(_LONGEST_TOKEN, self._limits.idle_seconds)
        except LineTooLongError:
            return None
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
        words = f"{len(claim.login)}:{claim.login}{claim.password}".encode()
        return hmac.digest(self._digest_key, words, "sha256")


class _ProxyReader:
    """Collects the header that comes before everything."""

    def __init__(self) -> None:
        self._data = b""
        self.header: ProxyHeader | None = None

    def feed(self, block: bytes) -> bytes | None:
        self._data += block
        self.header = read_header(self._data) if self._data else None
        if self.header is not None:
            return self._data[self.header.length :]
        if len(self._data) > MAX_HEADER:
            raise ProxyHeaderError("header too long")
        return None


def _command_text(line: bytes) -> str | None:
    """A command without its end; None when it is not one line of text that ends with CRLF."""
    if not line.endswith(b"\r\n") or line.count(b"\r") > 1:
        return None
    try:
        text = line[:-2].decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and text.strip(" ") else None


def _within(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)
