"""What the dossier says about a document: the XDS DocumentEntry, and the keys patients and documents are found by.

The names are those of IHE ITI TF-3 §4.2.3.2 where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from bridges.report import Finding, Party


class DossierStatus(Enum):
    OPEN = "open"
    CLOSED = "closed"
    """Closed by its holder: kept, read by nobody, fed by nobody."""


class AvailabilityStatus(Enum):
    CURRENT = "current"
    SUPERSEDED = "superseded"
    """Replaced by a later version; kept, listed on request."""
    DELETED = "deleted"
    """Withdrawn by its author; kept, never shown."""


@dataclass(frozen=True, slots=True)
class PatientKey:
    """Whose dossier. The OID is part of the key: a test identity and a real one are two patients."""

    matricule: str
    """13 characters, or 15 with the key."""
    oid: str


@dataclass(frozen=True, slots=True)
class DocumentEntry:
    """One version of one document."""

    entry_uuid: str
    """entryUUID, of this version with these flags: a replacement or a change of masking makes a new one."""
    logical_id: str
    """logicalID: the same for all versions of a document."""
    unique_id: str
    """uniqueId, given by the producer to this version."""
    set_id: str
    """setId as sent, or the one the version it replaces had."""
    version: int
    parent_id: str
    status: AvailabilityStatus
    type_code: str
    type_label: str
    type_system: str
    title: str
    created: str
    """creationTime, CDA TS as received."""
    service_start: str
    service_stop: str
    language: str
    format_code: str
    level: int
    author: Party
    author_specialty: str
    organisation_id: str
    """Who answers for it: alone allowed to replace or delete it."""
    facility: str
    practice_setting: str
    content_type_code: str
    confidentiality: str
    masked_to_professionals: bool
    hidden_from_patient: bool
    hidden_from_representatives: bool
    secret_connection: bool
    hash: str
    """SHA-256 of the bytes, hexadecimal."""
    size: int
    """In bytes."""
    deposited_at: float
    """UNIX seconds."""
    depositor: str
    """Who handed it over, as the door knew it."""


@dataclass(frozen=True, slots=True)
class Deposited:
    """What a deposit did. The same answer is given again when the delivery comes again."""

    entries: tuple[DocumentEntry, ...]
    """The report's documents as they then stood, in its order."""
    findings: tuple[Finding, ...]
