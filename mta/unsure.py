"""Leases that nobody works under, though the database may have them: of commits that were told as failed and may have
been made all the same, and of leases that could not be given back. Freed soon (`free`), for they would stand in the way
until they are over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select, update

from mta.tables import deliveries, steps

_WATCHED_SECONDS = 120.0
"""A server whose connection was lost may still be busy with the COMMIT."""
_PAUSE_SECONDS = 5.0
"""Between looks for what was not found."""
_KEPT = 20_000
"""Leases remembered; what is more ends by itself."""
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Freed:
    """A lease to give back."""

    delivery_id: str
    spool_id: str
    token: str
    interrupted: bool = False
    """The attempt had begun: the trace says so."""


class Unsure:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[Freed, float] = {}
        self._looked: float | None = None
        """None: there is something that was not looked for yet."""

    def add(self, leases: Iterable[Freed], now: float) -> None:
        with self._lock:
            for lease in leases:
                if len(self._since) < _KEPT:
                    self._since[lease] = now
                    self._looked = None

    def some(self, now: float) -> list[Freed]:
        """Those to look for now."""
        with self._lock:
            if not self._since or (self._looked is not None and abs(now - self._looked) < _PAUSE_SECONDS):
                return []
            self._looked = now
            return list(self._since)[:_AT_ONCE]

    def seen(self, leases: Iterable[Freed], freed: Iterable[Freed], now: float) -> None:
        """These were looked for, and those of them freed. The others are looked for again, for a while, in turn."""
        done = set(freed)
        with self._lock:
            if len(self._since) > _AT_ONCE and done:
                self._looked = None  # the next, at once
            for lease in leases:
                since = self._since.pop(lease, None)
                if since is not None and lease not in done and abs(now - since) < _WATCHED_SECONDS:
                    self._since[lease] = since


def still_leased(connection: Connection, leases: Sequence[Freed]) -> list[Freed]:
    """Of these, what the database has."""
    rows = connection.execute(
        select(deliveries.c.id, deliveries.c.lease).where(deliveries.c.id.in_({each.delivery_id for each in leases}))
    )
    tokens = {row.id: row.lease for row in rows}
    return [each for each in leases if tokens.get(each.delivery_id) == each.token]


def free(connection: Connection, leases: Iterable[Freed], now: float) -> list[Freed]:
    """Due at once, no attempt counted; what is leased to somebody else by now stays so. Returns what needs a line in
    the trace: an attempt that was to begin and did not leaves none, so that what a destination that is down has waiting
    for days does not fill it."""
    told = []
    for lease in leases:
        mine = deliveries.c.id == lease.delivery_id, deliveries.c.lease == lease.token
        freed = connection.execute(update(deliveries).where(*mine).values(lease=None, due=now)).rowcount == 1
        if freed and (lease.interrupted or not _unsaid(connection, lease)):
            told.append(lease)
    return told


def _unsaid(connection: Connection, lease: Freed) -> bool:
    """Whether all that the trace said of it was that an attempt begins, which it does no longer."""
    own = steps.c.spool_id == lease.spool_id, steps.c.delivery_id == lease.delivery_id
    last = select(func.max(steps.c.id)).where(*own).scalar_subquery()
    return connection.execute(delete(steps).where(steps.c.id == last, steps.c.kind == "attempt")).rowcount == 1
