"""What an operator does to deliveries: hold, release, retry now, redirect, expire, drop; each with a name and a reason.

An act and its journal entry are one transaction: neither stands without the other. The step that `relais trace` shows
names the journal's entry, where who and why are kept sealed; nothing here is logged.

An attempt that is under way may be succeeding at this moment. Whoever ended or redirected its delivery then would tell
a sender that a message failed which its recipient has: such acts wait until the attempt has ended, and a hold, which
can always be set, sees to it that no other begins. So no act ever takes a lease from a worker of this node, whatever a
clock that jumped says; the lease of another node that is over was lost with it, and what that node still settles under
it is refused (`mta.spool.Spool.settle`).

What has failed can be tried again only as long as nobody was told that it failed: a receipt that says "not delivered"
about what is delivered afterwards misleads whoever treats the patient.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from mta import breakdowns as brake
from mta import claiming
from mta import queue_listing as listing
from mta import queue_refusals as why
from mta.delivery import destination_of
from mta.message import DeliveryState, Origin, TargetKind
from mta.queue_listing import Lane, Listed, Page, Wanted, listed
from mta.smtp.target import xtext
from mta.spool import Spool
from mta.spool_reading import CONTENT
from mta.tables import deliveries, held_destinations, messages, quarantine, steps
from trust.journal import Journal, JournalEntry
from trust.refusals import Refusal, Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault, VaultError

READY, FAILED, PARKED = (each.value for each in (DeliveryState.READY, DeliveryState.FAILED, DeliveryState.PARKED))
MOST_AT_ONCE = 500
"""Deliveries in one transaction: acceptance waits behind no longer one."""
_TOLD = {
    **{f"dsn:{{}}:failed{form}": True for form in ("", ":bare", ":clear")},
    "zam:{}:Z02": True,
    "zam:{}:Z02:corrected": False,
    "zam:{}:Z01": False,
}
"""Deduplication keys of what says that a delivery failed (`mta.dsn`, `bridges.receipts`), and whether its reader hears
of it when it arrives after all."""
_HELD_THERE = "held"
"""State of a case in quarantine (`mta.quarantine.Held`) that nobody has decided yet."""
_BY_MAIL = frozenset(each.value for each in (Origin.SUBMISSION, Origin.LMTP, Origin.OPERATOR, Origin.COLLECTED))
_PKCS7 = re.compile(rb"^content-type:\s*application/(?:x-)?pkcs7-mime\b[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.I | re.M)
_OUTBOUND = frozenset((Origin.SUBMISSION.value, Origin.LMTP.value, Origin.MLLP.value))
_MAIL = frozenset((TargetKind.SMTP.value, TargetKind.MAILBOX.value))


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and why. Both are written to the journal, sealed."""

    by: str
    reason: str

    def __post_init__(self) -> None:
        if not self.by.strip() or not self.reason.strip():
            raise ValueError("an act on the queue needs a name and a reason")


@dataclass(frozen=True, slots=True)
class Acted:
    """What became of one act on one delivery or destination."""

    name: str
    """Delivery id, or destination."""
    refused: Refused | None = None
    note: str = ""
    """What the operator should know although it was done; a sentence, or empty."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One delivery with what the list leaves out. Addresses: for whoever may read them."""

    listed: Listed
    sender: str
    recipient: str
    original_recipient: str
    """`rfc822;` and xtext: whom it was first for, when it was redirected or the sender said so (RFC 3461 §4.2)."""
    origin: Origin
    detail: str
    reported: bool
    destination_held: bool
    prepared: bool
    """Its bytes are fixed: an attempt was made, or begins with them."""


@dataclass(frozen=True, slots=True)
class HeldDestination:
    destination: str
    held_at: float
    by: str
    reason: str


_Act = Callable[[Connection, Row[Any], float], "Done | Refused"]


@dataclass(frozen=True, slots=True)
class Done:
    """What an act changes of a delivery's row."""

    values: Mapping[str, Any]
    step: str
    """Kind of the step that `trace` shows."""
    code: str = ""
    note: str = ""
    details: Mapping[str, str] | None = None
    """For the journal: pseudonyms and codes."""


