"""The MLLP door: one TCP listener per sending system, frames in, acknowledgements out, in order.

The protocol itself is `bridges.hl7.mllp`; what a frame means is `bridges.intake`. A frame that is too large is refused
and skipped, the connection goes on. A store that cannot keep a message closes the connection without an answer: to the
sender that means "not accepted", and it sends again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from bridges.hl7.mllp import END, START, FrameDecoder, FrameError, encode

log = structlog.get_logger(__name__)

_READ = 256 * 1024
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class MllpOptions:
    max_frame_bytes: int = 50 * 1024 * 1024
    idle_seconds: float = 600.0
    frame_seconds: float = 900.0
    """From the first to the last byte of one frame, however slowly it trickles: what is unfinished lies in memory."""
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

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen (port 0 picks a free one), with `reuse_port` beside other processes; the port in use."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=_READ, reuse_port=reuse_port or None)
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
        decoder = FrameDecoder(self._options.max_frame_bytes)
        try:
            await self._serve(decoder, reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass
        except Exception as error:
            log.error("mllp.not-kept", exc_info=error)
        finally:
            unfinished = decoder.finish()
            if unfinished is not None:
                log.warning("mllp.frame-refused", kind=unfinished.kind, size=unfinished.size)
            await _close(writer)
            self._connections.discard(task)

    async def _serve(self, decoder: FrameDecoder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        frame_ends: float | None = None
        while True:
            idle_ends = loop.time() + self._options.idle_seconds
            async with asyncio.timeout_at(idle_ends if frame_ends is None else min(idle_ends, frame_ends)):
                data = await reader.read(_READ)
            if not data:
                return
            last_start, last_end = data.rfind(START), data.rfind(END)
            if last_end > last_start:
                frame_ends = None
            elif last_start > last_end:
                frame_ends = loop.time() + self._options.frame_seconds
            for event in decoder.feed(data):
                if isinstance(event, FrameError):
                    log.warning("mllp.frame-refused", kind=event.kind, size=event.size)
                    if event.kind == "stray":
                        continue
                    answer = loop.run_in_executor(self._executor, self._refuse, event)
                else:
                    answer = loop.run_in_executor(self._executor, self._receive, event.payload)
                try:
                    writer.write(encode(await asyncio.shield(answer)))
                except asyncio.CancelledError:
                    # asked to stop while the store works: once it has accepted, the acknowledgement still goes out
                    writer.write(encode(await answer))
                    raise
                async with asyncio.timeout(self._options.idle_seconds):
                    await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close once what was written is sent; a peer that does not take it must not keep the connection for ever."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except (OSError, asyncio.CancelledError):
        pass
