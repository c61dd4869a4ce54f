"""What repeats a task's turns for as long as a gateway runs: sleeps between them until there is work, ends in order."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable


class Bell:
    """For one task on one event loop; rung from any thread, at any time. A ring before `run` is not kept: the first
    turn looks by itself."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rung = asyncio.Event()
        self._finished = asyncio.Event()
        self._stopping = False
        self._ringing = False

    @property
    def stopping(self) -> bool:
        """Whether the turn under way is the last."""
        return self._stopping

    @property
    def silent(self) -> bool:
        """Whether no turn will be taken any more. From any thread."""
        return self._stopping or self._finished.is_set()

    async def run(
        self, turn: Callable[[], Awaitable[float]], last: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """Take turns until `stop`, then `last`. A turn returns how many seconds to sleep when nothing rings, 0 for not
        at all. What either raises ends the task."""
        self._loop = asyncio.get_running_loop()
        try:
            while not self._stopping:
                self._rung.clear()  # what rang before is answered by this turn
                pause = await turn()
                if pause > 0 and not self._stopping:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause):
                            await self._rung.wait()
            if last is not None:
                await last()
        finally:
            self._finished.set()

    def ring(self) -> None:
        """Take the next turn now. From any thread."""
        if self._loop is not None and not self._ringing:
            self._ringing = True  # one call wakes the loop for all who ring before it comes to it
            with contextlib.suppress(RuntimeError):  # the loop is closed: the next start looks by itself
                self._loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self._ringing = False
        self._rung.set()

    def ring_here(self) -> None:
        """The same, from the task's own event loop."""
        self._rung.set()

    def stop(self) -> None:
        """Take no further turn. From the task's own event loop."""
        self._stopping = True
        self._rung.set()

    async def finished(self) -> None:
        """Wait for the end of `run`, if it has begun."""
        if self._loop is not None:
            await self._finished.wait()


class Repeating(ABC):
    """A task that only takes turns. One per process and event loop; `run` ends after `stop`."""

    def __init__(self) -> None:
        self._bell = Bell()

    async def run(self) -> None:
        """Take turns until `stop`."""
        await self._bell.run(self._turn)

    async def stop(self) -> None:
        """The turn under way ends."""
        self._bell.stop()
        await self._bell.finished()

    @abstractmethod
    async def _turn(self) -> float:
        """Returns how long to sleep, in seconds; 0 for not at all."""
