"""The worker: takes due deliveries under lease, prepares their content once, hands them to their targets.

One task per delivery, bounded overall and per destination. A destination that has all its places taken is not claimed
for, so its queue stays on disk and never stands in front of another's. Stages and targets may be killed, hang or raise:
the attempt ends before its lease does, and what is not settled is tried again with the same bytes. What breaks down
each time is parked by the spool after a while (`Spool.settle`, `Spool.recover`).
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from mta import refusals
from mta.bell import Bell
from mta.delivery import Lease
from mta.message import Deferred, Failed, Message, Origin, Outcome, Phase, Stage, Target, TargetKind
from mta.spool import Spool
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError

_log = logging.getLogger("relais.mta.worker")

T = TypeVar("T")

DSN_FACTS = "dsn."
"""Facts under this prefix (`dsn.notify`, `dsn.envid`, `dsn.orcpt`) tell a target what the sender asked for, RFC 3461
§4, as received. They come from the envelope at each attempt and are never kept with a prepared message."""

_STORE_FAILURES = (StoreUnavailableError, SQLAlchemyError, OSError)
"""What breaks for every delivery at once, and passes: a full disk, a locked database."""
_AS_ACCEPTED = frozenset((TargetKind.DOSSIER, TargetKind.MLLP))
"""Targets that are handed what was accepted, byte for byte."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    concurrency: int = 64
    """Deliveries worked on at the same time."""
    per_destination: int = 8
    """... of which for one destination."""
    batch: int = 50
    """Deliveries claimed at once."""
    attempt_seconds: float = 600.0
    """Longest attempt, stages and target together."""
    lease_seconds: float = 1500.0
    """Longer than an attempt and what waits before it; another node takes over after that."""
    poll_seconds: float = 5.0
    """How often to look for what other nodes accepted."""
    stalled_seconds: float = 30.0
    """Without a look at the spool that succeeds, the worker is no longer at work."""
    pause_after_error_seconds: float = 1.0
    threads: int = 16
    """For the spool's blocking calls."""

    def __post_init__(self) -> None:
        if self.lease_seconds <= self.attempt_seconds:
            raise ValueError("a lease must be longer than an attempt, or a slow delivery is made twice")


