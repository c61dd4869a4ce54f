"""Which processes share the database, and which are dead: so that what a dead one had under lease is freed soon,
and nothing a living one works on ever is.

Each process has a row of its own for as long as it lives, under an identifier no other process ever has, and counts
there. Who sees another's count stand still for `patience` seconds, during which its own reached the database all the
time, holds the other for dead. No two clocks are compared, and a database that was away for an hour makes nobody a dead
man. A process that was only cut off notices at its next beat that its row is gone, and goes on with a new one: what it
still had in hand is somebody else's by then, and its leases are stale.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from trust.store.database import Database
from trust.tables import nodes

_LONGEST_INTERVAL = 3.0
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """One process that shares the database."""

    holder: str
    name: str
    since: float
    """UNIX time, seconds, by its own clock."""


@dataclass(frozen=True, slots=True)
class _Seen:
    beats: int
    at: float
    """Monotonic time at which this count was seen first."""


class Nodes:
    """Our own row, and what we see of the others'. Thread-safe."""

    def __init__(
        self,
        database: Database,
        name: str,
        *,
        patience: float = PATIENCE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._patience = patience
        self._monotonic = monotonic
        self._name = name
        self._since = time.time()
        self._lock = threading.Lock()
        self._seen: dict[str, _Seen] = {}
        self._last_beat: float | None = None
        self._members: tuple[Node, ...] = ()
        self.holder = secrets.token_hex(16)
        """Under whose name this process leases deliveries."""

    @property
    def members(self) -> tuple[Node, ...]:
        """Who lives, as of the last beat, the eldest first."""
        return self._members

    @property
    def eldest(self) -> bool:
        """Whether to do what one process should do for all. For a moment two may think so, or none."""
        return bool(self._members) and self._members[0].holder == self.holder

    @property
    def interval(self) -> float:
        """Seconds between two beats: several fit into the patience."""
        return min(_LONGEST_INTERVAL, self._patience / 6)

    def join(self) -> None:
        """From now on we are seen. Raises what the database raises."""
        self.beat()

    def leave(self) -> None:
        """In good order: we hold nothing any more."""
        self.bury(self.holder)

    def beat(self) -> list[str]:
        """Say that we live; returns the holders that are dead. Call it every `interval` seconds. Raises
        what the database raises."""
        with self._lock:
            # Not by the writer's thread: where a lock holds that up, we live all the same, and deliver.
            with self._database.engine.begin() as connection:
                counted = self._count(connection)
            now = self._monotonic()
            if self._last_beat is None or now - self._last_beat > self._patience / 2:
                self._seen.clear()  # it may have been us who were cut off
            self._last_beat = now
            seen = {row.holder: _Seen(row.beats, now) for row in counted}
            for holder, before in self._seen.items():
                if holder in seen and seen[holder].beats == before.beats:
                    seen[holder] = before
            self._seen = seen
            dead = [
                holder for holder, last in seen.items() if holder != self.holder and now - last.at >= self._patience
            ]
            self._members = tuple(Node(row.holder, row.name, row.since) for row in counted if row.holder not in dead)
            return dead

    def bury(self, holder: str) -> None:
        """Forget a process whose leases are free."""
        self._database.transact(
            lambda connection: connection.execute(delete(nodes).where(nodes.c.holder == holder)) and None
        )

    def _count(self, connection: Connection) -> list[_Row]:
        mine = update(nodes).where(nodes.c.holder == self.holder).values(beats=nodes.c.beats + 1)
        if connection.execute(mine).rowcount == 0:
            row = {"holder": self.holder, "name": self._name, "since": self._since, "beats": 1}
            connection.execute(insert(nodes), row)
        rows = connection.execute(select(nodes).order_by(nodes.c.since, nodes.c.holder))
        return [_Row(row.holder, row.name, row.since, row.beats) for row in rows]


@dataclass(frozen=True, slots=True)
class _Row:
    holder: str
    name: str
    since: float
    beats: int
