"""What monitoring must know so that a gateway survives its machine: room, backups, heads, and whether it works at all.

Each gauge has an alert rule beside it in `config/deploy/alerts.yml`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from config.backup.cutting import BackupRecord
from config.backup.sources import RECORD
from mta.spool_reading import READY
from mta.tables import deliveries, messages
from trust.store.database import Database
from trust.unpublished import unpublished_since

log = structlog.get_logger(__name__)


class SurvivalCollector(Collector):
    """Of one gateway; read anew at every scrape."""

    def __init__(
        self, state: Path, database: Database, published: Callable[[], int], alive: Mapping[str, Callable[[], bool]]
    ) -> None:
        """`published` is the number of the last journal head that every destination took, `alive` says by name what of
        the gateway is at work; both are quick."""
        self._state = state
        self._database = database
        self._published = published
        self._alive = dict(alive)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        now = time.time()
        room = os.statvfs(self._state)
        yield _gauge("disk_free_bytes", "Room left on the disk of the state directory.", room.f_bavail * room.f_frsize)
        yield _gauge("disk_size_bytes", "Size of the disk of the state directory.", room.f_blocks * room.f_frsize)
        yield _gauge(
            "backup_age_seconds", "Since the moment the last backup holds; +Inf when there is none.", self._backup(now)
        )
        at_work = GaugeMetricFamily("relais_at_work", "1 while this part of the gateway works.", labels=["part"])
        for name, works in self._alive.items():
            at_work.add_metric([name], works())
        yield at_work
        try:
            published = self._published()
            since, (waiting, oldest) = self._database.read(
                lambda connection: (unpublished_since(connection, published), _unprepared(connection))
            )
        except SQLAlchemyError as error:
            log.error("metrics.survival", exc_info=error)
            return
        yield _gauge(
            "journal_unpublished_seconds",
            "Age of the oldest thing the journal says that no published head covers; 0 when all is covered.",
            0.0 if since is None else max(0.0, now - since),
        )
        yield _gauge(
            "unprepared",
            "Deliveries whose mail could not be composed, protected or opened yet: the directory, an identity or a key "
            "is missing, or they have just come.",
            waiting,
        )
        yield _gauge(
            "unprepared_oldest_seconds",
            "Age of the oldest of them; 0 when there is none.",
            0.0 if oldest is None else max(0.0, now - oldest),
        )

    def _backup(self, now: float) -> float:
        try:
            record = msgspec.json.decode((self._state / RECORD).read_bytes(), type=BackupRecord)
        except FileNotFoundError:
            return math.inf
        except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
            log.error("metrics.backup", error=type(error).__name__)
            return math.inf
        return max(0.0, now - record.at)


def _unprepared(connection: Connection) -> tuple[int, float | None]:
    """How many, and when the oldest was accepted."""
    waiting = (deliveries.c.state == READY, deliveries.c.prepared_blob.is_(None))
    query = select(func.count(), func.min(messages.c.accepted_at)).join_from(deliveries, messages).where(*waiting)
    count, oldest = connection.execute(query).one()
    return int(count), oldest


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"relais_{name}", documentation, value=value)
