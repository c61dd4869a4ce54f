"""The spool: what was accepted, to whom it still has to go, and how each attempt ended.

Here stands what writes; `mta.spool_reading` only looks. Guarantees, in the order they are earned:

1. `accept` returns only when the content is synced as a blob and the rows are committed; whoever answers `250` or `AA`
   does so after it. Concurrent accepts share one commit (`trust.store.database`).
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

import errno
import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.exc import IntegrityError

from mta import breakdowns as brake
from mta import refusals
from mta.delivery import Accepted, DeliveryRecord, Duplicate, EndedDelivery, Lease, NewDelivery, Submission
from mta.message import Deferred, Delivered, DeliveryState, Outcome, TargetKind
from mta.schedule import RetrySchedule
from mta.spool_reading import CONTENT, PREPARED, READY, SpoolReader, by_dedup_key, by_external_id, with_message
from mta.tables import awaited_receipts, breakdowns, deliveries, messages, steps
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database, StoreUnavailableError
from trust.vault import KeyVault

__all__ = ["PREPARED", "DeliveryRecord", "Duplicate", "Lease", "NewDelivery", "Spool", "Submission"]

REPEATED_EXTERNAL_ID = "the sender used this identifier before, for another content"
"""Detail of the step `accept`, so that the trace shows it."""
RELAYED = "relayed"
"""Code of a delivered delivery whose next hop reports in our place."""
_AHEAD_SECONDS = 60.0
"""Beyond the longest pause a next try may lie in the future before a clock that was set back must be the reason."""

Listener = Callable[[], None]


class Spool(SpoolReader):
    """See the module's guarantees."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        *,
        node: str,
        schedule: RetrySchedule,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
        reserve_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """`free_bytes` says how much the disk still takes; below `reserve_bytes` nothing more is accepted, because
        what was accepted needs room to be delivered and settled."""
        if ":" in node or not 0 < len(node) <= 64:
            raise ValueError("a node name has 1 to 64 characters and no colon")
        # Another operator may try as long as we do; then its receipt has as long again to come back.
        super().__init__(database, blobs, vault, clock=clock, receipt_patience=2 * schedule.lifetime)
        self._node = node
        self._schedule = schedule
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` (from any thread) whenever work was committed."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # Accepting

    def accept(self, submission: Submission, also: Callable[[Connection], None] | None = None) -> Accepted | Duplicate:
        """Keep a submission for good. `also` writes more rows in the same transaction.

        Raises OSError (ENOSPC) already when the disk is nearly full.
        """
        repeat = self.duplicate_of(submission.dedup_key)
        if repeat is not None:
            return repeat
        if self._free_bytes is not None and self._free_bytes() < len(submission.content) + self._reserve_bytes:
            raise OSError(errno.ENOSPC, "the rest of the disk is for what was accepted before")
        now = self._clock()
        spool_id = _new_id(now)
        peer_pseudonym = self._vault.pseudonym("peer", submission.peer) if submission.external_id else ""
        delivery_rows = [self._delivery_row(submission, spool_id, n, now) for n in range(len(submission.deliveries))]
        message_row = {
            "id": spool_id,
            "node": self._node,
            "origin": submission.origin.value,
            "envelope": self._seal(
                spool_id,
                {
                    "sender": submission.sender,
                    "peer": submission.peer,
                    "envelope_id": submission.envelope_id,
                    "flags": list(submission.flags),
                },
            ),
            "content_type": submission.content_type,
            "size": len(submission.content),
            "accepted_at": now,
            "dedup_key": submission.dedup_key,
            "reply": self._vault.seal(submission.reply, b"mta-reply:" + spool_id.encode()),
            "external_id": submission.external_id,
            "peer_pseudonym": peer_pseudonym,
        }
        step_rows = [self._step(spool_id, "", now, "accept")]
        step_rows += [
            self._step(spool_id, row["id"], now, "failed", row["code"], row["detail"])
            for row in delivery_rows
            if row["state"] != READY
        ]
        blob = message_row["content_blob"] = self._blobs.put(CONTENT, submission.content)

        def write(connection: Connection) -> bool | None:
            if connection.execute(by_dedup_key(submission.dedup_key)).first() is not None:
                return None
            repeated = bool(submission.external_id) and (
                connection.execute(
                    select(messages.c.id)
                    .where(by_external_id(submission.external_id), messages.c.peer_pseudonym == peer_pseudonym)
                    .limit(1)
                ).first()
                is not None
            )
            if repeated:
                step_rows[0]["detail"] = REPEATED_EXTERNAL_ID
            connection.execute(messages.insert(), message_row)
            if delivery_rows:
                connection.execute(deliveries.insert(), delivery_rows)
            connection.execute(steps.insert(), step_rows)
            if also is not None:
                also(connection)
            return repeated

        try:
            repeated = self._database.transact(write)
        except IntegrityError:
            # another process committed the same key between our look and our insert
            repeat = self.duplicate_of(submission.dedup_key)
            if repeat is None:
                raise
            repeated = None
        except StoreUnavailableError:
            # Whether the commit reached the disk is not known: a blob too many is collected one day, a row without its
            # blob would answer the sender's repeat with a message that is lost.
            raise
        except Exception:
            self._blobs.delete(blob)
            raise
        finally:
            self._blobs.release(blob)
        if repeated is None:
            self._blobs.delete(blob)
            first = self.duplicate_of(submission.dedup_key)
            if first is None:
                raise RuntimeError("a deduplication key vanished")
            return first
        self._tell()
        return Accepted(spool_id, tuple(row["message_id"] for row in delivery_rows), repeated)

    # Working

    def claim(
        self, limit: int, lease_seconds: float, skip: Collection[str] = (), holding: Collection[str] = ()
    ) -> list[Lease]:
        """At most `limit` due deliveries, the longest due first, none for a destination in `skip`.

        `holding`: delivery ids the caller still works on; they are not leased again, even when a clock that jumped
        says that their leases are over.
        """
        now = self._clock()
        token = f"{self._node}:{secrets.token_hex(12)}"

        def write(connection: Connection) -> list[Row[Any]]:
            ids = self._claimable(connection, now, limit, skip, holding)
            if not ids:
                return []
            rows = connection.execute(
                with_message()
                .add_columns(func.coalesce(breakdowns.c.times, 0).label("breakdowns"))
                .outerjoin(breakdowns, breakdowns.c.delivery_id == deliveries.c.id)
                .where(deliveries.c.id.in_(ids))
                .order_by(deliveries.c.due)
            ).all()
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_(ids)).values(lease=token, due=now + lease_seconds)
            )
            connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, "attempt") for row in rows])
            return list(rows)

        # an idle poll takes no write transaction
        if not self._database.read(lambda connection: self._claimable(connection, now, 1, skip, holding)):
            self._pull_back(now)
            return []
        leases, unreadable = [], []
        for row in self._database.transact(write):
            kept = self._kept(row)
            if kept is None:
                unreadable.append(row)
                continue
            lease = Lease(
                **kept,
                token=token,
                destination=row.destination,
                attempts=row.attempts,
                breakdowns=row.breakdowns,
                expires=now + lease_seconds,
            )
            leases.append(lease)
        if unreadable:
            self._database.transact(lambda connection: self._park_unreadable(connection, unreadable))
        return leases

    def _park_unreadable(self, connection: Connection, rows: Collection[Row[Any]]) -> None:
        """Whom it is from and to is lost: nobody can be told but the operator."""
        now, state = self._clock(), DeliveryState.PARKED.value
        code, detail = refusals.PARKED.code, "the envelope kept for it cannot be read"
        for row in rows:
            values = {"state": state, "ended_at": now, "reported": True, "lease": None, "code": code, "detail": detail}
            connection.execute(update(deliveries).where(deliveries.c.id == row.id).values(values))
            connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, state, code, detail)])
            brake.forget(connection, row.id)

    def _claimable(
        self, connection: Connection, now: float, limit: int, skip: Collection[str], holding: Collection[str]
    ) -> list[str]:
        """Due deliveries, among them one suspect at most, and none while another is in hand."""
        due = (
            select(deliveries.c.id)
            .where(deliveries.c.state == READY, deliveries.c.due <= now)
            .order_by(deliveries.c.due)
            .with_for_update(skip_locked=True)
        )
        if skip:
            due = due.where(deliveries.c.destination.not_in(sorted(skip)))
        if holding:
            due = due.where(deliveries.c.id.not_in(sorted(holding)))
        suspects = brake.suspects(connection)
        if not suspects:
            return list(connection.scalars(due.limit(limit)))
        chosen: list[str] = []
        if not brake.in_hand(connection, suspects, now, holding):
            chosen = list(connection.scalars(due.where(deliveries.c.id.in_(suspects)).limit(1)))
        others = due.where(deliveries.c.id.not_in(suspects)).limit(limit - len(chosen))
        return chosen + list(connection.scalars(others))

    def _pull_back(self, now: float) -> None:
        """What waits for a time further away than any pause was written by a clock that has been set back since: it
        would wait for years."""
        far = (
            deliveries.c.state == READY,
            deliveries.c.lease.is_(None),
            deliveries.c.due > now + self._schedule.longest_pause + _AHEAD_SECONDS,
        )
        if self._database.read(lambda connection: connection.scalar(select(deliveries.c.id).where(*far).limit(1))):
            self._database.transact(
                lambda connection: connection.execute(update(deliveries).where(*far).values(due=now)).rowcount
            )

    def keep_prepared(self, lease: Lease, content: bytes, facts: Mapping[str, str]) -> bool:
        """Fix the bytes every attempt sends. False: the lease is stale, nothing was kept, and nothing may be sent."""
        now = self._clock()
        blob = self._blobs.put(PREPARED, content)

        def write(connection: Connection) -> bool:
            kept = connection.execute(
                update(deliveries)
                .where(*_held(lease), deliveries.c.prepared_blob.is_(None))
                .values(prepared_blob=blob, facts=json.dumps(dict(facts)))
            )
            if kept.rowcount != 1:
                return False
            connection.execute(steps.insert(), [self._step(lease.spool_id, lease.delivery_id, now, "prepare")])
            return True

        try:
            kept = self._database.transact(write)
        finally:
            self._blobs.release(blob)
        if not kept:
            self._blobs.delete(blob)
        return kept

    def settle(self, lease: Lease, outcome: Outcome) -> bool:
        """Record how an attempt ended. False: the lease is stale and somebody else's outcome counts.

        `Deferred` becomes an end when the delivery's time is over (`mta.expired`), or when this attempt broke down
        (`mta.internal-error`) and was the last of too many (`mta.parked`).
        """
        now = self._clock()
        broke = isinstance(outcome, Deferred) and outcome.reason.refusal is refusals.INTERNAL_ERROR
        times = lease.breakdowns + 1 if broke else 0
        if isinstance(outcome, Delivered):
            state, code, detail = DeliveryState.DELIVERED, RELAYED if outcome.reports else "", outcome.detail
        else:
            reason, state = outcome.reason, DeliveryState.FAILED
            if isinstance(outcome, Deferred):
                pause = self._schedule.pause(lease.attempts + 1)
                words = f"{reason.refusal.code} {reason.detail}".strip()
                if times >= brake.BREAKDOWNS:
                    state, reason = DeliveryState.PARKED, Refused(refusals.PARKED, words)
                elif now + pause > lease.accepted_at + self._schedule.lifetime:
                    reason = Refused(refusals.EXPIRED, words)
                else:
                    state = DeliveryState.READY
            code, detail = reason.refusal.code, reason.detail
        values: dict[str, Any] = {
            "lease": None,
            "attempts": lease.attempts + 1,
            "state": state.value,
            "code": code,
            "detail": _printable(detail),
        }
        ended = state is not DeliveryState.READY
        values |= {"ended_at": now} if ended else {"due": now + pause}
        step = self._step(lease.spool_id, lease.delivery_id, now, state.value if ended else "deferred", code, detail)

        def write(connection: Connection) -> bool:
            settled = connection.execute(update(deliveries).where(*_held(lease)).values(values))
            if settled.rowcount != 1:
                return False
            connection.execute(steps.insert(), [step])
            if lease.breakdowns:
                brake.forget(connection, lease.delivery_id)
            if broke and not ended:
                brake.note(connection, lease.delivery_id, times, crashes=0)
            if code == RELAYED:
                connection.execute(
                    awaited_receipts.insert(), {"delivery_id": lease.delivery_id, "accepted_at": lease.accepted_at}
                )
            return True

        settled = self._database.transact(write)
        if settled and ended:
            self._tell()
        return settled

    def release(self, leases: Collection[Lease]) -> None:
        """Give back what was claimed and not begun: due at once, no attempt counted. Stale leases are ignored."""
        now = self._clock()

        def write(connection: Connection) -> None:
            for lease in leases:
                freed = connection.execute(update(deliveries).where(*_held(lease)).values(lease=None, due=now))
                if freed.rowcount == 1:
                    connection.execute(steps.insert(), [self._step(lease.spool_id, lease.delivery_id, now, "release")])

        if leases:
            self._database.transact(write)
            self._tell()

    def recover(self) -> int:
        """At start: what this node's dead predecessor had under lease. Returns how much.

        Due at once the first time; what was in hand at several crashes in a row waits longer after each (1, 4, 16, ...
        seconds), and is parked in the end, for it may be what kills the process.
        """
        now = self._clock()
        held = (
            select(deliveries.c.id, deliveries.c.spool_id, breakdowns.c.times, breakdowns.c.crashes)
            .outerjoin(breakdowns, breakdowns.c.delivery_id == deliveries.c.id)
            .where(deliveries.c.state == READY, deliveries.c.lease.startswith(f"{self._node}:", autoescape=True))
        )

        def write(connection: Connection) -> int:
            rows = connection.execute(held).all()
            for row in rows:
                self._interrupted(connection, row, now)
            return len(rows)

        freed = self._database.transact(write)
        if freed:
            self._tell()
        return freed

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
        done = update(deliveries).where(deliveries.c.id == ended.delivery_id).values(reported=True)
        self._database.transact(lambda connection: connection.execute(done).rowcount)

    def answered(self, ended: EndedDelivery, action: str) -> None:
        """The other operator's receipt for this delivery has come; `action` is its word (RFC 3464 §2.3.3). A second
        one changes nothing."""
        now = self._clock()

        def write(connection: Connection) -> None:
            awaited = delete(awaited_receipts).where(awaited_receipts.c.delivery_id == ended.delivery_id)
            if connection.execute(awaited).rowcount == 1:
                step = self._step(ended.spool_id, ended.delivery_id, now, "answered", "", action)
                connection.execute(steps.insert(), [step])

        self._database.transact(write)

    # Rows

    def _delivery_row(self, submission: Submission, spool_id: str, ordinal: int, now: float) -> dict[str, Any]:
        delivery = submission.deliveries[ordinal]
        delivery_id = _new_id(now)
        refused = delivery.refused
        return {
            "id": delivery_id,
            "spool_id": spool_id,
            "ordinal": ordinal,
            "target": delivery.target.value,
            "destination": _destination(delivery),
            "recipient": self._seal(
                delivery_id,
                {
                    "recipient": delivery.recipient,
                    "notify": delivery.notify,
                    "original_recipient": delivery.original_recipient,
                },
            ),
            "message_id": submission.message_id or f"<{secrets.token_hex(16)}@{submission.message_id_domain}>",
            "state": READY if refused is None else DeliveryState.FAILED.value,
            "attempts": 0,
            "due": now,
            "lease": None,
            "prepared_blob": None,
            "facts": "{}",
            "code": "" if refused is None else refused.refusal.code,
            "detail": "" if refused is None else _printable(refused.detail),
            "ended_at": None if refused is None else now,
            "reported": False,
        }

    def _step(
        self, spool_id: str, delivery_id: str, at: float, kind: str, code: str = "", detail: str = ""
    ) -> dict[str, Any]:
        return {
            "spool_id": spool_id,
            "delivery_id": delivery_id,
            "at": at,
            "node": self._node,
            "kind": kind,
            "code": code,
            "detail": _printable(detail),
        }

    def _seal(self, row_id: str, values: Mapping[str, object]) -> bytes:
        return self._vault.seal(json.dumps(values).encode(), b"mta:" + row_id.encode())


def _new_id(now: float) -> str:
    """32 hexadecimal digits that grow with time, so that new rows are neighbours in the index."""
    return f"{int(now * 1000):012x}{secrets.token_hex(10)}"


def _destination(delivery: NewDelivery) -> str:
    """What deliveries share when one being slow says something about the others; it stands in the clear.

    What was refused goes nowhere, and its recipient need not be an address: it may be a bare matricule.
    """
    if delivery.target is TargetKind.SMTP and delivery.refused is None:
        return f"smtp:{delivery.recipient.rpartition('@')[2].lower()}"[:300]
    if delivery.target is TargetKind.MLLP:
        return f"mllp:{delivery.recipient}"[:300]
    return str(delivery.target.value)


def _held(lease: Lease) -> tuple[Any, Any]:
    return deliveries.c.id == lease.delivery_id, deliveries.c.lease == lease.token


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:500]
