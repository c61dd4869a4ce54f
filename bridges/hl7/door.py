"""The MLLP door: one TCP listener per sending system, frames in, acknowledgements out, in order.

The protocol itself is `bridges.hl7.mllp`; what a frame means is `bridges.intake`. A frame that is too large is refused
and skipped, the connection goes on. A store that cannot keep a message closes the connection without an answer: to the
sender that means "not accepted", and it sends again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from bridges.hl7.mllp import FrameDecoder, FrameError, encode

log = structlog.get_logger(__name__)

_READ = 256 * 1024


@dataclass(frozen=True, slots=True)
class MllpOptions:
    max_frame_bytes: int = 50 * 1024 * 1024
    idle_seconds: float = 600.0
    max_connections: int = 64


class MllpDoor:
    """`receive` and `refuse` are an intake's, bound to this listener's sending system; they run in `executor`."""

    def __init__(
        self,
        options: MllpOptions,
        receive: Callable[[bytes], bytes],
        refuse: Callable[[FrameError], bytes],
        executor: Executor,
    ) -> None:
        self._options = options
        self._receive = receive
        self._refuse = refuse
        self._executor = executor
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen (port 0 picks a free one); the port in use."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_READ)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more frames; a frame whose acknowledgement is being prepared still gets it."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= self._options.max_connections:
            log.warning("mllp.too-many-connections")
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            return
        except Exception as error:
            log.error("mllp.not-kept", exc_info=error)
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = FrameDecoder(self._options.max_frame_bytes)
        loop = asyncio.get_running_loop()
        while True:
            async with asyncio.timeout(self._options.idle_seconds):
                data = await reader.read(_READ)
            if not data:
                return
            for event in decoder.feed(data):
                if isinstance(event, FrameError):
                    log.warning("mllp.frame-refused", kind=event.kind)
                    if event.kind == "stray":
                        continue
                    answer = loop.run_in_executor(self._executor, self._refuse, event)
                else:
                    answer = loop.run_in_executor(self._executor, self._receive, event.payload)
                # Shielded: once accepted, the acknowledgement still goes out while we are asked to stop.
                writer.write(encode(await _finish(answer)))
                async with asyncio.timeout(self._options.idle_seconds):
                    await writer.drain()


async def _finish(answer: asyncio.Future[bytes]) -> bytes:
    """The answer even when this task is cancelled meanwhile; the cancellation takes effect at the next read."""
    try:
        return await asyncio.shield(answer)
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None:
            raise
        task.uncancel()
        result = await answer
        task.cancel()
        return result
