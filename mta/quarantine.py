"""The quarantine: mail in which malicious software was found, kept encrypted in the spool until a person decides.

Its delivery has failed and its sender was told so, without the content; a recipient of ours is told that something came
and what to ask for. A named person releases it, with a reason, and it goes on from the beginning without being scanned
again; or drops it, and its content is destroyed. What nobody decides about is dropped after a while. Each decision
stands in the journal, in the transaction that makes it true.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import Enum
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from mta import refusals
from mta.any_delivery import AnyDelivery, AnyReader, add_step
from mta.delivery import Accepted, EndedDelivery, NewDelivery, Submission
from mta.message import DeliveryState, Origin, TargetKind
from mta.quarantine_refusals import DECIDED, NAMELESS, UNKNOWN
from mta.scanning import RELEASED
from mta.smtp.content import with_crlf
from mta.spool import Spool
from mta.spool_reading import CONTENT
from mta.system_mail import HIDDEN, Form, Sent, SystemMail
from mta.tables import deliveries, messages, quarantine
from trust.journal import Journal
from trust.journal_entry import JournalEntry
from trust.refusals import Refused
from trust.store.blobs import BlobDamagedError, BlobMissingError, BlobStore
from trust.store.database import Database
from trust.vault import KeyVault, VaultError

_log = logging.getLogger("relais.mta.quarantine")

KIND = "quarantine"
CODES = frozenset((refusals.MALWARE_FOUND.code, refusals.SCAN_TOO_LARGE.code))
"""Catalogue codes of deliveries that end here."""
_SUBJECT = "Message en quarantaine / Message in quarantine"
_LONGEST_WORDS = 1000


class Held(Enum):
    HELD = "held"
    RELEASED = "released"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One delivery in quarantine, for whoever may decide about it."""

    delivery: AnyDelivery
    """`code` and `detail` say what was found."""
    held_at: float
    state: Held
    decided_at: float | None
    by: str
    reason: str


