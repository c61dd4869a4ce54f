"""What became of a sending system's report, told to its own receiver: ZAM^Z01 to Z03 from ends, DSNs and MDNs.

An acknowledgement is a message like any other: kept in the spool under a deduplication key, delivered by the worker,
tried again until the receiver takes it. A receipt that comes by mail is believed only from who can know: the operator
of the recipient's domain says whether a mail arrived, the recipient alone whether it was read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from bridges.hl7 import zam
from bridges.hl7.acknowledgement import header_of
from bridges.hl7.zam import ZamEvent, ZamFailure
from bridges.intake import HL7_CONTENT
from bridges.receipts_codes import (
    dossier_failure,
    integration_failure,
    refusal_failure,
    status_failure,
    unread_failure,
)
from bridges.report import Audience, Report
from bridges.routing import IDENTIFIER, named
from mta.any_delivery import AnyReader
from mta.believed import signer_of
from mta.delivery import Accepted, EndedDelivery, KeptDelivery, NewDelivery, Submission
from mta.follow_up import INSTEAD
from mta.message import DeliveryState, Origin, TargetKind
from mta.notifications import (
    DeliveryNotification,
    DispositionNotification,
    by_mail_system,
    found_signature,
    parse_notification,
    xtext_decoded,
)
from mta.reporting import NotSettledError
from mta.smtp.address import domain_of
from mta.smtp.content import with_crlf
from mta.spool import RELAYED, Spool
from smime.mime import parse_entity
from trust.refusals import Refusal, Refused
from trust.store.blobs import BlobMissingError

log = structlog.get_logger(__name__)

_MAIL = (TargetKind.SMTP, TargetKind.MAILBOX)
_SPOOL_ID = re.compile(r"[0-9a-f]{32}")
_MOST_FOUND = 50
"""Messages looked at for one Message-ID: who submits mail may choose it, again and again."""
_POSITIVE, _NEGATIVE = b"Y", b"N"
"""What an acknowledgement said, kept as its reply, so that a later one that says the contrary is known."""


@dataclass(frozen=True, slots=True)
class _Told:
    """One thing to tell about one delivery of a sending system's report."""

    event: ZamEvent
    at: float
    failure: ZamFailure | None


_Sent = dict[str, KeptDelivery | None]
"""Mails of one report by recipient, lower case; None for one that has not ended here yet."""


