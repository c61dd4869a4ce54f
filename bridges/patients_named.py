"""Whom a mail is about, by what a program can read: CDA, XDM, HPRIM, and metadata attached beside a file.

Free text and PDF are not guessed at. Two attachments name two patients only when that is sure: identifiers of one
authority that differ, or, where no authority is common, birth dates or first names that do. A doubt is no proof, and
refuses no mail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from lxml import etree

from bridges.cda import INS_OIDS
from bridges.hprim_patients import HprimPatient
from bridges.identity import canonical_matricule
from bridges.plain import ascii_name
from bridges.report import PatientIdentity
from bridges.xdm_metadata import DOCUMENT_PATIENT_ID, confidentiality_of

MAX_METADATA = 4 * 1024 * 1024
_MOST = 100
"""Patients compared with each other."""
_CX = re.compile(r"([^^]+)\^[^^]*\^[^^]*\^[^&^]*&([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Named:
    """One patient as one attachment names him."""

    identifiers: frozenset[tuple[str, str]] = frozenset()
    """(assigning authority, identifier), a matricule by its first 13 characters."""
    birth_date: str = ""
    """`YYYYMMDD`, with `??` for a century nobody gave; empty when not said, or not as a date."""
    first_names: frozenset[str] = frozenset()
    """Words in ASCII upper case, those of the name the patient goes by among them."""

    def __bool__(self) -> bool:
        return bool(self.identifiers or self.birth_date or self.first_names)


def of_identity(patient: PatientIdentity) -> Named:
    """Of a CDA's recordTarget."""
    pairs = [(patient.matricule_oid, patient.matricule), *((root, value) for value, root in patient.local_ids)]
    birth = patient.birth_date.strip()[:8]
    return Named(
        frozenset(pair for each in pairs if all(pair := identifier_of(*each))),
        birth if re.fullmatch(r"[0-9]{8}", birth) else "",
        _words([*patient.first_names, *patient.used_first_names]),
    )


def of_hprim(patient: HprimPatient) -> Named:
    """Its number of social insurance may be a parent's: it says nothing of who the patient is."""
    return Named(frozenset(), patient.birth_date, _words([patient.given]))


def of_cx(patient_id: str) -> Named:
    """An XDS patientId, `identifier^^^&authority&ISO` (IHE ITI TF-3 §4.2.3.1.7)."""
    match = _CX.match(patient_id.strip())
    pair = identifier_of(match[2], match[1]) if match else ("", "")
    return Named(frozenset({pair}) if all(pair) else frozenset())


def of_metadata(data: bytes) -> tuple[tuple[Named, ...], frozenset[str]]:
    """Of a METADATA.XML that lies beside a file (ebRIM 3.0): patientId and sourcePatientInfo of each document, and who
    may read them (confidentialityCode). Empty when it is none. Never raises."""
    if len(data) > MAX_METADATA or b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data[:64]:
        return (), frozenset()
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        return (), frozenset()
    found: dict[Named, None] = {}
    confidentiality: set[str] = set()
    for entry in root.iter("{*}ExtrinsicObject"):
        identifiers = {
            one.get("identificationScheme"): one.get("value", "") for one in entry.iter("{*}ExternalIdentifier")
        }
        confidentiality.update(confidentiality_of(entry))
        said = dict(
            (value.text or "").strip().partition("|")[::2]
            for slot in entry.iter("{*}Slot")
            if slot.get("name") == "sourcePatientInfo"
            for value in slot.iter("{*}Value")
        )
        birth = said.get("PID-7", "")[:8]
        given = said.get("PID-5", "").partition("^")[2].partition("^")[0]
        named = Named(
            of_cx(identifiers.get(DOCUMENT_PATIENT_ID, "")).identifiers,
            birth if re.fullmatch(r"[0-9]{8}", birth) else "",
            _words([given]),
        )
        if named:
            found[named] = None
    return tuple(found), frozenset(confidentiality)


def several(named: Iterable[Named]) -> bool:
    """Whether two of them are surely two patients. Of more than a hundred different ones, those before count."""
    different = list(dict.fromkeys(named))[:_MOST]
    return any(_differ(one, other) for one, other in combinations(different, 2))


def surely_one(named: Iterable[Named]) -> bool:
    """Whether all are one patient beyond doubt: the matricule of the first, or another identifier of his where nothing
    else differs. More than `several` denies: what is put under one name belongs there."""
    first, *others = named
    return all(_same(first, other) for other in others)


def _same(one: Named, other: Named) -> bool:
    common = one.identifiers & other.identifiers
    if any(authority in INS_OIDS for authority, _ in common):
        return True
    return bool(common) and not several((one, other)) and not _traits_differ(one, other)


def _differ(one: Named, other: Named) -> bool:
    """A matricule decides before a number that a laboratory may have given twice."""
    matricules = [{pair for pair in each.identifiers if pair[0] in INS_OIDS} for each in (one, other)]
    if not matricules[0] & matricules[1] and {a for a, _ in matricules[0]} & {a for a, _ in matricules[1]}:
        return True
    if one.identifiers & other.identifiers:
        return False
    if {authority for authority, _ in one.identifiers} & {authority for authority, _ in other.identifiers}:
        return True
    return _traits_differ(one, other)


def _traits_differ(one: Named, other: Named) -> bool:
    if one.birth_date and other.birth_date and not _same_day(one.birth_date, other.birth_date):
        return True
    return bool(one.first_names and other.first_names) and not one.first_names & other.first_names


def _same_day(one: str, other: str) -> bool:
    """In the same year of a century that one of them does not say, too."""
    return one[2:] == other[2:] and (one[:2] == other[:2] or "??" in (one[:2], other[:2]))


def identifier_of(authority: str, identifier: str) -> tuple[str, str]:
    """As `Named.identifiers` holds it: with or without its key, a matricule is the same matricule."""
    authority, identifier = authority.strip(), identifier.strip()
    matricule = canonical_matricule(identifier) if authority in INS_OIDS else None
    return authority, matricule[:13] if matricule else identifier


def _words(names: Iterable[str]) -> frozenset[str]:
    return frozenset(word for name in names for word in re.split(r"[ '-]+", ascii_name(name).upper()) if len(word) > 1)
