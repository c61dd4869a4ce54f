"""The dossier's rows, opened and sealed: the one place that knows what a row's seal is bound to.

Every seal is bound to all that its row says in the clear: a status flipped, a blob exchanged or a row copied to another
patient does not open any more.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, insert, select, update

from bridges.dossier.entries import AvailabilityStatus, Deposited, DocumentEntry, DossierStatus, PatientKey
from bridges.dossier.tables import dossier_deposits, dossier_documents, dossiers
from bridges.identity import REAL_OIDS, TEST_OIDS, canonical_matricule
from bridges.report import PatientIdentity
from trust.vault import KeyVault, VaultError


class DossierDamagedError(Exception):
    """Something of the dossier was altered or moved outside Relais: it is not shown. The text names the row."""


@dataclass(frozen=True, slots=True)
class HeldDossier:
    id: str
    subject: str
    """Pseudonym of the patient."""
    status: DossierStatus


@dataclass(frozen=True, slots=True)
class HeldDocument:
    columns: Mapping[str, Any]
    """The row's columns in the clear."""
    entry: DocumentEntry

    @property
    def dossier_id(self) -> str:
        return str(self.columns["dossier_id"])

    @property
    def blob_id(self) -> str:
        return str(self.columns["blob_id"])


class Records:
    """Reads and writes rows in the caller's transaction. Reading raises `DossierDamagedError`."""

    def __init__(self, vault: KeyVault) -> None:
        self._vault = vault

    def subject(self, patient: PatientKey) -> str:
        """The patient's pseudonym; empty for what is no identity."""
        matricule = canonical_matricule(patient.matricule)
        if matricule is None or patient.oid not in REAL_OIDS | TEST_OIDS:
            return ""
        return self._vault.pseudonym("patient", matricule, patient.oid)

    def dossier(self, connection: Connection, subject: str, *, lock: bool = False) -> HeldDossier | None:
        query = select(dossiers).where(dossiers.c.patient == subject)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            return None
        self._unseal(row.sealed, _dossier_binding(row.id, subject, row.status), f"dossier {row.id}")
        return HeldDossier(row.id, subject, DossierStatus(row.status))

    def create(self, connection: Connection, subject: str, identity: PatientIdentity, at: float) -> HeldDossier:
        dossier = HeldDossier(str(uuid.uuid4()), subject, DossierStatus.OPEN)
        binding = _dossier_binding(dossier.id, subject, dossier.status.value)
        connection.execute(
            insert(dossiers).values(
                id=dossier.id,
                patient=subject,
                status=dossier.status.value,
                opened_at=at,
                sealed=self._vault.seal(msgspec.json.encode(identity), binding),
            )
        )
        return dossier

    def set_status(self, connection: Connection, dossier: HeldDossier, status: DossierStatus) -> None:
        sealed = connection.execute(select(dossiers.c.sealed).where(dossiers.c.id == dossier.id)).scalar_one()
        before = _dossier_binding(dossier.id, dossier.subject, dossier.status.value)
        identity = self._unseal(sealed, before, f"dossier {dossier.id}")
        after = _dossier_binding(dossier.id, dossier.subject, status.value)
        connection.execute(
            update(dossiers)
            .where(dossiers.c.id == dossier.id)
            .values(status=status.value, sealed=self._vault.seal(identity, after))
        )

    def by_unique_id(self, connection: Connection, environment: str, unique_id: str) -> HeldDocument | None:
        if not unique_id:
            return None
        key = dossier_documents.c.unique_key == self._unique_key(environment, unique_id)
        row = connection.execute(select(dossier_documents).where(key)).one_or_none()
        return None if row is None else self._open(row)

    def in_set(self, connection: Connection, dossier_id: str, environment: str, set_id: str) -> list[HeldDocument]:
        """All versions a dossier holds under one setId, deleted ones included."""
        if not set_id:
            return []
        key = dossier_documents.c.set_key == self._set_key(environment, set_id)
        query = select(dossier_documents).where(dossier_documents.c.dossier_id == dossier_id, key)
        return [self._open(row) for row in connection.execute(query)]

    def versions(self, connection: Connection, logical_id: str) -> list[HeldDocument]:
        query = select(dossier_documents).where(dossier_documents.c.logical_id == logical_id)
        return [self._open(row) for row in connection.execute(query)]

    def not_deleted(self, connection: Connection, dossier_id: str) -> list[HeldDocument]:
        query = select(dossier_documents).where(
            dossier_documents.c.dossier_id == dossier_id,
            dossier_documents.c.status.in_([AvailabilityStatus.CURRENT.value, AvailabilityStatus.SUPERSEDED.value]),
        )
        return [self._open(row) for row in connection.execute(query)]

    def find(self, connection: Connection, dossier_id: str, document_id: str) -> HeldDocument | None:
        """By entryUUID, any version; by logicalID, the current one."""
        inside = dossier_documents.c.dossier_id == dossier_id
        by_entry = select(dossier_documents).where(inside, dossier_documents.c.entry_uuid == document_id)
        current = dossier_documents.c.status == AvailabilityStatus.CURRENT.value
        by_document = select(dossier_documents).where(inside, dossier_documents.c.logical_id == document_id, current)
        for query in (by_entry, by_document):
            row = connection.execute(query).first()
            if row is not None:
                return self._open(row)
        return None

    def add(
        self, connection: Connection, dossier_id: str, environment: str, blob_id: str, entry: DocumentEntry
    ) -> None:
        columns = {
            "entry_uuid": entry.entry_uuid,
            "dossier_id": dossier_id,
            "logical_id": entry.logical_id,
            "unique_key": self._unique_key(environment, entry.unique_id),
            "set_key": self._set_key(environment, entry.set_id),
            "version": entry.version,
            "status": entry.status.value,
            "blob_id": blob_id,
        }
        connection.execute(insert(dossier_documents).values(**columns, sealed=self._seal(columns, entry)))

    def restate(self, connection: Connection, held: HeldDocument, entry: DocumentEntry) -> None:
        """Give a row other metadata: entryUUID, status and flags may change, identifiers and bytes do not."""
        columns = dict(held.columns) | {"entry_uuid": entry.entry_uuid, "status": entry.status.value}
        connection.execute(
            update(dossier_documents)
            .where(dossier_documents.c.entry_uuid == held.entry.entry_uuid)
            .values(**columns, sealed=self._seal(columns, entry))
        )

    def answer(self, connection: Connection, delivery_id: str) -> Deposited | None:
        """What was answered to this delivery before."""
        query = select(dossier_deposits.c.sealed).where(dossier_deposits.c.delivery_id == delivery_id)
        sealed = connection.scalar(query)
        if sealed is None:
            return None
        plain = self._unseal(sealed, _delivery_binding(delivery_id), f"deposit {delivery_id}")
        return msgspec.json.decode(plain, type=Deposited)

    def keep_answer(self, connection: Connection, delivery_id: str, answer: Deposited) -> None:
        sealed = self._vault.seal(msgspec.json.encode(answer), _delivery_binding(delivery_id))
        connection.execute(insert(dossier_deposits).values(delivery_id=delivery_id, sealed=sealed))

    def _unique_key(self, environment: str, unique_id: str) -> str:
        return self._vault.pseudonym("dossier.document", environment, unique_id)

    def _set_key(self, environment: str, set_id: str) -> str:
        return self._vault.pseudonym("dossier.set", environment, set_id)

    def _seal(self, columns: Mapping[str, Any], entry: DocumentEntry) -> bytes:
        return self._vault.seal(msgspec.json.encode(entry), _document_binding(columns))

    def _open(self, row: Row[Any]) -> HeldDocument:
        columns = {name: value for name, value in row._mapping.items() if name != "sealed"}
        plain = self._unseal(row.sealed, _document_binding(columns), f"document {row.entry_uuid}")
        return HeldDocument(columns, msgspec.json.decode(plain, type=DocumentEntry))

    def _unseal(self, sealed: bytes, binding: bytes, name: str) -> bytes:
        try:
            return self._vault.unseal(sealed, binding)
        except VaultError:
            raise DossierDamagedError(name) from None


def environment(oid: str) -> str:
    """Test identities have a world of identifiers of their own, so that a rehearsal never blocks the real document."""
    return "test" if oid in TEST_OIDS else "real"


def _dossier_binding(dossier_id: str, subject: str, status: str) -> bytes:
    return f"dossier:{dossier_id}:{subject}:{status}".encode()


def _document_binding(columns: Mapping[str, Any]) -> bytes:
    # Sorted and made plain: a row read back has column names of SQLAlchemy's own kind of string.
    return json.dumps({"dossier.document": {str(name): str(columns[name]) for name in sorted(columns)}}).encode()


def _delivery_binding(delivery_id: str) -> bytes:
    return f"dossier.deposit:{delivery_id}".encode()
