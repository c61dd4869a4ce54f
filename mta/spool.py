"""The spool: what was accepted, to whom it still has to go, and how each attempt ended.

Here stands what works on it; `mta.accepting` takes in, `mta.spool_reading` only looks. Guarantees, in the order they
are earned:

1. `accept` returns only when content and rows are synced, a small content by the rows' own commit, a large one as a
   file before it; whoever answers `250` or `AA` does so after it. Concurrent accepts share one commit
   (`trust.store.database`). What a worker has a place for is committed under its lease (`mta.handover`).
2. The deduplication key is unique: a sender repeating a message whose acknowledgement was lost gets the first answer
   again, and no second delivery exists.
3. A delivery is worked on under a lease. A lease ends by `settle`, by `release` or by its own expiry, and every write
   that follows names it: what a stale worker reports is refused, never mixed in.
4. The protected bytes are committed (`keep_prepared`) before the first attempt, so that every attempt, by any process,
   sends the same bytes under the same Message-ID and delivery id.
5. A delivery whose handling breaks down, by a bug or by taking the process with it, again and again is parked
   (`mta.breakdowns`).

Between a destination's final reply and our `settle` a crash repeats the delivery: no protocol avoids that. The second
copy carries the same delivery id, by which a mailbox or a dossier recognises it.

All methods are synchronous and thread-safe; they raise what the database or the blob store raises when these break.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection, Row, delete, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from mta import breakdowns as brake
from mta import claiming, refusals
from mta import spool_rows as rows
from mta.accepting import Accepting, printable
from mta.delivery import (
    DeliveryRecord,
    Duplicate,
    EndedDelivery,
    KeptDelivery,
    Lease,
    NewDelivery,
    Submission,
)
from mta.message import MAYBE_TAKEN, Deferred, Delivered, DeliveryState, Outcome
from mta.priority import Priority
from mta.schedule import LONGEST_ASKED
from mta.spool_reading import PREPARED, READY, with_message
from mta.spool_rows import REPEATED_EXTERNAL_ID
from mta.tables import awaited_receipts, breakdowns, deliveries, messages, steps
from mta.unsure import Freed, free, still_leased
from trust.refusals import Refused
from trust.store.database import StoreUnavailableError

_log = logging.getLogger("relais.mta.spool")

__all__ = [
    "PREPARED",
    "REPEATED_EXTERNAL_ID",
    "DeliveryRecord",
    "Duplicate",
    "Lease",
    "NewDelivery",
    "Spool",
    "Submission",
]

RELAYED = "relayed"
"""Code of a delivered delivery whose next hop reports in our place."""
_AHEAD_SECONDS = 60.0
"""Beyond the longest pause a next try may lie in the future before a clock that was set back must be the reason."""
_ALL_ITS_TIME = ("reopened", "redirected")
"""Steps of an operator (`mta.queue`) after which a delivery has all its time again: else what had to wait for a person
would be given up at its first refusal."""
_ONE_TRY = (*_ALL_ITS_TIME, "freed")
"""... after which it is tried at least once, before its time can be over."""


class Spool(Accepting):
    """See the module's guarantees."""

    # Working

    def claim(
        self,
        limit: int,
        lease_seconds: float,
        skip: Collection[str] = (),
        holding: Collection[str] = (),
        once: Collection[str] = (),
        *,
        expecting: bool = False,
    ) -> list[Lease]:
        """At most `limit` due deliveries, in the order of `mta.claiming`, none for a destination in `skip`, and one at
        most for each in `once`.

        `holding`: delivery ids the caller still works on; they are not leased again, even when a clock that jumped
        says that their leases are over. `expecting`: there is something, so it is not looked for before.
        """
        now = self._clock()
        token = f"{self._holder}:{secrets.token_hex(12)}"
        turn = next(self._turns)

        leased: dict[str, str] = {}

        def write(connection: Connection) -> tuple[list[Row[Any]], dict[str, float], dict[str, int]]:
            ids = claiming.claimable(connection, now, limit, skip, holding, turn, once)
            if not ids:
                return [], {}, {}
            rows = connection.execute(
                with_message()
                .add_columns(func.coalesce(breakdowns.c.times, 0).label("breakdowns"))
                .outerjoin(breakdowns, breakdowns.c.delivery_id == deliveries.c.id)
                .where(deliveries.c.id.in_(ids))
                .order_by(deliveries.c.priority, deliveries.c.due)
            ).all()
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_(ids)).values(lease=token, due=now + lease_seconds)
            )
            connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, "attempt") for row in rows])
            leased.update((row.id, row.spool_id) for row in rows)
            longest = max(self._schedule.longest_pause, LONGEST_ASKED)
            nearly_over = now + lease_seconds + longest - self._schedule.lifetime
            chances = _chances(connection, [row for row in rows if row.message_accepted_at < nearly_over])
            return list(rows), chances, _unanswered(connection, [row for row in rows if row.attempts])

        # an idle poll takes no write transaction
        self._free_unsure()
        if not (expecting or self._found):
            due = self._database.read(lambda connection: claiming.next_due(connection, now, skip, holding))
            if due is None or due > now:
                self._pull_back(now)
                return []
        leases, unreadable = [], []
        try:
            found, chances, unanswered = self._database.transact(write)
        except StoreUnavailableError:
            self._unsure.add((Freed(each, spool_id, token) for each, spool_id in leased.items()), now)
            raise
        self._found = len(found) == limit
        if not found:
            self._pull_back(now)
        for row in found:
            kept = self._kept(row)
            if kept is None:
                unreadable.append(row)
                continue
            lease = Lease(
                **kept,
                token=token,
                destination=row.destination,
                attempts=row.attempts,
                counts_from=max(kept["accepted_at"], chances.get(row.id, 0.0)),
                breakdowns=row.breakdowns,
                unanswered=unanswered.get(row.id, 0),
                expires=now + lease_seconds,
            )
            leases.append(lease)
        if unreadable:
            try:
                self._database.transact(lambda connection: self._park_unreadable(connection, unreadable))
            except (StoreUnavailableError, SQLAlchemyError) as error:  # the others are leased all the same
                _log.error("what cannot be read could not be parked: %s", type(error).__name__)
        return leases

    def _free_unsure(self) -> None:
        """See `mta.unsure`."""
        now = self._clock()
        looked_for = self._unsure.some(now)
        if looked_for:
            found = self._database.read(lambda connection: still_leased(connection, looked_for))
            if found:
                self._database.transact(lambda connection: self._free(connection, found, now))
            self._unsure.seen(looked_for, found, now)

    def _free(self, connection: Connection, leases: Collection[Freed], now: float) -> None:
        told = [self._step(each.spool_id, each.delivery_id, now, "release") for each in free(connection, leases, now)]
        rows.add_steps(connection, told)

    def _park_unreadable(self, connection: Connection, rows: Collection[Row[Any]]) -> None:
        """Whom it is from and to is lost: nobody can be told but the operator."""
        now, state = self._clock(), DeliveryState.PARKED.value
        code, detail = refusals.PARKED.code, "the envelope kept for it cannot be read"
        for row in rows:
            values = {"state": state, "ended_at": now, "reported": True, "lease": None, "code": code, "detail": detail}
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(values))
            connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, state, code, detail)])
            brake.forget(connection, row.id)

    def _pull_back(self, now: float) -> None:
        """What waits for a time further away than any pause was written by a clock that has been set back since: it
        would wait for years. So was what waits longer than the schedule says and happened in what is now the future."""
        longest = self._schedule.longest_pause
        future = (
            select(steps.c.id)
            .where(steps.c.spool_id == deliveries.c.spool_id, steps.c.at > now + _AHEAD_SECONDS)
            .correlate(deliveries)
            .exists()
        )
        far = (
            claiming.WAITING,
            deliveries.c.priority.in_([each.value for each in Priority]),
            deliveries.c.lease.is_(None),
            deliveries.c.due > now + longest + _AHEAD_SECONDS,
            or_(deliveries.c.due > now + max(longest, LONGEST_ASKED) + _AHEAD_SECONDS, future),
        )
        if self._database.read(lambda connection: connection.scalar(select(deliveries.c.id).where(*far).limit(1))):
            self._database.transact(
                lambda connection: connection.execute(update(deliveries).where(*far).values(due=now)).rowcount
            )

    def keep_prepared(self, lease: Lease, content: bytes, facts: Mapping[str, str]) -> bool:
        """Fix the bytes every attempt sends. False: the lease is stale, nothing was kept, and nothing may be sent."""
        return self.begin_keep_prepared(lease, content, facts).result()

    def begin_keep_prepared(self, lease: Lease, content: bytes | None, facts: Mapping[str, str]) -> Future[bool]:
        """As `keep_prepared`; `content` None: what was accepted is sent as it is. It blocks only to lay down a large
        content as a file; callbacks of the future run on the database's thread and must be quick."""
        draft = None if content is None else self._blobs.draft(PREPARED, content)
        change = rows.Change(
            lease,
            {
                "prepared_blob": lease.content_blob if draft is None else draft.id,
                "facts": json.dumps(dict(facts)),
            },
            self._step(lease.spool_id, lease.delivery_id, self._clock(), "prepare"),
            draft=draft,
            prepares=True,
        )
        try:
            kept = self._database.submit_together(self._change, change)
        except BaseException:
            if draft is not None:
                self._blobs.discard(draft)
            raise

        def ended(done: Future[bool]) -> None:
            if draft is None:
                return
            if done.exception() is None and not done.result():
                self._blobs.discard(draft)  # stale
            else:
                self._blobs.release(draft.id)

        kept.add_done_callback(ended)
        return kept

    def settle(self, lease: Lease, outcome: Outcome) -> bool:
        """Record how an attempt ended. False: the lease is stale and somebody else's outcome counts.

        `Deferred` becomes an end when the delivery's time is over (`mta.expired`), or when this attempt broke down
        (`mta.internal-error`) and was the last of too many (`mta.parked`).
        """
        return self.begin_settle(lease, outcome).result()

    def begin_settle(self, lease: Lease, outcome: Outcome) -> Future[bool]:
        """As `settle`, without waiting; callbacks of the future run on the database's thread and must be quick."""
        now = self._clock()
        broke = isinstance(outcome, Deferred) and outcome.reason.refusal is refusals.INTERNAL_ERROR
        times = lease.breakdowns + 1 if broke else 0
        if isinstance(outcome, Delivered):
            state, code, detail = DeliveryState.DELIVERED, RELAYED if outcome.reports else "", outcome.detail
        else:
            reason, state = outcome.reason, DeliveryState.FAILED
            if isinstance(outcome, Deferred):
                pause = max(self._schedule.pause(lease.attempts + 1), min(outcome.retry_after, LONGEST_ASKED))
                words = f"{reason.refusal.code} {reason.detail}".strip()
                if times >= brake.BREAKDOWNS:
                    state, reason = DeliveryState.PARKED, Refused(refusals.PARKED, words)
                elif now + pause > lease.counts_from + self._schedule.lifetime_of(lease.origin):
                    reason = Refused(refusals.EXPIRED, words)
                else:
                    state = DeliveryState.READY
            code, detail = reason.refusal.code, reason.detail
        values: dict[str, Any] = {
            "lease": None,
            "attempts": lease.attempts + 1,
            "state": state.value,
            "code": code,
            "detail": printable(detail),
        }
        ended = state is not DeliveryState.READY
        values |= {"ended_at": now} if ended else {"due": now + pause}
        step = self._step(lease.spool_id, lease.delivery_id, now, state.value if ended else "deferred", code, detail)

        relayed = code == RELAYED
        change = rows.Change(lease, values, step, broke=0 if ended else times, relayed=relayed)
        settled = self._database.submit_together(self._change, change)
        if ended:
            settled.add_done_callback(
                lambda done: self._tell_ended() if not done.exception() and done.result() else None
            )
        return settled

    def release(self, leases: Collection[Lease], *, interrupted: bool = False) -> None:
        """Give back what was claimed and not begun, or `interrupted` in good order: due at once, no attempt counted.
        Stale leases are ignored. What cannot be given back now is with the next claim that can be made."""
        if not leases:
            return
        now = self._clock()
        given = [Freed(each.delivery_id, each.spool_id, each.token, interrupted) for each in leases]
        try:
            self._database.transact(lambda connection: self._free(connection, given, now))
        except (StoreUnavailableError, SQLAlchemyError):
            self._unsure.add(given, now)
            raise
        self._tell()

    def holds(self, delivery_ids: Collection[str]) -> tuple[frozenset[str], frozenset[str]]:
        """What a person holds (`mta.queue`): all destinations to which nothing is sent, and which of these deliveries
        wait by themselves."""
        alone = select(deliveries.c.id).where(deliveries.c.id.in_(delivery_ids), deliveries.c.held_at.is_not(None))

        def read(connection: Connection) -> tuple[frozenset[str], frozenset[str]]:
            those = frozenset(connection.scalars(alone)) if delivery_ids else frozenset[str]()
            return frozenset(claiming.held(connection)), those

        return self._database.read(read)

    def recover(self, holder: str = "") -> int:
        """What a process that is dead for certain had under lease: `holder`, or by default our own predecessor of the
        same name. Returns how much.

        Due at once the first time; what was in hand at several crashes in a row waits longer after each (1, 4, 16, ...
        seconds), and is parked in the end, for it may be what kills the process.
        """
        now = self._clock()
        leased = (
            select(deliveries.c.id, deliveries.c.spool_id, breakdowns.c.times, breakdowns.c.crashes)
            .outerjoin(breakdowns, breakdowns.c.delivery_id == deliveries.c.id)
            .where(deliveries.c.lease.startswith(f"{holder or self._holder}:", autoescape=True))
            .with_for_update(of=deliveries)  # another node may be freeing the same, and then lease it
        )

        def write(connection: Connection) -> int:
            # one by its partial index, the other by its own: what was held while an attempt ran has its lease too
            rows = [*connection.execute(leased.where(claiming.WAITING))]
            rows += connection.execute(leased.where(deliveries.c.held_at.is_not(None), deliveries.c.state == READY))
            for row in rows:
                self._interrupted(connection, row, now)
            return len(rows)

        freed = self._database.transact(write)
        if freed:
            self._tell()
        return freed

    def expire(self, destinations: Collection[str], limit: int = 500) -> int:
        """End what waits for these destinations, which nobody tries, once its time is over; at most `limit`. Returns
        how many. The reason is that of the last attempt, or that there was none."""
        now = self._clock()
        since = now - self._schedule.lifetime
        before = f"{max(0, int(since * 1000)):012x}"  # ids begin with the time of acceptance
        chance = (
            select(steps.c.id)
            .where(steps.c.spool_id == deliveries.c.spool_id, steps.c.delivery_id == deliveries.c.id)
            .where(steps.c.kind.in_(_ONE_TRY), steps.c.at >= since)
            .correlate(deliveries)
        )
        unending = select(messages.c.id).where(
            messages.c.id == deliveries.c.spool_id,
            messages.c.origin.in_([each.value for each in self._schedule.unending]),
        )
        over = (
            select(deliveries.c.id, deliveries.c.spool_id, deliveries.c.code, deliveries.c.detail)
            .where(claiming.WAITING, deliveries.c.destination.in_(sorted(destinations)))
            .where(deliveries.c.id < before, deliveries.c.lease.is_(None), ~chance.exists())
            .where(~unending.correlate(deliveries).exists())
            .limit(limit)
        )
        if not self._database.read(lambda connection: connection.execute(over.limit(1)).first()):
            return 0

        def write(connection: Connection) -> int:
            ended = 0
            for row in connection.execute(over.with_for_update(skip_locked=True)).all():
                code, state = refusals.EXPIRED.code, DeliveryState.FAILED.value
                detail = printable(f"{row.code or refusals.UNREACHABLE.code} {row.detail}".strip())
                values = {"state": state, "ended_at": now, "code": code, "detail": detail}
                free = deliveries.c.id == row.id, claiming.WAITING, deliveries.c.lease.is_(None)
                if connection.execute(update(deliveries).where(*free).values(values)).rowcount == 1:
                    connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, state, code, detail)])
                    brake.forget(connection, row.id)
                    ended += 1
            return ended

        ended = self._database.transact(write)
        if ended:
            self._tell()
        return ended

    def _interrupted(self, connection: Connection, row: Any, now: float) -> None:
        """The process ended while it worked on this delivery."""
        times, crashes = (row.times or 0) + 1, (row.crashes or 0) + 1
        detail = f"the process ended, {crashes} in a row"
        if times >= brake.BREAKDOWNS:
            code = refusals.PARKED.code
            values: dict[str, Any] = {"state": DeliveryState.PARKED.value, "ended_at": now}
            values |= {"code": code, "detail": detail}
            step = self._step(row.spool_id, row.id, now, DeliveryState.PARKED.value, code, detail)
            brake.forget(connection, row.id)
        else:
            values = {"due": now + min(brake.pause_after(crashes), self._schedule.longest_pause)}
            step = self._step(row.spool_id, row.id, now, "interrupted", "", detail)
            brake.note(connection, row.id, times, crashes)
        connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(lease=None, **values))
        connection.execute(steps.insert(), [step])

    # Reporting

    def reported(self, ended: EndedDelivery) -> None:
        """Everybody who had to be told was told."""
        self._database.transact_together(rows.report, ended.delivery_id)

    def answered(self, ended: KeptDelivery, action: str) -> None:
        """The other operator's receipt for this delivery has come; `action` is its word (RFC 3464 §2.3.3). A second
        one changes nothing."""
        now = self._clock()

        def write(connection: Connection) -> None:
            awaited = delete(awaited_receipts).where(awaited_receipts.c.delivery_id == ended.delivery_id)
            if connection.execute(awaited).rowcount == 1:
                step = self._step(ended.spool_id, ended.delivery_id, now, "answered", "", action)
                connection.execute(steps.insert(), [step])

        self._database.transact(write)


