"""Files of national size about nobody, written in one stream, and the same nation some days later.

`directory.synthetic` invents a small world that rows can be added to; here it is size and time that matter. Every line
follows from the seed, the number of the person and the day alone, so any day's files can be written without those of
the days before. Proportions are the register's: 1.2 situations a person, a mailbox for one person in four, a team's
mailbox for each six of those, 5,018 domains, one address in three thousand named twice by the same holder. Nothing can
be taken for real: see `directory.synthetic`.

What searches and caches meet is as uneven as in life: a few family names, towns and domains have very many, most have
few. Compound names, accents and several workplaces are there too, and each line of a structure says the same about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TextIO

from directory.extraction import MAILBOX_COLUMNS, PRACTICE_COLUMNS, MailboxRow, PracticeRow
from directory.records import MailboxKind
from directory.synthetic import (
    DIPLOMES_HEADER,
    FAMILY_NAMES,
    GIVEN_NAMES,
    SAVOIR_FAIRE_HEADER,
    SERVICES,
    TOWNS,
    ExtractionFiles,
    diploma_line,
    local_part,
    mailbox_line,
    practice_line,
    skill_line,
)

NATIONAL = 1_957_000
"""Persons ever: of whom one in fifty is away, so that 2.3 million situations and 536,000 mailboxes are left."""
_FIRST_DAY = datetime(2026, 1, 1, 4, tzinfo=UTC)
_PERSONS_PER_STRUCTURE = 4
_STRUCTURES_PER_TEAM = 6
_PERSONS_PER_DOMAIN = 390
_WORD = (1 << 64) - 1

_PHYSICIAN = ("10", "Médecin", "DR")
_PROFESSIONS: tuple[tuple[tuple[str, str, str], tuple[str, str]], ...] = (
    *(((_PHYSICIAN), ("SM54", "Médecine générale")),) * 3,
    (_PHYSICIAN, ("SM04", "Cardiologie et maladies vasculaires")),
    (_PHYSICIAN, ("SM42", "Psychiatrie")),
    *((("60", "Infirmier", ""), ("", "")),) * 8,
    *((("70", "Masseur-Kinésithérapeute", ""), ("", "")),) * 2,
    (("21", "Pharmacien", ""), ("", "")),
    (("40", "Chirurgien-Dentiste", "DR"), ("", "")),
    (("50", "Sage-Femme", ""), ("", "")),
)
_NAME_ENDINGS = (
    *("", "ER", "EAU", "ET", "IN", "AUD", "EL", "OT", "Y", "AC"),
    *("IÈRE", "ON", "ARD", "UC", "EZ", "ELLE", "OIS", "ANT", "ECQ", "AS"),
)
_NAMES = tuple(name + ending for ending in _NAME_ENDINGS for name in FAMILY_NAMES)
"""The most frequent first."""
_GIVEN = tuple(name + ending for ending in ("", "line", "ette", "in", "iane", "ic") for name in GIVEN_NAMES)
_TOWN_ENDINGS = (
    *("", "-sur-Orge", "-les-Bains", "-le-Vieux", "-en-Plaine", "-la-Forêt", "-le-Château", "-sous-Bois"),
    *("-le-Haut", "-le-Bas", "-l'Évêque", "-aux-Chênes", "-lès-Dunes", "-d'En-Haut", "-les-Pins", "-du-Lac"),
)
_TOWNS = (
    *TOWNS,
    *(
        f"{before}{name.capitalize()}{ending}"
        for ending in _TOWN_ENDINGS
        for before in ("", "Saint-")
        for name in FAMILY_NAMES
    ),
)
"""The largest first."""
_POSTAL_CODES = 900
_STREETS = ("DES TILLEULS", "DE LA FONTAINE", "DU MOULIN", "DE L'ÉGLISE", "DES ÉCOLES", "DU VIEUX PONT")


@dataclass(frozen=True, slots=True)
class _Nation:
    persons: int
    seed: int
    day: int
    changed: float
    """Percent of the persons a day."""

    @property
    def structures(self) -> int:
        return max(1, self.persons // _PERSONS_PER_STRUCTURE)

    @property
    def domains(self) -> int:
        return max(1, -(-self.persons // _PERSONS_PER_DOMAIN))

    def chance(self, number: int, what: int) -> int:
        """A number of 64 bits that nothing else depends on (splitmix64's mixing)."""
        mixed = (number * 0x9E3779B97F4A7C15 + what * 0xD1B54A32D192ED03 + self.seed * 0x8CB92BA72F3D8DD7) & _WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
        return mixed ^ (mixed >> 31)

    def history(self, number: int) -> tuple[bool, int]:
        """Whether a person is there today, and how often he has moved: one change in twenty is a coming or going."""
        there, moves = self.chance(number, 1) % 50 != 0, 0
        for day in range(1, self.day + 1):
            event = self.chance(number, 1000 + day)
            if event % 1_000_000 < self.changed * 10_000:
                if event % 20 == 0:
                    there = not there
                else:
                    moves += 1
        return there, moves


def write_nation(
    folder: Path, professionals: int = NATIONAL, seed: int = 1, day: int = 0, changed: float = 1.0
) -> ExtractionFiles:
    """The four files of `day` (0 is the first), `changed` percent of the persons differing from one day to the next.

    The same arguments give the same bytes. Memory does not grow with `professionals`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    published = f"{_FIRST_DAY + timedelta(days=day):%Y%m%d%H%M}"
    names = ("Personne_activite", "SavoirFaire", "Dipl_AutExerc")
    files = ExtractionFiles(
        folder / f"Extraction_Correspondance_MSSante_{published}.txt",
        *(folder / f"PS_LibreAcces_{name}_{published}.txt" for name in names),
    )
    nation = _Nation(professionals, seed, day, changed)
    with ExitStack() as stack:

        def opened(path: Path, header: str) -> TextIO:
            file = stack.enter_context(path.open("w", encoding="utf-8", newline="", buffering=1 << 20))
            file.write(header + "\n")
            return file

        mailboxes = opened(files.mssante, "|".join(name for name, _ in MAILBOX_COLUMNS))
        practice = opened(files.practice, "|".join(name for name, _ in PRACTICE_COLUMNS) + "|")
        skills = opened(files.savoir_faire, "|".join(SAVOIR_FAIRE_HEADER) + "|")
        diplomas = opened(files.diplomes, "|".join(DIPLOMES_HEADER) + "|")
        for number in range(professionals):
            situations = list(_situations(nation, number))
            practice.writelines(map(practice_line, situations))
            if situations:
                diplomas.write(diploma_line(situations[0]))
                if situations[0].skill_code:
                    skills.write(skill_line(situations[0]))
                mailboxes.writelines(map(mailbox_line, _mailboxes(nation, number, situations[0])))
        if professionals:
            for number in range(0, nation.structures, _STRUCTURES_PER_TEAM):
                mailboxes.write(mailbox_line(_team(nation, number)))
    return files


def _situations(nation: _Nation, number: int) -> Iterator[PracticeRow]:
    there, moves = nation.history(number)
    if not there:
        return
    chance = nation.chance(number, 2)
    (code, label, civility), (skill_code, skill) = _PROFESSIONS[chance % len(_PROFESSIONS)]
    row = PracticeRow(
        pp_id_nat=f"8999{number:08d}",
        pp_identifier_type="8",
        pp_identifier=f"999{number:08d}",
        civility=civility,
        family_name=_family_name(nation, number),
        given_name=_given_name(nation, number),
        profession_code=code,
        profession=label,
        category_code="C",
        category="Civil",
        skill_type_code="S" if skill else "",
        skill_code=skill_code,
        skill=skill,
        mode_code="LS"[chance >> 32 & 1],
    )
    for place in range(_workplaces(chance >> 40)):
        # Whoever moves goes to another structure; the other workplaces stay.
        structure = nation.chance(number, 40 + (moves if place == 0 else 100 * place)) % nation.structures
        town, postal_code = _town(nation, structure)
        yield replace(
            row,
            finess=f"99{structure:07d}",
            siret=f"000{structure:07d}{structure % 10_000:04d}",
            organisation=_organisation(nation, structure),
            postal_code=postal_code,
            town=town,
            street_number=str(nation.chance(structure, 15) % 120 + 1),
            street_type="RUE",
            street=_STREETS[nation.chance(structure, 16) % len(_STREETS)],
            telephone=f"01990{nation.chance(structure, 3) % 100_000:05d}",
        )


def _workplaces(chance: int) -> int:
    """1.2 on average; a few have half a dozen."""
    return next(
        places for places, below in ((1, 860), (2, 955), (3, 985), (4, 997), (6, 1000)) if chance % 1000 < below
    )


def _uneven(chance: int, count: int, head: float) -> int:
    """One of `count`, 0 the most likely: like names and towns, each about 1 / (its rank + `head`) of all (Zipf)."""
    return min(int(head * ((count + head) / head) ** (chance / (_WORD + 1)) - head), count - 1)


def _family_name(nation: _Nation, number: int) -> str:
    """The most frequent one has four persons in a thousand; one in twenty is compound."""
    chance = nation.chance(number, 10)
    name = _NAMES[_uneven(chance, len(_NAMES), 50)]
    other = _NAMES[_uneven(nation.chance(number, 11), len(_NAMES), 50)]
    match chance % 60:
        case 0:
            return f"{name}-{other}"
        case 1:
            return f"{name} {other}"
        case 2:
            return f"LE {name}"
    return name


def _given_name(nation: _Nation, number: int) -> str:
    chance = nation.chance(number, 12)
    name = _GIVEN[_uneven(chance, len(_GIVEN), 20)]
    if chance % 16 == 0 and "-" not in name:
        return f"{name}-{GIVEN_NAMES[nation.chance(number, 13) % len(GIVEN_NAMES)].partition('-')[0]}"
    return name


def _mailboxes(nation: _Nation, number: int, situation: PracticeRow) -> Iterator[MailboxRow]:
    chance = nation.chance(number, 4)
    if chance % 1000 >= 238:
        return
    # A mailbox keeps its address when its holder moves. Half are in the domains of a few professions.
    home = nation.chance(number, 5)
    domain = home % 8 if home >> 63 else _uneven(nation.chance(number, 14), nation.domains, 1)
    name = f"{local_part(situation.given_name)}.{local_part(situation.family_name)}.{number}"
    row = MailboxRow(
        kind=MailboxKind.PER,
        address=f"{name}@demo-{domain % nation.domains}.mssante.fr",
        pp_identifier_type="8",
        pp_identifier=situation.pp_identifier,
        pp_id_nat=situation.pp_id_nat,
        structure_identifier_type="FINESS",
        structure_identifier=situation.finess,
        civility=situation.civility,
        family_name=situation.family_name,
        given_name=situation.given_name,
        category_code="C",
        category="Civil",
        profession_code=situation.profession_code,
        profession=situation.profession,
        skill_code=situation.skill_code,
        skill=situation.skill,
        dematerialisation="ON"[chance >> 20 & 1],
        organisation=situation.organisation,
        l6_delivery=f"{situation.postal_code} {situation.town.upper()}",
        postal_code=situation.postal_code,
        department="99",
        country="FRANCE",
    )
    yield row
    if (chance >> 32) % 2700 == 0:
        yield replace(row, skill_code="SM99", skill="Autre qualification")


def _team(nation: _Nation, structure: int) -> MailboxRow:
    service = SERVICES[nation.chance(structure, 6) % len(SERVICES)]
    town, postal_code = _town(nation, structure)
    domain = structure // _STRUCTURES_PER_TEAM  # each has one team at least
    if domain >= nation.domains:
        domain = _uneven(nation.chance(structure, 14), nation.domains, 1)
    return MailboxRow(
        kind=MailboxKind.ORG,
        address=f"{local_part(service)}.{structure}@demo-{domain}.mssante.fr",
        structure_identifier_type="FINESS",
        structure_identifier=f"99{structure:07d}",
        service=service,
        dematerialisation="O",
        organisation=_organisation(nation, structure),
        l6_delivery=f"{postal_code} {town.upper()}",
        postal_code=postal_code,
        department="99",
        country="FRANCE",
    )


def _organisation(nation: _Nation, structure: int) -> str:
    kind = ("Cabinet", "Maison de santé", "Pharmacie", "Centre hospitalier")[nation.chance(structure, 7) % 4]
    return f"{kind} {_NAMES[_uneven(nation.chance(structure, 8), len(_NAMES), 50)].title()} {structure}"


def _town(nation: _Nation, structure: int) -> tuple[str, str]:
    """The largest has three structures in a hundred."""
    place = _uneven(nation.chance(structure, 9), len(_TOWNS), 4)
    return _TOWNS[place], f"99{100 + place % _POSTAL_CODES:03d}"
