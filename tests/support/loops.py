"""What lives on an event loop, for tests that ask synchronously."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

_T = TypeVar("_T")


@contextmanager
def on_a_loop_of_its_own(context: AbstractAsyncContextManager[_T]) -> Iterator[_T]:
    """What `context` gives, entered and left on a loop in a thread."""
    runner, ready, end = asyncio.Runner(loop_factory=asyncio.new_event_loop), threading.Event(), asyncio.Event()
    loop = runner.get_loop()
    started: list[_T] = []

    async def run() -> None:
        async with context as given:
            started.append(given)
            ready.set()
            await end.wait()

    def live() -> None:
        with runner:  # at the end, tasks of connections nobody closed are cancelled too, and have turns to close them
            runner.run(run())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
