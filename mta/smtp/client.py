"""The small SMTP and LMTP client both targets share: one connection, one recipient per transaction.

An asyncio protocol over the reply reader of `mta.smtp.reply`. The envelope goes in one flight where the server
announces PIPELINING (RFC 2920). What precedes STARTTLS is forgotten, and whatever a peer sent between its `220` and the
handshake ends the connection: it was said in the clear by anybody (RFC 3207 §5).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from mta.smtp.reply import Reply, ReplyError, ReplyReader, capabilities

_BLOCK = 256 * 1024


class ConnectionBrokenError(Exception):
    """The connection is of no more use: lost, timed out, or not SMTP. `step` says during what; no foreign text."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(f"{step}: {why}")
        self.step = step
        self.why = why


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds to wait at each step; the minima of RFC 5321 §4.5.3.2 are minutes, a worker's attempt is shorter."""

    connect: float = 30.0
    greeting: float = 60.0
    tls: float = 30.0
    command: float = 120.0
    block: float = 120.0
    """One block of content taken by the peer."""
    final: float = 300.0
    """From the final dot to its reply."""


@dataclass(frozen=True, slots=True)
class DsnRequest:
    """RFC 3461 parameters, as they go on the wire (xtext already encoded); empty ones are left out."""

    envid: str = ""
    ret: str = ""
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class TransactionResult:
    """How one transaction ended."""

    reply: Reply
    """The reply that decided."""
    step: str
    """`MAIL`, `RCPT`, `DATA` or `end of data`."""

    @property
    def delivered(self) -> bool:
        return self.step == "end of data" and 200 <= self.reply.code < 300


