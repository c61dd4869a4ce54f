"""Connections to all destinations of one kind: how many there may be at once, who gives one up for whom, who is
remembered.

A `Destination` is whatever connections can be shared for: an operator's host, a domain's MX hosts, the mailbox server.
What it does with its connections is `mta.smtp.destination`.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mta.smtp.destination import Counts, Destination, PoolOptions
from mta.smtp.jobs import Job, NotOpenedError, Open, delivered

__all__ = [
    "Counts",
    "Destination",
    "Job",
    "NotOpenedError",
    "Pool",
    "PoolOptions",
    "delivered",
]


class Pool:
    """All destinations of one kind. Used on one event loop; `close` at the end, after which it may be used again."""

    def __init__(self, options: PoolOptions = PoolOptions()) -> None:  # noqa: B008 - frozen
        self.options = options
        self.counts = Counts()
        self._destinations: dict[object, Destination] = {}
        self._places = options.connections
        self._starved: deque[Destination] = deque()

    def to(self, key: object, open_one: Open) -> Destination:
        """The destination known by `key`; `open_one` opens its connections from now on."""
        found = self._destinations.pop(key, None)
        if found is None:
            found = Destination(self, open_one)
            if len(self._destinations) >= self.options.destinations:
                self._forget_some()
        found.open_one = open_one
        self._destinations[key] = found  # the last asked for stands last
        return found

    def known(self, key: object) -> Destination | None:
        return self._destinations.get(key)

    @property
    def connections(self) -> int:
        """Open, or being opened."""
        return self.options.connections - self._places

    def resting(self, now: float) -> int:
        """Destinations that are left alone."""
        return sum(destination.gate.rests(now) for destination in list(self._destinations.values()))

    def forgive(self) -> None:
        """Try every destination again at once."""
        now = asyncio.get_running_loop().time()
        for destination in self._destinations.values():
            destination.gate.forgive(now)

    async def close(self) -> None:
        """Say goodbye to idle peers; what is under way is cut, and told as such."""
        destinations = list(self._destinations.values())
        self._destinations.clear()
        self._starved.clear()
        await asyncio.gather(*(destination.close() for destination in destinations))

    # For destinations

    def take_place(self, destination: Destination) -> bool:
        if self._places <= 0 and not self._evict():
            if destination not in self._starved:
                self._starved.append(destination)
            return False
        self._places -= 1
        return True

    def give_place(self) -> None:
        self._places += 1
        # all of them: the first may have no need of it any more, and nobody would ask the next
        waiting = list(self._starved)
        self._starved.clear()
        for destination in waiting:
            asyncio.get_running_loop().call_soon(destination.dispatch)

    def _evict(self) -> bool:
        """Close somebody's idle connection, the one of who was asked for longest ago."""
        return any(destination.drop_idle() for destination in list(self._destinations.values()))

    def _forget_some(self) -> None:
        now = asyncio.get_running_loop().time()
        for key, destination in list(self._destinations.items()):
            if destination.forgettable(now):
                del self._destinations[key]
                if len(self._destinations) < self.options.destinations:
                    return
