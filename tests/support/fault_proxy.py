"""A TCP proxy of our own that does to a connection what networks do: delay, cut, half-close, reset, garble, swallow.

Each connection has its `Fault`, in the order they come; what comes after the last fault passes unharmed. `fired` is set
when a fault struck, so that a test waits for events and never for time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum


class Harm(Enum):
    CLOSE = "both sides are closed in order"
    RESET = "the client is sent RST"
    HALF_CLOSE = "the client is told that nothing more comes, and is still heard"
    SWALLOW = "what the server says is dropped from here on"
    HANG = "nothing passes any more, in either direction"
    GARBAGE = "octets of no protocol are put into what the server says"


_DEAF = (Harm.HANG, Harm.CLOSE, Harm.RESET)
_DUMB = (*_DEAF, Harm.SWALLOW, Harm.HALF_CLOSE)
"""What stops a direction once it has struck."""


@dataclass(frozen=True)
class Fault:
    """Strikes once `up` octets have come from the client, or `down` from the server; those octets still pass."""

    harm: Harm | None = None
    up: int | None = None
    down: int | None = None
    delay: float = 0.0
    """Seconds each block waits."""
    slow_reader: bool = False
    """The server's side takes nothing once the fault has struck, until `release`."""


class FaultProxy:
    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.faults: deque[Fault] = deque()
        self.connections = 0
        self.up = 0
        """Octets from clients, of all connections."""
        self.fired = asyncio.Event()
        self.release = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._strikes: list[asyncio.Event] = []

    def strike(self) -> None:
        """Let the fault of the newest connection strike now."""
        self._strikes[-1].set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fault = self.faults.popleft() if self.faults else Fault()
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        struck = asyncio.Event()
        self._strikes.append(struck)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        try:
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer, fault, struck, upward=True)),
                asyncio.create_task(self._pump(far_reader, writer, fault, struck, upward=False)),
                asyncio.create_task(self._harm(writer, fault, struck)),
            ]
            try:
                await asyncio.wait(pumps[:2])
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: Fault,
        struck: asyncio.Event,
        *,
        upward: bool,
    ) -> None:
        limit = fault.up if upward else fault.down
        passed = 0
        with contextlib.suppress(OSError):
            while data := await reader.read(65536 if limit is None or struck.is_set() else max(1, limit - passed)):
                if fault.delay:
                    await asyncio.sleep(fault.delay)
                if struck.is_set() and fault.harm in (_DEAF if upward else _DUMB):
                    continue
                passed += len(data)
                self.up += len(data) if upward else 0
                writer.write(data)
                await writer.drain()
                if limit is not None and passed >= limit:
                    struck.set()
                if struck.is_set() and fault.slow_reader and upward:
                    await self.release.wait()
            if writer.can_write_eof():
                writer.write_eof()

    async def _harm(self, writer: asyncio.StreamWriter, fault: Fault, struck: asyncio.Event) -> None:
        await struck.wait()
        self.fired.set()
        match fault.harm:
            case Harm.CLOSE:
                writer.close()
            case Harm.RESET:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Harm.HALF_CLOSE:
                writer.write_eof()
            case Harm.GARBAGE:
                writer.write(b"\x00\xff\xfe garbage \r\n" * 8)
            case _:
                pass

    async def end(self) -> None:
        self.release.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxying(port: int, *faults: Fault) -> AsyncIterator[FaultProxy]:
    """A proxy before the server at `port` on loopback."""
    proxy = FaultProxy(port)
    proxy.faults.extend(faults)
    listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = listening.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listening.close()
        await proxy.end()
