"""National extraction files about nobody: same names, same columns, invented people.

For demonstrations, tests and benches. Everything follows from the seed. Nothing can be taken for real: RPPS numbers
begin with 999, FINESS with 99 and SIRET with 000, which are not allocated; places lie in a department 99 that does not
exist; telephone numbers come from the range Arcep keeps for fiction; domains are `demo-*.mssante.fr`.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from directory.extraction import MAILBOX_COLUMNS, PRACTICE_COLUMNS, MailboxRow, PracticeRow
from directory.records import MailboxKind

SAVOIR_FAIRE_HEADER = (
    "Type d'identifiant PP",
    "Identifiant PP",
    "Identification nationale PP",
    "Nom d'exercice",
    "Prénom d'exercice",
    "Code profession",
    "Libellé profession",
    "Code catégorie professionnelle",
    "Libellé catégorie professionnelle",
    "Code type savoir-faire",
    "Libellé type savoir-faire",
    "Code savoir-faire",
    "Libellé savoir-faire",
)
DIPLOMES_HEADER = (
    "Type d'identifiant PP",
    "Identifiant PP",
    "Identification nationale PP",
    "Nom d'exercice",
    "Prénom d'exercice",
    "Code type diplôme obtenu",
    "Libellé type diplôme obtenu",
    "Code diplôme obtenu",
    "Libellé diplôme obtenu",
    "Code type autorisation",
    "Libellé type autorisation",
    "Code discipline autorisation",
    "Libellé discipline autorisation",
)

_PROFESSIONALS_PER_STRUCTURE = 12

GIVEN_NAMES = (
    *("Aliénor", "Bérénice", "Côme", "Dorothée", "Eudes", "Françoise", "Gaétan", "Hélène", "Isaure", "Joël"),
    *("Kévin", "Léonie", "Maïa", "Noël", "Océane", "Pierre-Marie", "Quitterie", "Raphaël", "Solène", "Théo"),
    *("Ursule", "Valérie", "Wilfried", "Xavière", "Yaël", "Zoé", "Anne-Laure", "Jean-Baptiste", "Chloé", "Irénée"),
)
_FAMILY_BEGIN = (
    *("Bel", "Mont", "Clair", "Haute", "Val", "Roche", "Bois", "Pré", "Font", "Beau"),
    *("Gran", "Lam", "Char", "Dur", "Gué", "Cour", "Mar", "Sau", "Ver", "Ville"),
)
_FAMILY_END = (
    *("fontaine", "rivière", "combe", "lande", "vigne", "moulin", "chêne", "mont", "brune", "gaud"),
    *("lier", "neuve", "pierre", "sart", "vaux", "zéry", "quin", "tellier", "nard", "ssières"),
)
FAMILY_NAMES = tuple((begin + end).upper() for begin in _FAMILY_BEGIN for end in _FAMILY_END)
TOWNS = (
    "Saint-Exemple-sur-Orge",
    "Fictiville",
    "Modèle-les-Bains",
    "Échantillon",
    "La Fausse-Ferté",
    "Villeneuve-Test",
)
_STREETS = ("des Tilleuls", "de la Fontaine", "du Moulin", "de l'Église", "des Écoles", "du Vieux Pont")
SERVICES = (
    "Cardiologie",
    "Biologie médicale",
    "Imagerie",
    "Secrétariat médical",
    "Urgences",
    "Pharmacie à usage intérieur",
)


@dataclass(frozen=True, slots=True)
class _Profession:
    code: str
    label: str
    civility: str
    skills: tuple[tuple[str, str], ...] = ()


_PROFESSIONS = (
    _Profession(
        "10", "Médecin", "DR", (("SM54", "Médecine générale"), ("SM04", "Cardiologie et maladies vasculaires"))
    ),
    _Profession("60", "Infirmier", ""),
    _Profession("21", "Pharmacien", ""),
    _Profession("70", "Masseur-Kinésithérapeute", ""),
    _Profession("40", "Chirurgien-Dentiste", "DR"),
    _Profession("50", "Sage-Femme", ""),
)
_WEIGHTS = (45, 25, 10, 10, 6, 4)


@dataclass(frozen=True, slots=True)
class _Structure:
    finess: str
    siret: str
    name: str
    domain: str
    number: str
    street: str
    postal_code: str
    town: str


@dataclass(frozen=True, slots=True)
class ExtractionFiles:
    """Where the four files were written."""

    mssante: Path
    """`Extraction_Correspondance_MSSante_*.txt`."""
    practice: Path
    """`PS_LibreAcces_Personne_activite_*.txt`."""
    savoir_faire: Path
    diplomes: Path


def write_extraction(
    directory: Path,
    professionals: int = 2000,
    seed: int = 1,
    extra: Sequence[MailboxRow] = (),
    published: str = "202601010400",
) -> ExtractionFiles:
    """Write the four files into `directory` (created when missing): the same arguments give the same bytes.

    `professionals` invented people with one or two PER mailboxes each, structures with ORG mailboxes, then the `extra`
    mailboxes word for word. `published` is the moment in the file names, `YYYYMMDDhhmm`. Raises ValueError when a field
    of `extra` cannot be written in this format (a bar, an end of line).
    """
    chance = random.Random(seed)  # noqa: S311 - invented data, not a secret
    structures = [_structure(chance, index) for index in range(max(1, professionals // _PROFESSIONALS_PER_STRUCTURE))]
    mailboxes: list[MailboxRow] = []
    situations: list[PracticeRow] = []
    for index in range(professionals):
        own = _person(chance, index, chance.sample(structures, k=min(len(structures), chance.choice((1, 1, 1, 2, 3)))))
        situations += own[0]
        mailboxes += own[1]
    for structure in structures:
        services = chance.sample(SERVICES, k=chance.randint(1, 3))
        mailboxes += (_team_mailbox(structure, service) for service in services)
    mailboxes += extra
    situations += (_situation_of(row) for row in extra if row.kind is MailboxKind.PER and row.pp_id_nat)

    directory.mkdir(parents=True, exist_ok=True)
    files = ExtractionFiles(
        directory / f"Extraction_Correspondance_MSSante_{published}.txt",
        *(
            directory / f"PS_LibreAcces_{name}_{published}.txt"
            for name in ("Personne_activite", "SavoirFaire", "Dipl_AutExerc")
        ),
    )
    people = list({row.pp_id_nat: row for row in situations}.values())
    _write(files.mssante, (name for name, _ in MAILBOX_COLUMNS), map(_mailbox_fields, mailboxes))
    _write(files.practice, (name for name, _ in PRACTICE_COLUMNS), map(_practice_fields, situations), bar=True)
    _write(files.savoir_faire, SAVOIR_FAIRE_HEADER, _skills(people), bar=True)
    _write(files.diplomes, DIPLOMES_HEADER, _diplomas(people), bar=True)
    return files


def _structure(chance: random.Random, index: int) -> _Structure:
    town = chance.choice(TOWNS)
    kind, slug = chance.choice((("Centre hospitalier", "ch"), ("Maison de santé", "msp"), ("Laboratoire", "labo")))
    return _Structure(
        finess=f"99{index:07d}",
        siret=f"000{index:06d}{index % 100000:05d}",
        name=f"{kind} de {town} {index + 1}",
        domain=f"demo-{slug}{index + 1}.mssante.fr",
        number=str(chance.randint(1, 120)),
        street=chance.choice(_STREETS),
        postal_code=f"99{100 + TOWNS.index(town) * 10:03d}",
        town=town,
    )


def _person(
    chance: random.Random, index: int, structures: Sequence[_Structure]
) -> tuple[list[PracticeRow], list[MailboxRow]]:
    """One professional: a situation in each structure, a mailbox in the first and sometimes in the second."""
    profession = chance.choices(_PROFESSIONS, _WEIGHTS)[0]
    skill_code, skill = chance.choice(profession.skills) if profession.skills else ("", "")
    given = chance.choice(GIVEN_NAMES)
    family = (chance.choice(_FAMILY_BEGIN) + chance.choice(_FAMILY_END)).upper()
    identifier = f"999{index:08d}"
    telephone = f"01990{chance.randint(0, 99999):05d}"
    situations = [
        PracticeRow(
            pp_id_nat="8" + identifier,
            pp_identifier_type="8",
            pp_identifier=identifier,
            civility=profession.civility,
            family_name=family,
            given_name=given,
            profession_code=profession.code,
            profession=profession.label,
            category_code="C",
            category="Civil",
            skill_type_code="S" if skill else "",
            skill_code=skill_code,
            skill=skill,
            siret=structure.siret,
            finess=structure.finess,
            organisation=structure.name,
            postal_code=structure.postal_code,
            town=structure.town,
            telephone=telephone,
        )
        for structure in structures
    ]
    mailboxes = [
        MailboxRow(
            kind=MailboxKind.PER,
            address=f"{local_part(given)}.{local_part(family)}.{index + 1}@{structure.domain}",
            pp_identifier_type="8",
            pp_identifier=identifier,
            pp_id_nat="8" + identifier,
            structure_identifier_type="FINESS",
            structure_identifier=structure.finess,
            civility=profession.civility,
            family_name=family,
            given_name=given,
            category_code="C",
            category="Civil",
            profession_code=profession.code,
            profession=profession.label,
            skill_code=skill_code,
            skill=skill,
            dematerialisation=chance.choice("ON"),
            **_postal(structure),
        )
        for structure in structures[: chance.choice((1, 1, 1, 2))]
    ]
    return situations, mailboxes


def _team_mailbox(structure: _Structure, service: str) -> MailboxRow:
    return MailboxRow(
        kind=MailboxKind.ORG,
        address=f"{local_part(service)}@{structure.domain}",
        structure_identifier_type="FINESS",
        structure_identifier=structure.finess,
        service=service,
        dematerialisation="O",
        **_postal(structure),
    )


def _postal(structure: _Structure) -> dict[str, str]:
    return {
        "organisation": structure.name,
        "l4_number": structure.number,
        "l4_street_type": "RUE",
        "l4_street": structure.street,
        "l6_delivery": f"{structure.postal_code} {structure.town.upper()}",
        "postal_code": structure.postal_code,
        "department": "99",
        "country": "FRANCE",
    }


def _situation_of(row: MailboxRow) -> PracticeRow:
    return PracticeRow(
        pp_id_nat=row.pp_id_nat,
        pp_identifier_type=row.pp_identifier_type or row.pp_id_nat[:1],
        pp_identifier=row.pp_identifier or row.pp_id_nat[1:],
        civility=row.civility,
        family_name=row.family_name,
        given_name=row.given_name,
        profession_code=row.profession_code,
        profession=row.profession,
        category_code=row.category_code or "C",
        category=row.category or "Civil",
        skill_type_code="S" if row.skill_code else "",
        skill_code=row.skill_code,
        skill=row.skill,
        finess=row.structure_identifier if row.structure_identifier_type == "FINESS" else "",
        siret=row.structure_identifier if row.structure_identifier_type == "SIRET" else "",
        organisation=row.organisation,
        postal_code=row.postal_code,
        town=row.l6_delivery.removeprefix(row.postal_code).strip(),
    )


def _mailbox_fields(row: MailboxRow) -> list[str]:
    return [row.kind.value, *(getattr(row, name) for _, name in MAILBOX_COLUMNS[1:])]


def _practice_fields(row: PracticeRow) -> list[str]:
    return [getattr(row, name) if name else "" for _, name in PRACTICE_COLUMNS]


def _identity(row: PracticeRow) -> list[str]:
    return [row.pp_identifier_type, row.pp_identifier, row.pp_id_nat, row.family_name, row.given_name]


def _skills(people: Iterable[PracticeRow]) -> Iterator[list[str]]:
    for row in people:
        if row.skill_code:
            profession = [row.profession_code, row.profession, row.category_code, row.category]
            yield [*_identity(row), *profession, "S", "Spécialité ordinale", row.skill_code, row.skill]


def _diplomas(people: Iterable[PracticeRow]) -> Iterator[list[str]]:
    for row in people:
        diploma = ["DE", "Diplôme d'État français", f"DE{row.profession_code}", f"Diplôme d'État : {row.profession}"]
        yield [*_identity(row), *diploma, "", "", "", ""]


def mailbox_line(row: MailboxRow) -> str:
    """One line of the MSSanté extraction, LF included. No field may hold a bar or an end of line."""
    return "|".join(_mailbox_fields(row)) + "\n"


def practice_line(row: PracticeRow) -> str:
    """One line of Personne_activite, its trailing bar and LF included."""
    return "|".join(_practice_fields(row)) + "|\n"


def skill_line(row: PracticeRow) -> str:
    """The line of SavoirFaire about the skill in this situation."""
    return "|".join(next(_skills([row]))) + "|\n"


def diploma_line(row: PracticeRow) -> str:
    """A line of Dipl_AutExerc that goes with this profession."""
    return "|".join(next(_diplomas([row]))) + "|\n"


def _write(path: Path, header: Iterable[str], rows: Iterable[Sequence[str]], bar: bool = False) -> None:
    """One national file: UTF-8, LF, `|` between fields, and after the last one when `bar`."""
    end = "|\n" if bar else "\n"
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("|".join(header) + end)
        for row in rows:
            if any("|" in field or "\n" in field or "\r" in field for field in row):
                raise ValueError(
                    f"a field of {path.name} holds a bar or an end of line, which this format cannot carry"
                )
            file.write("|".join(row) + end)


def local_part(text: str) -> str:
    """A mail local part from a name: lower case, no accents, dots for blanks."""
    decomposed = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return decomposed.replace(" ", ".").replace("'", "")
