"""How what the database's thread has finished comes back to an event loop: many results at one wake-up."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

LOOP_BYTES = 256 * 1024
"""Reading, hashing and encrypting so much takes a fraction of a millisecond, less than handing it to a thread and back;
more than that would keep an event loop from others."""


class Returns:
    """For one event loop, that which runs when it is made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[tuple[Future[Any], asyncio.Future[Any]]] = deque()
        self._called = False

    def of(self, work: Future[T]) -> asyncio.Future[T]:
        """The same result, to be awaited on this loop. Giving up waiting does not undo the work."""
        awaited: asyncio.Future[T] = self._loop.create_future()
        work.add_done_callback(lambda done: self._done(done, awaited))
        return awaited

    def _done(self, work: Future[T], awaited: asyncio.Future[T]) -> None:
        self._arrived.append((work, awaited))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first: what arrives from now on calls again
        while self._arrived:
            work, awaited = self._arrived.popleft()
            if awaited.done():
                continue
            if work.cancelled():  # one that was given up must not stand in the way of the others
                awaited.cancel()
                continue
            error = work.exception()
            if error is None:
                awaited.set_result(work.result())
            else:
                awaited.set_exception(error)
