"""The journal for somebody else's audit repository: the same acts, without a patient's identity.

An export says who acted (a professional's identifier, a component, a service's mailbox), what, when, how it ended, why,
about which patient and which object; a patient is the pseudonym the journal files them under, which only the vault's
holder can make from an identity. Whatever looks like a national health identifier (INS, 13 or 15 characters) anywhere
else, a patient's mailbox for instance, is replaced by a pseudonym too. Reasons and details in words stay at home: of
them the export has only the hash, in the hash of the entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

import msgspec
from sqlalchemy import Connection, and_, select

from trust.journal_entry import decode_payload, unseal_payload
from trust.tables import journal_entries, journal_payloads
from trust.vault import KeyVault, VaultError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MATRICULE = re.compile(r"(?<![0-9A-Za-z])[1-8][0-9]{4}[0-9ABab]{2}[0-9]{6}(?:[0-9]{2})?(?![0-9A-Za-z])")
"""Sex, year, month, department (2A and 2B are Corsica's), town, order, and perhaps the key."""
_AT_ONCE = 500
_SUCCESSES = frozenset({"done", "granted"})
"""Outcomes of acts that took place; any other (`refused`, `held`) is one that did not."""


class Kind(Enum):
    """What an act is to the standards: the event family of DICOM (PS3.16 CID 400) and the interaction of FHIR."""

    READ = "read"
    QUERY = "query"
    CREATE = "create"
    UPDATE = "update"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One entry, ready to leave."""

    writer: str
    sequence: int
    hash: bytes
    at: datetime
    action: str
    """Ours: `dossier.read`; empty when the payload was erased."""
    kind: Kind
    outcome: str
    actor: str
    subject: str
    """Pseudonym of the patient, empty when none is concerned."""
    object_id: str
    purpose: str

    @property
    def succeeded(self) -> bool:
        return self.outcome in _SUCCESSES


_KINDS = {
    "dossier.read": Kind.READ,
    "dossier.list": Kind.QUERY,
    "dossier.deposit": Kind.CREATE,
}


def records(
    connection: Connection, vault: KeyVault, writer: str, after: int = 0, limit: int | None = None
) -> Iterator[AuditRecord]:
    """The entries of one writer after `after`, in order, with the memory of some hundreds.

    One whose payload was erased comes without its content. Raises `VaultError` when one was altered.
    """
    same = and_(
        journal_payloads.c.writer == journal_entries.c.writer, journal_payloads.c.sequence == journal_entries.c.sequence
    )
    query = (
        select(journal_entries, journal_payloads.c.sealed)
        .outerjoin_from(journal_entries, journal_payloads, same)
        .where(journal_entries.c.writer == writer, journal_entries.c.sequence > after)
        .order_by(journal_entries.c.sequence)
        .limit(limit)
    )
    with connection.execute(query, execution_options={"yield_per": _AT_ONCE}) as rows:
        for row in rows:
            try:
                place = (row.writer, row.sequence, bytes(row.hash), _EPOCH + timedelta(microseconds=row.at))
                if row.sealed is None:
                    yield AuditRecord(*place, "", Kind.OTHER, "", "", "", "", "")
                    continue
                entry = decode_payload(unseal_payload(vault, row.writer, row.sequence, row.sealed))
            except (msgspec.DecodeError, TypeError, OverflowError) as error:
                raise VaultError(f"entry {row.writer}#{row.sequence} was altered") from error
            yield AuditRecord(
                *place,
                entry.action,
                kind_of(entry.action),
                entry.outcome,
                veiled(vault, entry.actor),
                entry.subject,
                veiled(vault, entry.object_id),
                veiled(vault, entry.purpose),
            )


def kind_of(action: str) -> Kind:
    if action in _KINDS:
        return _KINDS[action]
    return Kind.UPDATE if action.startswith("dossier.") else Kind.OTHER


def veiled(vault: KeyVault, text: str) -> str:
    """The text with a pseudonym in place of whatever may be a patient's national identifier."""
    return _MATRICULE.sub(lambda found: "ins-" + vault.pseudonym("exported identifier", found[0].upper())[:32], text)
