"""The embedded dossier: plays the shared patient record until the national connector exists.

A deposit is one transaction: dossier, document entries, the end of what they replace, the delivery's answer and the
journal, all or nothing; bytes are on disk before. A read is the other way round: the journal entry is durable before
the first byte is handed out. Deposits of one patient are serialised by a lock on the dossier's row.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from bridges.dossier.entries import AvailabilityStatus, Deposited, DocumentEntry, DossierStatus, PatientKey
from bridges.dossier.records import DossierDamagedError, HeldDocument, HeldDossier, Records, environment
from bridges.dossier.refusals import (
    CLOSED,
    CONFIDENTIALITY,
    DOCUMENT_ALTERED,
    DOCUMENT_DELETED,
    DOCUMENT_UNKNOWN,
    INS_DIFFERS,
    INS_INCOMPLETE,
    INS_MISSING,
    NO_DOCUMENT,
    NOT_AUTHORISED,
    NOT_HELD,
    NOT_IDENTIFIED,
    NOT_THE_AUTHOR,
    PATIENT_UNKNOWN,
)
from bridges.dossier.rights import AccessContext, Decision, Matrix, Reader, decide, decide_access
from bridges.dossier.versions import Placement, place, removable
from bridges.identity import REAL_OIDS, TEST_OIDS, canonical_matricule
from bridges.report import Action, Document, Finding, Flags, Report
from trust.journal import Journal, JournalEntry
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

__all__ = ["Deposited", "Dossier", "DossierDamagedError"]

ALREADY_HELD = Finding("already-held", "ClinicalDocument/id")
NOTHING_TO_WITHDRAW = Finding("not-held", "ClinicalDocument/id")
NOT_HIDDEN_AGAIN = Finding("not-hidden-again", "INVISIBLE_PATIENT")
"""What its patient or representatives could already see is not hidden from them afterwards."""

_KIND = "dossier.document"
_REFUSAL_OF_RULE = {
    "dossier-closed": CLOSED,
    "not-identified": NOT_IDENTIFIED,
    "no-purpose": NOT_IDENTIFIED,
    "matrix": NOT_AUTHORISED,
}
"""The other rules answer DOCUMENT_UNKNOWN: that a document is masked is itself not to be seen."""

Entries: TypeAlias = list[DocumentEntry]


@dataclass(frozen=True, slots=True)
class _Incoming:
    """One document of a report, with what is costly made before the transaction."""

    document: Document
    hash: str
    organisation_id: str
    blob_id: str
    """Empty for a deletion."""


@dataclass(frozen=True, slots=True)
class _Change:
    """One thing to write, decided before anything is written."""

    entry: DocumentEntry
    """The document as it will stand."""
    held: HeldDocument | None = None
    """The row to restate, None to add one."""
    blob_id: str = ""


@dataclass(slots=True)
class _Plan:
    """What a report will do to a dossier."""

    results: list[DocumentEntry] = field(default_factory=list)
    changes: list[_Change] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class Dossier:
    """Deposits, lists and reads. Synchronous and thread-safe.

    Exceptions of the outside world pass through: `StoreUnavailableError`, OSError, `BlobMissingError`,
    `BlobDamagedError`, and `DossierDamagedError` when rows were altered. `clock` gives UNIX seconds.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        journal: Journal,
        matrix: Matrix,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._records = Records(vault)
        self._journal = journal
        self._matrix = matrix
        self._clock = clock

    def deposit(self, report: Report, *, delivery_id: str, depositor: str) -> Deposited | Refused:
        """File, replace or delete the report's documents, all of them or none; of a withdrawal, those that are held.

        Idempotent: by `delivery_id` (up to 128 characters), and by uniqueId when the bytes are the same. `depositor`
        is who handed the report over, as the door authenticated it. A refusal is journaled too.
        """
        if answered := self._database.read(lambda connection: self._records.answer(connection, delivery_id)):
            return answered
        incoming: list[_Incoming] = []

        def settle(connection: Connection) -> tuple[Deposited | Refused, set[str]]:
            return self._settle(connection, report, incoming, delivery_id, depositor)

        try:
            for document in report.documents:
                incoming.append(self._incoming(document, report, depositor))
            try:
                answer, used = self._database.transact(settle)
            except IntegrityError:  # another node filed the same document or opened the same dossier just now
                answer, used = self._database.transact(settle)
        finally:
            for each in incoming:
                self._blobs.release(each.blob_id)
        for each in incoming:
            if each.blob_id and each.blob_id not in used:
                self._blobs.delete(each.blob_id)
        return answer

    def _incoming(self, document: Document, report: Report, depositor: str) -> _Incoming:
        return _Incoming(
            document,
            hashlib.sha256(document.content).hexdigest(),
            document.author.organisation_id or report.sender.organisation_id or depositor,
            "" if report.action is Action.DELETE else self._blobs.put(_KIND, document.content),
        )

    def read(self, reader: Reader, patient: PatientKey, document_id: str, *, purpose: str) -> bytes | Refused:
        """The document's bytes as deposited. `document_id`: an entryUUID (replaced versions too), or a logicalID.

        The journal entry is durable before this returns, or nothing does; refusals are journaled too.
        """
        context = AccessContext(self._matrix, purpose, history=True)
        subject = self._records.subject(patient)

        def judge(connection: Connection) -> HeldDocument | Refused:
            dossier = self._may_open(reader, self._records.dossier(connection, subject), context)
            found = dossier if isinstance(dossier, Refused) else self._records.find(connection, dossier.id, document_id)
            outcome: HeldDocument | Refused = found or Refused(DOCUMENT_UNKNOWN, "unknown")
            entry_uuid = ""
            if isinstance(outcome, HeldDocument):
                entry_uuid = outcome.entry.entry_uuid
                decision = decide(reader, DossierStatus.OPEN, outcome.entry, context)
                outcome = outcome if decision.allowed else _refused(decision)
            rule = outcome.detail if isinstance(outcome, Refused) else ""
            self._witness(connection, reader, "dossier.read", subject, purpose, rule, object_id=entry_uuid)
            return outcome

        outcome = self._database.transact(judge)
        if isinstance(outcome, Refused):
            # Which rule refused is for the journal: the reader must not tell a masked document from none.
            return Refused(outcome.refusal)
        content = self._blobs.get(_KIND, outcome.blob_id)
        if hashlib.sha256(content).hexdigest() != outcome.entry.hash:
            raise DossierDamagedError(f"content of document {outcome.entry.entry_uuid}")
        return content

    def set_status(self, patient: PatientKey, status: DossierStatus, *, actor: str, reason: str) -> Refused | None:
        """Close or reopen a dossier for its holder; None when done. Contents are kept."""
        subject = self._records.subject(patient)

        def change(connection: Connection) -> Refused | None:
            dossier = self._records.dossier(connection, subject, lock=True)
            if dossier is None:
                return Refused(PATIENT_UNKNOWN)
            self._records.set_status(connection, dossier, status)
            entry = JournalEntry(actor, f"dossier.{status.value}", "done", subject=subject, reason=reason)
            self._journal.append(connection, entry)
            return None

        return self._database.transact(change)

    def list(self, reader: Reader, patient: PatientKey, *, purpose: str, history: bool = False) -> Entries | Refused:
        """What this reader may read, most recent act first; replaced versions too with `history`. Journaled."""
        context = AccessContext(self._matrix, purpose, history)
        subject = self._records.subject(patient)

        def find(connection: Connection) -> Entries | Refused:
            dossier = self._may_open(reader, self._records.dossier(connection, subject), context)
            if isinstance(dossier, Refused):
                return dossier
            return [held.entry for held in self._records.not_deleted(connection, dossier.id)]

        found = self._database.read(find)
        shown: Entries = []
        rule = ""
        if isinstance(found, Refused):
            rule = found.detail
        else:
            shown = [entry for entry in found if decide(reader, DossierStatus.OPEN, entry, context).allowed]
            shown.sort(key=lambda entry: (entry.service_start or entry.created, entry.version), reverse=True)
        details = {"shown": str(len(shown)), "history": "yes" if history else "no"}
        self._database.transact(
            lambda connection: self._witness(
                connection, reader, "dossier.list", subject, purpose, rule, details=details
            )
        )
        return Refused(found.refusal) if isinstance(found, Refused) else shown

    def _settle(
        self,
        connection: Connection,
        report: Report,
        incoming: Sequence[_Incoming],
        delivery_id: str,
        depositor: str,
    ) -> tuple[Deposited | Refused, set[str]]:
        """The answer, and the blobs that rows now name."""
        if answered := self._records.answer(connection, delivery_id):
            return answered, set()
        subject = self._records.subject(PatientKey(report.patient.matricule, report.patient.matricule_oid))
        dossier = self._records.dossier(connection, subject, lock=True)
        plan = self._plan(connection, report, incoming, dossier, depositor)
        details = {"event": report.action.value}
        if isinstance(plan, Refused):
            reason = plan.refusal.code
            answer: Deposited | Refused = plan
            used: set[str] = set()
        else:
            reason = ""
            self._carry_out(connection, report, plan, dossier, subject)
            answer = Deposited(tuple(plan.results), tuple(dict.fromkeys(plan.findings)))
            self._records.keep_answer(connection, delivery_id, answer)
            used = {change.blob_id for change in plan.changes}
            details["entries"] = " ".join(entry.entry_uuid for entry in answer.entries)
            details["findings"] = " ".join(finding.code for finding in answer.findings)
        outcome = "refused" if reason else "done"
        entry = JournalEntry(depositor, "dossier.deposit", outcome, subject, delivery_id, reason, details=details)
        self._journal.append(connection, entry)
        return answer, used

    def _carry_out(
        self, connection: Connection, report: Report, plan: _Plan, dossier: HeldDossier | None, subject: str
    ) -> None:
        dossier = dossier or self._records.create(connection, subject, report.patient, self._clock())
        for change in plan.changes:
            if change.held is None:
                where = environment(report.patient.matricule_oid)
                self._records.add(connection, dossier.id, where, change.blob_id, change.entry)
            else:
                self._records.restate(connection, change.held, change.entry)

    def _plan(
        self,
        connection: Connection,
        report: Report,
        incoming: Sequence[_Incoming],
        dossier: HeldDossier | None,
        depositor: str,
    ) -> _Plan | Refused:
        """What to write for the whole report, against the dossier as it stands: twins do not replace each other."""
        if refused := _unacceptable(report):
            return refused
        if dossier is None and report.action is Action.DELETE:
            return Refused(PATIENT_UNKNOWN)
        if dossier is not None and dossier.status is not DossierStatus.OPEN:
            return Refused(CLOSED)
        plan = _Plan()
        for each in incoming:
            held = self._records.by_unique_id(
                connection, environment(report.patient.matricule_oid), each.document.unique_id
            )
            if held is not None and (dossier is None or held.dossier_id != dossier.id):
                return Refused(INS_DIFFERS, location="ClinicalDocument/id")
            if report.action is Action.DELETE:
                refused = self._plan_removal(connection, each, held, plan)
            elif held is not None:
                refused = _plan_again(report, each, held, plan)
            else:
                refused = self._plan_addition(connection, report, each, dossier, depositor, plan)
            if refused is not None:
                if refused.refusal is not NOT_HELD or report.action is not Action.DELETE:
                    return refused
                plan.findings.append(NOTHING_TO_WITHDRAW)
        # A withdrawal takes away what is there, even when its twin never came.
        if report.action is Action.DELETE and not plan.results:
            return Refused(NOT_HELD)
        return plan

    def _plan_removal(
        self, connection: Connection, incoming: _Incoming, held: HeldDocument | None, plan: _Plan
    ) -> Refused | None:
        """Mark a document and the versions it replaced as deleted; nothing is destroyed."""
        if held is None:
            return Refused(NOT_HELD)
        if refused := removable(held.entry, incoming.organisation_id):
            return refused
        for version in self._records.versions(connection, held.entry.logical_id):
            superseded = version.entry.status is AvailabilityStatus.SUPERSEDED
            if superseded or version.entry.entry_uuid == held.entry.entry_uuid:
                plan.changes.append(_Change(replace(version.entry, status=AvailabilityStatus.DELETED), version))
        plan.results.append(replace(held.entry, status=AvailabilityStatus.DELETED))
        return None

    def _plan_addition(
        self,
        connection: Connection,
        report: Report,
        incoming: _Incoming,
        dossier: HeldDossier | None,
        depositor: str,
        plan: _Plan,
    ) -> Refused | None:
        document = incoming.document
        where = environment(report.patient.matricule_oid)
        dossier_id = dossier.id if dossier else ""
        parent = self._records.by_unique_id(connection, where, document.parent_id)
        in_set = self._records.in_set(connection, dossier_id, where, document.set_id)
        if parent is not None and parent.dossier_id != dossier_id:
            if not in_set:
                return Refused(INS_DIFFERS, location="ClinicalDocument/relatedDocument")
            parent = None
        of_parent = self._records.in_set(connection, dossier_id, where, parent.entry.set_id) if parent else []
        placement = place(
            document,
            report.action,
            incoming.organisation_id,
            [held.entry for held in in_set],
            [held.entry for held in of_parent],
        )
        if isinstance(placement, Refused):
            return placement
        # A document that splits into twins: the first goes on as it, the other begins as a document of its own.
        taken = {done.logical_id for done in plan.results}
        continued = next((held.logical_id for held in placement.replaces if held.logical_id not in taken), "")
        entry = _new_entry(report, incoming, placement, continued, self._clock(), depositor)
        ended = {change.held.entry.entry_uuid for change in plan.changes if change.held}
        for held in in_set or of_parent:
            if held.entry in placement.replaces and held.entry.entry_uuid not in ended:
                plan.changes.append(_Change(replace(held.entry, status=AvailabilityStatus.SUPERSEDED), held))
        plan.changes.append(_Change(entry, blob_id=incoming.blob_id))
        plan.results.append(entry)
        plan.findings += placement.findings
        return None

    def _may_open(self, reader: Reader, dossier: HeldDossier | None, context: AccessContext) -> HeldDossier | Refused:
        """The dossier, or why this reader may not open it; the detail is the rule, for the journal."""
        decision = decide_access(reader, dossier.status if dossier else DossierStatus.OPEN, context)
        if not decision.allowed:
            return _refused(decision)
        # That there is no dossier is said only to those who might have opened it.
        return dossier or Refused(PATIENT_UNKNOWN, "unknown")

    def _witness(
        self,
        connection: Connection,
        reader: Reader,
        action: str,
        subject: str,
        purpose: str,
        rule: str,
        *,
        object_id: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Journal an access: `rule` is what refused it, empty when granted."""
        who = {"name": reader.name, "profession": reader.profession, "specialty": reader.specialty}
        outcome = "refused" if rule else "granted"
        entry = JournalEntry(
            reader.id_nat, action, outcome, subject, object_id, rule, purpose, who | dict(details or {})
        )
        self._journal.append(connection, entry)


def _unacceptable(report: Report) -> Refused | None:
    """Why the dossier takes nothing of this report, whatever it already holds."""
    patient = report.patient
    if not patient.matricule.strip():
        return Refused(INS_MISSING, location="PID^1^3")
    matricule = canonical_matricule(patient.matricule)
    if matricule is None or patient.matricule_oid not in REAL_OIDS | TEST_OIDS:
        return Refused(INS_INCOMPLETE, location="PID^1^3")
    names = [document.unique_id for document in report.documents]
    if not names or "" in names:
        return Refused(NO_DOCUMENT)
    if len(set(names)) != len(names):
        return Refused(DOCUMENT_ALTERED, location="ClinicalDocument/id")
    for document in report.documents:
        theirs = document.patient
        if canonical_matricule(theirs.matricule) != matricule or theirs.matricule_oid != patient.matricule_oid:
            return Refused(INS_DIFFERS, location="ClinicalDocument/recordTarget")
        if report.action is not Action.DELETE and document.confidentiality != "N":
            return Refused(CONFIDENTIALITY, location="ClinicalDocument/confidentialityCode")
    return None


def _plan_again(report: Report, incoming: _Incoming, held: HeldDocument, plan: _Plan) -> Refused | None:
    """The document is held already: a repetition, a change of masking, or other content under its name."""
    entry = held.entry
    if entry.hash != incoming.hash:
        return Refused(DOCUMENT_ALTERED)
    if entry.status is AvailabilityStatus.DELETED:
        return Refused(DOCUMENT_DELETED)
    plan.findings.append(ALREADY_HELD)
    if report.action is Action.REPLACE and entry.status is AvailabilityStatus.CURRENT:
        flagged, findings = _reflagged(entry, report.flags)
        plan.findings += findings
        if flagged != entry:
            if entry.organisation_id != incoming.organisation_id:
                return Refused(NOT_THE_AUTHOR)
            entry = replace(flagged, entry_uuid=str(uuid.uuid4()))
            plan.changes.append(_Change(entry, held))
    plan.results.append(entry)
    return None


def _reflagged(entry: DocumentEntry, flags: Flags) -> tuple[DocumentEntry, tuple[Finding, ...]]:
    """The entry with what the sender now says of masking; towards patients a document only ever becomes visible."""
    hides_again = (flags.hidden_from_patient is True and not entry.hidden_from_patient) or (
        flags.hidden_from_representatives is True and not entry.hidden_from_representatives
    )
    changed = replace(
        entry,
        masked_to_professionals=_said(flags.masked_to_professionals, entry.masked_to_professionals),
        hidden_from_patient=entry.hidden_from_patient and flags.hidden_from_patient is not False,
        hidden_from_representatives=(
            entry.hidden_from_representatives and flags.hidden_from_representatives is not False
        ),
        secret_connection=_said(flags.secret_connection, entry.secret_connection),
    )
    return changed, (NOT_HIDDEN_AGAIN,) if hides_again else ()


def _new_entry(
    report: Report, incoming: _Incoming, placement: Placement, continued: str, at: float, depositor: str
) -> DocumentEntry:
    """`continued`: the logicalID it takes over; empty for a new one."""
    document, flags = incoming.document, report.flags
    # A replacement that says nothing of masking does not unmask.
    before = placement.replaces[0] if placement.replaces else None
    return DocumentEntry(
        entry_uuid=str(uuid.uuid4()),
        logical_id=continued or str(uuid.uuid4()),
        unique_id=document.unique_id,
        set_id=placement.set_id,
        version=placement.version,
        parent_id=document.parent_id,
        status=AvailabilityStatus.CURRENT,
        type_code=document.type_code,
        type_label=document.type_label,
        type_system=document.type_system,
        title=document.title,
        created=document.created,
        service_start=document.service_start,
        service_stop=document.service_stop,
        language=document.language,
        format_code=document.format_code,
        level=document.level,
        author=document.author,
        author_specialty=document.author_specialty,
        organisation_id=incoming.organisation_id,
        facility=document.facility,
        practice_setting=document.practice_setting,
        content_type_code=report.content_type_code,
        confidentiality=document.confidentiality,
        masked_to_professionals=_said(
            flags.masked_to_professionals, before is not None and before.masked_to_professionals
        ),
        hidden_from_patient=_said(flags.hidden_from_patient, before is not None and before.hidden_from_patient),
        hidden_from_representatives=_said(
            flags.hidden_from_representatives, before is not None and before.hidden_from_representatives
        ),
        secret_connection=_said(flags.secret_connection, before is not None and before.secret_connection),
        hash=incoming.hash,
        size=len(document.content),
        deposited_at=at,
        depositor=depositor,
    )


def _said(flag: bool | None, before: bool) -> bool:
    return before if flag is None else flag


def _refused(decision: Decision) -> Refused:
    return Refused(_REFUSAL_OF_RULE.get(decision.rule, DOCUMENT_UNKNOWN), decision.rule)
