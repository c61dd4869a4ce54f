"""The task that makes checkpoints of the journal and publishes them, for as long as the gateway runs.

What it cannot do it says once, again every hour while it lasts, and once more when it is over. At the end of the
gateway it publishes what happened since the last time.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import structlog

from mta.bell import Repeating
from trust.publishing import Publisher

log = structlog.get_logger(__name__)

_SAY_AGAIN_SECONDS = 3600.0


class PublishingTask(Repeating):
    """A turn is a checkpoint; the last one, after `stop`, publishes what is left, as far as it can be."""

    def __init__(self, publisher: Publisher, seconds: float) -> None:
        super().__init__()
        self._publisher = publisher
        self._seconds = seconds
        self._said: tuple[str, ...] = ()
        self._said_at = 0.0

    async def run(self) -> None:
        """Publish until `stop`."""
        await self._bell.run(self._turn, partial(self._turn, closing=True))

    async def _turn(self, *, closing: bool = False) -> float:
        try:
            problems = await asyncio.to_thread(self._publisher.turn, closing=closing)
        except Exception as error:  # the database is away: the next turn makes up for it
            problems = (f"no checkpoint could be made: {type(error).__name__}",)
        now = time.monotonic()
        if problems and (problems != self._said or now - self._said_at > _SAY_AGAIN_SECONDS):
            for problem in problems:
                log.error("journal.not-published", problem=problem)
            self._said_at = now
        elif self._said and not problems:
            log.info("journal.published-again")
        self._said = problems
        return self._seconds
