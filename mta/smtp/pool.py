"""Connections to destinations: who carries which message, when another connection is worth it, when to leave a
destination alone.

A `Destination` is whatever connections can be shared for: an operator's host, a domain's MX hosts, the mailbox server.
Messages wait in its queue, never a connection for a message. A connection that answers at once takes the next message
behind the one before (`mta.smtp.pipeline`); one that is slow takes none, and what stands behind a message whose answer
is late is taken back and goes elsewhere: one message the peer chews on slows no other. Another connection is opened
when a message has waited, not before.

When no connection can be had, one message has tried and says so; the others were not tried, and do not count that as an
attempt. Which messages were surely taken, surely not, or perhaps, when a connection breaks: `mta.smtp.pipeline.Fate`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from mta import refusals
from mta.message import Deferred, Delivered, Failed, Outcome
from mta.smtp.client import Answered, Broken, Result, SmtpConnection, Transaction
from mta.smtp.gate import Gate, GateOptions
from mta.smtp.pipeline import END_OF_DATA, Fate
from trust.refusals import Refused

MAYBE_TAKEN = "it may have been taken all the same"
"""Detail of what was sent whole and never answered."""
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


class NotOpenedError(Exception):
    """No connection could be had; `refused` says why in the catalogue's words."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.refusal.code)
        self.refused = refused


Admit = Callable[[SmtpConnection], "Refused | Awaitable[Refused | None] | None"]
"""Whether a message may go over a connection, asked right before it begins. Must not raise."""
Conclude = Callable[[SmtpConnection, Answered], Outcome]
Open = Callable[[], Awaitable[SmtpConnection]]
"""A new connection, greeted and secured. Raises `NotOpenedError`."""