class SmtpConnection(asyncio.Protocol):
    """One connection. Not safe for concurrent use; any `ConnectionBrokenError` ends it."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._reader = ReplyReader()
        self._replies: deque[Reply] = deque()
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None
        self._failure = ""
        self.capabilities: Mapping[str, str] = {}

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams only
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._replies.extend(self._reader.feed(data))
            if len(self._replies) > 8:
                raise ReplyError("replies nobody asked for")
        except ReplyError as error:
            self._fail(str(error))
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection lost")

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._changed.set()
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()

    # The conversation

    @classmethod
    async def open(cls, host: str, port: int, timeouts: Timeouts, *, unix_path: str = "") -> SmtpConnection:
        """Connect over TCP, or to `unix_path`, and read the greeting. Raises `ConnectionBrokenError`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeouts.connect):
                if unix_path:
                    _, connection = await loop.create_unix_connection(lambda: cls(timeouts), unix_path)
                else:
                    _, connection = await loop.create_connection(lambda: cls(timeouts), host, port)
        except TimeoutError:
            raise ConnectionBrokenError("connect", "timeout") from None
        except OSError as error:
            raise ConnectionBrokenError("connect", error.strerror or type(error).__name__) from None
        try:
            greeting = await connection._reply("greeting", timeouts.greeting)
            if greeting.code != 220:
                raise ConnectionBrokenError("greeting", greeting.words)
        except BaseException:
            connection.abort()
            raise
        return connection

    @property
    def usable(self) -> bool:
        """Connected, silent, and nothing unasked has arrived."""
        return not self._failure and not self._replies and self._reader.empty

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS session, None in the clear."""
        return None if self._transport is None else self._transport.get_extra_info("ssl_object")

    async def hello(self, name: str, *, lmtp: bool = False) -> Reply:
        """EHLO or LHLO; keeps what the server announces."""
        reply = await self._command(f"{'LHLO' if lmtp else 'EHLO'} {name}")
        self.capabilities = capabilities(reply) if reply.code == 250 else {}
        return reply

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> Reply:
        """STARTTLS; on 220 the handshake is done when this returns. Raises ssl.SSLError when the handshake fails."""
        reply = await self._command("STARTTLS")
        self.capabilities = {}
        if reply.code != 220:
            return reply
        if self._transport is None or not self.usable:
            raise ConnectionBrokenError("STARTTLS", "data in the clear after STARTTLS")
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                self._transport,
                self,
                context,
                server_hostname=server_hostname,
                ssl_handshake_timeout=self._timeouts.tls,
                ssl_shutdown_timeout=2.0,
            )
        except ssl.SSLError:
            raise
        except (OSError, TimeoutError) as error:
            raise ConnectionBrokenError("TLS handshake", type(error).__name__) from None
        if transport is None:
            raise ConnectionBrokenError("TLS handshake", "connection lost")
        self._transport = transport
        return reply

    async def transaction(
        self, sender: str, recipient: str, content: bytes, dsn: DsnRequest | None = None
    ) -> TransactionResult:
        """One message to one recipient; the caller has checked SIZE and 8BITMIME. Raises `ConnectionBrokenError`.

        `content` has CRLF line ends. After a result the connection can be used again.
        """
        mail, rcpt = self._envelope(sender, recipient, content, dsn or DsnRequest())
        commands = (("MAIL", mail), ("RCPT", rcpt), ("DATA", "DATA"))
        pipelined = "PIPELINING" in self.capabilities
        if pipelined:
            self._write("".join(line + "\r\n" for _, line in commands).encode("ascii"), "MAIL")
        refused: TransactionResult | None = None
        for step, line in commands:
            if not pipelined:
                if refused is not None:
                    break
                self._write(f"{line}\r\n".encode("ascii"), step)
            reply = await self._reply(step, self._timeouts.command)
            if reply.code == 421:
                raise ConnectionBrokenError(step, reply.words)
            accepted = reply.code == 354 if step == "DATA" else 200 <= reply.code < 300
            if not accepted and refused is None:
                refused = TransactionResult(reply, step)
            if accepted and step == "DATA" and refused is not None:
                # RFC 2920 §3.1: the server wants data although nobody is to have it; give it none
                with contextlib.suppress(ConnectionBrokenError):
                    self._write(b".\r\n", step)
                    await self._reply(step, self._timeouts.command)
        if refused is not None:
            # MAIL may have been taken: leave no half transaction behind. A peer that closes instead has answered all
            # the same: its refusal counts, and the connection is not used again.
            with contextlib.suppress(ConnectionBrokenError):
                await self._command("RSET")
            return refused
        await self._send(content)
        return TransactionResult(await self._reply("end of data", self._timeouts.final), "end of data")

    async def quit(self) -> None:
        """Say goodbye and close; never raises."""
        try:
            if self.usable and self._transport is not None and not self._transport.is_closing():
                async with asyncio.timeout(2.0):
                    await self._command("QUIT")
        except (ConnectionBrokenError, TimeoutError):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        """Close without a word."""
        self._fail("closed")

    def _envelope(self, sender: str, recipient: str, content: bytes, dsn: DsnRequest) -> tuple[str, str]:
        mail, rcpt = f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>"
        if "SIZE" in self.capabilities:
            mail += f" SIZE={len(content)}"
        if "8BITMIME" in self.capabilities:
            mail += f" BODY={'7BIT' if content.isascii() else '8BITMIME'}"
        if "DSN" in self.capabilities:
            mail += f" RET={dsn.ret}" if dsn.ret else ""
            mail += f" ENVID={dsn.envid}" if dsn.envid else ""
            rcpt += f" NOTIFY={dsn.notify}" if dsn.notify else ""
            rcpt += f" ORCPT={dsn.orcpt}" if dsn.orcpt else ""
        return mail, rcpt

    async def _send(self, content: bytes) -> None:
        """Content with dots doubled (RFC 5321 §4.5.2), in blocks, at the peer's pace."""
        if content.startswith(b"."):
            content = b"." + content
        content = content.replace(b"\n.", b"\n..")
        view = memoryview(content)
        for start in range(0, len(view), _BLOCK):
            self._write(view[start : start + _BLOCK], "DATA")
            try:
                async with asyncio.timeout(self._timeouts.block):
                    await self._writable.wait()
            except TimeoutError:
                self.abort()
                raise ConnectionBrokenError("DATA", "timeout") from None
        self._write(b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n", "DATA")

    async def _command(self, line: str) -> Reply:
        step = line.partition(" ")[0]
        self._write(f"{line}\r\n".encode("ascii"), step)
        return await self._reply(step, self._timeouts.command)

    def _write(self, data: bytes | memoryview, step: str) -> None:
        if self._failure or self._transport is None or self._transport.is_closing():
            raise ConnectionBrokenError(step, self._failure or "connection lost")
        self._transport.write(data)

    async def _reply(self, step: str, seconds: float) -> Reply:
        try:
            async with asyncio.timeout(seconds):
                while not self._replies:
                    if self._failure:
                        raise ConnectionBrokenError(step, self._failure)
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self.abort()
            raise ConnectionBrokenError(step, "timeout") from None
        return self._replies.popleft()
