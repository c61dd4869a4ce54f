"""The first load: extraction files and the local overlay joined into the entries of the directory.

Streams: what stays in memory is a set of addresses, and the situations of those professionals whose mailbox line leaves
something out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from directory import schema
from directory.entries import from_recipient, make_entry, person_identifiers, structure_identifiers
from directory.extraction import MailboxRow, PracticeRow, RejectedLine, read_mssante, read_practice
from directory.ldif import LdifEntry
from directory.records import MailboxKind, Recipient

_STRUCTURE_DIGITS = {"FINESS": "1", "SIREN": "2", "SIRET": "3", "ADELI": "0", "RPPSRANG": "4"}
_LENGTHS = {"1": 9, "2": 9, "3": 14}
"""Characters of a FINESS, a SIREN and a SIRET without their type digit."""


@dataclass(slots=True)
class LoadReport:
    """What happened to the lines of the files, filled while `entries` is read."""

    mailboxes: int = 0
    """National mailboxes that became entries."""
    duplicates: int = 0
    """Lines whose address another line of the same branch already had: the first one wins."""
    overlaid: int = 0
    """National mailboxes that received certificates of the overlay."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected lines by file and reason: `mssante.encoding`, `practice.columns`."""


@dataclass(frozen=True, slots=True)
class _Situation:
    profession_code: str
    structure: str
    organisation: str
    postal_code: str
    town: str
    telephone: str


def entries(
    mssante: Path,
    practice: Path | None,
    base: str,
    overlay: Iterable[Recipient] = (),
    report: LoadReport | None = None,
) -> Iterator[LdifEntry]:
    """The directory's entries: every mailbox of `mssante`, completed from `practice`, then the local `overlay`.

    An overlay mailbox whose address the register also has only adds its certificates, marked as local: the identity
    stays the register's. Raises `ExtractionError` when a file cannot be read at all.
    """
    report = report if report is not None else LoadReport()
    local = {recipient.address.lower(): recipient for recipient in overlay}
    situations = _situations(mssante, practice, report) if practice is not None else {}
    seen: set[str] = set()
    for row in read_mssante(mssante):
        if isinstance(row, RejectedLine):
            report.rejected[f"mssante.{row.reason}"] += 1
            continue
        key = f"{schema.BRANCHES[row.kind]} {row.address}"
        if key in seen:
            report.duplicates += 1
            continue
        seen.add(key)
        report.mailboxes += 1
        entry = _entry(row, _situation(row, situations), base)
        if (recipient := local.pop(row.address, None)) is not None:
            entry = _overlaid(entry, from_recipient(recipient, base))
            report.overlaid += 1
        yield entry
    for recipient in local.values():
        yield from_recipient(recipient, base)


def structure_id_nat(kind: str, identifier: str) -> str:
    """IdNat_Struct from the two columns of the extraction, empty when there is none.

    `kind` is `FINESS`, `SIRET`, ... or the type digit; the identifier may already begin with its digit.
    """
    if not identifier:
        return ""
    name = "".join(character for character in kind.upper() if character.isalnum())
    digit = name if len(name) == 1 else _STRUCTURE_DIGITS.get(name, "")
    if digit in _LENGTHS and len(identifier) == _LENGTHS[digit] + 1 and identifier.startswith(digit):
        return identifier
    return digit + identifier


