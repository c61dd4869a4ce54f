"""A hospital's letter in one call: many correspondents, the laboratory's road, paper for whom no mailbox reaches.

A CDA document and its recipients become an MDM message of the hospital's own sending system and go through the same
intake as what comes over MLLP: one spool message, one delivery per recipient, the same safety rules. Who has no
mailbox never stops the others: the result holds a letter ready to print for each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bridges import printed
from bridges.hl7 import mdm
from bridges.identity import canonical_matricule
from bridges.intake import Intake, SendingSystem, Taken
from bridges.plain import one_line
from bridges.report import Action, Audience, Correspondent, Document, Flags, Party, PatientIdentity, Report
from bridges.routing import ADDRESS_INVALID, DOSSIER_RECIPIENT, NO_RECIPIENT
from directory import refusals as directory_refusals
from mta import refusals as mta_refusals
from mta.smtp.address import is_address
from smime import refusals as smime_refusals
from trust.refusals import HL7Code, Refusal, Refused

NO_MAILBOX = Refusal(
    code="bridges.no-mailbox",
    smtp=550,
    enhanced="5.1.1",
    hl7=HL7Code.AE,
    condition="207",
    application="550",
    text="No mail address was given for this recipient: post the printed letter.",
    text_fr="Aucune adresse de messagerie n'est indiquée pour ce destinataire : postez le courrier imprimé.",
)
CATALOGUE = (NO_MAILBOX,)
_PAPER_HELPS = frozenset(
    {
        NO_MAILBOX,
        ADDRESS_INVALID,
        directory_refusals.DOMAIN_UNTRUSTED,
        directory_refusals.RECIPIENT_UNKNOWN,
        smime_refusals.NO_ENCRYPTION_CERTIFICATE,
    }
)
"""Only a missing way is replaced by paper: whom the letter is hidden from does not get it by post either."""


@dataclass(frozen=True, slots=True)
class Unreached:
    """A recipient for whom no delivery waits."""

    recipient: str
    """The address, or the name when there is none."""
    code: str
    """Of the catalogue of errors."""
    sentence: str
    """What to do, in French."""
    cover: bytes = b""
    """First sheet of the letter to post (`bridges.printed.cover`); empty when the letter must not reach this recipient
    at all."""
    pages: bytes = b""
    """The sheets that follow it: one object for all recipients, because they may be many megabytes."""

    @property
    def printed(self) -> bytes:
        """The letter to post, as PDF; empty when there is none."""
        return printed.bind(self.cover, self.pages) if self.cover else b""


@dataclass(frozen=True, slots=True)
class LetterResult:
    accepted: bool
    """Whether a message is kept: somebody is reached."""
    spool_id: str
    duplicate: bool
    """The same letter came before: nothing new was kept."""
    reached: tuple[str, ...]
    """Addresses a delivery was made for, and `dossier`. What fails later is told to the sender's mailbox."""
    unreached: tuple[Unreached, ...]
    refused: Refused | None
    """What the caller must correct (the document, the sender); None when only recipients were impossible."""


@dataclass(frozen=True, slots=True)
class _Recipient:
    name: str
    """As the caller is told: the address, as written when it is malformed; the first line when there is none."""
    address: str
    """Lower case; empty when no mail can go there."""
    malformed: bool
    """Whether an address was given that is none."""
    lines: tuple[str, ...]
    """Name, street, town."""


class Letters:
    """Synchronous and thread-safe, like the intake it feeds."""

    def __init__(
        self, intake: Intake, read: Callable[[bytes], Document | Refused], systems: Mapping[str, SendingSystem]
    ) -> None:
        """`read` is `bridges.cda.read_cda`; `systems`: the hospital's services by sender address, lower case."""
        self._intake = intake
        self._read = read
        self._systems = systems

    def submit(
        self,
        document: bytes,
        *,
        sender: str,
        recipients: Sequence[str],
        to_dossier: bool = False,
        to_patient: bool = False,
        hidden_from_patient: bool = False,
    ) -> LetterResult:
        """Send one CDA document. A recipient is a mail address, `name|street|town` for one without, or
        `address|name|street|town` for one whose paper must be addressed should the mailbox not exist.

        The patient is a recipient like another, by the address that is their matricule, but receives only when
        `to_patient` says so. A document that replaces another (RPLC) goes as a replacement. The same document, sender
        and recipients again are a duplicate: same answer, no second mail. Raises only when the store breaks, or
        `bridges.pdf.FontMissingError`; calling again is then safe.
        """
        system = self._systems.get(sender.strip().lower())
        if system is None:
            return _refused(Refused(mta_refusals.SENDER_NOT_ALLOWED))
        read = self._read(document)
        if isinstance(read, Refused):
            return _refused(read)
        asked = _recipients(recipients)
        if not asked and not to_dossier:
            return _refused(Refused(NO_RECIPIENT))
        mailable = [each for each in asked if each.address]
        report = _report(read, system, mailable, to_dossier, to_patient, hidden_from_patient)
        taken = None
        if mailable or to_dossier:
            taken = self._intake.take(_identified(report), system)
            if taken.refused is not None and not taken.deliveries:
                return _refused(taken.refused)
        return _result(report, system, asked, taken)


def _refused(reason: Refused) -> LetterResult:
    return LetterResult(False, "", False, (), (), reason)


