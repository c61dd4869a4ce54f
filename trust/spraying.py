"""Few passwords for many accounts: what one network gets wrong over all of them, and when it is asked to wait.

`trust.lockout` counts for one account; whoever tries "Printemps2026" on ten thousand of them stays below its limits,
and so does whoever asks for accounts that do not exist only to keep the processor busy with argon2id. So each network
has a measure over all accounts to which it is not familiar. It is kept in memory, of this process: after a restart a
sprayer starts anew, which is worth less to them than a disk sync for each wrong guess is to us.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

_HOUR = 3600.0
_MAX_NETWORKS = 4096


class Spraying:
    """A bucket for each network: `an_hour` wrong passwords fill it, and it drains as fast. Thread-safe."""

    def __init__(self, an_hour: int) -> None:
        self._capacity = float(an_hour)
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_full(self, network: str, now: float) -> bool:
        """Whether the network (empty: not known where, which never fills) has to wait; `now` in UNIX seconds."""
        with self._lock:
            return self._level(network, now) > self._capacity - 1

    def count(self, network: str, now: float) -> None:
        """One wrong password from there."""
        if not network:
            return
        with self._lock:
            self._filled[network] = (min(self._level(network, now) + 1, self._capacity), now)
            self._filled.move_to_end(network)
            while len(self._filled) > _MAX_NETWORKS:
                self._filled.popitem(last=False)

    def _level(self, network: str, now: float) -> float:
        level, since = self._filled.get(network, (0.0, now))
        return max(0.0, level - max(0.0, now - since) * self._capacity / _HOUR)
