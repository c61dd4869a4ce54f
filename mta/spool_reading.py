"""The spool's reading side: what was kept, what happened to it, how the road stands.

`relais trace`, the reporter and monitoring ask here. What a question costs grows with its answer or with the queue,
never with the history: each has its index.

All methods are synchronous and thread-safe; they raise what the database or the blob store raises when these break.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select, text, union

from mta import claiming
from mta.delivery import DeliveryRecord, Duplicate, EndedDelivery, KeptDelivery, MessageRecord, Step
from mta.message import DeliveryState, Origin, TargetKind
from mta.priority import Priority
from mta.retention import ended_before, name_of
from mta.tables import awaited_receipts, deliveries, messages, purged_names, steps
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

_log = logging.getLogger("relais.mta.spool")

CONTENT = "mta-content"
PREPARED = "mta-prepared"
"""Kinds of blob, bound into their encryption."""

READY = DeliveryState.READY.value
_UNREPORTED = text("NOT mta_deliveries.reported AND mta_deliveries.state <> 'ready'")
"""Word for word the condition of its partial index: SQLite uses it for nothing else, and scans every row instead."""
_IDS_AT_ONCE = 500
_COMMITTED_SECONDS = 60.0
"""No transaction takes so long: what is older and not there never comes."""
_ENDS = tuple(state.value for state in DeliveryState if state is not DeliveryState.READY)
"""Kinds of the one step that every delivery's end leaves: the state it ended in."""


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
    awaited: int
    """Deliveries that ended at another operator that reports in our place, and has not."""
    oldest_unanswered: float | None
    """When the oldest message was accepted whose sender has no final answer: a delivery has not ended, or its end is
    not reported, or the other operator's receipt has not come. A receipt that is later than `receipt_patience` is taken
    for lost and counts in `awaited` only."""


