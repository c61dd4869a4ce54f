"""How often one sender may send what cannot be opened, before nothing of his is tried for a while.

Attacks on decryption (Bleichenbacher, Manger, Vaudenay) live on many answers. The answer is always the same one; this
limits how many there are. Kept in memory: a restart forgives, and a sender is only ever delayed, never refused.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_SENDERS = 10_000
"""The one that has been quiet longest is forgotten first."""


class DecryptionFailures:
    """Counts failures by sender in a sliding window. Thread-safe."""

    def __init__(
        self, limit: int = 20, window_seconds: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """After `limit` failures within the window a sender waits until the oldest of them has left it."""
        if limit < 1 or window_seconds <= 0:
            raise ValueError("a limit of at least one failure in a window of some length")
        self._limit = limit
        self._window = window_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, sender: str) -> float:
        """Seconds until the next message of this sender may be tried; 0 when it may be now."""
        with self._lock:
            failures = self._recent(sender)
            return failures[0] + self._window - self._clock() if len(failures) >= self._limit else 0.0

    def failed(self, sender: str) -> None:
        """One message of this sender could not be opened."""
        with self._lock:
            failures = self._recent(sender)
            failures.append(self._clock())
            self._failures[sender] = failures
            self._failures.move_to_end(sender)
            if len(self._failures) > MAX_SENDERS:
                self._failures.popitem(last=False)

    def _recent(self, sender: str) -> deque[float]:
        failures = self._failures.get(sender)
        if failures is None:
            return deque(maxlen=self._limit)
        oldest = self._clock() - self._window
        while failures and failures[0] <= oldest:
            failures.popleft()
        if not failures:
            del self._failures[sender]
        return failures
