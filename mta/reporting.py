"""The reporter: tells whoever must be told how each delivery ended, once for each.

A delivery that has ended stands in the spool as not reported until every consumer has taken note of it. Killed between
a consumer's note and the spool's, the reporter asks again: consumers recognise what they have already written by the
spool's deduplication keys. A consumer that fails for one delivery is asked again later; the others do not wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mta.bell import Repeating
from mta.delivery import EndedDelivery
from mta.spool import Spool

_log = logging.getLogger("relais.mta.reporting")

T = TypeVar("T")


class NotSettledError(Exception):
    """A receipt came before our own delivery was written down as ended: look again later."""


class EndConsumer(Protocol):
    """Somebody who tells somebody how a delivery ended."""

    async def ended(self, delivery: EndedDelivery) -> None:
        """Idempotent: called again after a crash, or when another consumer failed. What it raises is tried again."""
        ...


@dataclass(frozen=True, slots=True)
class ReporterOptions:
    batch: int = 32
    """Deliveries reported at the same time: their commits share a disk sync."""
    poll_seconds: float = 5.0
    """How often to look for what other nodes ended."""
    consumer_seconds: float = 60.0
    """Longest time one consumer may take for one delivery."""
    first_pause_seconds: float = 1.0
    """Before a delivery that could not be reported is tried again; doubled each time."""
    longest_pause_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class _Failed:
    """A delivery that could not be reported."""

    pause: float
    due: float
    """Monotonic time, seconds."""


class Reporter(Repeating):
    """A turn reports one batch."""

    def __init__(self, spool: Spool, consumers: Sequence[EndConsumer], options: ReporterOptions | None = None) -> None:
        super().__init__()
        self._spool = spool
        self._consumers = tuple(consumers)
        self._options = options or ReporterOptions()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="mta-reporter")
        self._failed: dict[str, _Failed] = {}
        """By delivery id. In memory: after a restart everything is tried at once."""

    def wake(self) -> None:
        """Something ended: look now. From any thread, at any time."""
        self._bell.ring()

    async def run(self) -> None:
        """Report until `stop`."""
        self._spool.listen(self.wake)
        await super().run()

    async def stop(self) -> None:
        """Let the batch under way end; what is not reported then is at the next start."""
        await super().stop()
        self._threads.shutdown(wait=False)

    async def _turn(self) -> float:
        try:
            return await self._report_batch()
        except Exception as error:
            _log.error("the spool does not answer: %s", type(error).__name__)
            return self._options.first_pause_seconds

    async def _report_batch(self) -> float:
        options = self._options
        # those waiting for another try stand first: ask for as many more, or they would hide the others
        limit = options.batch + len(self._failed)
        found = await self._in_thread(self._spool.ended, limit)
        now = time.monotonic()
        known = {each.delivery_id for each in found}  # another node may have reported the rest
        self._failed = {name: failed for name, failed in self._failed.items() if name in known}
        ready = [each for each in found if each.delivery_id not in self._failed or self._due(each) <= now]
        batch = ready[: options.batch]
        await asyncio.gather(*(self._report(delivery) for delivery in batch))
        if len(ready) > len(batch) or (batch and len(found) == limit):
            return 0
        next_due = min((failed.due for failed in self._failed.values()), default=now + options.poll_seconds)
        return min(max(next_due - time.monotonic(), 0.02), options.poll_seconds)

    def _due(self, delivery: EndedDelivery) -> float:
        return self._failed[delivery.delivery_id].due

    async def _report(self, delivery: EndedDelivery) -> None:
        """Tell every consumer, then the spool. Never raises but for cancellation."""
        told = True
        for consumer in self._consumers:
            told &= await self._tried(delivery, type(consumer).__name__, consumer.ended(delivery))
        if told:
            told = await self._tried(delivery, "the spool", self._in_thread(self._spool.reported, delivery))
        if told:
            self._failed.pop(delivery.delivery_id, None)
            return
        before = self._failed.get(delivery.delivery_id)
        pause = self._options.first_pause_seconds if before is None else before.pause * 2
        pause = min(pause, self._options.longest_pause_seconds)
        self._failed[delivery.delivery_id] = _Failed(pause, time.monotonic() + pause)

    async def _tried(self, delivery: EndedDelivery, who: str, telling: Awaitable[None]) -> bool:
        try:
            async with asyncio.timeout(self._options.consumer_seconds):
                await telling
        except NotSettledError:
            _log.info("%s waits with delivery %s for another to end", who, delivery.delivery_id)
            return False
        except Exception as error:  # its text may quote the message
            _log.error("%s could not report delivery %s: %s", who, delivery.delivery_id, type(error).__name__)
            return False
        return True

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
