"""When a deferred delivery is tried again, and when the road gives up.

The next-try time is kept on disk with the delivery, so a restart changes nothing about it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf

from mta.message import Origin

LONGEST_ASKED = 16 * 3600.0
"""Seconds; a target that asks for a longer pause (`mta.message.Deferred.retry_after`) gets this."""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """Pauses between attempts, in seconds."""

    pauses: tuple[float, ...] = (30, 60, 300, 900, 1800, 3600)
    """Before the second, third, ... attempt; the last one repeats (RFC 5321 §4.5.4.1 wants 30 min in the long run)."""
    jitter: float = 0.2
    """Share of the pause that is random, so that a partner coming back is not met by its whole queue at once."""
    lifetime: float = 5 * 86400.0
    """From acceptance to giving up (RFC 5321 §4.5.4.1: four to five days)."""
    unending: frozenset[Origin] = frozenset()
    """By which doors comes what is never given up: no sender waits to hear of it, and its reader can be told."""

    @property
    def longest_pause(self) -> float:
        """Seconds `pause` never exceeds."""
        return max(self.pauses) * (1 + self.jitter / 2)

    def lifetime_of(self, origin: Origin) -> float:
        """Seconds until what came in by this door is given up."""
        return inf if origin in self.unending else self.lifetime

    def pause(self, attempts: int) -> float:
        """Seconds to wait after the `attempts`-th attempt (1 for the first)."""
        base = self.pauses[min(max(attempts, 1), len(self.pauses)) - 1]
        return base * (1 + self.jitter * (random.random() - 0.5))  # noqa: S311 - spreading load, not a secret
