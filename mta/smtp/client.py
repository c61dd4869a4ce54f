"""The small SMTP and LMTP client all targets share: one connection, whose transactions follow each other without pause.

An asyncio protocol around `mta.smtp.pipeline`, which knows the conversation, and `mta.smtp.reply`, which reads replies.
What precedes STARTTLS is forgotten, and whatever a peer sent between its `220` and the handshake ends the connection:
it was said in the clear by anybody (RFC 3207 §5). Every wait has its limit, which only a whole reply or content the
peer takes extends: a peer that sends an octet now and then is a peer that is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mta.smtp.pipeline import END_OF_DATA, Answered, Broken, DsnRequest, Pipeline, Result, Transaction
from mta.smtp.reply import Reply, ReplyError, ReplyReader, capabilities

__all__ = [
    "Answered",
    "Broken",
    "ConnectionBrokenError",
    "DsnRequest",
    "Result",
    "SmtpConnection",
    "Timeouts",
    "Transaction",
]


class ConnectionBrokenError(Exception):
    """The connection is of no more use: lost, timed out, or not SMTP. `step` says during what; no foreign text but a
    reply's words."""

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


class SmtpConnection(asyncio.Protocol):
    """One connection, of one event loop. First the coroutines `open`, `hello`, `start_tls` and, at one's own operator,
    `authenticate`; then transactions."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._reader = ReplyReader()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._asked: asyncio.Future[Reply] | None = None
        self._greeting: Reply | None = None
        self._silent = True
        """We have not said anything yet."""
        self._pipeline: Pipeline[Any] | None = None
        self._on_result: Callable[[Any, Result], None] = _ignore
        self._on_ready: Callable[[], None] = _nothing
        self._on_lost: Callable[[], None] = _nothing
        self._flushing = False
        self._armed = ""
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self.failure = ""
        """Why the connection is over; empty while it is not."""
        self.capabilities: Mapping[str, str] = {}
        self.last_answer_seconds = 0.0
        """How long the last message waited for its final reply."""
        self.judged_at = float("-inf")
        """When, by the loop's clock, somebody last found that the peer may be believed."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams only
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self.failure:
            return
        heard = False
        try:
            # one by one: an answer that came whole counts, whatever nonsense came behind it
            for reply in self._reader.read(data):
                self._take_reply(reply)
                heard = True
        except ReplyError as error:
            self._fail(str(error))
            return
        if self._pipeline is not None and heard:
            if self._pipeline.finished:
                self._fail("closed")
            else:
                self._flush(progress=True)
                if self._pipeline.waiting_for in ("MAIL", "RCPT", "DATA"):
                    self._acknowledge()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("connection lost")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush(progress=True)

    # The conversation before mail

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        timeouts: Timeouts,
        *,
        unix_path: str = "",
        context: ssl.SSLContext | None = None,
        server_hostname: str = "",
    ) -> SmtpConnection:
        """Connect over TCP, or to `unix_path`, and read the greeting. With `context` under TLS from the first octet
        (RFC 8314 §3.3), to a server of the name `server_hostname`. Raises `ConnectionBrokenError`, and ssl.SSLError
        when the handshake fails."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeouts.connect):
                if unix_path:
                    _, connection = await loop.create_unix_connection(lambda: cls(timeouts), unix_path)
                else:
                    _, connection = await loop.create_connection(
                        lambda: cls(timeouts),
                        host,
                        port,
                        ssl=context,
                        server_hostname=server_hostname if context else None,
                    )
        except TimeoutError:
            raise ConnectionBrokenError("connect", "timeout") from None
        except ssl.SSLError:
            raise
        except (OSError, UnicodeError) as error:  # a name that is none
            raise ConnectionBrokenError("connect", getattr(error, "strerror", None) or type(error).__name__) from None
        try:
            greeting = await connection._ask("greeting", None, timeouts.greeting)
            if greeting.code != 220:
                raise ConnectionBrokenError("greeting", greeting.words)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def hello(self, name: str, *, lmtp: bool = False) -> Reply:
        """EHLO or LHLO; keeps what the server announces. Raises `ConnectionBrokenError`."""
        verb = "LHLO" if lmtp else "EHLO"
        reply = await self._ask(verb, f"{verb} {name}\r\n".encode("ascii"), self._timeouts.command)
        self.capabilities = capabilities(reply) if reply.code == 250 else {}
        return reply

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> Reply:
        """STARTTLS; on 220 the handshake is done when this returns. Raises ssl.SSLError when the handshake fails, and
        `ConnectionBrokenError`."""
        reply = await self._ask("STARTTLS", b"STARTTLS\r\n", self._timeouts.command)
        self.capabilities = {}
        if reply.code != 220:
            return reply
        if self._transport is None or not self.usable:
            raise ConnectionBrokenError("STARTTLS", "data in the clear after STARTTLS")
        try:
            transport = await self._loop.start_tls(
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

    async def authenticate(self, mechanism: str, response: bytes) -> Reply:
        """AUTH with an initial response (RFC 4954 §4), under TLS only. A server that says why before it refuses (RFC
        7628 §3.2.3) is heard out. Raises `ConnectionBrokenError`."""
        if self.ssl_object is None:
            raise ConnectionBrokenError("AUTH", "not in the clear")
        encoded = b64encode(response) or b"="
        line = b"AUTH " + mechanism.encode("ascii") + b" " + encoded + b"\r\n"
        reply = await self._ask("AUTH", line, self._timeouts.command)
        if reply.code == 334:
            reply = await self._ask("AUTH", b"\r\n", self._timeouts.command)
        return reply

    # Mail

    def carry(
        self,
        on_result: Callable[[Any, Result], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """From now on transactions. `on_result` tells how each ended; `on_ready` may call `begin` once; `on_lost` comes
        last, when the connection is over. All are called from the event loop and must not raise."""
        self._pipeline = Pipeline(self.capabilities)
        self._on_result, self._on_ready, self._on_lost = on_result, on_ready, on_lost

    def begin(self, transaction: Transaction, token: object) -> None:
        """Begin a transaction; only when `ready`. The caller has checked SIZE and 8BITMIME."""
        assert self._pipeline is not None  # noqa: S101 - carry comes first
        self._pipeline.begin(transaction, token)
        self._flush()

    @property
    def ready(self) -> bool:
        """A transaction may begin, perhaps behind another one."""
        return not self.failure and self._pipeline is not None and self._pipeline.ready

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return self.usable and (self._pipeline is None or self._pipeline.empty)

    @property
    def begun(self) -> int:
        """Transactions begun so far."""
        return 0 if self._pipeline is None else self._pipeline.begun

    def reclaim(self) -> object | None:
        """The transaction that waits behind a slow one, given back: surely not taken."""
        return None if self._pipeline is None else self._pipeline.reclaim()

    @property
    def usable(self) -> bool:
        """Connected, and nothing unasked has arrived."""
        return not self.failure and self._reader.empty and not (self._pipeline is not None and self._pipeline.closing)

    @property
    def ssl_object(self) -> ssl.SSLObject | None:
        """The TLS session, None in the clear."""
        return None if self._transport is None else self._transport.get_extra_info("ssl_object")

    async def quit(self) -> None:
        """Say goodbye and close; never raises. Only when `idle`."""
        try:
            if self.idle and self._transport is not None and not self._transport.is_closing():
                self._pipeline = None
                await self._ask("QUIT", b"QUIT\r\n", 2.0)
        except ConnectionBrokenError:
            pass
        finally:
            self.abort()

    def leave(self) -> None:
        """Say goodbye and close, without waiting for the answer (RFC 5321 §4.1.1.10 demands the word)."""
        if self.idle and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"QUIT\r\n")
            self._fail("closed", politely=True)
        else:
            self.abort()

    def abort(self) -> None:
        """Close without a word."""
        self._fail("closed")

    # Inside

    async def _ask(self, step: str, line: bytes | None, seconds: float) -> Reply:
        if self.failure or self._transport is None:
            raise ConnectionBrokenError(step, self.failure or "connection lost")
        if line is None and self._greeting is not None:
            return self._greeting
        self._asked = self._loop.create_future()
        if line is not None:
            self._silent = False
            self._transport.write(line)
        try:
            async with asyncio.timeout(seconds):
                return await self._asked
        except TimeoutError:
            self.abort()
            raise ConnectionBrokenError(step, "timeout") from None
        except ReplyError as error:
            raise ConnectionBrokenError(step, str(error)) from None
        finally:
            self._asked = None

    def _take_reply(self, reply: Reply) -> None:
        pipeline = self._pipeline
        if pipeline is None:
            if self._asked is not None and not self._asked.done():
                self._asked.set_result(reply)
            elif self._silent and self._asked is None and self._greeting is None:
                self._greeting = reply
            else:
                raise ReplyError("a reply nobody asked for")
            return
        awaited = pipeline.waiting_for
        ended = pipeline.reply(reply)
        if awaited == END_OF_DATA:
            now = self._loop.time()
            self.last_answer_seconds, self._sent_at = now - self._sent_at, now
        if ended is not None:
            self._on_result(*ended)

    def _flush(self, *, progress: bool = False) -> None:
        """Write what there is to say, at the peer's pace, and let the next transaction begin behind it. `progress`: the
        peer did something, so that it has its time anew."""
        pipeline, transport = self._pipeline, self._transport
        if pipeline is None or transport is None or self.failure or self._flushing:
            return
        self._flushing = True
        try:
            pieces: list[bytes] = []
            size = 0
            while not self._paused and not self.failure:
                piece = pipeline.take()
                if piece:
                    pieces.append(piece)
                    size += len(piece)
                    if size >= 65536:
                        transport.write(b"".join(pieces) if len(pieces) > 1 else piece)
                        pieces, size = [], 0
                    continue
                begun = pipeline.begun
                if pipeline.ready:
                    self._on_ready()
                if pipeline.begun == begun:
                    break
            if pieces and not self.failure:
                transport.write(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        finally:
            self._flushing = False
        awaited = pipeline.waiting_for
        if progress or awaited != self._armed:
            self._arm(awaited)

    def _arm(self, step: str) -> None:
        """Wait so long for what comes next."""
        self._armed = step
        if not step or self.failure:
            self._deadline = 0.0
            return
        now = self._loop.time()
        if step == END_OF_DATA:
            seconds = self._timeouts.final
            self._sent_at = now
        else:
            seconds = self._timeouts.block if step == "content" else self._timeouts.command
        self._deadline = now + seconds
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        """One timer serves all steps: moving it at each reply would cost more than looking again."""
        self._timer = None
        if not self._deadline or self.failure:
            return
        if self._loop.time() >= self._deadline:
            self._fail("timeout")
        else:
            self._timer = self._loop.call_at(self._deadline, self._look_at_clock)

    def _acknowledge(self) -> None:
        """More replies are due before we have anything to say. A server whose first reply went alone keeps the others
        back until TCP has acknowledged it (Nagle), which ours would do 40 ms later."""
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _fail(self, why: str, *, politely: bool = False) -> None:
        if self.failure:
            return
        self.failure = why
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None and politely:
            self._transport.close()  # what was written still goes out
        elif self._transport is not None:
            self._transport.abort()
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(ReplyError(why))
        try:
            if self._pipeline is not None:
                for token, broken in self._pipeline.broken(why):
                    self._on_result(token, broken)
        finally:
            self._on_lost()


def _ignore(token: object, result: Result) -> None:
    """Nobody listens yet."""


def _nothing() -> None:
    """Nobody listens yet."""