def _entry(row: MailboxRow, situation: _Situation | None, base: str) -> LdifEntry:
    structure = structure_id_nat(row.structure_identifier_type, row.structure_identifier)
    organisation = row.organisation_brand or row.organisation
    values = {
        "o": organisation,
        "ou": row.service,
        "street": " ".join(filter(None, (row.l4_number, row.l4_number_suffix, row.l4_street_type, row.l4_street))),
        "postalCode": row.postal_code,
        "l": _town(row),
        "st": row.department,
        "dematerialisation": {"O": "TRUE", "N": "FALSE"}.get(row.dematerialisation.upper(), ""),
    }
    if row.kind is MailboxKind.PER:
        family = row.family_name.upper()
        values |= {
            "displayName": " ".join(filter(None, (row.civility, row.given_name, family))),
            "cn": " ".join(filter(None, (family, row.given_name))),
            "sn": family,
            "givenName": row.given_name,
            "title": row.civility,
            "profession": row.profession_code,
            "description": " - ".join(filter(None, (row.profession, row.skill))),
        }
        values |= person_identifiers(_pp_id_nat(row))
    else:
        values |= {"displayName": row.service or organisation, "description": row.service, "IdNat": structure}
    if situation is not None:
        found = {
            "profession": situation.profession_code,
            "o": situation.organisation,
            "postalCode": situation.postal_code,
            "l": situation.town,
            "telephoneNumber": situation.telephone,
        }
        values |= {name: value for name, value in found.items() if not values.get(name)}
        structure = structure or situation.structure
    values |= structure_identifiers(structure)
    return make_entry(base, row.kind, row.address, values, schema.NATIONAL)


def _overlaid(national: LdifEntry, local: LdifEntry) -> LdifEntry:
    """The register's entry with the overlay's certificates."""
    certificates = local.attributes.get(schema.CERTIFICATE)
    if certificates is None:
        return national
    added = {schema.CERTIFICATE: certificates, schema.LOCAL_ATTRIBUTES: (b"userCertificate",)}
    return LdifEntry(national.dn, dict(national.attributes) | added)


def _pp_id_nat(row: MailboxRow) -> str:
    if row.pp_id_nat:
        return row.pp_id_nat
    return f"{row.pp_identifier_type}{row.pp_identifier}" if row.pp_identifier else ""


def _town(row: MailboxRow) -> str:
    """The town of `75010 PARIS` (ligne d'acheminement)."""
    return row.l6_delivery.removeprefix(row.postal_code).strip()


def _is_incomplete(row: MailboxRow) -> bool:
    return not (row.profession_code and row.structure_identifier and row.postal_code)


def _situations(mssante: Path, practice: Path, report: LoadReport) -> dict[str, tuple[_Situation, ...]]:
    """The situations of the professionals whose mailbox line leaves something out, by IdNat_PP, in file order."""
    wanted = {
        _pp_id_nat(row)
        for row in read_mssante(mssante)
        if isinstance(row, MailboxRow) and row.kind is MailboxKind.PER and _is_incomplete(row)
    }
    found: dict[str, tuple[_Situation, ...]] = {}
    for row in read_practice(practice):
        if isinstance(row, RejectedLine):
            report.rejected[f"practice.{row.reason}"] += 1
        elif row.pp_id_nat in wanted:
            situation = _of_practice(row)
            known = found.get(row.pp_id_nat, ())
            if situation not in known:
                found[row.pp_id_nat] = (*known, situation)
    return found


def _of_practice(row: PracticeRow) -> _Situation:
    if row.finess:
        structure = "1" + row.finess
    else:
        structure = "3" + row.siret if row.siret else ""
    # Half a million situations repeat the same towns and structures: keep each word once.
    return _Situation(
        profession_code=sys.intern(row.profession_code),
        structure=sys.intern(structure),
        organisation=sys.intern(row.organisation_brand or row.organisation),
        postal_code=sys.intern(row.postal_code),
        town=sys.intern(row.town),
        telephone=row.telephone,
    )


def _situation(row: MailboxRow, situations: dict[str, tuple[_Situation, ...]]) -> _Situation | None:
    """The situation a mailbox belongs to: in the same structure, else the only one there is.

    With several structures to choose from nothing is completed: a wrong workplace is worse than none.
    """
    if row.kind is not MailboxKind.PER:
        return None
    candidates = situations.get(_pp_id_nat(row), ())
    structure = structure_id_nat(row.structure_identifier_type, row.structure_identifier)
    if structure:
        return next((situation for situation in candidates if situation.structure == structure), None)
    return candidates[0] if len(candidates) == 1 else None
