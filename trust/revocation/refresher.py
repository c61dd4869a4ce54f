"""The threads that fetch, and nothing else does: each thing once at a time, ahead of its end, patiently when it fails.

Whoever validates a path only says what is wanted. What is wanted is kept up to date from then on: fetched again
when between three fifths and six sevenths of the time left have passed, at random, so that a thousand gateways do not
ask at the same second; after a failure again after growing pauses. What nobody asked for in a month is forgotten.

Turns are by the wall clock, as the dates in lists are. A clock that was ahead and is set right must not make everything
wait for as long as it was wrong: what seems due later than anything is planned is due now.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Condition, RLock, Thread

import structlog

log = structlog.get_logger(__name__)

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)
SOONEST = timedelta(minutes=1)
LATEST = timedelta(hours=12)
FORGOTTEN = timedelta(days=30)
"""How long a thing is kept fresh that nobody asks for, unless it says otherwise."""
MAX_JOBS = 20_000
_LOOK_AGAIN = timedelta(minutes=1)
"""For room among the jobs when there was none, and for the clock while nothing is due."""

Work = Callable[[], datetime | None]
"""Fetches and files one thing; returns when it ends (nextUpdate), None when it does not say. Raises when it failed."""


@dataclass(slots=True)
class _Job:
    key: Hashable
    work: Work
    asked: datetime
    due: datetime
    keep: timedelta
    failures: int = 0
    error: str = ""
    running: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class JobState:
    """How one thing fares."""

    failures: int
    error: str
    due: datetime
    done: bool
    """It was fetched at least once, or came from the cache."""


@dataclass(order=True, slots=True)
class _Turn:
    due: datetime
    number: int
    key: Hashable = field(compare=False)


class Refresher:
    """A few threads and what they have to do. Thread-safe."""

    def __init__(
        self,
        clock: Callable[[], datetime],
        threads: int = 4,
        chance: Callable[[float, float], float] = random.uniform,
        forgotten: Callable[[Hashable], None] = lambda _: None,
        most: int | None = None,
    ) -> None:
        """`most` things at a time (`MAX_JOBS`). `forgotten` is told of everything that is not kept fresh any more; it
        must not call back."""
        self._clock = clock
        self._threads = threads
        self._chance = chance
        self._forgotten = forgotten
        self._most = MAX_JOBS if most is None else most
        self._full_until: datetime | None = None
        self._jobs: dict[Hashable, _Job] = {}
        self._turns: list[_Turn] = []
        self._number = 0
        lock = RLock()
        self._changed = Condition(lock)
        # Of its own: idle threads that told `settled` through the condition they wait on would wake each other for ever
        self._quiet = Condition(lock)
        self._running: list[Thread] = []
        self._busy = 0
        self._stopped = False

    def start(self) -> None:
        """Start fetching. What was wanted before waits until then."""
        for number in range(self._threads):
            thread = Thread(target=self._run, name=f"revocation-{number}", daemon=True)
            self._running.append(thread)
            thread.start()

    def stop(self, seconds: float = 1.0) -> None:
        """Start nothing new; an exchange still in progress after `seconds` is left to its thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        until = time.monotonic() + seconds
        for thread in self._running:
            thread.join(max(0.0, until - time.monotonic()))

    def want(self, key: Hashable, work: Work, ends: datetime | None = None, keep: timedelta = FORGOTTEN) -> None:
        """Fetch this now and keep it fresh while it is asked for within `keep`. Cheap when it is known.

        `ends`: it is held already, until then.
        """
        job = self._jobs.get(key)
        now = self._clock()
        if job is not None:
            job.asked = now
            return
        with self._changed:
            if key in self._jobs or (len(self._jobs) >= self._most and not self._forget(now)):
                return
            due = now if ends is None else self._ahead(now, ends)
            job = self._jobs[key] = _Job(key, work, now, due, keep, done=ends is not None)
            self._schedule(job, due)

    def state(self, key: Hashable) -> JobState | None:
        """How a thing fares; None when it was never wanted."""
        job = self._jobs.get(key)
        return None if job is None else JobState(job.failures, job.error, job.due, job.done)

    def settled(self, seconds: float) -> bool:
        """Wait until nothing is due and nothing runs, at most `seconds`; whether that came."""
        with self._changed:
            return self._quiet.wait_for(self._is_idle, seconds)

    def _is_idle(self) -> bool:
        return not self._busy and not self._is_due(self._clock())

    def _is_due(self, now: datetime) -> bool:
        return bool(self._turns) and not now < self._turns[0].due <= now + LATEST

    def _forget(self, now: datetime) -> bool:
        """Make room: the things nobody has asked for within an hour, the tenth longest ago. Looked for once a minute
        only, since all of them are looked at."""
        if self._full_until is not None and self._full_until - _LOOK_AGAIN <= now < self._full_until:
            return False
        self._full_until = None
        idle = [job for job in self._jobs.values() if not job.running and now - job.asked >= LONGEST_PAUSE]
        for job in heapq.nsmallest(1 + self._most // 10, idle, key=lambda each: each.asked):
            self._remove(job)
        if not idle:
            self._full_until = now + _LOOK_AGAIN
            log.warning("revocation.too-many-wanted", jobs=len(self._jobs))
        return bool(idle)

    def _remove(self, job: _Job) -> None:
        del self._jobs[job.key]
        self._forgotten(job.key)

    def _schedule(self, job: _Job, due: datetime) -> None:
        job.due = due
        self._number += 1
        heapq.heappush(self._turns, _Turn(due, self._number, job.key))
        self._changed.notify_all()

    def _ahead(self, now: datetime, ends: datetime) -> datetime:
        wait = (ends - now) * self._chance(0.6, 0.85)
        return now + min(max(wait, SOONEST), LATEST * self._chance(0.85, 1.0))

    def _run(self) -> None:
        while True:
            with self._changed:
                job = self._next()
                if job is None:
                    return
                job.running = True
                self._busy += 1
            error, ends = "", None
            try:
                ends = job.work()
            except Exception as failure:  # whatever the world or a bug does, the other things are still to be fetched
                error = f"{type(failure).__name__}: {failure}"[:300]
            with self._changed:
                self._busy -= 1
                job.running = False
                now = self._clock()
                job.done = job.done or not error
                if not error and ends is not None and ends <= now:
                    error = "what was fetched has ended already"
                if error:
                    job.failures += 1
                    job.error = error
                    pause = min(FIRST_PAUSE * 2 ** min(job.failures - 1, 10), LONGEST_PAUSE)
                    due = now + pause * self._chance(0.5, 1.0)
                    log.warning("revocation.fetch-failed", error=error, failures=job.failures)
                else:
                    job.failures, job.error = 0, ""
                    due = self._ahead(now, ends or now + LONGEST_PAUSE)
                self._schedule(job, due)

    def _next(self) -> _Job | None:
        """The next thing that is due, waited for; None when it is over. Holds the lock."""
        while not self._stopped:
            now = self._clock()
            while self._is_due(now):
                turn = heapq.heappop(self._turns)
                job = self._jobs.get(turn.key)
                if job is None or job.running or job.due != turn.due:
                    continue
                if now - job.asked > job.keep:
                    self._remove(job)
                    continue
                return job
            self._quiet.notify_all()
            wait = min(self._turns[0].due - now, _LOOK_AGAIN) if self._turns else None
            self._changed.wait(None if wait is None else wait.total_seconds())
        return None
