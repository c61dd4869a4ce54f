"""How hard a destination may be pressed: how many connections it gets, and when it is left alone.

Pure arithmetic over a clock. A destination that fails rests, longer after each failure; when the rest is over one
delivery goes ahead as a probe, and what else there is for it waits without having been tried. A destination that works
gets one connection more for as many successes as it has connections (additive increase), half of them after a break
(multiplicative decrease): what Postfix calls concurrency feedback.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_PROBED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class GateOptions:
    connections: int = 8
    """At most, to one destination."""
    first_connections: int = 2
    """As long as nothing is known of it."""
    first_rest_seconds: float = 15.0
    longest_rest_seconds: float = 600.0
    breaks: int = 3
    """Connections in a row that broke in the middle of mail, after which the destination itself is to blame."""

    def __post_init__(self) -> None:
        if not 1 <= self.first_connections <= self.connections:
            raise ValueError("the connections to begin with are between 1 and the most there may be")


class Gate:
    """Of one destination. Times are those of one monotonic clock, in seconds."""

    def __init__(self, options: GateOptions) -> None:
        self._options = options
        self._window = float(options.first_connections)
        self._failures = 0
        self._broken = 0
        self._until = 0.0

    def __repr__(self) -> str:
        return f"Gate(window={self._window:.1f}, failures={self._failures}, until={self._until:.1f})"

    @property
    def proven(self) -> bool:
        """It has not failed since it last worked."""
        return self._failures == 0

    @property
    def window(self) -> int:
        """Connections it may have; one while it has to prove itself."""
        return int(self._window) if self.proven else 1

    def rests(self, now: float) -> bool:
        """Whether it is left alone now."""
        return now < self._until

    def probing(self, now: float) -> bool:
        """Whether one delivery goes ahead now, to find out. For a while: where nothing was to be sent for so long,
        nothing is known any more."""
        return not self.proven and self._until <= now < self._until + _PROBED_SECONDS

    @property
    def until(self) -> float:
        """The end of the rest."""
        return self._until

    def worked(self) -> None:
        """Its peer answered about a message: it is there."""
        self._failures = self._broken = 0
        self._until = 0.0

    def delivered(self) -> None:
        """A message was taken."""
        self._failures = self._broken = 0
        self._until = 0.0
        self._window = min(self._window + 1 / self._window, float(self._options.connections))

    def broke(self, now: float) -> None:
        """A connection was lost in the middle of mail."""
        self._broken += 1
        self._window = max(1.0, self._window / 2)
        if self._broken >= self._options.breaks:
            self.failed(now)

    def crowded(self, open_connections: int) -> None:
        """It refuses a further connection while it serves others: so many are what it wants."""
        self._window = max(1.0, min(self._window, float(open_connections)))

    def failed(self, now: float) -> None:
        """It could not be reached, or said that it serves nobody now."""
        self._failures += 1
        self._window = float(self._options.first_connections)
        options = self._options
        pause = options.first_rest_seconds * 2.0 ** min(self._failures - 1, 16)
        pause = min(pause, options.longest_rest_seconds)
        # up to a fifth less: gateways that lost the same partner in the same second do not come back together
        self._until = now + pause * (1 - 0.2 * random.random())  # noqa: S311 - spreading load, not a secret

    def forgive(self, now: float) -> None:
        """Try at once: somebody knows better."""
        self._until = min(self._until, now)
