"""Which version replaces which: pure rules over what a dossier already holds.

A document says what it replaces twice, by setId with a higher versionNumber and by relatedDocument/parentDocument, and
real senders contradict themselves. The set decides first; the parent decides when there is no set. Lower or equal
versions never overwrite (interoperability scenario SC.CDA/INT.18), whatever the event says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bridges.dossier.entries import AvailabilityStatus, DocumentEntry
from bridges.dossier.refusals import DOCUMENT_DELETED, NOT_HELD, NOT_THE_AUTHOR, VERSION_OBSOLETE
from bridges.report import Action, Document, Finding
from trust.refusals import Refused

PARENT_CONTRADICTS_SET = Finding("parent-contradicts-set", "ClinicalDocument/relatedDocument/parentDocument/id")
REPLACES_UNANNOUNCED = Finding("replaces-unannounced", "ORC-1")
"""Sent as new, but a later version of a document the dossier holds."""
REPLACES_NOTHING = Finding("parent-unknown", "ClinicalDocument/relatedDocument/parentDocument/id")
"""Sent as new, naming a parent the dossier does not hold."""
VERSION_NOT_HIGHER = Finding("version-not-higher", "ClinicalDocument/versionNumber")
"""Replaces by parent only, without a higher versionNumber: counted on from the parent's."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a document not held yet goes."""

    set_id: str
    version: int
    replaces: tuple[DocumentEntry, ...]
    """Current entries that become superseded; the one whose logicalID it takes over first."""
    findings: tuple[Finding, ...]


def place(
    document: Document,
    action: Action,
    organisation_id: str,
    in_set: Sequence[DocumentEntry],
    of_parent: Sequence[DocumentEntry],
) -> Placement | Refused:
    """Place a document of action NEW or REPLACE.

    `in_set`: all versions this patient's dossier holds under the document's setId. `of_parent`: all versions of the
    document that parentDocument/id names, empty when it names none held.
    """
    lineage = in_set or of_parent
    if not lineage:
        if action is Action.REPLACE:
            return Refused(NOT_HELD)
        findings = (REPLACES_NOTHING,) if document.parent_id else ()
        return Placement(document.set_id or document.unique_id, document.version or 1, (), findings)

    if any(entry.organisation_id != organisation_id for entry in lineage):
        return Refused(NOT_THE_AUTHOR)
    replaced = [entry for entry in lineage if entry.status is AvailabilityStatus.CURRENT]
    if action is Action.REPLACE and not replaced:
        return Refused(DOCUMENT_DELETED)
    highest = max(entry.version for entry in lineage)
    version = document.version or 0
    found: list[Finding] = []
    if version <= highest:
        names_current = any(entry.unique_id == document.parent_id for entry in replaced)
        if in_set or not names_current:
            return Refused(VERSION_OBSOLETE)
        version = highest + 1
        found.append(VERSION_NOT_HIGHER)
    if in_set and document.parent_id and document.parent_id not in {entry.unique_id for entry in in_set}:
        found.append(PARENT_CONTRADICTS_SET)
    if action is Action.NEW and replaced:
        found.append(REPLACES_UNANNOUNCED)
    # Twins (the same report as PDF and structured) share a set: each goes on from its own kind.
    replaced.sort(key=lambda entry: (entry.format_code != document.format_code, entry.level != document.level))
    return Placement(document.set_id or lineage[0].set_id, version, tuple(replaced), tuple(found))


def removable(entry: DocumentEntry, organisation_id: str) -> Refused | None:
    """Why this entry must not be deleted; None when it may be, or already is."""
    if entry.organisation_id != organisation_id:
        return Refused(NOT_THE_AUTHOR)
    if entry.status is AvailabilityStatus.SUPERSEDED:
        return Refused(VERSION_OBSOLETE)
    return None