class Queue:
    """Of one spool. Synchronous and thread-safe; raises what the database raises."""

    def __init__(
        self,
        spool: Spool,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        journal: Journal,
        *,
        node: str,
        holder: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`node` and `holder` are the spool's."""
        self._spool = spool
        self._database = database
        self._blobs = blobs
        self._vault = vault
        self._journal = journal
        self._node = node
        self._holder = holder or node
        self._clock = clock

    # Looking

    def page(self, wanted: Wanted, limit: int = 50, after: str = "") -> Page:
        """See `mta.queue_listing.page`. Raises `CursorError`."""
        return self._database.read(lambda connection: listing.page(connection, wanted, limit, after))

    def counts(self) -> dict[str, int]:
        """See `mta.queue_listing.counts`."""
        return self._database.read(listing.counts)

    def lanes(self, limit: int = 20) -> list[Lane]:
        """See `mta.queue_listing.lanes`."""
        return self._database.read(lambda connection: listing.lanes(connection, limit))

    def named(self, reference: str) -> list[str]:
        """Delivery ids by delivery id, spool id, Message-ID (with or without angle brackets) or external id."""
        bare = reference.strip().removeprefix("<").removesuffix(">")
        spool_ids = {bare, *self._spool.find(bare), *self._spool.find(f"<{bare}>")}
        query = select(deliveries.c.id).where(deliveries.c.spool_id.in_(spool_ids)).order_by(deliveries.c.id)

        def read(connection: Connection) -> list[str]:
            own = list(connection.scalars(select(deliveries.c.id).where(deliveries.c.id == bare)))
            return own or list(connection.scalars(query))

        return self._database.read(read)

    def messages_of(self, ids: Sequence[str]) -> list[str]:
        """Spool ids of the messages these deliveries belong to."""
        query = select(deliveries.c.spool_id).where(deliveries.c.id.in_(ids)).distinct()
        return sorted(self._database.read(lambda connection: connection.scalars(query).all()))

    def show(self, delivery_id: str) -> Shown | None:
        """One delivery; without addresses when its envelope was damaged."""

        def read(connection: Connection) -> tuple[Row[Any] | None, bool]:
            row = self._row(connection, delivery_id)
            return row, row is not None and row.destination in claiming.held(connection)

        row, destination_held = self._database.read(read)
        if row is None:
            return None
        try:
            to = self._unseal(row.id, row.recipient)
            sender = self._unseal(row.spool_id, row.envelope)["sender"]
        except VaultError:
            to, sender = {"recipient": "", "original_recipient": ""}, ""
        return Shown(
            listed=listed(row),
            sender=sender,
            recipient=to["recipient"],
            original_recipient=to["original_recipient"],
            origin=Origin(row.origin),
            detail=row.detail,
            reported=row.reported,
            destination_held=destination_held,
            prepared=row.prepared_blob is not None,
        )

    def held_destinations(self) -> list[HeldDestination]:
        """Where nothing is sent, since when, and who said why."""
        query = select(held_destinations).order_by(held_destinations.c.destination)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        return [HeldDestination(row.destination, row.held_at, **self._said(row)) for row in rows]

    def held_counts(self) -> tuple[int, int]:
        """How many deliveries and destinations are held."""
        return self._database.read(listing.held_counts)

    def _said(self, row: Row[Any]) -> dict[str, str]:
        try:
            said: dict[str, str] = json.loads(self._vault.unseal(row.sealed, _context(row)))
        except VaultError:  # what is held must be seen all the same
            return {"by": "", "reason": ""}
        return said

    # Acting

    def hold(self, ids: Sequence[str], actor: Actor) -> list[Acted]:
        """No attempt begins, and nothing is purged, until it is released. An attempt under way goes on to its end;
        a delivery that has ended is kept from the purge job."""

        def act(_: Connection, row: Row[Any], now: float) -> Done | Refused:
            note = "in hand now: an attempt that has begun goes on to its end" if self._under_way(row, now) else ""
            if not row.content_blob:
                note = "its content was purged before: what is left is kept"
            return Done({"held_at": now if row.held_at is None else row.held_at}, "held", note=note)

        return self._act("hold", ids, actor, act)

    def release(self, ids: Sequence[str], actor: Actor) -> list[Acted]:
        """Undo `hold`; a delivery that waits is tried at the time it was to be tried at."""

        def act(connection: Connection, row: Row[Any], _: float) -> Done | Refused:
            if self._quarantined(connection, row.id) == _HELD_THERE:
                return Refused(why.QUARANTINED)
            return Refused(why.NOT_HELD) if row.held_at is None else Done({"held_at": None}, "freed")

        return self._act("release", ids, actor, act)

    def retry(self, ids: Sequence[str], actor: Actor, *, although_told: bool = False) -> list[Acted]:
        """Try now. What failed or was parked is opened again when nobody was told that it failed; with `although_told`
        also when its sender was, who is then told a second time if it arrives after all."""
        places = {delivery_id: place for place, delivery_id in enumerate(ids)}

        def act(connection: Connection, row: Row[Any], now: float) -> Done | Refused:
            soon = now + places[row.id] * 1e-6  # one after the other: a thousand equal times would have no order
            if row.state == READY:
                if self._under_way(row, now):
                    return Refused(why.UNDER_WAY)
                if row.held_at is not None or row.destination in claiming.held(connection):
                    return Refused(why.HELD)
                if row.due <= now and row.lease is None:
                    return Refused(why.ALREADY_DUE)
                return Done({"due": soon, "lease": None}, "hurried")
            refused = self._final(connection, row, although_told=although_told)
            if refused is not None:
                return Refused(refused)
            again = {"state": READY, "due": soon, "lease": None, "ended_at": None, "reported": False}
            again |= self._to_be_told(row)
            brake.forget(connection, row.id)
            return Done(again, "reopened")

        return self._act("retry", ids, actor, act)

    def redirect(self, delivery_id: str, recipient: str, target: TargetKind, actor: Actor) -> Acted:
        """Deliver to another address instead: prepared and protected anew, for the other's keys. `target` is where that
        address is; the caller has made sure that it may be written to. Only for what our own senders send by mail."""
        dropped: list[str] = []
        sealed = self._sealed_by_sender(delivery_id)

        def act(_: Connection, row: Row[Any], now: float) -> Done | Refused:
            dropped.clear()  # called again, it may find another
            refused = self._undecided(row, now)
            if refused is not None:
                return Refused(refused)
            if row.origin not in _OUTBOUND or row.target not in _MAIL or target.value not in _MAIL:
                return Refused(why.NOT_REDIRECTABLE)
            if sealed:
                return Refused(why.SEALED_BY_SENDER)
            to = self._unseal(row.id, row.recipient)
            details = {
                "from": self._vault.pseudonym("address", to["recipient"].lower()),
                "to": self._vault.pseudonym("address", recipient.lower()),
            }
            # Receipts go on naming whom the sender wrote to (RFC 3461 §4.2), and so does what composes an HL7 report.
            to |= {"recipient": recipient, "original_recipient": to["original_recipient"] or _orcpt(to["recipient"])}
            note = ""
            if row.prepared_blob is not None:
                if row.prepared_blob != row.content_blob:  # what is sent as it was accepted has one blob
                    dropped.append(row.prepared_blob)
                if row.attempts:
                    note = "earlier attempts were refused or interrupted; one that was interrupted may have arrived"
            values = {
                "recipient": self._seal(row.id, to),
                "target": target.value,
                "destination": destination_of(target, recipient),
                "prepared_blob": None,
                "facts": "{}",
                "due": now,
                "lease": None,
            }
            return Done(values, "redirected", note=note, details=details)

        (acted,) = self._act("redirect", [delivery_id], actor, act)
        for blob in dropped:  # the row first: a blob too many is swept one day
            self._blobs.delete(blob)
        return acted

    def expire(self, ids: Sequence[str], actor: Actor) -> list[Acted]:
        """Fail now; the sender is told."""

        def act(connection: Connection, row: Row[Any], now: float) -> Done | Refused:
            refused = self._undecided(row, now)
            self._unseal(row.id, row.recipient)  # who cannot be read cannot be told
            return Refused(refused) if refused else self._failed(connection, row, now, why.EXPIRED, reported=False)

        return self._act("expire", ids, actor, act)

    def drop(self, ids: Sequence[str], actor: Actor) -> list[Acted]:
        """Fail now and tell nobody but the journal: for what must not be answered, a loop or a forged sender."""

        def act(connection: Connection, row: Row[Any], now: float) -> Done | Refused:
            refused = self._undecided(row, now)
            if refused is not None:
                return Refused(refused)
            if row.origin == Origin.MLLP.value:
                return Refused(why.NOT_DROPPABLE)
            return self._failed(connection, row, now, why.DROPPED, reported=True)

        return self._act("drop", ids, actor, act)

    def hold_destination(self, destination: str, actor: Actor) -> Acted:
        """Nothing that waits for it is begun until it is released; what is accepted for it waits. Attempts under way go
        on to their end; what is in hand and was not begun is given back (`mta.worker`)."""

        def write(connection: Connection) -> None:
            now = self._clock()
            connection.execute(delete(held_destinations).where(held_destinations.c.destination == destination))
            told = json.dumps({"by": actor.by, "reason": actor.reason}).encode()
            sealed = self._vault.seal(told, b"mta-held:" + destination.encode())
            values = {"destination": destination, "held_at": now, "sealed": sealed}
            connection.execute(insert(held_destinations), values)
            self._swear(connection, "hold-destination", destination, actor, {})

        self._database.transact(write)
        self._spool.announce()
        return Acted(destination, note="attempts that have begun go on to their end; what was merely in hand waits")

    def release_destination(self, destination: str, actor: Actor) -> Acted:
        """Undo `hold_destination`."""
        gone = delete(held_destinations).where(held_destinations.c.destination == destination)

        def write(connection: Connection) -> bool:
            if connection.execute(gone).rowcount == 0:
                return False
            self._swear(connection, "release-destination", destination, actor, {})
            return True

        if not self._database.transact(write):
            return Acted(destination, Refused(why.NOT_HELD))
        self._spool.announce()
        return Acted(destination)

    # One transaction

    def _act(self, action: str, ids: Sequence[str], actor: Actor, act: _Act) -> list[Acted]:
        """Each delivery on its own: what is refused stops none of the others."""
        if len(ids) > MOST_AT_ONCE:
            raise ValueError(f"at most {MOST_AT_ONCE} deliveries at once")

        def write(connection: Connection) -> list[Acted]:
            now = self._clock()
            return [self._one(connection, action, delivery_id, actor, act, now) for delivery_id in dict.fromkeys(ids)]

        acted = self._database.transact(write)
        if any(each.refused is None for each in acted):
            self._spool.announce()
        return acted

    def _one(self, connection: Connection, action: str, delivery_id: str, actor: Actor, act: _Act, now: float) -> Acted:
        row = self._row(connection, delivery_id, lock=True)
        if row is None:
            return Acted(delivery_id, Refused(why.UNKNOWN))
        try:
            done = act(connection, row, now)
        except VaultError:
            done = Refused(why.UNREADABLE)
        if isinstance(done, Refused):
            return Acted(delivery_id, done)
        connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(**done.values))
        place = self._swear(connection, action, delivery_id, actor, done.details or {})
        step = {
            "spool_id": row.spool_id,
            "delivery_id": delivery_id,
            "at": now,
            "node": self._node,
            "kind": done.step,
            "code": done.code,
            "detail": place,
        }
        connection.execute(steps.insert(), [step])
        return Acted(delivery_id, note=done.note)

    def _swear(self, connection: Connection, action: str, name: str, actor: Actor, details: Mapping[str, str]) -> str:
        """Write to the journal; returns how to find the entry there."""
        entry = JournalEntry(
            actor=actor.by,
            action=f"queue.{action}",
            outcome="done",
            object_id=name,
            reason=actor.reason,
            details=details,
        )
        receipt = self._journal.append(connection, entry)
        return f"journal {receipt.writer} {receipt.sequence}"

    def _failed(self, connection: Connection, row: Row[Any], now: float, refusal: Refusal, *, reported: bool) -> Done:
        brake.forget(connection, row.id)
        last = f"{row.code} {row.detail}".strip()[:500]
        values = {
            "state": FAILED,
            "ended_at": now,
            "reported": reported,
            "lease": None,
            "held_at": None,
            "code": refusal.code,
            "detail": last,
        }
        return Done(values, FAILED, code=refusal.code)

    def _undecided(self, row: Row[Any], now: float) -> Refusal | None:
        """Why nobody may decide about this delivery now."""
        if row.state != READY:
            return why.ENDED
        return why.UNDER_WAY if self._under_way(row, now) else None

    def _under_way(self, row: Row[Any], now: float) -> bool:
        ours = row.lease is not None and row.lease.startswith(f"{self._holder}:")
        return row.state == READY and row.lease is not None and (ours or row.due > now)

    def _final(self, connection: Connection, row: Row[Any], *, although_told: bool) -> Refusal | None:
        """Why what has ended is not tried again."""
        if row.state not in (FAILED, PARKED):
            return why.ENDED
        if not row.reported:
            return why.BEING_TOLD
        if row.attempts == 0 and row.ended_at == row.accepted_at:
            return why.TOLD  # refused at acceptance: the acknowledgement said so
        if self._quarantined(connection, row.id) is not None:
            return why.QUARANTINED
        told = {key.format(row.id): corrected for key, corrected in _TOLD.items()}
        found = list(connection.scalars(select(messages.c.dedup_key).where(messages.c.dedup_key.in_(told))))
        if found and not (although_told and all(told[key] for key in found)):
            return why.TOLD
        # as `mta.smtp.door` names a message that came again for those it had failed to reach
        again = sha256(f"{row.dedup_key}:again:{row.spool_id}".encode()).hexdigest()
        if connection.execute(select(messages.c.id).where(messages.c.dedup_key == again)).first() is not None:
            return why.SENT_AGAIN
        return None if row.content_blob else why.CONTENT_PURGED

    def _to_be_told(self, row: Row[Any]) -> dict[str, Any]:
        """Whoever wants to know of failures is told of this one's success too (RFC 3461 §4.1)."""
        to = self._unseal(row.id, row.recipient)
        if row.origin not in _BY_MAIL or to["notify"].upper() == "NEVER":
            return {}
        wishes = {each.strip() for each in to["notify"].upper().split(",") if each.strip()}
        to["notify"] = ",".join(sorted(wishes | {"SUCCESS", "FAILURE"}))
        return {"recipient": self._seal(row.id, to)}

    def _sealed_by_sender(self, delivery_id: str) -> bool:
        """Whether what was accepted is encrypted already: another recipient could not read it."""
        row = self._database.read(lambda connection: self._row(connection, delivery_id))
        if row is None or row.content_type != "message/rfc822" or not row.content_blob:
            return False
        header = re.split(rb"\r?\n\r?\n", self._blobs.get(CONTENT, row.content_blob), maxsplit=1)[0]
        found = _PKCS7.search(header)
        return found is not None and b"signed-data" not in found[0].lower()

    def _quarantined(self, connection: Connection, delivery_id: str) -> str | None:
        """The state of its case (`mta.quarantine.Held`), None when it has none."""
        found = select(quarantine.c.state).where(quarantine.c.delivery_id == delivery_id)
        state: str | None = connection.scalar(found)
        return state

    def _seal(self, row_id: str, values: Mapping[str, Any]) -> bytes:
        return self._vault.seal(json.dumps(values).encode(), b"mta:" + row_id.encode())

    def _row(self, connection: Connection, delivery_id: str, *, lock: bool = False) -> Row[Any] | None:
        wanted = ("origin", "envelope", "content_blob", "content_type", "dedup_key", "accepted_at", "size")
        query = select(deliveries, *(messages.c[name] for name in wanted)).join_from(deliveries, messages)
        query = query.where(deliveries.c.id == delivery_id)
        # Its message as well: the purge of another node (`mta.retention`) must not take the content meanwhile.
        return connection.execute(query.with_for_update() if lock else query).first()

    def _unseal(self, row_id: str, sealed: bytes) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self._vault.unseal(sealed, b"mta:" + row_id.encode()))
        return values


def _context(row: Row[Any]) -> bytes:
    return b"mta-held:" + str(row.destination).encode()


def _orcpt(address: str) -> str:
    return f"rfc822;{xtext(address)}"
