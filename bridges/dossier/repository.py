"""The embedded dossier: plays the shared patient record until the national connector exists.

A deposit is one transaction: dossier, document entries, the end of what they replace, the delivery's answer and the
journal, all or nothing; bytes are on disk before. A read is the other way round: the journal entry is durable before
the first byte is handed out. Deposits of one patient are serialised by a lock on the dossier's row.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import Connection, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from bridges.dossier.entries import AvailabilityStatus, DocumentEntry, DossierStatus, PatientKey
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
from bridges.dossier.tables import dossier_deposits, dossier_documents, dossiers
from bridges.dossier.versions import Placement, place, removable
from bridges.identity import REAL_OIDS, TEST_OIDS, canonical_matricule
from bridges.report import Action, Document, Finding, Flags, Report
from trust.journal import Journal, JournalEntry
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault, VaultError

_KIND = "dossier.document"
_REFUSAL_OF_RULE = {
    "dossier-closed": CLOSED,
    "not-identified": NOT_IDENTIFIED,
    "no-purpose": NOT_IDENTIFIED,
    "matrix": NOT_AUTHORISED,
}
"""The other rules answer DOCUMENT_UNKNOWN: that a document is masked is itself not to be seen."""

_ALREADY_HELD = Finding("already-held", "ClinicalDocument/id")
_NOT_HIDDEN_AGAIN = Finding("not-hidden-again", "INVISIBLE_PATIENT")
"""What its patient or representatives could already see cannot be hidden from them afterwards."""

Entries: TypeAlias = list[DocumentEntry]


class DossierDamagedError(Exception):
    """Something of the dossier was altered or moved outside Relais: it is not shown. The text names the row."""


@dataclass(frozen=True, slots=True)
class Deposited:
    """What a deposit did. The same answer is given again when the delivery comes again."""

    entries: tuple[DocumentEntry, ...]
    """The report's documents as they now stand, in its order."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Incoming:
    """One document of a report, with what is costly made before the transaction."""

    document: Document
    hash: str
    organisation_id: str
    blob_id: str
    """Empty for a deletion."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A document's row, opened. `columns` are those in the clear."""

    columns: Mapping[str, Any]
    entry: DocumentEntry


_Step: TypeAlias = Callable[[Connection, str], DocumentEntry]
"""What is left to do for one document, given the dossier's id, once all of the report is known to be acceptable."""


