"""The worker: takes due deliveries under lease, prepares their content once, hands them to their targets.

One task per delivery, bounded overall and per destination. A destination that has all its places taken is not claimed
for, so its queue stays on disk and never stands in front of another's. Stages and targets may be killed, hang or raise:
the attempt ends before its lease does, and what is not settled is tried again with the same bytes. What breaks down
each time is parked by the spool after a while (`Spool.settle`, `Spool.recover`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from mta import refusals
from mta.bell import Bell
from mta.delivery import Lease
from mta.handover import HandOver
from mta.message import Deferred, Failed, Message, Origin, Outcome, PacedTarget, Phase, Stage, Target, TargetKind
from mta.returns import LOOP_BYTES, Returns
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
_KNOWN = 10_000
"""Destinations remembered."""
_PROMISE_SECONDS = 2.0
"""How long to wait at the end for commits under way."""
_AHEAD = 4
"""Deliveries in hand for each place at a destination: attempts follow each other without a look at the spool."""
_EXPIRE_SECONDS = 60.0
"""How often destinations that rest are looked through for deliveries whose time is over."""
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
        self._paced = {kind.value: target for kind, target in targets.items() if isinstance(target, PacedTarget)}
        self._expired_at = float("-inf")
        self._options = options or WorkerOptions()
        self._clock = clock
        self._threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="mta-worker")
        self._bell = Bell()
        self._tasks: dict[asyncio.Task[None], Lease] = {}
        self._running: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[Lease]] = defaultdict(deque)
        self._handover = HandOver(self._options.lease_seconds, self._room, self._idle, self._begin, self.wake)
        self._known_places: dict[str, int] = {}
        """By destination, as they were when a delivery to it was last begun: none is handed over to a stranger."""
        self._due: tuple[float, float | None] | None = None
        """When the spool was asked for the next delivery that will be due (monotonic), and its answer (UNIX time)."""
        self._deferred = False
        """Something was put off since."""
        self._resting: frozenset[str] = frozenset()
        """Destinations that are left alone, as of the last look."""
        self._held: frozenset[str] = frozenset()
        """Destinations that a person holds."""
        self._quiet: frozenset[str] = frozenset()
        """Both: no look finds anything for them."""
        self._told = self._held_told = 0
        """Times that a person acted on what waits, and as of which `_held` was read: until it is, nothing begins."""
        self._held_read = float("-inf")
        self._returns: Returns | None = None
        self._looked: float | None = None
        """Monotonic time of the last look at the spool that succeeded."""

    @property
    def at_work(self) -> bool:
        """Whether `run` is running and reaches the spool. From any thread."""
        looked, ended = self._looked, self._bell.silent
        return looked is not None and not ended and time.monotonic() - looked < self._options.stalled_seconds

    def wake(self) -> None:
        """Something is due: look now. From any thread, at any time."""
        self._due = None
        self._bell.ring()

    def _acted_on(self) -> None:
        """A person may hold what is in hand now. From any thread."""
        self._told += 1

    async def run(self) -> None:
        """Work until `stop`. Returns when every task has ended."""
        self._returns = Returns()
        self._loop = asyncio.get_running_loop()
        self._spool.listen_for_work(self.wake)
        self._spool.listen_for_acts(self._acted_on)
        self._spool.hand_over_to(self._handover)
        self._handover.open()
        await self._bell.run(self._turn, self._tasks_ended)

    async def stop(self, drain_seconds: float) -> None:
        """Claim nothing more, give back what was not begun, give what runs `drain_seconds` to end, cancel the rest and
        give it back too: being interrupted in good order is no breakdown."""
        self._bell.stop()
        self._handover.close()
        deadline = time.monotonic() + _PROMISE_SECONDS
        while self._handover.promised and time.monotonic() < deadline:
            self._take_over()
            await asyncio.sleep(0.005)  # until the commits under way have ended
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
            await self._give_back(interrupted, interrupted=True)
        await self._bell.finished()
        self._threads.shutdown(wait=False)

    async def _give_back(self, leases: list[Lease], *, interrupted: bool = False) -> None:
        """What fails here is tried again by the next claim, or recovered at the next start."""
        for lease in leases:
            self._handover.content(lease)
        if leases:
            try:
                await self._in_thread(partial(self._spool.release, leases, interrupted=interrupted))
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
            self._handover.looked(False, ())  # nothing is known of what waits
            return self._options.pause_after_error_seconds
        self._looked = time.monotonic()
        return pause

    async def _look(self) -> float:
        """Start what can start, claim more when there is room. Returns how long to sleep, in seconds."""
        options = self._options
        await self._look_for_holds()
        await self._start_waiting()
        free = options.concurrency - len(self._tasks)
        if free <= 0:
            self._handover.looked(False, ())
            return options.poll_seconds  # the end of a task wakes us
        # one whose places are taken has a few more in hand, so that it need not wait for the next look
        busy = {name for name, queue in self._waiting.items() if len(queue) >= self._places(name)}
        resting = self._resting = frozenset(name for target in self._paced.values() for name in target.resting())
        self._quiet = self._resting | self._held
        probing = {name for target in self._paced.values() for name in target.probing()}
        busy |= resting | {name for name in probing if name in self._running or name in self._waiting}
        if resting and time.monotonic() - self._expired_at >= _EXPIRE_SECONDS:
            # what nobody tries must end all the same when its time is over
            self._expired_at = time.monotonic()
            await self._in_thread(self._spool.expire, resting)
        limit = options.batch
        holding = {lease.delivery_id for lease in self._tasks.values()}
        holding |= {lease.delivery_id for queue in self._waiting.values() for lease in queue}
        leases = await self._in_thread(self._claim, limit, busy, holding, probing - busy)
        self._handover.looked(len(leases) < limit, busy | probing)
        if self._bell.stopping:
            await self._give_back(leases)
            return 0
        for lease in leases:
            self._waiting[lease.destination].append(lease)
        await self._look_for_holds()
        await self._start_waiting()
        if len(leases) == limit:
            return 0
        holding |= {lease.delivery_id for lease in leases}
        busy |= {lease.destination for lease in leases if lease.destination in probing}
        now = time.monotonic()
        if self._deferred or self._due is None or now - self._due[0] >= options.poll_seconds:
            self._deferred = False
            self._due = now, await self._in_thread(self._spool.next_due, busy, holding)
        due = self._due[1]
        if due is None:
            return options.poll_seconds
        if due <= self._clock():
            self._due = None  # asked again by the next look
        return min(max(due - self._clock(), 0.02), options.poll_seconds)

    async def _look_for_holds(self) -> None:
        """Give back what a person has asked to hold since it was taken in hand. Whoever acts on this node is heard at
        once (`_acted_on`), who acts on another at the next look that is worth it."""
        told, now = self._told, time.monotonic()
        if told == self._held_told and now - self._held_read < self._options.poll_seconds:
            return
        self._take_over()
        in_hand = [lease.delivery_id for queue in self._waiting.values() for lease in queue]
        self._held, alone = await self._in_thread(self._spool.holds, in_hand)
        self._quiet = self._resting | self._held
        self._held_told, self._held_read = told, now
        back = [lease for queue in self._waiting.values() for lease in queue if lease.delivery_id in alone]
        for lease in back:
            self._waiting[lease.destination].remove(lease)
        await self._give_back(back)

    def _claim(self, limit: int, busy: Collection[str], holding: Collection[str], once: Collection[str]) -> list[Lease]:
        """In one go with what is read faster than another thread is asked to read it."""
        expecting = self._handover.behind(beside={*busy, *self._held})
        leases = self._spool.claim(limit, self._options.lease_seconds, busy, holding, once, expecting=expecting)
        try:
            contents = self._spool.small_contents(leases)
        except Exception as error:  # what is under lease must not be forgotten: each attempt reads for itself
            _report("contents could not be read ahead", error)
            return leases
        for lease in leases:
            if lease.delivery_id in contents:
                self._handover.hold(lease, contents[lease.delivery_id])
        return leases

    async def _start_waiting(self) -> None:
        if len(self._known_places) > _KNOWN:
            self._known_places.clear()
        self._take_over()
        await self._give_back([lease for name in list(self._waiting) for lease in self._start(name)])

    def _take_over(self) -> None:
        for lease in self._handover.taken():
            self._waiting[lease.destination].append(lease)

    def _start(self, destination: str) -> list[Lease]:
        """Begin what there is room for; returns the leases that must not be begun any more."""
        if self._told != self._held_told:
            self._bell.ring_here()
            return []
        options, queue, stale = self._options, self._waiting[destination], list[Lease]()
        places = self._known_places[destination] = self._places(destination)
        if places == 0:
            stale += queue
            queue.clear()
        while queue and self._running[destination] < places and len(self._tasks) < options.concurrency:
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
        return stale

    def _room(self, destination: str, promised: int) -> bool:
        """Whether one more delivery may be put in hand. From any thread: exact enough for a limit."""
        in_hand = self._running.get(destination, 0) + len(self._waiting.get(destination, ())) + promised
        everywhere = len(self._tasks) + sum(map(len, list(self._waiting.values())))
        places = self._known_places.get(destination, 0)
        return in_hand < _AHEAD * places and everywhere < _AHEAD * self._options.concurrency

    def _idle(self, destination: str) -> bool:
        """Whether a delivery could begin at once, or nothing under way would have it looked for. From any thread."""
        if destination in self._quiet:
            return False
        running = self._running.get(destination, 0)
        return running == 0 or running < self._known_places.get(destination, 0)

    def _begin(self) -> None:
        """Something was handed over. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._begin_here)

    def _begin_here(self) -> None:
        if self._bell.stopping:
            return  # `stop` gives it back
        self._take_over()
        for destination in list(self._waiting):
            self._keep_going(destination)

    def _keep_going(self, destination: str) -> None:
        """Begin what is in hand; have the spool looked at when there may be more."""
        stale = self._start(destination) if self._waiting.get(destination) else []
        if stale:
            self._waiting[destination].extendleft(reversed(stale))  # the next look gives it back
        few = len(self._waiting.get(destination, ())) < self._known_places.get(destination, 1)
        if stale or (few and self._handover.behind(beside=self._quiet)):
            self._bell.ring_here()

    def _places(self, destination: str) -> int:
        """Deliveries to it that may be worked on at the same time."""
        if destination in self._held:
            return 0
        target = self._paced.get(destination.partition(":")[0])
        wanted = None if target is None else target.places(destination)
        limit = self._options.per_destination
        return limit if wanted is None else min(wanted, limit)

    def _ended(self, destination: str, task: asyncio.Task[None]) -> None:
        lease = self._tasks.pop(task)
        self._running[destination] -= 1
        if not self._running[destination]:
            del self._running[destination]
        if self._bell.stopping:
            return
        self._keep_going(destination)
        if lease.breakdowns:
            self._due = None  # suspects are handled one at a time: this was one, and the next may begin
            self._bell.ring_here()
        if len(self._tasks) == self._options.concurrency - 1:
            for other in list(self._waiting):  # there was no place for anybody
                self._keep_going(other)

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
        if isinstance(outcome, Deferred) and not outcome.tried:
            await self._give_back([lease])
        elif outcome is not None:
            await self._settle(lease, outcome)

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        """Write down the outcome. A store that fails for a while (a full disk) is asked again as long as the lease is
        ours: what was delivered and not settled would be delivered again, and not every target knows a second copy."""
        pause = self._options.pause_after_error_seconds
        _tell(lease, outcome)
        while True:
            try:
                if not await self._written(self._spool.begin_settle(lease, outcome)):
                    _log.warning("delivery %s was settled under a stale lease: ignored", lease.delivery_id)
                if isinstance(outcome, Deferred):
                    self._deferred = True
                    self._bell.ring_here()
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
        content = self._handover.content(lease)
        if content is None:
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
            flags=lease.flags,
            # What was prepared was prepared to be sent at once.
            repeated=lease.prepared_blob is not None,
            unanswered=lease.unanswered,
        )
        if lease.target not in _AS_ACCEPTED and lease.prepared_blob is None:
            try:
                async with asyncio.timeout(self._options.attempt_seconds / 2):
                    applied = await self._apply_stages(lease, message)
            except TimeoutError:  # no partner is slow here: this content is more than our own code can do
                return Deferred(Refused(refusals.INTERNAL_ERROR, "preparing took too long"))
            if isinstance(applied, Refused):
                return Failed(applied) if applied.refusal.permanent else Deferred(applied)
            facts = {name: value for name, value in applied.facts.items() if not name.startswith(DSN_FACTS)}
            if not await self._keep_prepared(lease, message.content, applied.content, facts):
                _log.warning("delivery %s was prepared under a stale lease: ignored", lease.delivery_id)
                return None
            message = applied
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

    async def _keep_prepared(self, lease: Lease, accepted: bytes, prepared: bytes, facts: Mapping[str, str]) -> bool:
        if prepared is accepted:
            return await self._written(self._spool.begin_keep_prepared(lease, None, facts))
        if len(prepared) <= LOOP_BYTES:
            return await self._written(self._spool.begin_keep_prepared(lease, prepared, facts))
        return await self._in_thread(self._spool.keep_prepared, lease, prepared, facts)

    async def _written(self, work: Future[T]) -> T:
        assert self._returns is not None  # noqa: S101 - set before the first task
        return await self._returns.of(work)

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