class Quarantine:
    """Also an `mta.reporting.EndConsumer`. Thread-safe; raises what the store raises."""

    def __init__(
        self,
        spool: Spool,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        journal: Journal,
        mail: SystemMail,
        *,
        node: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spool = spool
        self._database = database
        self._blobs = blobs
        self._vault = vault
        self._journal = journal
        self._mail = mail
        self._node = node
        self._clock = clock
        self._deliveries = AnyReader(spool)

    # What comes in

    async def ended(self, delivery: EndedDelivery) -> None:
        """See `mta.reporting.EndConsumer`."""
        again = self._mail.to_say_again(delivery)
        if again is not None and again.kind == KIND:
            await asyncio.to_thread(self._say_again, again)
        elif delivery.code in CODES and not delivery.delivered:
            await asyncio.to_thread(self._hold, AnyDelivery.of(delivery))

    def _hold(self, delivery: AnyDelivery) -> None:
        now = self._clock()

        def write(connection: Connection) -> None:
            known = select(quarantine.c.delivery_id).where(quarantine.c.delivery_id == delivery.delivery_id)
            if connection.execute(known).first() is None:
                row = {"delivery_id": delivery.delivery_id, "held_at": now, "state": Held.HELD.value}
                connection.execute(insert(quarantine), row)
                this = deliveries.c.id == delivery.delivery_id
                connection.execute(update(deliveries).where(this).values(held_at=now))  # not purged meanwhile
                add_step(connection, self._node, delivery, "quarantined", now, delivery.detail)

        self._database.transact(write)
        if delivery.target is TargetKind.MAILBOX and delivery.origin is not Origin.SYSTEM:
            self._tell(delivery, Form.WHOLE)

    def _say_again(self, sent: Sent) -> None:
        delivery = self._deliveries.one(sent.about)
        if delivery is not None:
            self._tell(delivery, sent.form)

    def _tell(self, delivery: AnyDelivery, form: Form) -> None:
        """Tell the recipient, without a word of the content."""
        sent = Sent(KIND, delivery.delivery_id, "held", form)
        sender = self._mail.shown(delivery.sender, form)
        content = _notice(self._mail, sent, delivery, "" if sender == HIDDEN else sender)
        if not self._mail.send(sent, delivery.recipient, content, delivery.spool_id):
            _log.warning("the recipient of delivery %s cannot be told of the quarantine", delivery.delivery_id)

    # What people decide

    def list(self, state: Held | None = Held.HELD, limit: int = 1000) -> list[Quarantined]:
        """The oldest first; of all states when None."""
        query = select(quarantine).order_by(quarantine.c.held_at).limit(limit)
        if state is not None:
            query = query.where(quarantine.c.state == state.value)
        rows = self._database.read(lambda connection: connection.execute(query).all())
        found = (self._quarantined(row) for row in rows)
        return [each for each in found if each is not None]

    def show(self, delivery_id: str) -> Quarantined | Refused:
        query = select(quarantine).where(quarantine.c.delivery_id == delivery_id)
        row = self._database.read(lambda connection: connection.execute(query).first())
        found = None if row is None else self._quarantined(row)
        return Refused(UNKNOWN) if found is None else found

    def release(self, delivery_id: str, by: str, reason: str) -> str | Refused:
        """Send it on from the beginning, not scanned again; returns the new spool id. Its sender, who was told that it
        failed, is told when it arrives."""
        held = self._open_case(delivery_id, by, reason)
        if isinstance(held, Refused):
            return held
        delivery = held.delivery
        try:
            content = self._spool.content(delivery)
        except BlobMissingError:  # dropped at this moment by somebody else
            again = self._open_case(delivery_id, by, reason)
            if isinstance(again, Refused):
                return again
            raise
        submission = Submission(
            origin=delivery.origin,
            sender=delivery.sender,
            peer=delivery.peer,
            content=content,
            content_type=delivery.content_type,
            deliveries=(
                NewDelivery(
                    delivery.recipient,
                    delivery.target,
                    notify="SUCCESS,FAILURE" if delivery.notify.upper() != "NEVER" else "NEVER",
                    original_recipient=delivery.original_recipient,
                ),
            ),
            dedup_key=f"{KIND}:{delivery.delivery_id}:release",
            message_id_domain=self._mail.host,
            envelope_id=delivery.envelope_id,
            flags=(*delivery.flags, RELEASED),
            message_id=delivery.message_id,
        )
        try:
            kept = self._spool.accept(
                submission, lambda connection: self._decide(connection, held, Held.RELEASED, by, reason)
            )
        except _AlreadyDecidedError:
            return Refused(DECIDED)
        # a repeat was kept by somebody faster, under whose name the decision stands
        return kept.spool_id if isinstance(kept, Accepted) else Refused(DECIDED, Held.RELEASED.value)

    def drop(self, delivery_id: str, by: str, reason: str) -> Refused | None:
        """Destroy the content; where another recipient of the message waits for it, `sweep` does so afterwards."""
        held = self._open_case(delivery_id, by, reason)
        if isinstance(held, Refused):
            return held
        try:
            self._database.transact(lambda connection: self._decide(connection, held, Held.DROPPED, by, reason))
        except _AlreadyDecidedError:
            return Refused(DECIDED)
        self._destroy(held.delivery)
        return None

    def expire(self, before: float, limit: int = 100) -> int:
        """Drop what was held before that UNIX time, the oldest first; returns how much. Done once a day by
        `mta.overdue`. One that cannot be dropped stays for the next day and hides no other."""
        query = select(quarantine.c.delivery_id).where(
            quarantine.c.state == Held.HELD.value, quarantine.c.held_at < before
        )
        ids = self._database.read(lambda connection: list(connection.scalars(query.order_by(quarantine.c.held_at))))
        dropped = 0
        for each in ids:
            try:
                dropped += self.drop(each, "relais", "retention period over") is None
            except (BlobDamagedError, OSError) as error:
                _log.error("delivery %s in quarantine cannot be dropped: %s", each, type(error).__name__)
            if dropped == limit:
                break
        return dropped

    def sweep(self, since: float) -> None:
        """Destroy what was dropped since that UNIX time and still lies there, for another recipient waited for it or
        its place could not be written to. Done once a day by `mta.overdue`."""
        query = select(quarantine.c.delivery_id).where(
            quarantine.c.state == Held.DROPPED.value, quarantine.c.decided_at > since
        )
        ids = self._database.read(lambda connection: list(connection.scalars(query)))
        for each in ids:
            delivery = self._deliveries.one(each)
            try:
                if delivery is not None and self._spool.content(delivery):
                    self._destroy(delivery)
            except (BlobMissingError, BlobDamagedError, OSError) as error:
                _log.error("the content of delivery %s cannot be destroyed: %s", each, type(error).__name__)

    def gauges(self) -> tuple[int, float | None]:
        """How many are held, and since when the oldest."""
        query = select(func.count(), func.min(quarantine.c.held_at)).where(quarantine.c.state == Held.HELD.value)
        count, oldest = self._database.read(lambda connection: connection.execute(query).one())
        return count, oldest

    def _open_case(self, delivery_id: str, by: str, reason: str) -> Quarantined | Refused:
        if not by.strip() or not reason.strip() or len(by) > _LONGEST_WORDS or len(reason) > _LONGEST_WORDS:
            return Refused(NAMELESS)
        held = self.show(delivery_id)
        if isinstance(held, Quarantined) and held.state is not Held.HELD:
            return Refused(DECIDED, held.state.value)
        return held

    def _decide(self, connection: Connection, held: Quarantined, state: Held, by: str, reason: str) -> None:
        """Raises `_AlreadyDecidedError` when somebody else was faster: nothing of the transaction then stands."""
        now, delivery = self._clock(), held.delivery
        sealed = self._vault.seal(json.dumps({"by": by, "reason": reason}).encode(), _context(delivery.delivery_id))
        decided = connection.execute(
            update(quarantine)
            .where(quarantine.c.delivery_id == delivery.delivery_id, quarantine.c.state == Held.HELD.value)
            .values(state=state.value, decided_at=now, sealed=sealed)
        )
        if decided.rowcount != 1:
            raise _AlreadyDecidedError(delivery.delivery_id)
        this = deliveries.c.id == delivery.delivery_id
        connection.execute(update(deliveries).where(this).values(held_at=None))
        add_step(connection, self._node, delivery, state.value, now)
        self._journal.append(
            connection,
            JournalEntry(
                actor=by,
                action=f"quarantine.{'release' if state is Held.RELEASED else 'drop'}",
                outcome="done",
                object_id=delivery.delivery_id,
                reason=reason,
                details={"found": f"{delivery.code} {delivery.detail}", "spool_id": delivery.spool_id},
            ),
        )

    def _destroy(self, delivery: AnyDelivery) -> None:
        """Put nothing in the content's place, so that the trace still stands. The old bytes go last: what a crash
        leaves is collected as an orphan."""
        others = [each for each in self._deliveries.of_message(delivery.spool_id) if each.state is DeliveryState.READY]
        held = (
            select(quarantine.c.delivery_id)
            .join_from(quarantine, deliveries)
            .where(deliveries.c.spool_id == delivery.spool_id, quarantine.c.state == Held.HELD.value)
        )
        if others or self._database.read(lambda connection: connection.execute(held).first()) is not None:
            return
        empty = self._blobs.put(CONTENT, b"")
        this = messages.c.id == delivery.spool_id
        try:
            self._database.transact(
                lambda connection: connection.execute(update(messages).where(this).values(content_blob=empty)).rowcount
            )
        finally:
            self._blobs.release(empty)
        self._blobs.delete(delivery.content_blob)

    def _quarantined(self, row: Any) -> Quarantined | None:
        delivery = self._deliveries.one(row.delivery_id)
        if delivery is None:
            return None
        words: dict[str, str] = {"by": "", "reason": ""}
        if row.sealed is not None:
            try:
                words = json.loads(self._vault.unseal(row.sealed, _context(row.delivery_id)))
            except VaultError:  # one damaged row hides no other
                words = {"by": "unreadable", "reason": "unreadable"}
        state = Held(row.state)
        return Quarantined(delivery, row.held_at, state, row.decided_at, words["by"], words["reason"])


class _AlreadyDecidedError(Exception):
    """Somebody else decided about it meanwhile."""


def _context(delivery_id: str) -> bytes:
    return b"mta-quarantine:" + delivery_id.encode()


def _notice(mail: SystemMail, sent: Sent, delivery: AnyDelivery, sender: str) -> bytes:
    """For the recipient: French, then English."""
    collected = delivery.origin is Origin.COLLECTED
    told = "n'en est pas averti" if collected else "en est averti", "is not told" if collected else "has been told"
    came = format_datetime(datetime.fromtimestamp(int(delivery.accepted_at), UTC))
    author = f"\nExpéditeur / Sender : {sender}" if sender else ""
    text = (
        "Bonjour,\n\nUn message qui vous est adressé a été mis en quarantaine : un logiciel malveillant y a été "
        f"trouvé, ou il n'a pas pu être analysé. Son expéditeur {told[0]}. Si vous attendez ce message, voyez avec "
        "lui, ou demandez à votre opérateur en lui donnant la référence ci-dessous.\n\n"
        f"Référence / Reference : {delivery.delivery_id}\nReçu le / Received : {came}{author}\n"
        f"Message-ID : {delivery.message_id}\n\n--\n\n"
        "A message addressed to you is in quarantine: malicious software was found in it, or it could not be searched. "
        f"Its sender {told[1]}. If you expect it, ask its sender, or your operator, giving the reference above.\n"
    )
    head = (
        f"Date: {format_datetime(datetime.fromtimestamp(int(delivery.at), UTC))}",
        f"From: {mail.postmaster}",
        f"To: {delivery.recipient}",
        f"Subject: {_SUBJECT}",
        f"Message-ID: {mail.message_id(sent)}",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: quoted-printable",
        "",
        binascii.b2a_qp(with_crlf(text.encode()), istext=True).decode("ascii"),
    )
    return "\r\n".join(head).encode("ascii")
