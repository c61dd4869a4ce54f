"""The tables of the dossier: keys and states in the clear, everything that speaks of a patient or a document sealed.

Patients, document identifiers and set identifiers appear only as pseudonyms of the vault. What stands in the clear is
bound into the seal of its row, so that a row edited or swapped does not open.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table

from trust.store import metadata

dossiers = Table(
    "dossiers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("patient", String(64), nullable=False, unique=True),  # pseudonym of (matricule, OID)
    Column("status", String(16), nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # the identity as first deposited
)

dossier_documents = Table(
    "dossier_documents",
    metadata,
    Column("entry_uuid", String(36), primary_key=True),
    Column("dossier_id", ForeignKey("dossiers.id"), nullable=False),
    Column("logical_id", String(36), nullable=False, index=True),
    Column("unique_key", String(64), nullable=False, unique=True),  # pseudonym of uniqueId, apart for test identities
    Column("set_key", String(64), nullable=False),  # pseudonym of setId, or of what stands for it
    Column("version", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("blob_id", String(64), nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # DocumentEntry
    Index(None, "dossier_id", "status"),
    Index("ix_dossier_documents_dossier_set", "dossier_id", "set_key"),
)

dossier_deposits = Table(
    "dossier_deposits",
    metadata,
    Column("delivery_id", String(128), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),  # the answer given, to be given again
)
