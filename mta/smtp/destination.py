"""What one destination's connections carry: who takes which message, when another connection is worth it, when a
connection is let go.

Messages wait in the destination's queue, never a connection for a message. A connection that answers at once takes the
next message behind the one before (`mta.smtp.pipeline`); one that is slow takes none, and what stands behind a message
whose answer is late is taken back and goes elsewhere: one message the peer chews on slows no other. Another connection
is opened when a message has waited, not before.

When no connection can be had, one message has tried and says so; the others were not tried, and do not count that as an
attempt. Which messages were surely taken, surely not, or perhaps, when a connection breaks: `mta.smtp.pipeline.Fate`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

import structlog

from mta import refusals
from mta.message import Deferred, Outcome
from mta.smtp.client import Answered, Broken, Result, SmtpConnection
from mta.smtp.gate import Gate, GateOptions
from mta.smtp.jobs import Job, NotOpenedError, Open, refused_outcome, unanswered, untried
from mta.smtp.pipeline import END_OF_DATA, Fate
from trust.refusals import Refused

log = structlog.get_logger(__name__)

_MOVES = 3
"""Times a message goes to another connection without an attempt being counted: none of it was its own fault."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    gate: GateOptions = GateOptions()  # noqa: RUF009 - frozen
    connections: int = 256
    """To all destinations together."""
    idle_seconds: float = 10.0
    """How long a connection is kept for the next message."""
    idle_per_destination: int = 8
    transactions: int = 1000
    """On one connection; less where the server says so (LIMITS MAILMAX, RFC 9422)."""
    prompt_seconds: float = 0.1
    """A server that answered the last message this soon is given the next one behind it."""
    grow_seconds: float = 0.05
    """A message that waited so long is worth another connection."""
    rescue_seconds: float = 1.0
    """So long a message stands behind another one; then it goes elsewhere."""
    destinations: int = 10_000
    """Remembered at most."""


@dataclass(slots=True)
class Counts:
    """What the pool has done since it began."""

    opened: int = 0
    failed: int = 0
    """Connections that could not be had."""
    broken: int = 0
    """Connections lost in the middle of mail."""
    taken: int = 0
    unknown: int = 0
    """Messages sent whole whose answer never came: the next attempt may make a second copy."""
    moved: int = 0
    """Messages that went to another connection, surely not taken by the first."""
    rescued: int = 0
    """Of which from behind a message whose answer was late."""


class Places(Protocol):
    """What a destination needs of its pool (`mta.smtp.pool.Pool`)."""

    options: PoolOptions
    counts: Counts

    def take_place(self, destination: Destination) -> bool:
        """A place for one more connection; False when there is none, and `dispatch` is called when there is."""
        ...

    def give_place(self) -> None: ...