class Worker:
    """One per process and event loop. `run` ends after `stop`."""

    def __init__(
        self,
        spool: Spool,
        stages: Sequence[Stage],
        targets: Mapping[TargetKind, Target],
        options: WorkerOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spool = spool
        self._stages = tuple(stages)
        self._targets = dict(targets)
        self._options = options or WorkerOptions()
        self._clock = clock
        self._threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="mta-worker")
        self._bell = Bell()
        self._tasks: dict[asyncio.Task[None], Lease] = {}
        self._running: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[Lease]] = defaultdict(deque)
        self._looked: float | None = None
        """Monotonic time of the last look at the spool that succeeded."""

    @property
    def at_work(self) -> bool:
        """Whether `run` is running and reaches the spool. From any thread."""
        looked, ended = self._looked, self._bell.silent
        return looked is not None and not ended and time.monotonic() - looked < self._options.stalled_seconds

    def wake(self) -> None:
        """Something is due: look now. From any thread, at any time."""
        self._bell.ring()

    async def run(self) -> None:
        """Work until `stop`. Returns when every task has ended."""
        self._spool.listen(self.wake)
        await self._bell.run(self._turn, self._tasks_ended)

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give back what was not begun, give what runs `drain_seconds` to end, cancel the rest and
        give it back too: being interrupted in good order is no breakdown."""
        self._bell.stop()
        waiting = [lease for queue in self._waiting.values() for lease in queue]
        self._waiting.clear()
        await self._give_back(waiting)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=drain_seconds)
            interrupted = [self._tasks[task] for task in late]
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
            await self._give_back(interrupted)
        await self._bell.finished()
        self._threads.shutdown(wait=False)

    async def _give_back(self, leases: list[Lease]) -> None:
        """What fails here is recovered at the next start; what runs must still be waited for."""
        if leases:
            try:
                await self._in_thread(self._spool.release, leases)
            except Exception as error:
                _report("leases could not be given back", error)

    async def _tasks_ended(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _turn(self) -> float:
        """Returns how long to sleep, in seconds."""
        try:
            pause = await self._look()
        except Exception as error:
            _report("the spool does not answer", error)
            return self._options.pause_after_error_seconds
        self._looked = time.monotonic()
        return pause

    async def _look(self) -> float:
        """Start what can start, claim more when there is room. Returns how long to sleep, in seconds."""
        options = self._options
        await self._start_waiting()
        free = options.concurrency - len(self._tasks)
        if free <= 0:
            return options.poll_seconds  # the end of a task wakes us
        busy = {name for name, queue in self._waiting.items() if queue}
        busy |= {name for name, running in self._running.items() if running >= options.per_destination}
        limit = min(free, options.batch)
        holding = {lease.delivery_id for lease in self._tasks.values()}
        holding |= {lease.delivery_id for queue in self._waiting.values() for lease in queue}
        leases = await self._in_thread(self._spool.claim, limit, options.lease_seconds, busy, holding)
        if self._bell.stopping:
            await self._in_thread(self._spool.release, leases)
            return 0
        for lease in leases:
            self._waiting[lease.destination].append(lease)
        await self._start_waiting()
        if len(leases) == limit:
            return 0
        holding |= {lease.delivery_id for lease in leases}
        due = await self._in_thread(self._spool.next_due, busy, holding)
        return options.poll_seconds if due is None else min(max(due - self._clock(), 0.02), options.poll_seconds)

    async def _start_waiting(self) -> None:
        options = self._options
        stale: list[Lease] = []
        for destination in list(self._waiting):
            queue = self._waiting[destination]
            while (
                queue
                and self._running[destination] < options.per_destination
                and len(self._tasks) < options.concurrency
            ):
                lease = queue.popleft()
                if lease.expires - self._clock() <= options.attempt_seconds:
                    stale.append(lease)  # it could expire under our hands
                    continue
                task = asyncio.create_task(self._work(lease))
                self._tasks[task] = lease
                self._running[destination] += 1
                task.add_done_callback(partial(self._ended, destination))
            if not queue:
                del self._waiting[destination]
        if stale:
            await self._in_thread(self._spool.release, stale)

    def _ended(self, destination: str, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self._running[destination] -= 1
        if not self._running[destination]:
            del self._running[destination]
        self._bell.ring_here()

    async def _work(self, lease: Lease) -> None:
        """One attempt, from lease to settlement. Never raises but for cancellation."""
        try:
            async with asyncio.timeout(self._options.attempt_seconds):
                outcome = await self._attempt(lease)
        except TimeoutError:
            outcome = Deferred(Refused(refusals.ATTEMPT_TIMEOUT))
        except _STORE_FAILURES as error:  # no fault of this delivery, so none that counts against it
            _report(f"delivery {lease.delivery_id} stopped", error)
            outcome = Deferred(Refused(refusals.SPOOL_UNAVAILABLE, type(error).__name__))
        except Exception as error:
            _report(f"delivery {lease.delivery_id} stopped", error)
            outcome = Deferred(Refused(refusals.INTERNAL_ERROR, type(error).__name__))
        if outcome is not None:
            await self._settle(lease, outcome)

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        """Write down the outcome. A store that fails for a while (a full disk) is asked again as long as the lease is
        ours: what was delivered and not settled would be delivered again, and not every target knows a second copy."""
        pause = self._options.pause_after_error_seconds
        _tell(lease, outcome)
        while True:
            try:
                if not await self._in_thread(self._spool.settle, lease, outcome):
                    _log.warning("delivery %s was settled under a stale lease: ignored", lease.delivery_id)
                return
            except Exception as error:
                _report(f"delivery {lease.delivery_id} could not be settled", error)
                passing = isinstance(error, _STORE_FAILURES)
            if not passing or self._bell.stopping or self._clock() + pause >= lease.expires:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)

    async def _attempt(self, lease: Lease) -> Outcome | None:
        """The outcome; None when the lease turned out to be stale."""
        content = await self._in_thread(self._load, lease)
        message = Message(
            message_id=lease.message_id,
            spool_id=lease.spool_id,
            delivery_id=lease.delivery_id,
            origin=lease.origin,
            sender=lease.sender,
            recipient=lease.recipient,
            content=content,
            content_type=lease.content_type,
            accepted_at=lease.accepted_at,
            peer=lease.peer,
            facts={**lease.facts, **_dsn_facts(lease)},
            # What was prepared was prepared to be sent at once.
            repeated=lease.prepared_blob is not None,
        )
        if lease.target not in _AS_ACCEPTED and lease.prepared_blob is None:
            try:
                async with asyncio.timeout(self._options.attempt_seconds / 2):
                    applied = await self._apply_stages(lease, message)
            except TimeoutError:  # no partner is slow here: this content is more than our own code can do
                return Deferred(Refused(refusals.INTERNAL_ERROR, "preparing took too long"))
            if isinstance(applied, Refused):
                return Failed(applied) if applied.refusal.permanent else Deferred(applied)
            message = applied
            facts = {name: value for name, value in message.facts.items() if not name.startswith(DSN_FACTS)}
            if not await self._in_thread(self._spool.keep_prepared, lease, message.content, facts):
                _log.warning("delivery %s was prepared under a stale lease: ignored", lease.delivery_id)
                return None
        target = self._targets.get(lease.target)
        if target is None:
            return Deferred(Refused(refusals.NO_ROUTE, f"no {lease.target.value} target here"))
        return await target.deliver(replace(message, facts={**message.facts, **_dsn_facts(lease)}))

    async def _apply_stages(self, lease: Lease, message: Message) -> Message | Refused:
        for phase in phases(lease.origin, lease.target):
            for stage in self._stages:
                applied = await stage.apply(message, phase)
                if isinstance(applied, Refused):
                    return applied
                message = applied
        return message

    def _load(self, lease: Lease) -> bytes:
        prepared = self._spool.prepared(lease)
        return self._spool.content(lease) if prepared is None else prepared

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def phases(origin: Origin, target: TargetKind) -> tuple[Phase, ...]:
    """What a message goes through, by where it came from and where it ends."""
    if target in _AS_ACCEPTED:
        return ()
    if origin in (Origin.OPERATOR, Origin.COLLECTED):
        return (Phase.OPEN, Phase.SCREEN)
    # what we write ourselves needs nothing added
    outbound = (Phase.PROTECT,) if origin is Origin.SYSTEM else (Phase.ENRICH, Phase.PROTECT)
    # a local correspondent gets what a remote one would, opened at once
    return (*outbound, Phase.OPEN, Phase.SCREEN) if target is TargetKind.MAILBOX else outbound


def _dsn_facts(lease: Lease) -> dict[str, str]:
    wishes = {"notify": lease.notify, "envid": lease.envelope_id, "orcpt": lease.original_recipient}
    for flag in lease.flags:
        if flag.startswith("RET="):
            wishes["ret"] = flag.removeprefix("RET=")
    return {DSN_FACTS + name: value for name, value in wishes.items() if value}


def _tell(lease: Lease, outcome: Outcome) -> None:
    """Log what the operator has to know: catalogue codes and ids of ours, never an address or a peer's words."""
    if isinstance(outcome, Failed):
        _log.warning("delivery %s failed: %s (%s)", lease.delivery_id, outcome.reason.refusal.code, lease.target.value)
    elif isinstance(outcome, Deferred):
        _log.info("delivery %s deferred: %s (%s)", lease.delivery_id, outcome.reason.refusal.code, lease.target.value)


def _report(what: str, error: BaseException) -> None:
    """Log where it happened, not what it said: an exception's text may quote the message."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    _log.error("%s: %s at %s", what, type(error).__name__, where)