def _recipients(written: Sequence[str]) -> list[_Recipient]:
    """Each once, in the caller's order; of an address that is repeated, the naming that says where it is posted to."""
    found: dict[tuple[str, ...], _Recipient] = {}
    for line in written:
        given = [each.strip() for each in line.split("|") if one_line(each)]
        parts = tuple(one_line(each) for each in given)
        if not parts:
            continue
        key, recipient = parts, _Recipient(parts[0], "", False, parts)
        if "@" in parts[0]:
            # Never repaired: what is left of an address without its unreadable characters may be somebody else's.
            address = given[0].lower() if is_address(given[0]) else ""
            key, recipient = (
                (address, parts[0].lower()),
                _Recipient(address or parts[0], address, not address, parts[1:]),
            )
        if key not in found or not found[key].lines:
            found[key] = recipient
    return list(found.values())


def _report(
    document: Document,
    system: SendingSystem,
    recipients: Sequence[_Recipient],
    to_dossier: bool,
    to_patient: bool,
    hidden_from_patient: bool,
) -> Report:
    patient = replace(document.patient, reliability="VALI" if document.patient.matricule else "PROV")
    # In one order, whatever the caller's: the same recipients are then the same letter.
    correspondents = tuple(
        Correspondent(
            Party(family=next(iter(each.lines), "")),
            each.address,
            _audience(each, patient),
            location=f"PRT^{number}^15",
        )
        for number, each in enumerate(sorted(recipients, key=lambda each: each.address), start=2)
    )
    return Report(
        control_id="",
        sending_application="RELAIS",
        sending_facility=system.name,
        event="MDM^T10" if document.parent_id else "MDM^T02",
        action=Action.REPLACE if document.parent_id else Action.NEW,
        patient=patient,
        sender=document.author,
        documents=(document,),
        correspondents=correspondents,
        reply_to="",
        flags=Flags(
            masked_to_professionals=False,
            hidden_from_patient=hidden_from_patient,
            hidden_from_representatives=False,
            secret_connection=False,
            confidentiality_modified=False,
            to_dossier=to_dossier,
            to_professionals=any(each.audience is Audience.PROFESSIONAL for each in correspondents),
            to_patient=to_patient,
            ack_reception=True,
            ack_reading=True,
        ),
        body_professional="",
        body_patient="",
        content_type_code="",
        findings=(),
    )


def _audience(recipient: _Recipient, patient: PatientIdentity) -> Audience:
    matricule = canonical_matricule(patient.matricule)
    own = matricule is not None and recipient.name.partition("@")[0].upper() == matricule
    return Audience.PATIENT if own else Audience.PROFESSIONAL


def _identified(report: Report) -> bytes:
    """The frame, its MSH-10 (20 characters at most) taken from all the rest of it."""
    digest = hashlib.sha256(mdm.compose(report)).hexdigest()
    return mdm.compose(replace(report, control_id=digest[:20].upper()))


def _result(
    report: Report, system: SendingSystem, recipients: Sequence[_Recipient], taken: Taken | None
) -> LetterResult:
    decided = {delivery.recipient: delivery for delivery in taken.deliveries} if taken is not None else {}
    printer = _Printer(report, system)
    reached: list[str] = []
    unreached: list[Unreached] = []
    for recipient in recipients:
        if not recipient.address:
            reason: Refused | None = Refused(ADDRESS_INVALID if recipient.malformed else NO_MAILBOX)
        else:
            reason = decided[recipient.address].refused
        if reason is None:
            reached.append(recipient.address)
        else:
            cover, pages = printer.letter(recipient, reason)
            unreached.append(_unreached(recipient.name, reason, cover, pages))
    if DOSSIER_RECIPIENT in decided:
        reason = decided[DOSSIER_RECIPIENT].refused
        if reason is None:
            reached.append(DOSSIER_RECIPIENT)
        else:
            unreached.append(_unreached(DOSSIER_RECIPIENT, reason))
    spool_id = taken.spool_id if taken is not None else ""
    duplicate = taken is not None and taken.duplicate
    return LetterResult(bool(spool_id), spool_id, duplicate, tuple(reached), tuple(unreached), None)


def _unreached(name: str, reason: Refused, cover: bytes = b"", pages: bytes = b"") -> Unreached:
    return Unreached(name, reason.refusal.code, reason.refusal.text_fr, cover, pages)


class _Printer:
    """The same document for several addressees: its pages are made once per audience."""

    def __init__(self, report: Report, system: SendingSystem) -> None:
        self._report = report
        self._sender = [line for line in (system.sender_name, report.sender.organisation, system.sender) if line]
        self._pages: dict[Audience, bytes] = {}

    def letter(self, recipient: _Recipient, reason: Refused) -> tuple[bytes, bytes]:
        """Its cover and its pages, both empty when paper is no answer."""
        if reason.refusal not in _PAPER_HELPS:
            return b"", b""
        document = self._report.documents[0]
        audience = _audience(recipient, self._report.patient)
        if audience not in self._pages:
            self._pages[audience] = printed.document_pages(self._report, document, audience)
        lines = recipient.lines or (recipient.name,)
        return printed.cover(document, lines, self._sender, _date(document)), self._pages[audience]


def _date(document: Document) -> datetime:
    """The letter's own date, so that printing it again gives the same sheet; today when it has none."""
    try:
        return datetime.strptime(document.created[:8], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return datetime.now(UTC)
