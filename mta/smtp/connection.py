"""One connection of a client: octets in, replies out, deadlines, TLS, and back-pressure both ways; no SMTP.

An asyncio protocol of our own instead of streams: content goes from the transport into its checker without a task being
woken for every block, replies to pipelined commands leave together, and what was read before TLS begins is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Protocol

_MOST_BUFFERED = 64 * 1024
"""Octets of commands that wait; more stay in the client's socket."""
_MOST_UNSENT = 16 * 1024
_GOODBYE_SECONDS = 5.0
"""For the peer's TLS goodbye."""


class Sink(Protocol):
    """Takes octets until it has what it wanted."""

    def feed(self, block: bytes) -> bytes | None:
        """None: more is wanted; else what was too much."""
        ...


class LineTooLongError(Exception):
    """No line end within what may be one line; the line is gone, up to its end."""


class Connection(asyncio.Protocol):
    """For one event loop. Whoever reads gets `ConnectionResetError` once the client has gone, or `TimeoutError`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._unsent = bytearray()
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._paused = False
        self._last_block = 0.0
        self.peer = ""
        """The IP address at the other end."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - streams only
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if isinstance(name, tuple) and name else ""

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._wake()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._last_block = self._loop.time()
            rest = self._sink.feed(data)
            if rest is None:
                self.block_taken()
                return
            self._sink = None
            data = rest
        self._buffer += data
        if len(self._buffer) > _MOST_BUFFERED:
            self._pause()
        self._wake()

    def block_taken(self) -> None:
        """Called after a block went into the sink and did not fill it."""

    def eof_received(self) -> bool | None:
        return None

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    # Reading

    async def read_line(self, longest: int, seconds: float) -> bytes:
        """One line with its end. Raises `LineTooLongError`, `TimeoutError`, `ConnectionResetError`."""
        until = self._loop.time() + seconds
        too_long = 0
        while True:
            if self._transport is None:  # nobody hears the reply
                raise ConnectionResetError
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[: end + 1])
                del self._buffer[: end + 1]
                self._searched = 0
                if too_long or len(line) > longest:
                    raise LineTooLongError
                return line
            self._searched = len(self._buffer)
            if self._searched > longest:
                too_long += self._searched
                if too_long > _MOST_BUFFERED:
                    raise ConnectionResetError
                self._buffer.clear()
                self._searched = 0
            self._resume()
            await self.flush(seconds)
            await self._wait(until)

    async def read_header(self, sink: Sink, seconds: float) -> None:
        """Let `sink` have what comes until it is content. Raises as `read_line`, and what the sink raises."""
        until = self._loop.time() + seconds
        while True:
            rest = sink.feed(bytes(self._buffer))
            self._buffer.clear()
            if rest is not None:
                self._buffer += rest
                return
            self._resume()
            await self._wait(until)

    async def fill(self, sink: Sink, seconds: float, idle_seconds: float) -> None:
        """Let `sink` have what comes until it is content, `seconds` in all, `idle_seconds` between two blocks.

        `proceed` is called whenever something happened that is not the end. Raises as `read_line`.
        """
        self._searched = 0
        if self._buffer:
            rest = sink.feed(bytes(self._buffer))
            self._buffer.clear()
            if rest is not None:
                self._buffer += rest
                return
        until = self._loop.time() + seconds
        self._last_block = self._loop.time()
        self._sink = sink
        try:
            await self.flush(seconds)
            while self._sink is not None:
                await self.proceed()
                if self._sink is None:
                    break
                self._resume()
                try:
                    await self._wait(min(until, self._last_block + idle_seconds))
                except TimeoutError:
                    if self._loop.time() >= min(until, self._last_block + idle_seconds):
                        raise
        finally:
            self._sink = None

    async def proceed(self) -> None:
        """Called by the task that reads, whenever `stir` was called during `fill`, and once at its beginning."""

    def stir(self) -> None:
        """From `block_taken`: nothing more is read until `proceed` has returned."""
        self._pause()
        self._wake()

    @property
    def ready(self) -> bool:
        """A whole line is waiting."""
        return self._buffer.find(b"\n", self._searched) >= 0

    async def _wait(self, until: float) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        waiter = self._waiter = self._loop.create_future()
        handle = self._loop.call_at(until, _expire, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            handle.cancel()
        if self._transport is None:
            raise ConnectionResetError

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # Writing

    def write(self, data: bytes) -> None:
        """Kept until `flush`: replies to what came together leave together."""
        self._unsent += data

    async def flush(self, seconds: float) -> None:
        """Send what was written. Raises `TimeoutError` when the client does not read."""
        self._send()
        if self._room is not None:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._room)

    @property
    def much_unsent(self) -> bool:
        return len(self._unsent) > _MOST_UNSENT

    def _send(self) -> None:
        if self._unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()

    def close(self) -> None:
        """End the connection after what was written."""
        self._send()
        if self._transport is not None:
            self._transport.close()
        self._wake()

    # TLS

    async def start_tls(self, context: ssl.SSLContext, seconds: float, *, keep: bool = False) -> None:
        """Server side. Raises `ssl.SSLError` or another `OSError`; the connection is then of no more use.

        What came before is dropped (RFC 3207 §4.2; CVE-2011-0411), or with `keep` is the beginning of the handshake:
        what followed a PROXY header.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        early = bytes(self._buffer) if keep else b""
        self._buffer.clear()
        self._searched = 0
        self._send()
        self._paused = False
        handshake = self._loop.start_tls(
            transport,
            self,
            context,
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
        if secured is None:
            raise ConnectionResetError
        assert isinstance(secured, asyncio.Transport)  # noqa: S101
        if self._transport is None:  # gone while this task waited for its turn
            raise ConnectionResetError
        self._transport = secured

    @property
    def tls(self) -> ssl.SSLObject | None:
        """The TLS layer, once there is one."""
        found: ssl.SSLObject | None = None if self._transport is None else self._transport.get_extra_info("ssl_object")
        return found


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _give(protocol: asyncio.BaseProtocol, data: bytes) -> None:
    """As a transport would."""
    with contextlib.suppress(BufferError):
        while data and isinstance(protocol, asyncio.BufferedProtocol):
            buffer = memoryview(protocol.get_buffer(len(data)))
            count = min(len(buffer), len(data))
            buffer[:count] = data[:count]
            protocol.buffer_updated(count)
            data = data[count:]