class Destination:
    """See the module."""

    def __init__(self, pool: Places, open_one: Open) -> None:
        self.gate = Gate(pool.options.gate)
        self.open_one = open_one
        self._pool = pool
        self._options = pool.options
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Job] = deque()
        self._idle: list[tuple[SmtpConnection, float]] = []
        self._carrying: dict[SmtpConnection, list[Job]] = {}
        """Every open connection and the messages on it, at most two."""
        self._openings: set[asyncio.Task[None]] = set()
        self._vetting: set[asyncio.Task[None]] = set()
        self._growing: asyncio.TimerHandle | None = None
        self._tidying: asyncio.TimerHandle | None = None
        self._closed = False

    async def deliver(self, job: Job) -> Outcome:
        """Carry one message. Never raises on what the peer does."""
        job.since = self._loop.time()
        self._jobs.append(job)
        self.dispatch()
        try:
            return await job.future
        except asyncio.CancelledError:
            if job.future.done() and not job.future.cancelled():
                # it ended in the very moment nobody wanted to wait any longer: untold, it would be sent again
                return job.future.result()
            self._give_up(job)
            if job.unknown:  # this must be kept, whoever waits: the next attempt may make a second copy
                return unanswered("given up")
            raise

    @property
    def connections(self) -> int:
        return len(self._carrying) + len(self._openings)

    def forgettable(self, now: float) -> bool:
        return not (self._jobs or self.connections or self._vetting or self.gate.rests(now))

    def drop_idle(self) -> bool:
        """Close the connection that was idle longest; whether there was one."""
        while self._idle:
            connection, _ = self._idle.pop(0)
            if not connection.failure:
                connection.leave()
                return True
        return False

    async def close(self) -> None:
        """Nothing goes over it any more."""
        self._closed = True
        for task in self._openings | self._vetting:
            task.cancel()
        idle = [connection for connection, _ in self._idle]
        self._idle = []
        for connection in list(self._carrying):
            if connection not in idle:
                connection.abort()
        await asyncio.gather(*(connection.quit() for connection in idle))
        for timer in (self._growing, self._tidying):
            if timer is not None:
                timer.cancel()
        self._growing = self._tidying = None
        self._send_away()

    # Giving messages to connections

    def dispatch(self) -> None:
        """Let what waits begin where it can."""
        if self._closed:
            self._send_away()
            return
        while self._jobs and self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                self._offer(connection)
            else:
                connection.abort()
        if not self._jobs:
            return
        if self.connections == 0:
            self._open_another()
        elif self._growing is None:
            self._growing = self._loop.call_later(self._options.grow_seconds, self._grow)

    def _offer(self, connection: SmtpConnection) -> None:
        """A connection can take a message, perhaps behind another one."""
        behind = bool(self._carrying.get(connection))
        while self._jobs and connection.ready and connection.begun < self._limit(connection):
            if behind and connection.last_answer_seconds > self._options.prompt_seconds:
                return
            job = self._jobs[0]
            if job.future.done():
                self._jobs.popleft()
                continue
            admitted = self._ask(job, connection)
            if admitted is not None and not isinstance(admitted, Refused):
                if behind:  # whoever has to think about it does so while nothing is under way
                    close = getattr(admitted, "close", None)
                    if close is not None:
                        close()
                    return
                self._jobs.popleft()
                self._hold(connection, job)
                task = self._loop.create_task(self._vet(connection, job, admitted))
                self._vetting.add(task)
                task.add_done_callback(self._vetting.discard)
                return
            self._jobs.popleft()
            if isinstance(admitted, Refused):
                job.end(refused_outcome(admitted))
                continue
            self._begin(connection, job)
            return
        if not behind and connection in self._carrying and not self._carrying[connection]:
            self._rest(connection)

    def _ask(self, job: Job, connection: SmtpConnection) -> Refused | Awaitable[Refused | None] | None:
        try:
            return job.admit(connection)
        except Exception as error:  # one message's trouble is not the connection's
            log.error("outbound.not-admitted", error=type(error).__name__)
            return Refused(refusals.INTERNAL_ERROR, type(error).__name__)

    async def _vet(self, connection: SmtpConnection, job: Job, admitted: Awaitable[Refused | None]) -> None:
        try:
            refused = await admitted
        except asyncio.CancelledError:
            self._release(connection, job)
            job.end(untried(Refused(refusals.CONNECTION_LOST, "closed")))
            connection.abort()
            raise
        except Exception as error:  # an attempt all the same: given back without one, it would come again at once
            log.error("outbound.judge-failed", error=type(error).__name__)
            refused = Refused(refusals.INTERNAL_ERROR, type(error).__name__)
        self._release(connection, job)
        if job.future.done():
            pass
        elif refused is not None:
            job.end(refused_outcome(refused))
        elif connection.ready:
            self._begin(connection, job)
            return
        elif not self._again(job):
            self._broke()
            job.end(Deferred(Refused(refusals.CONNECTION_LOST, connection.failure or "closing")))
        if not connection.failure:
            self._offer(connection)

    def _begin(self, connection: SmtpConnection, job: Job) -> None:
        self._hold(connection, job)
        job.begun = True
        connection.begin(job.transaction, job)

    def _hold(self, connection: SmtpConnection, job: Job) -> None:
        job.connection = connection
        job.since = self._loop.time()
        self._carrying[connection].append(job)

    def _release(self, connection: SmtpConnection, job: Job) -> None:
        job.connection, job.begun = None, False
        jobs = self._carrying.get(connection)
        if jobs is not None and job in jobs:
            jobs.remove(job)

    def _rest(self, connection: SmtpConnection) -> None:
        """Nothing for it to do."""
        if any(connection is each for each, _ in self._idle):
            return
        spent = connection.begun >= self._limit(connection)
        if spent or not connection.idle or len(self._idle) >= self._options.idle_per_destination:
            connection.leave()
            return
        self._idle.append((connection, self._loop.time()))
        if self._tidying is None:
            self._tidying = self._loop.call_later(self._options.idle_seconds, self._tidy)

    def _tidy(self) -> None:
        """Close what was idle for too long."""
        self._tidying = None
        limit = self._loop.time() - self._options.idle_seconds
        old = [connection for connection, since in self._idle if since <= limit]
        self._idle = [(connection, since) for connection, since in self._idle if since > limit]
        for connection in old:
            connection.leave()
        if self._idle:
            self._tidying = self._loop.call_at(self._idle[0][1] + self._options.idle_seconds, self._tidy)

    def _limit(self, connection: SmtpConnection) -> int:
        limit = self._options.transactions
        for word in connection.capabilities.get("LIMITS", "").split():
            name, _, value = word.partition("=")
            if name.upper() == "MAILMAX" and value.isdecimal() and len(value) < 7 and int(value) > 0:
                return min(int(value), limit)
        return limit

    # How messages end

    def _ended(self, job: Job, result: Result) -> None:
        connection = job.connection
        assert connection is not None  # noqa: S101 - it was begun on one
        self._release(connection, job)
        if isinstance(result, Broken):
            self._cut(job, result, first=connection.begun <= 1)
            return
        if result.reply.code == 421 and result.step != END_OF_DATA:
            self._dismissed(job, result, first=connection.begun <= 1)
            return
        if result.delivered:
            self._pool.counts.taken += 1
            self.gate.delivered()
        else:
            self.gate.worked()
        job.end(job.conclude(connection, result))

    def _cut(self, job: Job, broken: Broken, *, first: bool) -> None:
        """The connection broke under this message."""
        if broken.fate is Fate.UNKNOWN:
            self._pool.counts.unknown += 1
            job.unknown = True
            self._broke()
            job.end(unanswered(f"{broken.step}: {broken.why}"))
            return
        closed_while_idle = broken.step == "MAIL" and not first
        if (broken.innocent or closed_while_idle) and self._again(job):
            return
        self._broke()
        job.end(Deferred(Refused(refusals.CONNECTION_LOST, f"{broken.step}: {broken.why}")))

    def _dismissed(self, job: Job, answered: Answered, *, first: bool) -> None:
        """421 before the message was sent: the server closes. On a connection that served before, or beside others
        that serve, that is about the connection and not about the message."""
        others = len(self._carrying) - 1
        if first and others > 0:
            self.gate.crowded(others)
        if (not first or others > 0) and self._again(job):
            return
        self._broke()
        job.end(Deferred(Refused(refusals.CONNECTION_LOST, f"{answered.step}: {answered.reply.words}")))

    def _broke(self) -> None:
        self._pool.counts.broken += 1
        self.gate.broke(self._loop.time())

    def _again(self, job: Job) -> bool:
        """Once more, over another connection, before everything else; False when that was done too often, or nobody
        waits for it any more."""
        if job.moves >= _MOVES or job.future.done() or self._closed:
            return False
        job.moves += 1
        self._pool.counts.moved += 1
        job.since = self._loop.time()
        self._jobs.appendleft(job)
        self._loop.call_soon(self.dispatch)
        return True

    def _give_up(self, job: Job) -> None:
        """Whoever waited for it does not any more: what was not sent whole must not be taken, and what another message
        waits for on the same connection must not be lost."""
        connection = job.connection
        if connection is None:
            if job in self._jobs:
                self._jobs.remove(job)
        elif not job.begun:  # it is being judged, and that comes to its end by itself
            pass
        elif self._carrying[connection][0] is not job and connection.reclaim() is job:
            self._release(connection, job)
        else:
            connection.abort()  # which tells what is known of it, and moves what stood behind it

    def _send_away(self) -> None:
        while self._jobs:
            self._jobs.popleft().end(untried(Refused(refusals.CONNECTION_LOST, "closed")))

    # Connections

    def _grow(self) -> None:
        """Look whether somebody waits too long: in the queue, or behind another message."""
        self._growing = None
        now, options = self._loop.time(), self._options
        waiting = self._rescue(now)
        while self._jobs and self._jobs[0].future.done():
            self._jobs.popleft()
        if self._jobs:
            waiting = True
            if now - self._jobs[0].since >= options.grow_seconds and not self._openings:
                self._open_another()
        if waiting and self._growing is None:
            self._growing = self._loop.call_later(options.grow_seconds, self._grow)

    def _rescue(self, now: float) -> bool:
        """Take back what stands behind a late answer. Whether anything stands behind another message at all."""
        standing = False
        for connection, jobs in self._carrying.items():
            if len(jobs) < 2:
                continue
            standing = True
            job = jobs[1]
            if now - job.since < self._options.rescue_seconds or connection.reclaim() is not job:
                continue
            self._release(connection, job)
            self._pool.counts.rescued += 1
            if not self._again(job):
                job.end(untried(Refused(refusals.CONNECTION_LOST, "behind a slow message")))
        return standing

    def _open_another(self) -> None:
        if self.connections >= max(1, self.gate.window) or not self._pool.take_place(self):
            return
        task = self._loop.create_task(self._open())
        self._openings.add(task)
        task.add_done_callback(self._opening_ended)

    def _opening_ended(self, task: asyncio.Task[None]) -> None:
        self._openings.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("outbound.not-opened", error=type(error).__name__)
            self._no_connection(Refused(refusals.INTERNAL_ERROR, type(error).__name__))
        self.dispatch()

    async def _open(self) -> None:
        connection = None
        try:
            connection = await self.open_one()
            if not connection.usable:  # said too much, or went already: to open another at once would be hammering
                failure = connection.failure or "a reply nobody asked for"
                connection.abort()
                connection = None
                raise NotOpenedError(Refused(refusals.CONNECTION_LOST, failure))
        except NotOpenedError as error:
            self._no_connection(error.refused)
            return
        finally:
            if connection is None:
                self._pool.give_place()
        self._pool.counts.opened += 1
        self._carrying[connection] = []
        connection.carry(self._ended, lambda: self._offer(connection), lambda: self._lost(connection))
        self._offer(connection)

    def _no_connection(self, refused: Refused) -> None:
        """One message has tried; the others have not."""
        self._pool.counts.failed += 1
        if self._carrying:  # those that are open go on serving
            self.gate.crowded(len(self._carrying))
            return
        self.gate.failed(self._loop.time())
        tried = False
        while self._jobs:
            job = self._jobs.popleft()
            if not job.future.done():
                job.end(untried(refused) if tried else Deferred(refused))
                tried = True

    def _lost(self, connection: SmtpConnection) -> None:
        if self._carrying.pop(connection, None) is None:
            return
        self._idle = [(each, since) for each, since in self._idle if each is not connection]
        self._pool.give_place()
        if self._jobs:
            self._loop.call_soon(self.dispatch)
