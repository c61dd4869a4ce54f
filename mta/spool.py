"""The spool: what was accepted, to whom it still has to go, and what happened to it.

Guarantees, in the order they are earned:

1. `accept` returns only when the content is synced as a blob and the rows are committed; whoever answers `250` or `AA`
   does so after it. Concurrent accepts share one commit (`trust.store.database`).
2. The deduplication key is unique: a sender repeating a message whose acknowledgement was lost gets the first answer
   again, and no second delivery exists.
3. A delivery is worked on under a lease. A lease ends by `settle`, by `release` or by its own expiry, and every write
   that follows names it: what a stale worker reports is refused, never mixed in.
4. The protected bytes are committed (`keep_prepared`) before the first attempt, so that every attempt, by any process,
   sends the same bytes under the same Message-ID and delivery id.

Between a destination's final reply and our `settle` a crash repeats the delivery: no protocol avoids that. The second
copy carries the same delivery id, by which a mailbox or a dossier recognises it.

All methods are synchronous and thread-safe; they raise what the database or the blob store raises when these break.
"""

from __future__ import annotations

import errno
import json
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select, text, union, update
from sqlalchemy.exc import IntegrityError

from mta import refusals
from mta.delivery import (
    Accepted,
    DeliveryRecord,
    Duplicate,
    EndedDelivery,
    Lease,
    MessageRecord,
    NewDelivery,
    Step,
    Submission,
)
from mta.message import (
    Deferred,
    Delivered,
    DeliveryState,
    Failed,
    Origin,
    Outcome,
    TargetKind,
)
from mta.schedule import RetrySchedule
from mta.tables import deliveries, messages, steps
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database, StoreUnavailableError
from trust.vault import KeyVault

CONTENT = "mta-content"
PREPARED = "mta-prepared"
"""Kinds of blob, bound into their encryption."""

REPEATED_EXTERNAL_ID = "the sender used this identifier before, for another content"
"""Detail of the step `accept`, so that the trace shows it."""

_READY = DeliveryState.READY.value
RELAYED = "relayed"
"""Code of a delivered delivery whose next hop reports in our place."""
_UNREPORTED = text("NOT mta_deliveries.reported AND mta_deliveries.state <> 'ready'")
"""Word for word the condition of its partial index: SQLite uses it for nothing else, and scans every row instead."""
_ENDED_KINDS = (DeliveryState.DELIVERED.value, DeliveryState.FAILED.value)
"""Kinds of the one step that every delivery's end leaves."""


__all__ = [
    "Accepted",
    "DeliveryRecord",
    "Duplicate",
    "EndedDelivery",
    "Lease",
    "MessageRecord",
    "NewDelivery",
    "Spool",
    "SpoolGauges",
    "Step",
    "Submission",
]

Listener = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SpoolGauges:
    """How the road stands at one moment. Times are UNIX times in seconds, None when there is nothing to be that old."""

    at: float
    """When it was looked at, by the spool's clock."""
    states: Mapping[DeliveryState, int]
    """Deliveries by state, since the spool began."""
    due: int
    """Ready ones a worker could take now: nobody works on them and their next try has come."""
    oldest_waiting: float | None
    """When the oldest message with a delivery that has not ended was accepted."""
    unreported: int
    """Deliveries that ended and whose end was not reported yet."""
    oldest_unreported: float | None
    """When the first of them ended."""