class ReceiptConsumer:
    """A `mta.reporting.EndConsumer`. Thread-safe; idempotent through the spool's deduplication keys.

    What is told of a mail, and when:

    - refused or failed here: Z02 N;
    - delivered into a mailbox of ours: Z02 Y;
    - handed to an operator that speaks DSN (`relayed`): nothing yet, its receipt decides;
    - handed to an operator that does not: nothing, unless it sends the mail back later. It took responsibility, which
      says neither that the mail reached the mailbox nor that it did not; a Y would be believed like the others.
    """

    def __init__(
        self,
        spool: Spool,
        receivers: Mapping[str, str],
        parse: Callable[[bytes], Report | Refused],
        catalogue: Mapping[str, Refusal],
        operator_may_report: Callable[[str, str], bool],
    ) -> None:
        """`receivers`: sender mailbox by name, of the sending systems that have a receiver. `parse` reads a frame;
        `catalogue` is the joined one. `operator_may_report(peer, domain)`: whether the operator that handed a DSN over
        (its DN) answers for this mail domain."""
        self._spool = spool
        self._deliveries = AnyReader(spool)
        self._receivers = dict(receivers)
        self._mailboxes = frozenset(mailbox.lower() for mailbox in receivers.values())
        self._parse = parse
        self._catalogue = catalogue
        self._operator_may_report = operator_may_report

    async def ended(self, delivery: EndedDelivery) -> None:
        """See `mta.reporting.EndConsumer`. Raises `NotSettledError`, and what the store raises: tried again later."""
        await asyncio.to_thread(self._ended, delivery)

    def unread(self, delivery: KeptDelivery, at: float) -> None:
        """A critical result that nobody has read by that UNIX time (`mta.follow_up`): Z03 N, once, also to a system
        that asked for no reading receipts. Read after all, Z03 Y follows where it was asked for. Blocks; idempotent."""
        if delivery.origin is Origin.MLLP:
            self._tell(delivery, _Told(ZamEvent.READING, at, unread_failure()), late=True)

    def _ended(self, delivery: EndedDelivery) -> None:
        if delivery.origin is Origin.MLLP:
            told = self._own_end(delivery)
            if told is not None:
                self._tell(delivery, told)
        elif delivery.target is TargetKind.MAILBOX and delivery.recipient.lower() in self._mailboxes:
            self._read_receipt(delivery)

    def _own_end(self, ended: EndedDelivery) -> _Told | None:
        """What the end of a delivery says by itself."""
        if ended.target is TargetKind.DOSSIER:
            failure = None if ended.delivered else dossier_failure(ended.code, self._catalogue)
            return _Told(ZamEvent.DOSSIER, ended.ended_at, failure)
        if ended.target not in _MAIL:
            return None
        if not ended.delivered:
            failure = refusal_failure(ended.code, ended.detail, self._catalogue)
            return _Told(ZamEvent.RECEPTION, ended.ended_at, failure)
        if ended.target is TargetKind.MAILBOX and ended.code != RELAYED:
            return _Told(ZamEvent.RECEPTION, ended.ended_at, None)
        return None

    def _corrected(self, key: str, told: _Told) -> str:
        """The key to tell it under. A mail that was announced as received and failed after all, or the other way round,
        is told a second time, and never a third."""
        first = self._spool.duplicate_of(key)
        if first is None or not _opposite(first.reply, told):
            return key
        return f"{key}:corrected"

    # Receipts that come by mail

    def _read_receipt(self, mail: EndedDelivery) -> None:
        """A receipt that was opened counts, also when the mailbox was full and would not take it."""
        content = self._spool.prepared(mail)
        notification = None if content is None else parse_notification(content)
        if content is None or notification is None:
            return
        header = parse_entity(with_crlf(content))  # read once already: does not raise
        if isinstance(notification, DeliveryNotification):
            self._delivery_notification(mail, notification, by_mail_system(mail, header))
        else:
            self._disposition_notification(mail, notification, signer_of(header))

    def _delivery_notification(self, mail: EndedDelivery, dsn: DeliveryNotification, by_system: bool) -> None:
        """RFC 3464. What this gateway writes itself is not read: the end it reports was told when it happened.

        Only from another operator's mail system: its users find the envelope id in our trace field.
        """
        if mail.origin is Origin.SYSTEM:
            return
        if not by_system:
            _ignore(mail, "dsn-from-nobody-who-can-know")
            return
        sent = self._named(mail, dsn)
        for group in dsn.recipients:
            if group.action not in ("delivered", "failed"):
                continue  # delayed, relayed, expanded: not the end
            named = (group.original_recipient.lower(), group.final_recipient.lower())
            address = next((each for each in named if each in sent), None)
            if address is None:
                _ignore(mail, "dsn-about-nothing-sent")
                continue
            if not self._operator_may_report(mail.peer, domain_of(address)):
                _ignore(mail, "dsn-from-another-operator")
                continue
            failed = status_failure(group.status, group.diagnostic) if group.action == "failed" else None
            self._tell_of(sent[address], _Told(ZamEvent.RECEPTION, mail.accepted_at, failed))

    def _named(self, mail: EndedDelivery, dsn: DeliveryNotification) -> _Sent:
        """By the envelope id, which a server that speaks DSN repeats, else by the Message-ID of what it sent back."""
        if _SPOOL_ID.fullmatch(dsn.original_envelope_id):
            return self._sent(mail, dsn.original_envelope_id)
        for spool_id in self._spool.find(dsn.original_message_id)[:_MOST_FOUND]:
            sent = self._sent(mail, spool_id, dsn.original_message_id)
            if sent:
                return sent
        return {}

    def _disposition_notification(self, mail: EndedDelivery, mdn: DispositionNotification, signer: str) -> None:
        """RFC 8098. Displayed or processed: read. Deleted, and what is not known: nothing is said."""
        if found_signature(mail) != "valid" or not signer:
            _ignore(mail, "mdn-not-signed")
            return
        if not mdn.failed and mdn.disposition not in ("displayed", "processed"):
            _ignore(mail, "mdn-says-nothing-of-reading")
            return
        failure = integration_failure(mdn.error_code) if mdn.failed else None
        for spool_id in self._spool.find(mdn.original_message_id)[:_MOST_FOUND]:
            sent = self._sent(mail, spool_id, mdn.original_message_id)
            if signer in sent:
                self._tell_of(sent[signer], _Told(ZamEvent.READING, mail.accepted_at, failure))
                return
        _ignore(mail, "mdn-about-nothing-sent-to-its-signer")

    def _sent(self, mail: EndedDelivery, spool_id: str, message_id: str = "") -> _Sent:
        """The mails of one report from the mailbox that `mail` came to, with that Message-ID when one is given."""
        to = mail.recipient.lower()
        return {
            each.recipient.lower(): None if each.state is DeliveryState.READY else each
            for each in self._deliveries.of_message(spool_id)
            if each.origin is Origin.MLLP
            and each.target in _MAIL
            and each.sender.lower() == to
            and message_id in ("", each.message_id)
        }

    def _tell_of(self, original: KeptDelivery | None, told: _Told) -> None:
        if original is None:
            raise NotSettledError
        self._tell(original, told)

    # Telling

    def _tell(self, original: KeptDelivery, told: _Told, *, late: bool = False) -> None:
        """Keep the acknowledgement, when the report asked for it and its system has a receiver. `late`: it is about a
        deadline, which the operator has agreed on with the sender."""
        if original.peer not in self._receivers:
            return
        try:
            frame = self._spool.content(original)
        except BlobMissingError:  # purged at the end of its retention: too late to say anything about it
            log.warning("receipts.original-purged", spool_id=original.spool_id)
            return
        report = self._parse(frame)
        if isinstance(report, Refused):  # it was read at acceptance: the rules have changed since
            log.warning("receipts.original-unreadable", spool_id=original.spool_id, code=report.refusal.code)
            return
        reading = told.event is ZamEvent.READING
        if not late and not (report.flags.ack_reading if reading else report.flags.ack_reception):
            return
        key = f"zam:{original.delivery_id}:{told.event.value}"
        if reading and told.failure is not None:
            # read by a person and not taken up by software are two things: neither hides the other
            key += ":late" if late else ":N"
        if told.event is ZamEvent.RECEPTION:
            key = self._corrected(key, told)
        control_id = zam.control_id(key)
        acknowledgement = zam.Acknowledgement(
            told.event,
            datetime.fromtimestamp(told.at, UTC),
            told.failure,
            address="" if told.event is ZamEvent.DOSSIER else original.recipient,
            identifier=_identifier(report, original),
        )
        kept = self._spool.accept(
            Submission(
                origin=Origin.SYSTEM,
                sender="",
                peer="",
                content=zam.compose(header_of(frame), control_id, acknowledgement),
                content_type=HL7_CONTENT,
                deliveries=(NewDelivery(recipient=original.peer, target=TargetKind.MLLP),),
                dedup_key=key,
                message_id_domain=domain_of(original.sender),
                external_id=control_id,
                reply=_POSITIVE if told.failure is None else _NEGATIVE,
            )
        )
        if isinstance(kept, Accepted):
            log.info(
                "receipts.told",
                spool_id=original.spool_id,
                delivery_id=original.delivery_id,
                zam=told.event.value,
                positive=told.failure is None,
            )


def _opposite(said: bytes, told: _Told) -> bool:
    return said == (_NEGATIVE if told.failure is None else _POSITIVE)


def _identifier(report: Report, original: KeptDelivery) -> str:
    """The professional's national identifier as the report named it; a patient's stays out, and what another reader
    got instead says nothing of the one who was named."""
    if any(flag.startswith(INSTEAD) for flag in original.flags):
        return ""
    kind, _, name = original.original_recipient.partition(";")
    wanted = xtext_decoded(name) if kind == IDENTIFIER else original.recipient.lower()
    for correspondent in report.correspondents:
        if correspondent.audience is Audience.PROFESSIONAL and named(correspondent) == wanted:
            return correspondent.party.id_nat
    return ""


def _ignore(mail: EndedDelivery, why: str) -> None:
    log.warning("receipts.ignored", why=why, spool_id=mail.spool_id, delivery_id=mail.delivery_id)