class SpoolReader:
    """Whoever only looks needs no more than this."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        *,
        receipt_patience: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`receipt_patience`: seconds from a message's acceptance until another operator's receipt is taken for
        lost."""
        self._database = database
        self._blobs = blobs
        self._vault = vault
        self._clock = clock
        self._receipt_patience = receipt_patience
        self._tally_lock = threading.Lock()
        self._tally = dict.fromkeys(_ENDS, 0)
        self._tallied_step = 0

    # One message

    def content(self, delivery: KeptDelivery) -> bytes:
        """What was accepted, byte for byte."""
        return self._blobs.get(CONTENT, delivery.content_blob)

    def prepared(self, delivery: KeptDelivery) -> bytes | None:
        """What every attempt sends; None before `keep_prepared`."""
        if delivery.prepared_blob == delivery.content_blob:
            return self.content(delivery)  # it is sent as it was accepted
        return None if delivery.prepared_blob is None else self._blobs.get(PREPARED, delivery.prepared_blob)

    def small_contents(self, deliveries: Collection[KeptDelivery]) -> dict[str, bytes]:
        """By delivery id what the next attempt starts from (`prepared`, else `content`), where that is quick to read;
        what cannot be read is left out."""
        blobs = {each.delivery_id: each.prepared_blob or each.content_blob for each in deliveries}
        prepared = {each.prepared_blob for each in deliveries if each.prepared_blob != each.content_blob}
        found = self._blobs.get_rows((PREPARED if blob in prepared else CONTENT, blob) for blob in blobs.values())
        return {delivery_id: found[blob] for delivery_id, blob in blobs.items() if blob in found}

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
            select(messages.c.id).where(by_external_id(reference)),
            select(deliveries.c.spool_id).where(deliveries.c.message_id == reference),
        )
        query = select(messages.c.id).where(messages.c.id.in_(named)).order_by(messages.c.accepted_at.desc())
        return list(self._database.read(lambda connection: connection.scalars(query).all()))

    def find_purged(self, reference: str) -> list[str]:
        """Spool ids of the messages that had this external identifier or Message-ID and of which only that is known any
        more (`mta.retention`), newest first."""
        if not reference:
            return []
        name = name_of(self._vault, reference)
        query = select(purged_names.c.spool_id).where(purged_names.c.name == name)
        query = query.order_by(purged_names.c.spool_id.desc())
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
            flags=() if row.purged_at is not None else tuple(self._unseal(row.id, row.envelope)["flags"]),
            purged_at=row.purged_at,
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

    def mailbox_states(self, spool_ids: Iterable[str]) -> dict[str, list[DeliveryState]]:
        """How the deliveries of these messages to mailboxes of ours stand; without messages that have none (any more).
        No envelope is opened for it."""
        found: dict[str, list[DeliveryState]] = {}
        asked = select(deliveries.c.spool_id, deliveries.c.state).where(deliveries.c.target == TargetKind.MAILBOX.value)
        wanted = list(set(spool_ids))

        def read(connection: Connection) -> None:
            for start in range(0, len(wanted), _IDS_AT_ONCE):
                some = deliveries.c.spool_id.in_(wanted[start : start + _IDS_AT_ONCE])
                for spool_id, state in connection.execute(asked.where(some)):
                    found.setdefault(spool_id, []).append(DeliveryState(state))

        self._database.read(read)
        return found

    def duplicate_of(self, dedup_key: str) -> Duplicate | None:
        """The submission that has this key, if any."""
        row = self._database.read(lambda connection: connection.execute(by_dedup_key(dedup_key)).first())
        if row is None:
            return None
        return Duplicate(row.id, self._reply(row.id, row.reply))

    def _reply(self, spool_id: str, sealed: bytes) -> bytes:
        """What was answered; nothing is sealed where nothing was."""
        return self._vault.unseal(sealed, b"mta-reply:" + spool_id.encode()) if sealed else b""

    # Ends

    def ended(self, limit: int) -> list[EndedDelivery]:
        """Deliveries that ended and were not reported yet, the oldest first."""
        return self._ends(with_message().where(_UNREPORTED).limit(limit))

    def ended_of(self, spool_id: str) -> list[EndedDelivery]:
        """One message's ended deliveries, reported or not."""
        return self._ends(with_message().where(deliveries.c.spool_id == spool_id, deliveries.c.state != READY))

    def _ends(self, query: Select[Any]) -> list[EndedDelivery]:
        rows = self._database.read(lambda connection: connection.execute(query.order_by(deliveries.c.ended_at)).all())
        return [
            EndedDelivery(
                **kept,
                external_id=row.message_external_id,
                ended_at=row.ended_at,
                delivered=row.state == DeliveryState.DELIVERED.value,
                code=row.code,
                detail=row.detail,
            )
            for row in rows
            if (kept := self._kept(row)) is not None
        ]

    # The road

    def counts(self) -> dict[DeliveryState, int]:
        """How many deliveries are in each state. Reads all there are: `gauges` is for whoever asks often."""
        query = select(deliveries.c.state, func.count()).group_by(deliveries.c.state)
        found = dict(self._database.read(lambda connection: [(s, n) for s, n in connection.execute(query)]))
        return {state: found.get(state.value, 0) for state in DeliveryState}

    def gauges(self) -> SpoolGauges:
        """How the road stands, for monitoring.

        Only the first call reads the history, once, to count what ended before this process began.
        """
        now = self._clock()
        # held ones have not ended either, and each half has its own partial index; every destination has a name, and
        # SQLite is led by it to the one index of the first half that holds what is asked
        ready = (
            and_(claiming.WAITING, deliveries.c.destination >= ""),
            and_(deliveries.c.held_at.is_not(None), deliveries.c.state == READY),
        )
        # ids begin with the time of acceptance, and stand in the index: no message is read for it
        waiting = select(func.count(), func.min(deliveries.c.id))
        soon = (claiming.WAITING, deliveries.c.priority.in_([each.value for each in Priority]))
        due = select(func.count()).select_from(deliveries).where(*soon, deliveries.c.due <= now)
        accepted = select(messages.c.accepted_at).join_from(deliveries, messages)
        awaited = select(func.count()).select_from(awaited_receipts)
        unanswered = select(func.min(awaited_receipts.c.accepted_at)).where(
            awaited_receipts.c.accepted_at > now - self._receipt_patience
        )

        def read(connection: Connection) -> SpoolGauges:
            if not self._tallied_step:
                self._tally = dict.fromkeys(_ENDS, 0) | ended_before(connection)
            # Nodes commit in another order than they number: what is young is counted again the next time.
            old = select(func.max(steps.c.id)).where(
                steps.c.id > self._tallied_step, steps.c.at < now - _COMMITTED_SECONDS
            )
            if last := connection.scalar(old):
                counted = _ended(connection, steps.c.id > self._tallied_step, steps.c.id <= last)
                self._tally = {kind: self._tally[kind] + counted.get(kind, 0) for kind in _ENDS}
                self._tallied_step = last
            young = _ended(connection, steps.c.id > self._tallied_step)
            halves = [connection.execute(waiting.where(half)).one() for half in ready]
            unreported, first_unreported = connection.execute(waiting.where(_UNREPORTED)).one()

            def accepted_at(delivery_ids: Iterable[str | None]) -> float | None:
                first = min(filter(None, delivery_ids), default=None)
                return None if first is None else connection.scalar(accepted.where(deliveries.c.id == first))

            oldest_waiting = accepted_at(first for _, first in halves)
            since = (oldest_waiting, accepted_at([first_unreported]), connection.scalar(unanswered))
            return SpoolGauges(
                at=now,
                states={
                    DeliveryState.READY: sum(count for count, _ in halves),
                    **{DeliveryState(kind): count + young.get(kind, 0) for kind, count in self._tally.items()},
                },
                due=connection.scalar(due) or 0,
                oldest_waiting=oldest_waiting,
                unreported=unreported,
                awaited=connection.scalar(awaited) or 0,
                oldest_unanswered=min((at for at in since if at is not None), default=None),
            )

        with self._tally_lock:
            return self._database.read(read)

    def next_due(self, skip: Collection[str] = (), holding: Collection[str] = ()) -> float | None:
        """UNIX time at which `claim` finds the next delivery; None when it finds none however long it waits."""
        now = self._clock()
        return self._database.read(lambda connection: claiming.next_due(connection, now, skip, holding))

    # Rows

    def _kept(self, row: Row[Any]) -> dict[str, Any] | None:
        """The fields of `KeptDelivery` from a row of `with_message`; None, and a line in the log, when what it says was
        damaged: one such row must not hide the others."""
        try:
            envelope = self._unseal(row.spool_id, row.message_envelope)
            to = self._unseal(row.id, row.recipient)
            return {
                "delivery_id": row.id,
                "spool_id": row.spool_id,
                "message_id": row.message_id,
                "origin": Origin(row.message_origin),
                "target": TargetKind(row.target),
                "sender": envelope["sender"],
                "recipient": to["recipient"],
                "peer": envelope["peer"],
                "content_type": row.message_content_type,
                "accepted_at": row.message_accepted_at,
                "content_blob": row.message_content_blob,
                "prepared_blob": row.prepared_blob,
                "envelope_id": envelope["envelope_id"],
                "notify": to["notify"],
                "original_recipient": to["original_recipient"],
                "flags": tuple(envelope["flags"]),
                "facts": json.loads(row.facts),
            }
        except (ValueError, LookupError):  # `VaultError` is one of them
            _log.error("delivery %s of message %s: its envelope cannot be read", row.id, row.spool_id)
            return None

    def _unseal(self, row_id: str, sealed: bytes) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._vault.unseal(sealed, b"mta:" + row_id.encode()))
        return values


def _ended(connection: Connection, *within: Any) -> dict[str, int]:
    """How many deliveries' ends are among these steps, by state."""
    ended = (
        select(steps.c.kind, func.count().label("number"))
        .where(steps.c.kind.in_(_ENDS), *within)
        .group_by(steps.c.kind)
    )
    return {row.kind: row.number for row in connection.execute(ended)}


def with_message() -> Select[Any]:
    """Deliveries with what `SpoolReader._kept` needs of their messages, labelled apart."""
    wanted = ("origin", "envelope", "content_type", "content_blob", "accepted_at", "external_id")
    labelled = [messages.c[name].label(f"message_{name}") for name in wanted]
    return select(deliveries, *labelled).join_from(deliveries, messages)


def by_external_id(external_id: str) -> Any:
    """By its partial index, which SQLite uses only when its condition is repeated."""
    return and_(messages.c.external_id == external_id, messages.c.external_id != "")


def by_dedup_key(dedup_key: str) -> Any:
    return select(messages.c.id, messages.c.reply).where(messages.c.dedup_key == dedup_key)
