"""Whether what a laboratory or a hospital sent was read, and what happens when a critical result is not.

Each mail of a sender that is followed up has one durable row from the moment it is prepared, before it leaves, or,
where it waits unprepared, from a minute after its acceptance: a result that never arrives is unread too. Read is what a
receipt signed by its reader says (RFC 8098), what a named person has acknowledged, or, for mailboxes of ours, what the
IMAP flag `\\Seen` says; which of them is always told apart. That software took it up is less, and never stops the
clock of a critical result. Such a result has a deadline of its own, counted from its acceptance: unread by then, the
sender is told by mail and through its system; unread still, a named fallback reader gets it. Every step is idempotent
and its time stands in the row, so the clock goes on wherever a node was killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, bindparam, func, insert, or_, select, update

from mta.any_delivery import AnyDelivery, AnyReader, add_step
from mta.bell import Repeating
from mta.delivery import EndedDelivery, NewDelivery, Submission
from mta.follow_up_mail import KIND, told_mail
from mta.follow_up_refusals import NAMELESS, SEVERAL, UNKNOWN
from mta.mailboxes.seen import AT_ONCE, Looked
from mta.message import DeliveryState, Message, Origin, TargetKind
from mta.notices import Said
from mta.priority import Priority
from mta.smtp.address import domain_of
from mta.smtp.target import xtext
from mta.spool import Spool
from mta.spool_reading import with_message
from mta.system_mail import Form, Sent, SystemMail
from mta.tables import deliveries, follow_ups, notices
from trust.journal import Journal, JournalEntry
from trust.refusals import Refused
from trust.store.blobs import BlobMissingError
from trust.store.database import Database
from trust.vault import KeyVault, VaultError

_log = logging.getLogger("relais.mta.follow_up")

OURS = (Origin.MLLP, Origin.SUBMISSION, Origin.LMTP)
"""Whose mail is followed up: that of our own people and systems."""
INSTEAD = "instead-of:"
"""Flag of a message that a fallback reader gets, with the delivery id of the one that nobody has read."""
_BATCH = 200
_UNPREPARED = 50
"""Looked at in one turn: each may have to be parsed."""
_LONGEST_WORDS = 1000
_DAY = 86_400.0


class Reading(Enum):
    """What is known about the reading of one mail."""

    WAITING = "waiting"
    TOLD = "told"
    """Critical and unread at its deadline: the sender was told."""
    HANDED_ON = "handed-on"
    """... and the fallback reader got it."""
    PROCESSED = "processed"
    """Software has taken it up, as its receipt says, and no person is known to have looked. Never said of a critical
    result."""
    DISPLAYED = "displayed"
    """Its reader has signed a receipt."""
    SEEN = "seen"
    """No receipt: the mail was opened in the mailbox, as IMAP says (`\\Seen`)."""
    REMOVED = "removed"
    """No receipt: it lies in the mailbox no longer, and was not known to be opened. Never said of a critical result."""
    ACKNOWLEDGED = "acknowledged"
    """A named person has taken note of it."""


_EVIDENCE = (Reading.REMOVED, Reading.PROCESSED, Reading.SEEN, Reading.DISPLAYED, Reading.ACKNOWLEDGED)
"""What closes a row, the strongest last: the stronger takes the place of the weaker."""


@dataclass(frozen=True, slots=True)
class Followed:
    """One sender whose mails are followed up."""

    sender: str
    """Lower-case address of the laboratory's or the service's mailbox."""
    unread_days: float = 3.0
    """Days after which an unread mail stands in the list."""
    critical_seconds: float = 0.0
    """A critical result must be read within; 0: no deadline."""
    fallback: str = ""
    """Address of who gets a critical result that stays unread; empty: nobody."""
    fallback_seconds: float = 0.0
    """... so long after its acceptance; 0: twice `critical_seconds`."""

    @property
    def hands_on_after(self) -> float:
        return max(self.fallback_seconds or 2 * self.critical_seconds, self.critical_seconds)


@dataclass(frozen=True, slots=True)
class Unread:
    """One mail that nobody is known to have read."""

    delivery: AnyDelivery
    critical: bool
    reading: Reading
    due: float | None


@dataclass(frozen=True, slots=True)
class UnreadList:
    found: tuple[Unread, ...]
    """Critical results first, then the oldest first."""
    more: int = 0
    """Further ones that were left out."""


@dataclass(frozen=True, slots=True)
class FollowUpOptions:
    poll_seconds: float = 15.0
    """Deadlines are in minutes: no later than that after one something is done."""
    look_seconds: float = 900.0
    """How often it is looked up whether a mail was read, beside its deadline; an older one ever more rarely, after a
    third of its age."""
    ask_seconds: float = 5.0
    """So long mailboxes are asked in one turn: neither a deadline nor the end of the process may wait for them."""
    list_seconds: float = 60.0
    """... for a list that a person asks for."""
    unprepared_seconds: float = 60.0
    """So long after its acceptance a mail that no worker has prepared gets its row."""


class _Asking:
    """Mailboxes being asked in one turn. A Dovecot that does not answer is not asked again in it."""

    def __init__(self, seen: Callable[[str, Collection[str]], Looked | None] | None, seconds: float) -> None:
        self._seen = seen
        self._until = time.monotonic() + seconds
        self._begun = False
        self.silent = False

    @property
    def tired(self) -> bool:
        """There was no time for more."""
        return self._begun and not self.silent and time.monotonic() >= self._until

    def look(self, address: str, delivery_ids: Collection[str]) -> Looked | None:
        if self._seen is None or self.silent or self.tired:
            return None
        self._begun = True
        try:
            return self._seen(address, delivery_ids)
        except OSError:
            self.silent = True
            return None


class FollowUp(Repeating):
    """Also an `mta.reporting.EndConsumer`. Thread-safe; raises what the store raises."""

    def __init__(
        self,
        spool: Spool,
        database: Database,
        vault: KeyVault,
        journal: Journal,
        mail: SystemMail,
        followed: Collection[Followed],
        *,
        node: str,
        seen: Callable[[str, Collection[str]], Looked | None] | None = None,
        patient_domains: Collection[str] = (),
        options: FollowUpOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`seen` (`mta.mailboxes.seen.SeenMail.look`) asks our own mailboxes; None where they cannot be asked.
        Patients' mailboxes are followed up without deadlines."""
        super().__init__()
        self._spool = spool
        self._database = database
        self._vault = vault
        self._journal = journal
        self._mail = mail
        self._followed = {each.sender.lower(): each for each in followed}
        self._node = node
        self._seen = seen
        self._tell_system: Callable[[AnyDelivery, float], None] = lambda delivery, at: None
        self._critical_of: Callable[[AnyDelivery, bytes], bool | None] | None = None
        self._begun = ""
        """Up to which delivery id those that wait unprepared have been looked at."""
        self._patients = frozenset(domain.lower() for domain in patient_domains)
        self._options = options or FollowUpOptions()
        self._clock = clock
        self._deliveries = AnyReader(spool)

    def tell_systems_by(self, tell: Callable[[AnyDelivery, float], None]) -> None:
        """Before `run`. `tell` says to the sending system, if the mail came from one, that nobody had read it at that
        UNIX time; it blocks and is idempotent."""
        self._tell_system = tell

    def examine_by(self, critical_of: Callable[[AnyDelivery, bytes], bool | None]) -> None:
        """Before `run`. `critical_of` says of a delivery and what was accepted whether it is a critical result; None:
        nobody reads it, such as a receipt. It blocks and does not raise."""
        self._critical_of = critical_of

    # The beginning

    @property
    def senders(self) -> Mapping[str, Followed]:
        """By lower-case address."""
        return self._followed

    def begin(self, message: Message | AnyDelivery, critical: bool) -> None:
        """From now on this mail is followed up, if its sender is. Idempotent: the clock runs from acceptance."""
        service = self._followed.get(message.sender.lower())
        if service is None:
            return
        instead_of = next((flag.removeprefix(INSTEAD) for flag in message.flags if flag.startswith(INSTEAD)), None)
        critical = critical and domain_of(message.recipient).lower() not in self._patients
        due = message.accepted_at + service.critical_seconds if critical and service.critical_seconds else None
        row = {
            "delivery_id": message.delivery_id,
            "service": self._pseudonym(service.sender),
            "accepted_at": message.accepted_at,
            "critical": critical,
            "state": Reading.WAITING.value,
            "changed_at": self._clock(),
            "due": due,
            "look_at": message.accepted_at + self._options.look_seconds,
            "instead_of": instead_of,
        }

        def write(connection: Connection) -> None:
            known = select(follow_ups.c.delivery_id).where(follow_ups.c.delivery_id == message.delivery_id)
            if connection.execute(known).first() is None:
                connection.execute(insert(follow_ups), row)

        self._database.transact(write)
        if due is not None:
            self._bell.ring()

    # The clock

    async def _turn(self) -> float:
        try:
            more = await asyncio.to_thread(self.look)
        except Exception as error:  # its text may quote an address
            _log.error("what is unread cannot be looked up: %s", type(error).__name__)
            more = False
        return 0.0 if more else self._options.poll_seconds

    def look(self) -> bool:
        """Do what is due now. True: there is more. From one thread."""
        if not self._followed:
            return False
        now = self._clock()
        asking = _Asking(self._seen, self._options.ask_seconds)
        query = select(follow_ups).where(follow_ups.c.due <= now).order_by(follow_ups.c.due).limit(_BATCH)
        rows = self._rows(query)
        settled = [self._attended(row, now, asking) for row in rows]
        more = any(settled) and (asking.tired or len(rows) == _BATCH)
        more |= self._begin_unprepared(now)
        return self._refresh(now, asking) or more

    def _begin_unprepared(self, now: float) -> bool:
        """Rows for what no worker has prepared: its destination rests or is held, or something before it says "not
        now". Each delivery is looked at once per process. True: a deadline may have come, or there are more."""
        if self._critical_of is None:
            return False
        until = f"{max(0, int((now - self._options.unprepared_seconds) * 1000)):012x}"  # `mta.accepting`: ids grow
        query = (
            select(deliveries.c.id)
            .outerjoin(follow_ups, follow_ups.c.delivery_id == deliveries.c.id)
            .where(
                deliveries.c.id > self._begun,
                deliveries.c.id < until,
                deliveries.c.state == DeliveryState.READY.value,
                deliveries.c.prepared_blob.is_(None),
                deliveries.c.target.in_([TargetKind.SMTP.value, TargetKind.MAILBOX.value]),
                follow_ups.c.delivery_id.is_(None),
            )
            .order_by(deliveries.c.id)
            .limit(_UNPREPARED)
        )
        ids = self._database.read(lambda connection: list(connection.scalars(query)))
        begun = False
        for delivery in self._known(ids).values():
            if delivery.sender.lower() not in self._followed or delivery.origin not in OURS:
                continue
            try:
                critical = self._critical_of(delivery, self._spool.content(delivery))
            except Exception as error:  # its content is damaged or gone: the worker will say so
                _log.error("delivery %s is not followed up yet: %s", delivery.delivery_id, type(error).__name__)
                continue
            if critical is not None:
                self.begin(delivery, critical)
                begun = True
        full = len(ids) == _UNPREPARED
        self._begun = ids[-1] if full else max(until, self._begun)
        return begun or full

    def _attended(self, row: Row[Any], now: float, asking: _Asking) -> bool:
        """One that cannot be attended to now must not hide the others."""
        try:
            self._attend(row, now, asking)
        except Exception as error:
            _log.error("unread delivery %s: %s; tried again", row.delivery_id, type(error).__name__)
            return False
        return True

    def _attend(self, row: Row[Any], now: float, asking: _Asking) -> None:
        """A deadline has come."""
        delivery = self._deliveries.one(row.delivery_id)
        service = None if delivery is None else self._followed.get(delivery.sender.lower())
        if delivery is None or service is None:  # its envelope is damaged, or its sender is followed up no longer
            if delivery is None:
                _log.error("unread critical delivery %s cannot be told of: its envelope is damaged", row.delivery_id)
            self._advance(row, None, Reading(row.state), None, now)
            return
        if any(self._read_meanwhile([row], {row.delivery_id: delivery}, now, asking)):
            return
        if row.state == Reading.WAITING.value:
            told = self._tell(delivery, service, "told", delivery.sender)
            try:  # what cannot be said to its system must not keep it from the fallback reader
                self._tell_system(delivery, now)
            except Exception as error:
                _log.error("unread delivery %s: its system is not told: %s", row.delivery_id, type(error).__name__)
            hands_on = (
                service.fallback
                and row.instead_of is None
                and service.fallback.lower() not in (delivery.recipient.lower(), delivery.sender.lower())
            )
            due = row.accepted_at + service.hands_on_after if hands_on else None
            words = "" if told else "its sender could not be told"
            self._advance(row, delivery, Reading.TOLD, due, now, "unread", words)
        elif row.state == Reading.TOLD.value and service.fallback:
            if self._hand_on(delivery, service):
                self._advance(row, delivery, Reading.HANDED_ON, None, now, "handed-on")
            else:
                self._advance(row, delivery, Reading.TOLD, None, now, "untold", "the fallback reader")
        else:
            self._advance(row, delivery, Reading(row.state), None, now)

    def _hand_on(self, delivery: AnyDelivery, service: Followed) -> bool:
        """The same message to the fallback reader, before others; what it is about is told beside it. False: nobody can
        be written to, or there is nothing left to send."""
        target = self._mail.route(service.fallback)
        if target is None:
            _log.error("the fallback reader of %s is nobody we can write to", delivery.delivery_id)
            return False
        try:
            content = self._spool.content(delivery)
        except BlobMissingError:
            _log.error("delivery %s is purged: its fallback reader cannot get it", delivery.delivery_id)
            return False
        self._tell(delivery, service, "instead", service.fallback)
        kind, _, _ = delivery.original_recipient.partition(";")
        named = delivery.original_recipient if kind else f"rfc822;{xtext(delivery.recipient)}"
        self._spool.accept(
            Submission(
                origin=delivery.origin,
                sender=delivery.sender,
                peer=delivery.peer,
                content=content,
                content_type=delivery.content_type,
                deliveries=(NewDelivery(service.fallback, target, notify="FAILURE", original_recipient=named),),
                dedup_key=f"{KIND}:{delivery.delivery_id}:handed-on",
                message_id_domain=self._mail.host,
                external_id=delivery.external_id,
                flags=(*delivery.flags, INSTEAD + delivery.delivery_id),
                message_id="" if delivery.origin is Origin.MLLP else delivery.message_id,
                priority=Priority.URGENT,
            )
        )
        return True

    def _tell(self, delivery: AnyDelivery, service: Followed, action: str, to: str, form: Form = Form.WHOLE) -> bool:
        """False: nobody we may write to."""
        sent = Sent(KIND, delivery.delivery_id, action, form)
        reader = self._mail.shown(delivery.recipient, form)
        content = told_mail(self._mail, sent, delivery, to, reader, service.critical_seconds, self._clock())
        done = self._mail.send(sent, to, content, delivery.spool_id)
        if not done:
            _log.error("nobody can be told that delivery %s is unread", delivery.delivery_id)
        return done

    async def ended(self, delivery: EndedDelivery) -> None:
        """See `mta.reporting.EndConsumer`: a notice of ours that could not be protected says less."""
        again = self._mail.to_say_again(delivery)
        if again is not None and again.kind == KIND:
            await asyncio.to_thread(self._say_again, again)

    def _say_again(self, sent: Sent) -> None:
        delivery = self._deliveries.one(sent.about)
        service = None if delivery is None else self._followed.get(delivery.sender.lower())
        if delivery is not None and service is not None:
            to = delivery.sender if sent.action == "told" else service.fallback
            self._tell(delivery, service, sent.action, to, sent.form)

    # What was read

    def _refresh(self, now: float, asking: _Asking) -> bool:
        """Ask about those without a deadline to come, from time to time. True: there is more."""
        if asking.tired:
            return True
        query = (
            select(follow_ups)
            .where(follow_ups.c.read_at.is_(None), follow_ups.c.look_at <= now)
            .order_by(follow_ups.c.look_at)
            .limit(_BATCH)
        )
        rows = self._rows(query)
        self._look_at(rows, now, asking)
        return len(rows) == _BATCH or asking.tired

    def _look_at(self, rows: Sequence[Row[Any]], now: float, asking: _Asking) -> None:
        """Those there is no time to ask about come first in the next turn."""
        known = self._known(row.delivery_id for row in rows)
        _, left = self._read_meanwhile([row for row in rows if row.delivery_id in known], known, now, asking)
        pause = self._options.look_seconds
        pauses = [
            {
                "this": row.delivery_id,
                "next": now + (pause if asking.silent else max(pause, (now - row.accepted_at) / 3)),
            }
            for row in rows
            if row.delivery_id not in left
        ]
        later = (
            update(follow_ups).where(follow_ups.c.delivery_id == bindparam("this")).values(look_at=bindparam("next"))
        )

        def write(connection: Connection) -> None:
            connection.execute(later, pauses)

        if pauses:
            self._database.transact(write)

    def _known(self, ids: Iterable[str]) -> dict[str, AnyDelivery]:
        """Without those whose envelope is damaged."""
        found = self._deliveries.those(with_message().where(deliveries.c.id.in_(list(ids))))
        return {each.delivery_id: each for each in found}

    def _read_meanwhile(
        self, rows: Sequence[Row[Any]], known: Mapping[str, AnyDelivery], now: float, asking: _Asking
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Close those that were read. Returns their delivery ids, and those that there was no time to ask about.
        Receipts go before what a mailbox says."""
        read: dict[str, tuple[Reading, float]] = {}
        critical = {row.delivery_id for row in rows if row.critical}
        for delivery_id, reading, at in self._receipts([row.delivery_id for row in rows]):
            if reading is Reading.DISPLAYED or delivery_id not in critical:
                read.setdefault(delivery_id, (reading, at))
        boxes: defaultdict[str, list[Row[Any]]] = defaultdict(list)
        for row in rows:
            delivery = known[row.delivery_id]
            filed = delivery.target is TargetKind.MAILBOX and delivery.state is DeliveryState.DELIVERED
            if filed and row.delivery_id not in read:
                boxes[delivery.recipient.lower()].append(row)
        left: set[str] = set()
        for address, asked in boxes.items():
            for start in range(0, len(asked), AT_ONCE):
                some = asked[start : start + AT_ONCE]
                ids = [row.delivery_id for row in some]
                if asking.tired:
                    left.update(ids)
                    continue
                looked = asking.look(address, ids)
                if looked is None:
                    continue
                for row in some:
                    if row.delivery_id in looked.seen:
                        read[row.delivery_id] = (Reading.SEEN, now)
                    elif row.delivery_id not in looked.held and not row.critical:
                        read[row.delivery_id] = (Reading.REMOVED, now)
        for row in rows:
            if row.delivery_id in read:
                self._close(row.delivery_id, *read[row.delivery_id], now)
        return frozenset(read), frozenset(left)

    def _receipts(self, ids: Sequence[str]) -> Sequence[tuple[str, Reading, float]]:
        """Of what other systems said and was believed (`mta.notices`): delivery id, what it says and when; of each
        delivery what a person did before what a program did."""
        said = {Said.DISPLAYED.value: Reading.DISPLAYED, Said.PROCESSED.value: Reading.PROCESSED}
        query = select(notices.c.delivery_id, notices.c.said, notices.c.at).where(
            notices.c.delivery_id.in_(ids), notices.c.said.in_(list(said))
        )
        found = self._database.read(lambda c: c.execute(query.order_by(notices.c.at)).all())
        told = [(row.delivery_id, said[row.said], row.at) for row in found]
        return sorted(told, key=lambda one: one[1] is not Reading.DISPLAYED)

    def _close(
        self,
        delivery_id: str,
        reading: Reading,
        at: float,
        now: float,
        also: Callable[[Connection], object] = lambda connection: None,
        sealed: bytes | None = None,
    ) -> bool:
        """It was read: the clocks stop, also that of whom it was handed on to or from. False: it was closed before, on
        evidence as good."""
        one = select(follow_ups.c.instead_of).where(follow_ups.c.delivery_id == delivery_id)
        first = self._database.read(lambda connection: connection.scalar(one)) or delivery_id
        linked = or_(follow_ups.c.delivery_id == first, follow_ups.c.instead_of == first)
        ids = self._database.read(lambda c: list(c.scalars(select(follow_ups.c.delivery_id).where(linked))))
        known = self._known(ids)

        weaker = [each.value for each in _EVIDENCE[: _EVIDENCE.index(reading)]]
        this = follow_ups.c.delivery_id == delivery_id

        def write(connection: Connection) -> bool:
            open_ones = follow_ups.c.read_at.is_(None) | (this & follow_ups.c.state.in_(weaker))
            still = list(connection.scalars(select(follow_ups.c.delivery_id).where(linked, open_ones)))
            if delivery_id not in still:
                return False
            values = {
                "state": reading.value,
                "read_at": func.coalesce(follow_ups.c.read_at, at),
                "changed_at": now,
                "due": None,
            }
            connection.execute(update(follow_ups).where(follow_ups.c.delivery_id.in_(still)).values(**values))
            if sealed is not None:
                connection.execute(update(follow_ups).where(this).values(sealed=sealed))
            for each in still:
                if (delivery := known.get(each)) is not None:
                    words = "" if each == delivery_id else "by another reader of the same result"
                    add_step(connection, self._node, delivery, reading.value, now, words)
            also(connection)
            return True

        return self._database.transact(write)

    def _advance(
        self,
        row: Row[Any],
        delivery: AnyDelivery | None,
        state: Reading,
        due: float | None,
        now: float,
        step: str = "",
        words: str = "",
    ) -> None:
        """Only from where it stood: another node may have been faster, or somebody has read it."""

        def write(connection: Connection) -> None:
            this = (follow_ups.c.delivery_id == row.delivery_id) & (follow_ups.c.state == row.state)
            values = {"state": state.value, "changed_at": now, "due": due}
            done = connection.execute(update(follow_ups).where(this).values(**values))
            if done.rowcount and delivery is not None and step:
                add_step(connection, self._node, delivery, step, now, words)

        self._database.transact(write)

    # What people ask and say

    def unread(self, sender: str = "", days: float | None = None, limit: int = 1000) -> UnreadList:
        """What is unread after the sender's own number of days, or `days`; critical results from their deadline on.
        Mailboxes of ours are asked first. At most `limit` of each sender."""
        now = self._clock()
        asking = _Asking(self._seen, self._options.list_seconds)
        found: list[Unread] = []
        more = 0
        wanted = [each for each in self._followed.values() if sender.lower() in ("", each.sender.lower())]
        for service in wanted:
            patience = (service.unread_days if days is None else days) * _DAY
            late = follow_ups.c.accepted_at <= now - patience
            if service.critical_seconds and days is None:
                late |= follow_ups.c.critical & (follow_ups.c.accepted_at <= now - service.critical_seconds)
            which = (follow_ups.c.service == self._pseudonym(service.sender)) & follow_ups.c.read_at.is_(None) & late
            query = (
                select(follow_ups)
                .where(which)
                .order_by(follow_ups.c.critical.desc(), follow_ups.c.accepted_at)
                .limit(limit)
            )
            self._look_at(self._rows(query), now, asking)
            rows = self._rows(query)
            more += max(0, self._count(which) - len(rows))
            known = self._known(row.delivery_id for row in rows)
            found += [
                Unread(known[row.delivery_id], row.critical, Reading(row.state), row.due)
                for row in rows
                if row.delivery_id in known
            ]
        return UnreadList(tuple(sorted(found, key=lambda each: (not each.critical, each.delivery.accepted_at))), more)

    def overdue(self) -> int:
        """How many critical results stay unread although their sender was told."""
        which = follow_ups.c.critical & follow_ups.c.read_at.is_(None) & (follow_ups.c.state != Reading.WAITING.value)
        return self._count(which)

    def _count(self, which: ColumnElement[bool]) -> int:
        query = select(func.count()).select_from(follow_ups).where(which)
        return self._database.read(lambda connection: connection.scalar(query)) or 0

    def acknowledge(self, reference: str, by: str, reason: str) -> str | Refused:
        """A named person has taken note of a result; `reference`: a delivery id, or the Message-ID where it went to one
        recipient. Returns the delivery id. Journaled, also where it was read already; said twice, the first stands."""
        if not by.strip() or not reason.strip() or max(len(by), len(reason)) > _LONGEST_WORDS:
            return Refused(NAMELESS)
        ids = self._named(reference)
        if len(ids) != 1:
            return Refused(SEVERAL if ids else UNKNOWN)
        delivery_id, now = ids[0], self._clock()
        entry = JournalEntry(
            actor=by, action="reading.acknowledge", outcome="done", object_id=delivery_id, reason=reason
        )
        words = json.dumps({"by": by, "reason": reason}).encode()
        self._close(
            delivery_id,
            Reading.ACKNOWLEDGED,
            now,
            now,
            lambda connection: self._journal.append(connection, entry),
            self._vault.seal(words, _context(delivery_id)),
        )
        return delivery_id

    def acknowledged_by(self, delivery_id: str) -> str:
        """Who has taken note of it; empty when nobody did by name."""
        query = select(follow_ups.c.sealed).where(follow_ups.c.delivery_id == delivery_id)
        sealed = self._database.read(lambda connection: connection.scalar(query))
        try:
            return str(json.loads(self._vault.unseal(sealed, _context(delivery_id)))["by"]) if sealed else ""
        except VaultError:
            return "unreadable"

    def _named(self, reference: str) -> list[str]:
        given = reference.strip()
        names = (given, f"<{given}>")
        spool_ids = dict.fromkeys(spool_id for name in names for spool_id in self._spool.find(name))
        ids = [given] + [each.delivery_id for one in spool_ids for each in self._deliveries.of_message(one)]
        query = select(follow_ups.c.delivery_id).where(
            follow_ups.c.delivery_id.in_(ids), or_(follow_ups.c.delivery_id == given, follow_ups.c.instead_of.is_(None))
        )
        return self._database.read(lambda connection: list(connection.scalars(query)))

    def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        return self._database.read(lambda connection: connection.execute(query).all())

    def _pseudonym(self, sender: str) -> str:
        return self._vault.pseudonym("followed sender", sender.lower())


def _context(delivery_id: str) -> bytes:
    return b"mta-follow-up:" + delivery_id.encode()
