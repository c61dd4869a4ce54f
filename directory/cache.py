"""What was just asked of the directory, remembered for seconds: found and not found, in bounded number.

A cache only spares the directory; it never replaces it. What has aged is asked again, and when the directory does not
answer then, that is the answer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from directory.records import Recipient


class ResolveCache:
    """The last answers by address, least recently used first out. Thread-safe."""

    def __init__(
        self,
        entries: int,
        found_seconds: float,
        missing_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`entries`: answers kept at most; 0 keeps none."""
        self._most = entries
        self._found_seconds = found_seconds
        self._missing_seconds = missing_seconds
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Recipient | None]] = OrderedDict()
        self._lock = threading.Lock()
        self._generation = 0

    @property
    def generation(self) -> int:
        """To be read before asking the directory, and handed to `put`: an answer older than a change is not kept."""
        return self._generation

    def get(self, address: str) -> tuple[Recipient | None] | None:
        """The answer in a tuple of one; None when nothing recent is known."""
        if not self._most:
            return None
        with self._lock:
            known = self._known.get(address)
            if known is None:
                return None
            if known[0] <= self._clock():
                del self._known[address]
                return None
            self._known.move_to_end(address)
            return (known[1],)

    def now(self) -> float:
        """To be read before asking, like `generation`: an answer ages from the moment the question was put."""
        return self._clock()

    def put(self, address: str, recipient: Recipient | None, generation: int, asked_at: float | None = None) -> None:
        """`asked_at`: see `now`; None: this moment.

        A mailbox nobody can write to yet is forgotten as soon as one that was not found: both wait for somebody.
        """
        seconds = self._found_seconds
        if recipient is None:
            seconds = self._missing_seconds
        elif not recipient.encryption_certificates:
            seconds = min(seconds, self._missing_seconds)
        if not self._most or seconds <= 0:
            return
        since = self._clock() if asked_at is None else asked_at
        with self._lock:
            if generation != self._generation:
                return
            self._known[address] = (since + seconds, recipient)
            self._known.move_to_end(address)
            while len(self._known) > self._most:
                self._known.popitem(last=False)

    def clear(self) -> None:
        """Somebody here wrote into the directory: nothing asked before counts any more."""
        with self._lock:
            self._generation += 1
            self._known.clear()

    def __len__(self) -> int:
        with self._lock:
            return len(self._known)
