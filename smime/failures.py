"""How often one sender may send what cannot be opened, before nothing of his is tried for a while.

Attacks on decryption (Bleichenbacher, Manger, Vaudenay) live on many answers. The answer is always the same one; this
limits how many there are. Kept in memory: a restart forgives, and a sender is only ever delayed, never refused.

Who counts is the peer, which the door has authenticated, and at each peer the reverse-path, which port 25 only takes
when the peer is the operator listed for its domain. So a mailbox that sends variations in the name of another holds up
no more than what that one's own operator lets it write; and one that changes its name with each message meets the
peer's own, larger limit. The empty reverse-path is a name like another at its peer.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MAX_SENDERS = 10_000
"""The one that has been quiet longest is forgotten first. Peers are kept apart: senders do not push them out."""
PEER_FACTOR = 10
"""How many times a sender's limit all the senders of one peer have together."""


class DecryptionFailures:
    """Counts failures by peer and sender in a sliding window. Thread-safe."""

    def __init__(
        self, limit: int = 20, window_seconds: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """After `limit` failures within the window a sender waits until the oldest of them has left it; a peer, after
        ten times as many."""
        if limit < 1 or window_seconds <= 0:
            raise ValueError("a limit of at least one failure in a window of some length")
        self._clock = clock
        self._lock = threading.Lock()
        self._senders = _Windows(limit, window_seconds)
        self._peers = _Windows(limit * PEER_FACTOR, window_seconds)

    def wait(self, sender: str, peer: str = "") -> float:
        """Seconds until the next message of this sender at this peer may be tried; 0 when it may be now."""
        with self._lock:
            now = self._clock()
            return max(self._peers.wait(peer, now), self._senders.wait(_key(sender, peer), now))

    def failed(self, sender: str, peer: str = "") -> None:
        """One message of this sender could not be opened."""
        with self._lock:
            now = self._clock()
            self._peers.add(peer, now)
            self._senders.add(_key(sender, peer), now)


def _key(sender: str, peer: str) -> str:
    return f"{peer}\n{sender.lower()}"


class _Windows:
    """The newest failures of each name, as many as the limit."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, name: str, now: float) -> float:
        failures = self._recent(name, now)
        return failures[0] + self._seconds - now if len(failures) >= self._limit else 0.0

    def add(self, name: str, now: float) -> None:
        failures = self._recent(name, now)
        failures.append(now)
        self._failures[name] = failures
        self._failures.move_to_end(name)
        if len(self._failures) > MAX_SENDERS:
            self._failures.popitem(last=False)

    def _recent(self, name: str, now: float) -> deque[float]:
        failures = self._failures.get(name)
        if failures is None:
            return deque(maxlen=self._limit)
        while failures and failures[0] <= now - self._seconds:
            failures.popleft()
        if not failures:
            del self._failures[name]
        return failures