def _chances(connection: Connection, rows: Collection[Row[Any]]) -> dict[str, float]:
    """When operators last gave these deliveries all their time again, for those of which they did."""
    if not rows:
        return {}
    given = (
        select(steps.c.delivery_id, func.max(steps.c.at).label("at"))
        .where(steps.c.spool_id.in_({row.spool_id for row in rows}), steps.c.kind.in_(_ALL_ITS_TIME))
        .where(steps.c.delivery_id.in_([row.id for row in rows]))
        .group_by(steps.c.delivery_id)
    )
    return {row.delivery_id: row.at for row in connection.execute(given)}


def _unanswered(connection: Connection, rows: Collection[Row[Any]]) -> dict[str, int]:
    """How often each of these was sent whole and never answered, since operators last gave it all its time again."""
    if not rows:
        return {}
    said = (
        select(steps.c.delivery_id, steps.c.kind, steps.c.detail)
        .where(steps.c.spool_id.in_({row.spool_id for row in rows}), steps.c.delivery_id.in_([row.id for row in rows]))
        .where(or_(steps.c.kind.in_(_ALL_ITS_TIME), steps.c.code == refusals.CONNECTION_LOST.code))
        .order_by(steps.c.id)
    )
    counted: Counter[str] = Counter()
    for step in connection.execute(said):
        if step.kind in _ALL_ITS_TIME:
            del counted[step.delivery_id]
        elif step.detail.endswith(MAYBE_TAKEN):
            counted[step.delivery_id] += 1
    return counted
