"""From acceptance straight to the worker: what has just been committed need not be looked for, nor read back.

A delivery is committed under the lease of the worker that has a place for it, as if it had been claimed in the same
transaction; from then on nothing sets it apart, and a crash leaves an ordinary lease. Nothing overtakes what waits on
disk: there is a place only while the worker knows of nothing due for that destination.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Collection

from mta.delivery import Lease

HELD_BYTES = 64 * 1024 * 1024
"""Contents kept in memory between acceptance and attempt; beyond that they are read back."""


class HandOver:
    """A `mta.spool.Taker`, thread-safe; the worker calls the rest."""

    def __init__(
        self,
        lease_seconds: float,
        room: Callable[[str, int], bool],
        idle: Callable[[str], bool],
        begin: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        """All are called from any thread. `room` says whether a destination takes one more besides so many that were
        promised a place, `idle` whether something more could begin for it at once. `begin` has the worker ask for what
        was `taken`, `wake` has it look at the spool."""
        self._lease_seconds = lease_seconds
        self._room = room
        self._idle = idle
        self._begin = begin
        self._wake = wake
        self._lock = threading.Lock()
        self._open = False
        self._behind: set[str] = set()
        """Destinations for which something due may stand in the spool."""
        self._far_behind = True
        """... or it may stand there for any."""
        self._reserved: Counter[str] = Counter()
        self._taken: deque[Lease] = deque()
        self._contents: dict[tuple[str, str], bytes] = {}
        """By delivery and by the blob that was read: what was accepted can never be taken for what was prepared,
        whoever had the delivery in between."""
        self._held = 0

    def behind(self, beside: Collection[str] = ()) -> bool:
        """Whether a look at the spool may find something that is due, for other destinations than those `beside`."""
        with self._lock:
            return self._far_behind or not self._behind.issubset(beside)

    def open(self) -> None:
        """The worker runs."""
        self._open = True

    def reserve(self, destination: str) -> float | None:
        """See `mta.spool.Taker`."""
        with self._lock:
            waits = self._far_behind or destination in self._behind
            if not self._open or waits or not self._room(destination, self._reserved[destination]):
                self._behind.add(destination)
                return None
            self._reserved[destination] += 1
            return self._lease_seconds

    def take(self, lease: Lease, content: bytes) -> None:
        """See `mta.spool.Taker`."""
        with self._lock:
            self._hold(lease, content)
            self._taken.append(lease)
            first = len(self._taken) == 1
        if first:
            self._begin()

    def hold(self, lease: Lease, content: bytes) -> None:
        """What was claimed, and read already."""
        with self._lock:
            self._hold(lease, content)

    def _hold(self, lease: Lease, content: bytes) -> None:
        if self._held + len(content) <= HELD_BYTES and _source(lease) not in self._contents:
            self._contents[_source(lease)] = content
            self._held += len(content)

    def cancel(self, destination: str) -> None:
        """See `mta.spool.Taker`."""
        with self._lock:
            self._unreserve(destination)

    def missed(self, destination: str) -> None:
        """See `mta.spool.Taker`."""
        with self._lock:
            self._behind.add(destination)  # first: whatever ends from now on has the spool looked at
        if self._idle(destination):
            self._wake()

    def _unreserve(self, destination: str) -> None:
        self._reserved[destination] -= 1
        if not self._reserved[destination]:
            del self._reserved[destination]

    def taken(self) -> list[Lease]:
        """What was handed over since it was last asked."""
        with self._lock:
            leases = list(self._taken)
            self._taken.clear()
            for lease in leases:
                self._unreserve(lease.destination)
            return leases

    def content(self, lease: Lease) -> bytes | None:
        """What the attempt starts from, once; None when it has to be read."""
        with self._lock:
            content = self._contents.pop(_source(lease), None)
            self._held -= 0 if content is None else len(content)
            return content

    def looked(self, everything: bool, skipped: Collection[str]) -> None:
        """The worker has claimed what is due, `everything` or only the first of it, but for the destinations
        `skipped`."""
        with self._lock:
            self._far_behind = not everything
            if everything:
                self._behind = set(skipped)

    @property
    def promised(self) -> bool:
        """Whether something may still be handed over."""
        return bool(self._reserved)

    def close(self) -> None:
        """Promise no more places: whoever was promised one by now is counted."""
        with self._lock:
            self._open = False


def _source(lease: Lease) -> tuple[str, str]:
    return lease.delivery_id, lease.prepared_blob or lease.content_blob