class Dossier:
    """Deposits, lists and reads. Synchronous and thread-safe.

    Exceptions of the outside world pass through: `StoreUnavailableError`, OSError, `BlobMissingError`,
    `BlobDamagedError`, and `DossierDamagedError`. `clock` gives UNIX seconds.
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
        self._vault = vault
        self._journal = journal
        self._matrix = matrix
        self._clock = clock

    def deposit(self, report: Report, *, delivery_id: str, depositor: str) -> Deposited | Refused:
        """File, replace or delete the report's documents, all of them or none.

        Idempotent: by `delivery_id` (up to 128 characters), and by uniqueId when the bytes are the same. `depositor`
        is who handed the report over, as the door authenticated it. A refusal is journaled too.
        """
        if answered := self._database.read(lambda connection: self._answered(connection, delivery_id)):
            return answered
        incoming = [
            _Incoming(
                document,
                hashlib.sha256(document.content).hexdigest(),
                document.author.organisation_id or report.sender.organisation_id or depositor,
                "" if report.action is Action.DELETE else self._blobs.put(_KIND, document.content),
            )
            for document in report.documents
        ]

        def settle(connection: Connection) -> tuple[Deposited | Refused, set[str]]:
            return self._settle(connection, report, incoming, delivery_id, depositor)

        try:
            answer, used = self._database.transact(settle)
        except IntegrityError:  # another node filed the same document or opened the same dossier just now
            answer, used = self._database.transact(settle)
        for each in incoming:
            if each.blob_id and each.blob_id not in used:
                self._blobs.delete(each.blob_id)
        return answer

    def list(self, reader: Reader, patient: PatientKey, *, purpose: str, history: bool = False) -> Entries | Refused:
        """What this reader may read, most recent act first; replaced versions too with `history`."""
        context = AccessContext(self._matrix, purpose, history)
        subject = self._subject(patient)

        def find(connection: Connection) -> Entries | Refused:
            dossier = self._dossier(connection, subject)
            if refused := self._access_refused(reader, dossier, context):
                return refused
            wanted = dossier_documents.c.status.in_([s.value for s in AvailabilityStatus if s.value != "deleted"])
            rows = connection.execute(
                select(dossier_documents).where(dossier_documents.c.dossier_id == _row(dossier).id, wanted)
            )
            return [held.entry for held in map(self._open, rows)]

        found = self._database.read(find)
        if isinstance(found, Refused):
            self._database.transact(lambda c: self._witness(c, reader, "dossier.list", subject, purpose, found.detail))
            return found
        shown = [entry for entry in found if decide(reader, DossierStatus.OPEN, entry, context).allowed]
        shown.sort(key=lambda entry: (entry.service_start or entry.created, entry.version), reverse=True)
        self._database.transact(
            lambda c: self._witness(c, reader, "dossier.list", subject, purpose, details={"shown": str(len(shown))})
        )
        return shown

    def read(self, reader: Reader, patient: PatientKey, document_id: str, *, purpose: str) -> bytes | Refused:
        """The document's bytes as deposited. `document_id`: an entryUUID (replaced versions too), or a logicalID.

        The journal entry is durable before this returns, or nothing does; refusals are journaled too.
        """
        context = AccessContext(self._matrix, purpose, history=True)
        subject = self._subject(patient)

        def judge(connection: Connection) -> _Held | Refused:
            held, refused = self._judge(connection, reader, subject, document_id, context)
            entry_uuid = held.entry.entry_uuid if held else ""
            rule = refused.detail if refused else ""
            self._witness(connection, reader, "dossier.read", subject, purpose, rule, object_id=entry_uuid)
            return refused or held  # type: ignore

        judged = self._database.transact(judge)
        if isinstance(judged, Refused):
            # Which rule refused stands in the journal; the reader must not tell a masked document from none.
            return Refused(judged.refusal)
        content = self._blobs.get(_KIND, judged.columns["blob_id"])
        if hashlib.sha256(content).hexdigest() != judged.entry.hash:
            raise DossierDamagedError(f"content of {judged.entry.entry_uuid}")
        return content

    def set_status(self, patient: PatientKey, status: DossierStatus, *, actor: str, reason: str) -> Refused | None:
        """Close or reopen a dossier for its holder; None when done. Contents are kept."""
        subject = self._subject(patient)

        def change(connection: Connection) -> Refused | None:
            dossier = self._dossier(connection, subject, lock=True)
            if dossier is None:
                return Refused(PATIENT_UNKNOWN)
            identity = self._unseal(dossier.sealed, _dossier_binding(dossier.id, subject, dossier.status))
            connection.execute(
                update(dossiers)
                .where(dossiers.c.id == dossier.id)
                .values(
                    status=status.value,
                    sealed=self._vault.seal(identity, _dossier_binding(dossier.id, subject, status.value)),
                )
            )
            entry = JournalEntry(actor, f"dossier.{status.value}", "done", subject=subject, reason=reason)
            self._journal.append(connection, entry)
            return None

        return self._database.transact(change)

    # Depositing

    def _settle(
        self, connection: Connection, report: Report, incoming: Iterable[_Incoming], delivery_id: str, depositor: str
    ) -> tuple[Deposited | Refused, set[str]]:
        """The answer, and the blobs that rows now name."""
        if answered := self._answered(connection, delivery_id):
            return answered, set()
        incoming = tuple(incoming)
        patient = PatientKey(report.patient.matricule, report.patient.matricule_oid)
        subject = self._subject(patient)
        answer, used = self._file(connection, report, incoming, subject, depositor)
        details = {"event": report.action.value}
        if isinstance(answer, Deposited):
            details["entries"] = " ".join(entry.entry_uuid for entry in answer.entries)
            details["findings"] = " ".join(finding.code for finding in answer.findings)
            sealed = self._vault.seal(msgspec.json.encode(answer), _delivery_binding(delivery_id))
            connection.execute(insert(dossier_deposits).values(delivery_id=delivery_id, sealed=sealed))
        self._journal.append(
            connection,
            JournalEntry(
                actor=depositor,
                action="dossier.deposit",
                outcome="refused" if isinstance(answer, Refused) else "done",
                subject=subject,
                object_id=delivery_id,
                reason=answer.refusal.code if isinstance(answer, Refused) else "",
                details=details,
            ),
        )
        return answer, used

    def _file(
        self, connection: Connection, report: Report, incoming: tuple[_Incoming, ...], subject: str, depositor: str
    ) -> tuple[Deposited | Refused, set[str]]:
        nothing: set[str] = set()
        if refused := _unacceptable(report):
            return refused, nothing
        dossier = self._dossier(connection, subject, lock=True)
        if dossier is not None and dossier.status == DossierStatus.CLOSED.value:
            return Refused(CLOSED), nothing
        if dossier is None and report.action is Action.DELETE:
            return Refused(PATIENT_UNKNOWN), nothing
        steps: list[_Step] = []
        findings: list[Finding] = []
        used: set[str] = set()
        for each in incoming:
            planned = self._plan(connection, report, each, dossier.id if dossier else "", depositor, used)
            if isinstance(planned, Refused):
                return planned, nothing
            step, found = planned
            steps.append(step)
            findings += found
        # Everything is acceptable: only from here on is anything written.
        dossier_id = dossier.id if dossier else self._create(connection, report, subject)
        entries = tuple(step(connection, dossier_id) for step in steps)
        return Deposited(entries, tuple(dict.fromkeys(findings))), used

    def _plan(
        self,
        connection: Connection,
        report: Report,
        incoming: _Incoming,
        dossier_id: str,
        depositor: str,
        used: set[str],
    ) -> tuple[_Step, tuple[Finding, ...]] | Refused:
        document = incoming.document
        environment = _environment(report.patient.matricule_oid)
        held = self._held(connection, environment, document.unique_id)
        if held is not None and held.columns["dossier_id"] != dossier_id:
            return Refused(INS_DIFFERS, location="ClinicalDocument/id")
        if report.action is Action.DELETE:
            if held is None:
                return Refused(NOT_HELD)
            if refused := removable(held.entry, incoming.organisation_id):
                return refused
            return lambda c, _: self._remove(c, held), ()
        if held is not None:
            return self._plan_again(report, incoming, held)
        parent = self._held(connection, environment, document.parent_id)
        in_set = self._set(connection, dossier_id, environment, document.set_id)
        if parent is not None and parent.columns["dossier_id"] != dossier_id:
            if not in_set:
                return Refused(INS_DIFFERS, location="ClinicalDocument/relatedDocument")
            parent = None
        of_parent = self._set(connection, dossier_id, environment, parent.entry.set_id) if parent else []
        placement = place(
            document,
            report.action,
            incoming.organisation_id,
            [each.entry for each in in_set],
            [each.entry for each in of_parent],
        )
        if isinstance(placement, Refused):
            return placement
        used.add(incoming.blob_id)
        return (
            lambda c, dossier_id: self._add(c, dossier_id, report, incoming, placement, environment, depositor),
            placement.findings,
        )

    def _plan_again(
        self, report: Report, incoming: _Incoming, held: _Held
    ) -> tuple[_Step, tuple[Finding, ...]] | Refused:
        """The document is held already: a repetition, a change of masking, or another content under its name."""
        entry = held.entry
        if entry.hash != incoming.hash:
            return Refused(DOCUMENT_ALTERED)
        if entry.status is AvailabilityStatus.DELETED:
            return Refused(DOCUMENT_DELETED)
        flagged, findings = _reflagged(entry, report.flags)
        if report.action is not Action.REPLACE or flagged == entry or entry.status is not AvailabilityStatus.CURRENT:
            return lambda c, _: entry, (_ALREADY_HELD,)
        if entry.organisation_id != incoming.organisation_id:
            return Refused(NOT_THE_AUTHOR)
        changed = replace(flagged, entry_uuid=str(uuid.uuid4()))
        return lambda c, _: self._restate(c, held, changed), findings

    def _create(self, connection: Connection, report: Report, subject: str) -> str:
        dossier_id = str(uuid.uuid4())
        status = DossierStatus.OPEN.value
        connection.execute(
            insert(dossiers).values(
                id=dossier_id,
                patient=subject,
                status=status,
                opened_at=self._clock(),
                sealed=self._vault.seal(
                    msgspec.json.encode(report.patient), _dossier_binding(dossier_id, subject, status)
                ),
            )
        )
        return dossier_id

    def _add(
        self,
        connection: Connection,
        dossier_id: str,
        report: Report,
        incoming: _Incoming,
        placement: Placement,
        environment: str,
        depositor: str,
    ) -> DocumentEntry:
        document = incoming.document
        before = placement.replaces[0] if placement.replaces else None
        flags = report.flags
        entry = DocumentEntry(
            entry_uuid=str(uuid.uuid4()),
            logical_id=before.logical_id if before else str(uuid.uuid4()),
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
            # A replacement that says nothing of masking does not unmask.
            masked_to_professionals=_said(flags.masked_to_professionals, before and before.masked_to_professionals),
            hidden_from_patient=_said(flags.hidden_from_patient, before and before.hidden_from_patient),
            hidden_from_representatives=_said(
                flags.hidden_from_representatives, before and before.hidden_from_representatives
            ),
            secret_connection=_said(flags.secret_connection, before and before.secret_connection),
            hash=incoming.hash,
            size=len(document.content),
            deposited_at=self._clock(),
            depositor=depositor,
        )
        for replaced in placement.replaces:
            held = _row(self._held(connection, environment, replaced.unique_id))
            if held.entry.status is AvailabilityStatus.CURRENT:  # its twin may have replaced it a moment ago
                self._restate(connection, held, replace(held.entry, status=AvailabilityStatus.SUPERSEDED))
        columns = {
            "entry_uuid": entry.entry_uuid,
            "dossier_id": dossier_id,
            "logical_id": entry.logical_id,
            "unique_key": self._vault.pseudonym("dossier.document", environment, entry.unique_id),
            "set_key": self._vault.pseudonym("dossier.set", environment, entry.set_id),
            "version": entry.version,
            "status": entry.status.value,
            "blob_id": incoming.blob_id,
        }
        connection.execute(insert(dossier_documents).values(**columns, sealed=self._seal(columns, entry)))
        return entry

    def _remove(self, connection: Connection, held: _Held) -> DocumentEntry:
        """Mark a document and the versions it replaced as deleted. Nothing is destroyed."""
        rows = connection.execute(
            select(dossier_documents).where(
                dossier_documents.c.logical_id == held.entry.logical_id,
                dossier_documents.c.status != AvailabilityStatus.DELETED.value,
            )
        ).all()
        for version in map(self._open, rows):
            current_twin = version.entry.status is AvailabilityStatus.CURRENT and version.columns != held.columns
            if not current_twin:
                self._restate(connection, version, replace(version.entry, status=AvailabilityStatus.DELETED))
        return replace(held.entry, status=AvailabilityStatus.DELETED)

    def _restate(self, connection: Connection, held: _Held, entry: DocumentEntry) -> DocumentEntry:
        """Replace a row's metadata, its entryUUID and status included."""
        columns = dict(held.columns) | {"entry_uuid": entry.entry_uuid, "status": entry.status.value}
        connection.execute(
            update(dossier_documents)
            .where(dossier_documents.c.entry_uuid == held.entry.entry_uuid)
            .values(**columns, sealed=self._seal(columns, entry))
        )
        return entry

    # Reading

    def _judge(
        self, connection: Connection, reader: Reader, subject: str, document_id: str, context: AccessContext
    ) -> tuple[_Held | None, Refused | None]:
        """The document when there is one, and why it must not be read; the detail is the rule, for the journal."""
        dossier = self._dossier(connection, subject)
        if refused := self._access_refused(reader, dossier, context):
            return None, refused
        in_dossier = dossier_documents.c.dossier_id == _row(dossier).id
        row = (
            connection.execute(
                select(dossier_documents).where(in_dossier, dossier_documents.c.entry_uuid == document_id)
            ).one_or_none()
            or connection.execute(
                select(dossier_documents).where(
                    in_dossier,
                    dossier_documents.c.logical_id == document_id,
                    dossier_documents.c.status == AvailabilityStatus.CURRENT.value,
                )
            ).first()
        )
        if row is None:
            return None, Refused(DOCUMENT_UNKNOWN, "unknown")
        held = self._open(row)
        decision = decide(reader, DossierStatus.OPEN, held.entry, context)
        return held, None if decision.allowed else _refused(decision)

    def _access_refused(self, reader: Reader, dossier: Row[Any] | None, context: AccessContext) -> Refused | None:
        status = DossierStatus.OPEN if dossier is None else DossierStatus(dossier.status)
        decision = decide_access(reader, status, context)
        if not decision.allowed:
            return _refused(decision)
        if dossier is None:  # said only to those who may ask
            return Refused(PATIENT_UNKNOWN, "unknown")
        return None

    def _witness(
        self,
        connection: Connection,
        reader: Reader,
        action: str,
        subject: str,
        purpose: str,
        refused_by: str = "",
        *,
        object_id: str = "",
        details: Mapping[str, str] | None = None,
    ) -> None:
        who = {"name": reader.name, "profession": reader.profession, "specialty": reader.specialty}
        outcome = "refused" if refused_by else "granted"
        entry = JournalEntry(
            reader.id_nat, action, outcome, subject, object_id, refused_by, purpose, who | dict(details or {})
        )
        self._journal.append(connection, entry)

    # Rows

    def _subject(self, patient: PatientKey) -> str:
        """The patient's pseudonym; empty for what is no identity."""
        matricule = canonical_matricule(patient.matricule)
        if matricule is None or patient.oid not in REAL_OIDS | TEST_OIDS:
            return ""
        return self._vault.pseudonym("patient", matricule, patient.oid)

    def _dossier(self, connection: Connection, subject: str, *, lock: bool = False) -> Row[Any] | None:
        query = select(dossiers).where(dossiers.c.patient == subject)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is not None:
            self._unseal(row.sealed, _dossier_binding(row.id, subject, row.status))
        return row

    def _held(self, connection: Connection, environment: str, unique_id: str) -> _Held | None:
        if not unique_id:
            return None
        key = self._vault.pseudonym("dossier.document", environment, unique_id)
        row = connection.execute(select(dossier_documents).where(dossier_documents.c.unique_key == key)).one_or_none()
        return None if row is None else self._open(row)

    def _set(self, connection: Connection, dossier_id: str, environment: str, set_id: str) -> list[_Held]:
        if not set_id:
            return []
        rows = connection.execute(
            select(dossier_documents).where(
                dossier_documents.c.dossier_id == dossier_id,
                dossier_documents.c.set_key == self._vault.pseudonym("dossier.set", environment, set_id),
            )
        )
        return [self._open(row) for row in rows]

    def _answered(self, connection: Connection, delivery_id: str) -> Deposited | None:
        sealed = connection.scalar(
            select(dossier_deposits.c.sealed).where(dossier_deposits.c.delivery_id == delivery_id)
        )
        if sealed is None:
            return None
        return msgspec.json.decode(self._unseal(sealed, _delivery_binding(delivery_id)), type=Deposited)

    def _seal(self, columns: Mapping[str, Any], entry: DocumentEntry) -> bytes:
        return self._vault.seal(msgspec.json.encode(entry), _row_binding(columns))

    def _open(self, row: Row[Any]) -> _Held:
        columns = {name: value for name, value in row._mapping.items() if name != "sealed"}
        return _Held(columns, msgspec.json.decode(self._unseal(row.sealed, _row_binding(columns)), type=DocumentEntry))

    def _unseal(self, sealed: bytes, binding: bytes) -> bytes:
        try:
            return self._vault.unseal(sealed, binding)
        except VaultError:
            raise DossierDamagedError(binding.decode()) from None


