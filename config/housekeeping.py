"""The task that deletes what killed processes left, once a day: blobs that no message, delivery or document names.

See `trust.store.orphans` for what is safe about it. When there are more orphans than crashes leave it deletes none and
says so each day, until an operator has looked and runs `relais housekeeping --however-many`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import structlog

import bridges.dossier.tables
import mta.tables
from mta.bell import Repeating
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.store.orphans import OrphanCollector

log = structlog.get_logger(__name__)

BLOB_REFERENCES = (
    mta.tables.messages.c.content_blob,
    mta.tables.deliveries.c.prepared_blob,
    bridges.dossier.tables.dossier_documents.c.blob_id,
)
"""Every column that holds a blob's id: what stands in none of them is deleted."""
_FIRST_SECONDS = 600.0
"""After the start, which has enough to do."""
_SECONDS = 86_400.0
_SOON_SECONDS = 3600.0
"""After a database or a disk that could not be read."""


class Housekeeping(Repeating):
    """A turn is a sweep."""

    def __init__(self, database: Database, blobs: BlobStore, first_seconds: float = _FIRST_SECONDS) -> None:
        super().__init__()
        self._collector = OrphanCollector(database, blobs, BLOB_REFERENCES)
        self._broken_off = threading.Event()
        self._first_seconds: float | None = first_seconds

    async def stop(self) -> None:
        """A sweep under way is broken off."""
        self._broken_off.set()
        await super().stop()

    def calls(self) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
        """For the control socket."""
        return {"housekeeping": lambda request: self.sweep(however_many=request["however_many"] is True)}

    def sweep(self, *, however_many: bool = False) -> dict[str, int]:
        """Sweep now. From any thread; raises what the database and the disk raise."""
        swept = self._collector.sweep(self._broken_off, however_many=however_many)
        found = asdict(swept)
        if swept.deleted:
            log.info("housekeeping.swept", **found)
        elif swept.orphans and not self._broken_off.is_set():
            log.error("housekeeping.held-back", **found)
        return found

    async def _turn(self) -> float:
        if (first := self._first_seconds) is not None:
            self._first_seconds = None
            return first
        try:
            await asyncio.to_thread(self.sweep)
        except Exception as error:  # what was not swept today is swept tomorrow
            log.error("housekeeping.failed", error=type(error).__name__)
            return _SOON_SECONDS
        return _SECONDS
