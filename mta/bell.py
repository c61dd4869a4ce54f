"""What wakes a task that sleeps until there is work: rung from any thread, at any time, heard on one event loop."""

from __future__ import annotations

import asyncio
import contextlib


class Bell:
    """A ring while nobody listens yet, or no longer, is not kept: who begins to listen looks by itself."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung = asyncio.Event()

    @property
    def heard(self) -> bool:
        """Whether somebody has begun to listen."""
        return self._loop is not None

    def listen(self) -> None:
        """From now on rings are for the running event loop."""
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Wake the listener. From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the next start looks by itself
                self._loop.call_soon_threadsafe(self._rung.set)

    def ring_here(self) -> None:
        """Wake the listener at once, from its own event loop."""
        self._rung.set()

    def forget(self) -> None:
        """What rang before the next look is answered by that look."""
        self._rung.clear()

    async def wait(self, seconds: float) -> None:
        """Sleep until it rings, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()
