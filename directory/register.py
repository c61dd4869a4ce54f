"""From lines of the national files to entries: mailboxes, persons with their practice situations, structures.

One function for each kind of entry, all of them pure: the same lines give the same entry, whoever joins the lines
(`directory.load`, `relais directory sync`) and in whatever order. What the register leaves empty is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from directory import schema
from directory.entries import (
    comparable,
    directory_string,
    make_entry,
    person_identifiers,
    structure_identifiers,
)
from directory.extraction import DiplomaRow, MailboxRow, PracticeRow, SkillRow
from directory.ldif import LdifEntry
from directory.records import MailboxKind
from directory.situations import Situation
from directory.words import person_keys, words_of

_STRUCTURE_DIGITS = {"FINESS": "1", "SIREN": "2", "SIRET": "3", "ADELI": "0", "RPPSRANG": "4"}
_LENGTHS = {"1": 9, "2": 9, "3": 14}
"""Characters of a FINESS, a SIREN and a SIRET without their type digit."""


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


def holder_of(row: MailboxRow) -> str:
    """IdNat_PP of the professional a mailbox belongs to, empty when the line names none."""
    if row.pp_id_nat:
        return row.pp_id_nat
    return f"{row.pp_identifier_type}{row.pp_identifier}" if row.pp_identifier else ""


def structure_of(row: PracticeRow) -> str:
    """IdNat_Struct of where a situation takes place: its FINESS, else its SIRET, else empty."""
    if row.finess:
        return "1" + row.finess
    return "3" + row.siret if row.siret else ""


def mailbox_entry(base: str, row: MailboxRow, situations: Sequence[PracticeRow] = ()) -> LdifEntry:
    """The entry of one mailbox, completed from the `situations` of the professional it belongs to.

    Where the mailbox's line says nothing, the situation in the same structure does, or the only one there is: with
    several structures to choose from nothing is completed, a wrong workplace is worse than none. The mailbox is found
    by the words of all its holder's situations.
    """
    structure = structure_id_nat(row.structure_identifier_type, row.structure_identifier)
    organisation = row.organisation_brand or row.organisation
    town = row.l6_delivery.removeprefix(row.postal_code).strip()
    values = {
        "o": organisation,
        "ou": row.service,
        "street": " ".join(filter(None, (row.l4_number, row.l4_number_suffix, row.l4_street_type, row.l4_street))),
        "postalCode": row.postal_code,
        "l": town,
        "st": row.department,
        "dematerialisation": {"O": "TRUE", "N": "FALSE"}.get(row.dematerialisation.upper(), ""),
        "CodeSavoirFaire": row.skill_code,
    }
    names: tuple[str, ...]
    if row.kind is MailboxKind.PER:
        family = row.family_name.upper()
        names = (row.given_name, family)
        values |= {
            "displayName": " ".join(filter(None, (row.civility, row.given_name, family))),
            "cn": " ".join(filter(None, (family, row.given_name))),
            "sn": family,
            "givenName": row.given_name,
            "title": row.civility,
            "profession": row.profession_code,
            "description": " - ".join(filter(None, (row.profession, row.skill))),
        }
        values |= person_identifiers(holder_of(row))
        situation = _situation(situations, structure)
    else:
        names = (row.service,)
        situation, situations = None, ()
        values |= {"displayName": row.service or organisation, "description": row.service, "IdNat": structure}
    if situation is not None:
        found = {
            "profession": situation.profession_code,
            "description": " - ".join(filter(None, (situation.profession, situation.skill))),
            "o": situation.organisation_brand or situation.organisation,
            "postalCode": situation.postal_code,
            "l": situation.town,
            "telephoneNumber": situation.telephone,
        }
        values |= {name: value for name, value in found.items() if not values.get(name)}
        structure = structure or structure_of(situation)
    values |= structure_identifiers(structure)
    own = (row.profession, row.skill, row.organisation, row.organisation_brand, town, row.service, row.postal_code)
    words = words_of(names, (*own, *_texts(situations)))
    return make_entry(base, row.kind, row.address, values, schema.NATIONAL, words=words)


def person_entry(
    base: str,
    situations: Sequence[PracticeRow],
    skills: Iterable[SkillRow] = (),
    diplomas: Iterable[DiplomaRow] = (),
) -> LdifEntry:
    """A professional, from all lines about this one IdNat_PP, at least one in `situations`.

    The order of the lines plays no part but for the name and civility, which are the first's.
    """
    person = situations[0]
    names = (person.given_name, person.family_name)
    others = sorted({text for row in situations for text in (row.profession, row.skill, row.town, row.postal_code)})
    words = {
        schema.PERSON_WORDS: words_of(names, others),
        schema.PERSON_WORD_KEYS: person_keys(words_of(names, ()), words_of((), others)),
    }
    codes = {skill.skill_code for skill in skills} | {row.skill_code for row in situations}
    labels = {skill.skill for skill in skills} | {row.skill for row in situations}
    return _entry(
        schema.person_dn(person.pp_id_nat, base),
        b"mssantePersonne",
        {
            "IdNat": (person.pp_id_nat,),
            "NomExercice": (person.family_name.upper(),),
            "PrenomExercice": (person.given_name,),
            "CiviliteExercice": (person.civility,),
            "CodeProfession": {row.profession_code for row in situations},
            "LibelleProfession": {row.profession for row in situations},
            "CodeSavoirFaire": codes,
            "LibelleSavoirFaire": labels,
            "Diplome": {_diploma(row) for row in diplomas},
            "Situation": {str(situation_of(row)) for row in situations},
        },
        words,
    )


def situation_of(row: PracticeRow) -> Situation:
    return Situation(
        profession_code=row.profession_code,
        category_code=row.category_code,
        skill_code=row.skill_code,
        structure=structure_of(row),
        organisation=row.organisation_brand or row.organisation,
        postal_code=row.postal_code,
        town=row.town,
        telephone=row.telephone,
        mode_code=row.mode_code,
        sector_code=row.sector_code,
        function_code=row.function_code,
    )


def structure_entry(base: str, row: PracticeRow) -> LdifEntry | None:
    """The structure a situation takes place in, as this line describes it; None when the line identifies none."""
    identifier = structure_of(row)
    if not identifier:
        return None
    street = (row.street_number, row.street_number_suffix, row.street_type, row.street)
    values = {
        "IdNatStruct": (identifier,),
        "RaisonSociale": (row.organisation,),
        "EnseigneCommerciale": (row.organisation_brand,),
        "VoieStructure": (" ".join(filter(None, street)),),
        "CodePostalStructure": (row.postal_code,),
        "CommuneStructure": (row.town,),
        "TelephoneStructure": (row.telephone,),
    }
    return _entry(schema.structure_dn(identifier, base), b"mssanteStructure", values)


def _entry(
    dn: str,
    object_class: bytes,
    values: Mapping[str, Collection[str]],
    words: Mapping[str, tuple[bytes, ...]] | None = None,
) -> LdifEntry:
    attributes: dict[str, tuple[bytes, ...]] = {"objectClass": (object_class,), schema.SOURCE: (schema.NATIONAL,)}
    for name, texts in values.items():
        if len(texts) == 1:  # three in four
            (text,) = texts
            if text and (text := directory_string(text)):
                attributes[name] = (text.encode(),)
            continue
        # Sorted first, so that of two that compare alike always the same one is taken
        if unlike := {comparable(text): text.encode() for text in sorted(map(directory_string, texts)) if text}:
            attributes[name] = tuple(sorted(unlike.values()))
    attributes |= {name: found for name, found in (words or {}).items() if found}
    return LdifEntry(dn, attributes)


def _diploma(row: DiplomaRow) -> str:
    return " ".join(filter(None, (row.diploma_code, row.diploma)))


def _texts(situations: Iterable[PracticeRow]) -> list[str]:
    """What a professional is also looked for by: each text once, in an order that does not depend on the lines'."""
    found: set[str] = set()
    for row in situations:
        found.update((row.profession, row.skill, row.town, row.organisation, row.organisation_brand))
    return sorted(found)


def _situation(situations: Sequence[PracticeRow], structure: str) -> PracticeRow | None:
    """The situation a mailbox belongs to: in the same structure, else the only one there is."""
    if structure:
        return next((row for row in situations if structure_of(row) == structure), None)
    places = {(structure_of(row), row.profession_code, row.organisation, row.postal_code): row for row in situations}
    return next(iter(places.values())) if len(places) == 1 else None