class Job:
    """One message on its way over a destination."""

    __slots__ = ("admit", "conclude", "connection", "future", "moves", "since", "transaction")

    def __init__(self, transaction: Transaction, admit: Admit, conclude: Conclude) -> None:
        self.transaction = transaction
        self.admit = admit
        self.conclude = conclude
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.connection: SmtpConnection | None = None
        self.moves = 0
        self.since = 0.0

    def end(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class Pool:
    """All destinations of one kind. Used on one event loop; `close` at the end, after which it may be used again."""

    def __init__(self, options: PoolOptions = PoolOptions()) -> None:
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
        for destination in self._destinations.values():
            destination.gate.forgive()

    async def close(self) -> None:
        """Say goodbye to idle peers; what is under way is cut, and told as such."""
        destinations = list(self._destinations.values())
        self._destinations.clear()
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
        if self._starved:
            asyncio.get_running_loop().call_soon(self._starved.popleft().dispatch)

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


class Destination:
    """See the module."""

    def __init__(self, pool: Pool, open_one: Open) -> None:
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

    async def deliver(self, job: Job) -> Outcome:
        """Carry one message. Never raises on what the peer does."""
        job.since = self._loop.time()
        self._jobs.append(job)
        self.dispatch()
        try:
            return await job.future
        except asyncio.CancelledError:
            self._give_up(job)
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
                connection.abort()
                return True
        return False

    async def close(self) -> None:
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
        while self._jobs:
            self._jobs.popleft().end(_untried(Refused(refusals.CONNECTION_LOST, "closed")))

    # Giving messages to connections

    def dispatch(self) -> None:
        """Let what waits begin where it can."""
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
            admitted = job.admit(connection)
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
                job.end(_refused(admitted))
                continue
            self._begin(connection, job)
            return
        if not behind and connection in self._carrying and not self._carrying[connection]:
            self._rest(connection)

    async def _vet(self, connection: SmtpConnection, job: Job, admitted: Awaitable[Refused | None]) -> None:
        try:
            refused = await admitted
        except BaseException:
            job.end(_untried(Refused(refusals.CONNECTION_LOST, "closed")))
            connection.abort()
            raise
        self._release(connection, job)
        if job.future.done():
            pass
        elif refused is not None:
            job.end(_refused(refused))
        elif connection.ready:
            self._begin(connection, job)
            return
        else:
            self._again(job)
        if not connection.failure:
            self._offer(connection)

    def _begin(self, connection: SmtpConnection, job: Job) -> None:
        self._hold(connection, job)
        connection.begin(job.transaction, job)

    def _hold(self, connection: SmtpConnection, job: Job) -> None:
        job.connection = connection
        job.since = self._loop.time()
        self._carrying[connection].append(job)

    def _release(self, connection: SmtpConnection, job: Job) -> None:
        job.connection = None
        jobs = self._carrying.get(connection)
        if jobs is not None and job in jobs:
            jobs.remove(job)

    def _rest(self, connection: SmtpConnection) -> None:
        """Nothing for it to do."""
        if any(connection is each for each, _ in self._idle):
            return
        spent = connection.begun >= self._limit(connection)
        if spent or not connection.idle or len(self._idle) >= self._options.idle_per_destination:
            if not connection.failure:
                connection.abort()
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
            connection.abort()
        if self._idle:
            self._tidying = self._loop.call_at(self._idle[0][1] + self._options.idle_seconds, self._tidy)

    def _limit(self, connection: SmtpConnection) -> int:
        for word in connection.capabilities.get("LIMITS", "").split():
            name, _, value = word.partition("=")
            if name.upper() == "MAILMAX" and value.isdecimal() and len(value) < 7 and int(value) > 0:
                return min(int(value), self._options.transactions)
        return self._options.transactions

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
            self._broke()
            job.end(Deferred(Refused(refusals.CONNECTION_LOST, f"{broken.step}: {broken.why}; {MAYBE_TAKEN}")))
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
        """Once more, over another connection, before everything else; False when that was done too often."""
        if job.moves >= _MOVES:
            return False
        job.moves += 1
        self._pool.counts.moved += 1
        job.since = self._loop.time()
        self._jobs.appendleft(job)
        self._loop.call_soon(self.dispatch)
        return True

    def _give_up(self, job: Job) -> None:
        """Whoever waited for it does not any more: what was not sent whole must not be taken."""
        connection = job.connection
        if connection is None:
            if job in self._jobs:
                self._jobs.remove(job)
            return
        self._release(connection, job)
        connection.abort()

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
                job.end(_untried(Refused(refusals.CONNECTION_LOST, "behind a slow message")))
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
            self._no_connection(Refused(refusals.INTERNAL_ERROR, type(error).__name__))
            raise error
        self.dispatch()

    async def _open(self) -> None:
        connection = None
        try:
            connection = await self.open_one()
        except NotOpenedError as error:
            self._no_connection(error.refused)
            return
        finally:
            if connection is None:
                self._pool.give_place()
        self._pool.counts.opened += 1
        self._carrying[connection] = []
        connection.carry(self._ended, lambda: self._offer(connection), lambda: self._lost(connection))
        if connection.failure:
            self._lost(connection)
        else:
            self._offer(connection)

    def _no_connection(self, refused: Refused) -> None:
        """One message has tried; the others have not."""
        self._pool.counts.failed += 1
        if self._carrying:  # those that are open go on serving
            self.gate.crowded(len(self._carrying))
            return
        if len(self._openings) > 1:
            return  # the others may still arrive
        self.gate.failed(self._loop.time())
        tried = False
        while self._jobs:
            job = self._jobs.popleft()
            if not job.future.done():
                job.end(_untried(refused) if tried else Deferred(refused))
                tried = True

    def _lost(self, connection: SmtpConnection) -> None:
        if self._carrying.pop(connection, None) is None:
            return
        self._idle = [(each, since) for each, since in self._idle if each is not connection]
        self._pool.give_place()
        if self._jobs:
            self._loop.call_soon(self.dispatch)


def _refused(refused: Refused) -> Outcome:
    return Failed(refused) if refused.refusal.permanent else Deferred(refused)


def _untried(refused: Refused) -> Deferred:
    return replace(Deferred(refused), tried=False)


def delivered(answered: Answered, *, reports: bool = False) -> Outcome:
    """What a deciding reply means for the delivery; the peer's words are kept without addresses."""
    reply = answered.reply
    if answered.delivered:
        return Delivered(reply.words, reports=reports)
    words = f"{answered.step}: {reply.words}"
    # 503 tells of a conversation gone wrong, not of this message
    if reply.permanent and reply.code != 503:
        return Failed(Refused(refusals.REMOTE_REFUSED, words))
    return Deferred(Refused(refusals.REMOTE_DEFERRED, words))
