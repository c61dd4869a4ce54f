"""One connection of a client, under aiosmtpd's command loop: octets in, replies out, deadlines, TLS, back-pressure.

What is ours and why: content goes from the transport straight into its checker (aiosmtpd wakes a task for every line),
replies to pipelined commands leave together, every wait has an end and no work of our own has one, and a message that
is being kept is kept, whatever becomes of the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Iterable
from typing import Any, NoReturn, Protocol

from aiosmtpd.smtp import SMTP, Session

from mta.smtp.limits import Limits

# aiosmtpd logs every command and address, in which a patient's identity may stand
logging.getLogger("mail.log").addFilter(lambda record: False)
logging.getLogger("mail.log").setLevel(logging.CRITICAL + 1)

_MOST_SKIPPED = 64 * 1024
"""Octets of a line without an end."""
_MOST_UNSENT = 16 * 1024
_MOST_AT_ONCE = 32
"""Lines that came together, after which it is others' turn."""
_GOODBYE_SECONDS = 5.0
"""To fetch the last reply, and for the peer's TLS goodbye."""


class Sink(Protocol):
    """Takes octets until it has what it wanted."""

    def feed(self, block: bytes) -> bytes | None:
        """None: more is wanted; else what was too much."""
        ...


class SessionEnded(ConnectionResetError):  # noqa: N818 - nothing went wrong
    """The session is over; the last reply has been sent. For aiosmtpd as if the client had gone."""


class LineTooLongError(Exception):
    """No line end within what may be one line; the line is gone, up to its end."""


class _Lines(asyncio.StreamReader):
    """What aiosmtpd reads commands from."""

    _buffer: bytearray
    _transport: asyncio.BaseTransport | None

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection.line_length_limit, connection.loop)
        self._connection = connection

    async def readuntil(self, separator: object = b"\n") -> bytes:
        return await self._connection.next_command()

    async def line(self) -> bytes:
        return await super().readuntil()

    @property
    def holds_line(self) -> bool:
        return b"\n" in self._buffer

    def taken(self) -> bytes:
        """What has been read and not used."""
        taken = bytes(self._buffer)
        self._buffer.clear()
        self._maybe_resume_transport()  # type: ignore[attr-defined]
        return taken

    def moved(self, transport: asyncio.Transport) -> None:
        self._transport = transport


