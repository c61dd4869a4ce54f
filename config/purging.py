"""The task that purges what is past its retention, and what monitoring learns of it and of what is held.

A round looks at everything in small batches with a breath between them, so that no door waits; then it rests for some
hours. Where processes share a database one of them purges for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Protocol

import structlog
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from config.settings import Loaded, SettingsError
from mta.bell import Repeating
from mta.queue import Queue
from mta.retention import DAY, Batch, Periods, Retention

log = structlog.get_logger(__name__)

_FIRST_SECONDS = 60.0
"""After the start, which has enough to do."""
_BREATH_SECONDS = 0.02
"""Between two batches, for those who accept and deliver meanwhile."""
_SOON_SECONDS = 300.0
"""After a database or a disk that failed."""


def periods(loaded: Loaded) -> Periods:
    """As `[retention]` has them. Raises `SettingsError`."""
    section, expire = loaded.settings.retention, loaded.settings.spool.expire_seconds
    try:
        found = Periods(
            content=section.content_days * DAY,
            failed_content=section.failed_content_days * DAY,
            awaited=section.awaited_days * DAY,
            trace=section.trace_days * DAY,
            key=section.key_days * DAY,
        )
    except ValueError as error:
        raise SettingsError(f"[retention]: {error}") from error
    if found.content < 2 * expire:  # a receipt, which needs the original, may be as long on its way as the message
        raise SettingsError("[retention]: content_days must be at least twice spool.expire_seconds")
    return found


class Purge(Protocol):
    """What is purged."""

    def turn(self) -> Batch:
        """The next batch; see `mta.retention.Retention.turn`."""
        ...


class Purging(Repeating):
    """A turn purges one batch."""

    def __init__(self, retention: Purge, round_seconds: float, first_seconds: float = _FIRST_SECONDS) -> None:
        super().__init__()
        self._retention = retention
        self._round_seconds = round_seconds
        self._first_seconds: float | None = first_seconds
        self._purged = 0

    async def _turn(self) -> float:
        if (first := self._first_seconds) is not None:
            self._first_seconds = None
            return first
        try:
            batch = await asyncio.to_thread(self._retention.turn)
        except Exception as error:  # its text may name what it was about
            log.error("purge.failed", error=type(error).__name__)
            return _SOON_SECONDS
        self._purged += batch.purged
        if batch.more:
            return _BREATH_SECONDS
        if self._purged:
            log.info("purge.round", purged=self._purged)
        self._purged = 0
        return self._round_seconds


class QueueCollector(Collector):
    """What is held, and what was purged since the beginning."""

    def __init__(self, queue: Queue, retention: Retention) -> None:
        self._queue = queue
        self._retention = retention

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            held, destinations = self._queue.held_counts()
            counts = self._retention.counts()
        except SQLAlchemyError:  # `relais_up` says it
            return
        yield GaugeMetricFamily("relais_queue_held", "Deliveries that an operator holds.", value=held)
        yield GaugeMetricFamily(
            "relais_queue_held_destinations", "Destinations that an operator holds.", value=destinations
        )
        purged = CounterMetricFamily(
            "relais_purged",
            "Messages, or receipts awaited, whose retention ended, by what was purged.",
            labels=["what"],
        )
        for what, number in counts.items():
            purged.add_metric([what.value], number)
        yield purged
