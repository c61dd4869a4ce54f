"""The tasks of a gateway: started in order, stopped in reverse order, and none of them may die unnoticed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Protocol

import structlog

log = structlog.get_logger(__name__)

_TASKS: set[asyncio.Task[None]] = set()
"""asyncio itself keeps only weak references."""


class Repeated(Protocol):
    """What runs until it is stopped."""

    async def run(self) -> None: ...

    @property
    def stop(self) -> Callable[..., Coroutine[Any, Any, None]]:
        """Takes what `Running.start` is given for it."""


class Running:
    """Those the gateway cannot do without: when one dies the gateway ends, and is restarted."""

    def __init__(self, stack: AsyncExitStack) -> None:
        """`stack` stops them."""
        self._stack = stack
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Repeated, name: str, *stop: Any) -> None:
        """Run it from now on; `stop` are the arguments of its own `stop`."""
        task = in_background(work.run(), name)
        task.add_done_callback(_ended)
        self._tasks.append(task)
        self._stack.push_async_callback(work.stop, *stop)

    def whole(self) -> bool:
        """Whether all of them run. From any thread."""
        return not any(task.done() for task in self._tasks)


def in_background(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task that is kept until it has ended."""
    task = asyncio.create_task(work, name=name)
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    return task


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("task.died", task=task.get_name(), exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