class Connection(SMTP):
    """For one event loop. Whoever reads gets `ConnectionResetError` once the session is over."""

    line_length_limit = 12288
    """Of the reader of commands (RFC 4954 §4); content has limits of its own."""
    transport: asyncio.Transport | None
    session: Session
    _reader: _Lines
    _writer: asyncio.StreamWriter
    _commands: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._commands = tuple({name for each in cls.__mro__ for name in vars(each) if name.startswith("smtp_")})

    def __init__(self, limits: Limits, context: ssl.SSLContext, **options: Any) -> None:
        """`options` are aiosmtpd's."""
        loop = asyncio.get_running_loop()
        super().__init__(self, tls_context=context, enable_SMTPUTF8=True, loop=loop, **options)
        asyncio.StreamReaderProtocol.__init__(self, _Lines(self), self._cb_client_connected, loop)
        self._limits = limits
        self._unsent = bytearray()
        self._sink: Sink | None = None
        self._stirred = asyncio.Event()
        self._content_until = self._until = math.inf
        self._at_once = 0
        self._over = self._securing = False

    def __dir__(self) -> Iterable[str]:
        """aiosmtpd looks through these for commands and hooks, four times for every connection."""
        return self._commands

    async def next_command(self) -> bytes:
        """A line that aiosmtpd may carry out."""
        return await self.read_line()

    def reset(self) -> None:
        """Forget what was said since MAIL."""
        self._set_rset_state()  # type: ignore[no-untyped-call]

    # What asyncio calls

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            super().data_received(data)
            return
        rest = self._sink.feed(data)
        if rest is None:
            self._await_client()
            self.block_taken()
            return
        self._sink = None
        if rest:
            super().data_received(rest)
        self._stirred.set()

    def block_taken(self) -> None:
        """Called after a block went into the sink and did not fill it."""

    # aiosmtpd cancels what is being carried out when the client goes, also the keeping of a message

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        asyncio.StreamReaderProtocol.connection_lost(self, SessionEnded())
        self.transport = None
        self._stirred.set()

    # Whose turn it is. aiosmtpd has a clock that runs on while a message is being kept, and ends without a word

    def _reset_timeout(self, duration: float | None = None) -> None:
        """The client has so many seconds for what it is to do; None: it is not its turn."""
        if duration is None:
            self._until = math.inf
            return
        self._until = self.loop.time() + duration
        if self._timeout_handle is None or self._until < self._timeout_handle.when():
            self._set_clock(self._until)

    def _set_clock(self, when: float) -> None:
        """Mostly it rings too early and is set anew: that is cheaper than to set it for every line and block."""
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timeout_handle = self.loop.call_at(when, self._timeout_cb)

    def _timeout_cb(self) -> None:
        self._timeout_handle = None
        if self._until > self.loop.time():
            if self._until < math.inf:
                self._set_clock(self._until)
            return
        self.say("421 4.4.2 Too slow, closing the connection" if self._sink is None else "421 4.4.2 DATA took too long")
        self.close()

    def _await_client(self) -> None:
        self._reset_timeout(min(self._limits.idle_seconds, self._content_until - self.loop.time()))

    def begin_content(self) -> None:
        """What comes in parts has no more time than what comes at once, commands between its parts included."""
        self._content_until = self.loop.time() + self._limits.data_seconds

    def end_content(self) -> None:
        self._content_until = math.inf

    # Reading

    async def read_line(self) -> bytes:
        """One line with its end; replies leave before it is waited for. Raises also `LineTooLongError`."""
        skipped = 0
        while True:
            if self.over:  # nobody hears the reply
                raise SessionEnded
            if not self._reader.holds_line:
                await self.flush()
                self._await_client()
            else:
                await self._go_on()
            try:
                line = await self._reader.line()
            except asyncio.LimitOverrunError as error:
                skipped += len(await self._reader.read(error.consumed))
                if skipped > _MOST_SKIPPED:
                    self.end()
                continue
            self._reset_timeout()
            if skipped:
                raise LineTooLongError
            return line

    async def _go_on(self) -> None:
        """More came than one line: neither may the replies pile up, nor others wait for all of it."""
        self._at_once += 1
        if self._at_once % _MOST_AT_ONCE == 0:
            await asyncio.sleep(0)
        if len(self._unsent) > _MOST_UNSENT:
            await self.flush()

    async def fill(self, sink: Sink) -> None:
        """Let `sink` have what comes until it is content.

        `proceed` is called whenever `stir` was called, and once at the beginning.
        """
        until = self._content_until
        if until == math.inf:
            self.begin_content()
        self._sink = sink
        try:
            if early := self._reader.taken():
                self.data_received(early)
            if self._sink is not None:
                await self.flush()
            while self._sink is not None:
                if self.over:
                    raise SessionEnded
                self._stirred.clear()
                self._reset_timeout()
                await self.proceed()
                if self._sink is not None and self.transport is not None:
                    self._await_client()
                    self.transport.resume_reading()
                    await self._stirred.wait()
        finally:
            self._sink = None
            self._content_until = until
            self._reset_timeout()

    async def proceed(self) -> None:
        """Called by the task that reads, whenever `stir` was called during `fill`, and once at its beginning."""

    def stir(self) -> None:
        """From `block_taken`: nothing more is read until `proceed` has returned."""
        if self.transport is not None:
            self.transport.pause_reading()
        self._stirred.set()

    # Writing

    def say(self, text: str) -> None:
        """Reply. Kept until `flush`: replies to what came together leave together."""
        self._unsent += text.encode("ascii", "replace") + b"\r\n"

    async def flush(self) -> None:
        """Send what was said."""
        self._send()
        self._reset_timeout(self._limits.idle_seconds)
        await self._writer.drain()
        self._reset_timeout()

    def _send(self) -> None:
        if self._unsent and not self.over and not self._securing:  # nothing in clear into a handshake
            self._writer.write(bytes(self._unsent))
        self._unsent.clear()

    # Ending

    @property
    def over(self) -> bool:
        """Nothing is heard or said any more."""
        return self._over or self.transport is None or self.transport.is_closing()

    def end(self, text: str = "") -> NoReturn:
        """End the session, for who carries out a command."""
        if text:
            self.say(text)
        self.close()
        raise SessionEnded

    def close(self) -> None:
        """End the connection after what was said."""
        if self.transport is None or self._over:
            return
        self._send()
        self._over = True
        self.transport.close()
        self._reader.set_exception(SessionEnded())
        self._stirred.set()
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        self._timeout_handle = self.loop.call_later(_GOODBYE_SECONDS, self.abandon)

    def abandon(self) -> None:
        """End the connection without waiting for anything, also in the middle of a handshake."""
        if self.transport is not None:
            self.transport.abort()

    # TLS

    async def start_tls(self, seconds: float, *, keep: bool = False) -> None:
        """Server side. Raises `ssl.SSLError` or another `OSError`; the connection is then of no more use.

        aiosmtpd's has no deadline, and takes a connection that ends during the handshake for one that is secured. What
        came before is dropped (RFC 3207 §4.2; CVE-2011-0411), or with `keep` is the beginning of the handshake: what
        followed a PROXY header.
        """
        await self.flush()
        transport = self.transport
        if self.over or transport is None or self.tls_context is None:
            raise ConnectionResetError
        early = self._reader.taken() if keep else b""
        self._reader.taken()
        self._securing = True
        handshake = self.loop.start_tls(
            transport,
            self,
            self.tls_context,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=_GOODBYE_SECONDS,
        )
        if early:
            transport.pause_reading()
            starting = asyncio.ensure_future(handshake)
            # two turns of the loop: the TLS protocol takes its place, and is told of the transport
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            _give(transport.get_protocol(), early)
            secured = await starting
        else:
            secured = await handshake
        if secured is None or self.transport is None:  # gone during the handshake, or while this task waited its turn
            raise ConnectionResetError
        self._tls_protocol = transport.get_protocol()  # type: ignore[assignment]
        self.transport = secured
        self._reader.moved(secured)
        self._writer._transport = secured  # type: ignore[attr-defined]
        self._securing = False
        self.session = self._create_session()
        self.reset()

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS layer, once there is one."""
        found: ssl.SSLObject | None = None if self.transport is None else self.transport.get_extra_info("ssl_object")
        return found


def _give(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """As a transport would."""
    with contextlib.suppress(BufferError):
        while data and isinstance(protocol, asyncio.BufferedProtocol):
            buffer = memoryview(protocol.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]