class Spool:
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
        self._database = database
        self._blobs = blobs
        self._vault = vault
        self._node = node
        self._schedule = schedule
        self._clock = clock
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._listeners: list[Listener] = []
        self._tally_lock = threading.Lock()
        self._tally = dict.fromkeys(_ENDED_KINDS, 0)
        self._tallied_step = 0

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
            if row["state"] != _READY
        ]
        blob = self._blobs.put(CONTENT, submission.content)
        message_row["content_blob"] = blob

        def write(connection: Connection) -> bool | None:
            if connection.execute(_by_dedup_key(submission.dedup_key)).first() is not None:
                return None
            repeated = bool(submission.external_id) and (
                connection.execute(
                    select(messages.c.id)
                    .where(_by_external_id(submission.external_id), messages.c.peer_pseudonym == peer_pseudonym)
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
        if repeated is None:
            self._blobs.delete(blob)
            first = self.duplicate_of(submission.dedup_key)
            if first is None:
                raise RuntimeError("a deduplication key vanished")
            return first
        self._tell()
        return Accepted(spool_id, tuple(row["message_id"] for row in delivery_rows), repeated)

    def duplicate_of(self, dedup_key: str) -> Duplicate | None:
        """The submission that has this key, if any."""
        row = self._database.read(lambda connection: connection.execute(_by_dedup_key(dedup_key)).first())
        if row is None:
            return None
        return Duplicate(row.id, self._vault.unseal(row.reply, b"mta-reply:" + row.id.encode()))

    # Working

    def claim(self, limit: int, lease_seconds: float, skip: Collection[str] = ()) -> list[Lease]:
        """At most `limit` due deliveries, the longest due first, none for a destination in `skip`."""
        now = self._clock()
        token = f"{self._node}:{secrets.token_hex(12)}"
        due = (
            select(deliveries.c.id)
            .where(deliveries.c.state == _READY, deliveries.c.due <= now)
            .order_by(deliveries.c.due)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        if skip:
            due = due.where(deliveries.c.destination.not_in(sorted(skip)))
        rows_of = (
            select(
                deliveries,
                *_message_columns(),
            )
            .join_from(deliveries, messages)
            .order_by(deliveries.c.due)
        )

        def write(connection: Connection) -> list[Row[Any]]:
            ids = list(connection.scalars(due))
            if not ids:
                return []
            rows = list(connection.execute(rows_of.where(deliveries.c.id.in_(ids))))
            connection.execute(
                update(deliveries).where(deliveries.c.id.in_(ids)).values(lease=token, due=now + lease_seconds)
            )
            connection.execute(steps.insert(), [self._step(row.spool_id, row.id, now, "attempt") for row in rows])
            return rows

        # an idle poll takes no write transaction
        if self._database.read(lambda connection: connection.execute(due.limit(1)).first()) is None:
            return []
        return [self._lease(row, token, now + lease_seconds) for row in self._database.transact(write)]

    def content(self, lease: Lease | EndedDelivery) -> bytes:
        """What was accepted, byte for byte."""
        return self._blobs.get(CONTENT, lease.content_blob)

    def prepared(self, lease: Lease | EndedDelivery) -> bytes | None:
        """What every attempt sends; None before `keep_prepared`."""
        return None if lease.prepared_blob is None else self._blobs.get(PREPARED, lease.prepared_blob)

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

        kept = self._database.transact(write)
        if not kept:
            self._blobs.delete(blob)
        return kept

    def settle(self, lease: Lease, outcome: Outcome) -> bool:
        """Record how an attempt ended. False: the lease is stale and somebody else's outcome counts."""
        now = self._clock()
        values: dict[str, Any] = {"lease": None, "attempts": lease.attempts + 1}
        if isinstance(outcome, Deferred):
            pause = self._schedule.pause(lease.attempts + 1) if outcome.retry_after is None else outcome.retry_after
            if now + pause > lease.accepted_at + self._schedule.lifetime:
                last = outcome.reason
                words = f"{last.refusal.code} {last.detail}".strip()
                outcome = Failed(Refused(refusals.EXPIRED, words))
        if isinstance(outcome, Delivered):
            kind, code, detail = "delivered", RELAYED if outcome.reports else "", outcome.detail
            values |= {"state": DeliveryState.DELIVERED.value, "ended_at": now}
        elif isinstance(outcome, Failed):
            kind, code, detail = "failed", outcome.reason.refusal.code, outcome.reason.detail
            values |= {"state": DeliveryState.FAILED.value, "ended_at": now}
        else:
            kind, code, detail = "deferred", outcome.reason.refusal.code, outcome.reason.detail
            values |= {"due": now + pause}
        values |= {"code": code, "detail": _printable(detail)}

        def write(connection: Connection) -> bool:
            settled = connection.execute(update(deliveries).where(*_held(lease)).values(values))
            if settled.rowcount != 1:
                return False
            connection.execute(steps.insert(), [self._step(lease.spool_id, lease.delivery_id, now, kind, code, detail)])
            return True

        settled = self._database.transact(write)
        if settled and not isinstance(outcome, Deferred):
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
        """At start: what this node's dead predecessor had under lease is due at once. Returns how many."""
        now = self._clock()

        def write(connection: Connection) -> int:
            freed = connection.execute(
                update(deliveries)
                .where(deliveries.c.state == _READY, deliveries.c.lease.startswith(f"{self._node}:", autoescape=True))
                .values(lease=None, due=now)
            )
            return freed.rowcount

        freed = self._database.transact(write)
        if freed:
            self._tell()
        return freed

    # Reporting

    def ended(self, limit: int) -> list[EndedDelivery]:
        """Deliveries that ended and were not reported yet, the oldest first."""
        return self._ends(_ended_deliveries().where(_UNREPORTED).limit(limit))

    def ended_of(self, spool_id: str) -> list[EndedDelivery]:
        """One message's ended deliveries, reported or not."""
        return self._ends(_ended_deliveries().where(deliveries.c.spool_id == spool_id))

    def _ends(self, query: Select[Any]) -> list[EndedDelivery]:
        return [self._ended(row) for row in self._database.read(lambda connection: connection.execute(query).all())]

    def reported(self, ended: EndedDelivery) -> None:
        """Everybody who had to be told was told."""
        done = update(deliveries).where(deliveries.c.id == ended.delivery_id).values(reported=True)
        self._database.transact(lambda connection: connection.execute(done).rowcount)

    # Looking

    def steps(self, spool_id: str) -> list[Step]:
        """What happened to one message, in order."""
        query = select(steps).where(steps.c.spool_id == spool_id).order_by(steps.c.id)
        return [
            Step(row.at, row.node, row.delivery_id, row.kind, row.code, row.detail)
            for row in self._database.read(lambda connection: connection.execute(query).all())
        ]

    def find(self, reference: str) -> list[str]:
        """Spool ids of the messages with this external identifier or Message-ID, newest first."""
        if not reference:
            return []
        # A union, each half by its own index: one condition with OR would scan every message.
        named = union(
            select(messages.c.id).where(_by_external_id(reference)),
            select(deliveries.c.spool_id).where(deliveries.c.message_id == reference),
        )
        query = select(messages.c.id).where(messages.c.id.in_(named)).order_by(messages.c.accepted_at.desc())
        return list(self._database.read(lambda connection: connection.scalars(query).all()))

    def message(self, spool_id: str) -> MessageRecord | None:
        """One accepted message."""
        query = select(messages).where(messages.c.id == spool_id)
        row = self._database.read(lambda connection: connection.execute(query).first())
        if row is None:
            return None
        return MessageRecord(
            spool_id=row.id,
            origin=Origin(row.origin),
            content_type=row.content_type,
            size=row.size,
            accepted_at=row.accepted_at,
            external_id=row.external_id,
            flags=tuple(self._unseal(row.id, row.envelope)["flags"]),
        )

    def deliveries(self, spool_id: str) -> list[DeliveryRecord]:
        """The deliveries of one message, in the order of its recipients."""
        query = select(deliveries).where(deliveries.c.spool_id == spool_id).order_by(deliveries.c.ordinal)
        return [
            DeliveryRecord(
                delivery_id=row.id,
                spool_id=row.spool_id,
                target=TargetKind(row.target),
                recipient=self._unseal(row.id, row.recipient)["recipient"],
                message_id=row.message_id,
                state=DeliveryState(row.state),
                attempts=row.attempts,
                due=row.due,
                code=row.code,
                detail=row.detail,
                facts=json.loads(row.facts),
                ended_at=row.ended_at,
            )
            for row in self._database.read(lambda connection: connection.execute(query).all())
        ]

    def counts(self) -> dict[DeliveryState, int]:
        """How many deliveries are in each state."""
        query = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
        found = dict(self._database.read(lambda connection: [(s, n) for s, n in connection.execute(query)]))
        return {state: found.get(state.value, 0) for state in DeliveryState}

    def gauges(self) -> SpoolGauges:
        """How the road stands, for monitoring: what it costs grows with the queue, never with the history.

        Only the first call reads the history, once, to count what ended before this process began.
        """
        now = self._clock()
        ready = deliveries.c.state == _READY
        waiting = select(func.count()).select_from(deliveries).where(ready)
        oldest = select(func.min(messages.c.accepted_at)).join_from(deliveries, messages).where(ready)
        unreported = select(func.count(), func.min(deliveries.c.ended_at)).select_from(deliveries).where(_UNREPORTED)

        def read(connection: Connection) -> SpoolGauges:
            ended = connection.execute(
                select(steps.c.kind, func.count(), func.max(steps.c.id))
                .where(steps.c.id > self._tallied_step, steps.c.kind.in_(_ENDED_KINDS))
                .group_by(steps.c.kind)
            )
            for kind, count, last in ended.all():
                self._tally[kind] += count
                self._tallied_step = max(self._tallied_step, last)
            untold, first_untold = connection.execute(unreported).one()
            return SpoolGauges(
                at=now,
                states={
                    DeliveryState.READY: connection.scalar(waiting) or 0,
                    **{DeliveryState(kind): count for kind, count in self._tally.items()},
                },
                due=connection.scalar(waiting.where(deliveries.c.due <= now)) or 0,
                oldest_waiting=connection.scalar(oldest),
                unreported=untold,
                oldest_unreported=first_untold,
            )

        with self._tally_lock:
            return self._database.read(read)

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """UNIX time at which the next delivery falls due (or its lease expires); None when nothing waits."""
        query = select(func.min(deliveries.c.due)).where(deliveries.c.state == _READY)
        if skip:
            query = query.where(deliveries.c.destination.not_in(sorted(skip)))
        due: float | None = self._database.read(lambda connection: connection.scalar(query))
        return due

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
            "state": _READY if refused is None else DeliveryState.FAILED.value,
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

    def _lease(self, row: Row[Any], token: str, expires: float) -> Lease:
        envelope = self._unseal(row.spool_id, row.message_envelope)
        to = self._unseal(row.id, row.recipient)
        return Lease(
            token=token,
            delivery_id=row.id,
            spool_id=row.spool_id,
            message_id=row.message_id,
            origin=Origin(row.message_origin),
            target=TargetKind(row.target),
            destination=row.destination,
            sender=envelope["sender"],
            recipient=to["recipient"],
            peer=envelope["peer"],
            content_type=row.message_content_type,
            accepted_at=row.message_accepted_at,
            attempts=row.attempts,
            expires=expires,
            content_blob=row.message_content_blob,
            prepared_blob=row.prepared_blob,
            envelope_id=envelope["envelope_id"],
            notify=to["notify"],
            original_recipient=to["original_recipient"],
            flags=tuple(envelope["flags"]),
            facts=json.loads(row.facts),
        )

    def _ended(self, row: Row[Any]) -> EndedDelivery:
        envelope = self._unseal(row.spool_id, row.message_envelope)
        to = self._unseal(row.id, row.recipient)
        return EndedDelivery(
            delivery_id=row.id,
            spool_id=row.spool_id,
            message_id=row.message_id,
            origin=Origin(row.message_origin),
            target=TargetKind(row.target),
            sender=envelope["sender"],
            recipient=to["recipient"],
            peer=envelope["peer"],
            external_id=row.external_id,
            content_type=row.message_content_type,
            accepted_at=row.message_accepted_at,
            ended_at=row.ended_at,
            delivered=row.state == DeliveryState.DELIVERED.value,
            code=row.code,
            detail=row.detail,
            content_blob=row.message_content_blob,
            prepared_blob=row.prepared_blob,
            envelope_id=envelope["envelope_id"],
            notify=to["notify"],
            original_recipient=to["original_recipient"],
            flags=tuple(envelope["flags"]),
            facts=json.loads(row.facts),
        )

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

    def _unseal(self, row_id: str, sealed: bytes) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._vault.unseal(sealed, b"mta:" + row_id.encode()))
        return values


def _ended_deliveries() -> Select[Any]:
    return (
        select(deliveries, *_message_columns(), messages.c.external_id)
        .join_from(deliveries, messages)
        .where(deliveries.c.state != _READY)
        .order_by(deliveries.c.ended_at)
    )


def _message_columns() -> list[Any]:
    """The message's columns a delivery is worked on with, labelled apart from its own."""
    wanted = ("origin", "envelope", "content_type", "content_blob", "accepted_at")
    return [messages.c[name].label(f"message_{name}") for name in wanted]


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


def _by_dedup_key(dedup_key: str) -> Any:
    return select(messages.c.id, messages.c.reply).where(messages.c.dedup_key == dedup_key)


def _by_external_id(external_id: str) -> Any:
    """By its partial index, which SQLite uses only when its condition is repeated."""
    return and_(messages.c.external_id == external_id, messages.c.external_id != "")


def _held(lease: Lease) -> tuple[Any, Any]:
    return deliveries.c.id == lease.delivery_id, deliveries.c.lease == lease.token


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:500]
