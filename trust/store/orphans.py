"""Blobs that no row names: what a process left that died between laying down a blob and committing its row.

Nothing that a row names, or may yet name, is ever taken. Of the blobs old enough, those that somebody in this process
still holds for a row to come (`BlobStore.expected`) are left out first, then those that rows name, all read in one
snapshot after that. In this order nothing slips through: a blob that nobody holds any more has had its transaction, so
a row names it in every later snapshot, or none ever will; its id is random and known to nobody else. Clocks play no
part in this. What dead processes laid down never gets a row. Being killed in the midst leaves some orphans for the next
time.

The age that is demanded is a margin for what this process cannot see: another node with the same blobs, a commit that
failed and is found to have succeeded after a crash, and an operator who restores a database and needs time to notice
that it was the wrong one. For the same reason nothing at all is taken when there is more than a few crashes leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, select

from trust.store.blobs import SHARDS, BlobStore
from trust.store.database import Database

GRACE_SECONDS = 7 * 86_400.0
FEW = 100
"""So many orphans are always plausible, as long as rows name more blobs than that ..."""
SHARE = 100
"""... and one in so many that were looked at."""
_AT_ONCE = 200_000
"""Ids held in memory to be compared with the rows."""
_ROWS = 5_000
_BREATH_SECONDS = 0.005
"""Between two directories, for those who answer senders meanwhile."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one look found."""

    looked_at: int
    """Blobs old enough."""
    orphans: int
    octets: int
    """What they take on disk."""
    deleted: int
    """0 when they were held back, or when the look was broken off."""

    @property
    def held_back(self) -> bool:
        return self.deleted < self.orphans


class OrphanCollector:
    """Of one database and one blob store. Thread-safe, one sweep at a time."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        references: Sequence[Column[Any]],
        *,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`references`: every column of the database that holds a blob's id."""
        self._database = database
        self._blobs = blobs
        self._references = tuple(references)
        self._grace = grace_seconds
        self._clock = clock
        self._sweeping = threading.Lock()

    def sweep(self, broken_off: threading.Event, *, however_many: bool = False) -> Sweep:
        """Look at every old blob and delete the orphans among them; `however_many`: an operator has looked, and takes
        even a number that is not plausible. Ends soon, with nothing more deleted, when `broken_off` is set. Raises what
        the database and the disk raise."""
        with self._sweeping:
            looked_at, orphans = 0, set[str]()
            for low, high, old in self._parts(broken_off):
                looked_at += len(old)
                orphans |= self._unnamed(low, high, old, broken_off)
                if len(orphans) >= _AT_ONCE:
                    break  # the others next time
            octets = sum(map(self._blobs.size, orphans))
            if broken_off.is_set() or not (however_many or plausible(looked_at, len(orphans))):
                return Sweep(looked_at, len(orphans), octets, 0)
            for blob_id in orphans:
                self._blobs.delete(blob_id)
            return Sweep(looked_at, len(orphans), octets, len(orphans))

    def _parts(self, broken_off: threading.Event) -> Iterator[tuple[str, str, set[str]]]:
        """Blobs that are old enough, as many at a time as can be held, with the range of ids they are in."""
        oldest = self._clock() - self._grace
        low, old = "", set[str]()
        for shard in SHARDS:
            if broken_off.wait(_BREATH_SECONDS):
                return
            old.update(blob_id for blob_id, written in self._blobs.ids(range(shard, shard + 1)) if written < oldest)
            high = f"{shard + 1:02x}" if shard + 1 in SHARDS else "g"  # behind every hexadecimal digit
            if len(old) >= _AT_ONCE or high == "g":
                yield low, high, old
                low, old = high, set()

    def _unnamed(self, low: str, high: str, old: set[str], broken_off: threading.Event) -> set[str]:
        unnamed = old - self._blobs.expected()  # before the rows are read: see above

        def read(connection: Connection) -> None:
            for column in self._references:
                named = select(column).where(column >= low, column < high)
                for rows in connection.execution_options(yield_per=_ROWS).scalars(named).partitions():
                    unnamed.difference_update(rows)
                    if broken_off.is_set():
                        return

        if unnamed:
            self._database.read(read)
        return set() if broken_off.is_set() else unnamed


def plausible(looked_at: int, orphans: int) -> bool:
    """Whether crashes explain so many. An emptied, exchanged or restored database makes everything an orphan."""
    return 2 * orphans <= looked_at and orphans <= max(FEW, looked_at // SHARE)