def _unacceptable(report: Report) -> Refused | None:
    """Why the dossier takes nothing of this report, whatever it already holds."""
    patient = report.patient
    if not patient.matricule:
        return Refused(INS_MISSING, location="PID^1^3")
    matricule = canonical_matricule(patient.matricule)
    if matricule is None or patient.matricule_oid not in REAL_OIDS | TEST_OIDS:
        return Refused(INS_INCOMPLETE, location="PID^1^3")
    if not report.documents or not all(document.unique_id for document in report.documents):
        return Refused(NO_DOCUMENT)
    names = [document.unique_id for document in report.documents]
    if len(set(names)) != len(names):
        return Refused(DOCUMENT_ALTERED, location="ClinicalDocument/id")
    for document in report.documents:
        theirs = document.patient
        if canonical_matricule(theirs.matricule) != matricule or theirs.matricule_oid != patient.matricule_oid:
            return Refused(INS_DIFFERS, location="ClinicalDocument/recordTarget")
        if report.action is not Action.DELETE and document.confidentiality != "N":
            return Refused(CONFIDENTIALITY, location="ClinicalDocument/confidentialityCode")
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
        hidden_from_representatives=entry.hidden_from_representatives
        and flags.hidden_from_representatives is not False,
        secret_connection=_said(flags.secret_connection, entry.secret_connection),
    )
    return changed, (_NOT_HIDDEN_AGAIN,) if hides_again else ()


def _said(flag: bool | None, before: bool) -> bool:
    return before if flag is None else flag


def _refused(decision: Decision) -> Refused:
    return Refused(_REFUSAL_OF_RULE.get(decision.rule, DOCUMENT_UNKNOWN), decision.rule)


def _environment(oid: str) -> str:
    """Test identities have a world of identifiers of their own, so that a rehearsal never blocks the real document."""
    return "test" if oid in TEST_OIDS else "real"


# What each seal is bound to: everything the row says in the clear.


def _dossier_binding(dossier_id: str, subject: str, status: str) -> bytes:
    return f"dossier:{dossier_id}:{subject}:{status}".encode()


def _row_binding(columns: Mapping[str, Any]) -> bytes:
    return "dossier.document:".encode() + msgspec.json.encode(sorted((key, str(columns[key])) for key in columns))


def _delivery_binding(delivery_id: str) -> bytes:
    return f"dossier.deposit:{delivery_id}".encode()
