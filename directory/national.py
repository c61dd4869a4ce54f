"""Which files the register published, when, and whether they can be believed: looked at before anything is compared.

The whole of each file is read once here, for what only the whole can tell: that it is complete, that its lines are
lines, that no address belongs to two holders. What is not clear about one mailbox freezes that mailbox; what is not
clear about the file holds the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from directory import schema
from directory.entries import comparable
from directory.extraction import (
    MailboxRow,
    RejectedLine,
    first_line,
    read_diplomas,
    read_mssante,
    read_practice,
    read_skills,
)
from directory.packed import ExtractionError, is_named, opened_archive
from directory.records import MailboxKind
from directory.register import holder_of, structure_id_nat
from directory.words import folded

_EXAMPLES = 1000
"""Rejected lines and duplicates that are listed one by one; all are counted."""
_PUBLISHED = re.compile(r"_(\d{12}|\d{8})\.(?:txt|zip)$", re.IGNORECASE)
_NAMES = {
    "mssante": "Extraction_Correspondance_MSSante",
    "practice": "PS_LibreAcces_Personne_activite",
    "skills": "PS_LibreAcces_SavoirFaire",
    "diplomas": "PS_LibreAcces_Dipl_AutExerc",
}
KINDS = tuple(_NAMES)
_READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "mssante": read_mssante,
    "practice": read_practice,
    "skills": read_skills,
    "diplomas": read_diplomas,
}


@dataclass(frozen=True, slots=True)
class NationalFiles:
    """One day's publication. Two kinds may lie in one ZIP, and then have the same path."""

    mssante: Path
    practice: Path | None = None
    skills: Path | None = None
    diplomas: Path | None = None
    published: tuple[tuple[str, str], ...] = ()
    """(`mssante`, `202609010503`) for each file whose name says when; in local time of the register."""

    def items(self) -> Iterator[tuple[str, Path]]:
        for kind in KINDS:
            path = getattr(self, kind)
            if path is not None:
                yield kind, path


@dataclass(slots=True)
class FileFacts:
    """What one file holds."""

    name: str
    published: str = ""
    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Lines left aside, by reason."""
    examples: list[RejectedLine] = field(default_factory=list)


@dataclass(slots=True)
class Examination:
    """What the files hold, and what is wrong with them."""

    files: dict[str, FileFacts] = field(default_factory=dict)
    unreadable: str = ""
    """Why a file cannot be read at all."""
    repeated: int = 0
    """Lines that name an address again for the same holder, or in another branch: harmless."""
    conflicts: int = 0
    """Lines that name an address for another holder than a line before."""
    conflict_lines: list[tuple[int, int]] = field(default_factory=list)
    """Line numbers of the first of them: the line before, and the other."""
    twins: set[str] = field(default_factory=set)
    """Addresses that one person has under an RPPS and an ADELI number."""
    addresses: set[str] = field(default_factory=set)
    """Mailboxes to be left as they are: their line is broken, or two lines disagree."""
    identifiers: set[str] = field(default_factory=set)
    """Professionals to be left as they are: a line about them is broken."""


def find(paths: Iterable[Path]) -> NationalFiles:
    """The newest file of each kind among these files and folders, by name, else by header.

    Raises `ExtractionError` when none of them is an MSSanté extraction, OSError when one cannot be read.
    """
    found: dict[str, tuple[str, Path]] = {}
    for path in _files(paths):
        for kind, published in _what(path):
            if kind not in found or published >= found[kind][0]:
                found[kind] = (published, path)
    if "mssante" not in found:
        raise ExtractionError("there is no Extraction_Correspondance_MSSante among these files")
    return NationalFiles(
        **{kind: path for kind, (_, path) in found.items()},
        published=tuple((kind, published) for kind, (published, _) in found.items() if published),
    )


def examine(
    files: NationalFiles, take: Callable[[Any], None] = lambda _: None, seen: Callable[[int], None] = lambda _: None
) -> Examination:
    """Read all of them once. `take` gets every good row, `seen` the number of lines every now and then.

    Memory: a few dozen bytes per mailbox. A file that cannot be read is a fact, not an exception; OSError goes through.
    """
    result = Examination()
    published = dict(files.published)
    lines = 0
    for kind, path in files.items():
        facts = result.files[kind] = FileFacts(path.name, published.get(kind, ""))
        holders: dict[int, int] = {}
        number = 1
        try:
            for row in _READERS[kind](path):
                number += 1
                if isinstance(row, RejectedLine):
                    number = row.number
                    _reject(result, facts, kind, row)
                else:
                    facts.rows += 1
                    take(row)
                    if kind == "mssante":
                        _holder(result, holders, row, number)
                lines += 1
                if lines % 10_000 == 0:
                    seen(lines)
        except ExtractionError as error:
            result.unreadable = str(error)
    return result


def _reject(result: Examination, facts: FileFacts, kind: str, row: RejectedLine) -> None:
    facts.rejected[row.reason] += 1
    if len(facts.examples) < _EXAMPLES:
        facts.examples.append(row)
    addresses = {text for text in row.about if "@" in text} if kind == "mssante" else set[str]()
    result.addresses |= addresses
    if not addresses:  # else it is about that mailbox, and not about its holder
        result.identifiers.update(text for text in row.about if "@" not in text)


def _holder(result: Examination, holders: dict[int, int], row: MailboxRow, number: int) -> None:
    """Digests, not texts: a collision among half a million would only freeze a mailbox for a day.

    `holders`: by branch and address, in one number, the digests of holder and names, whether the holder's number is
    RPPS (1), ADELI (2) or another (0), and the number of the line, of 32 bits.
    """
    key = hash((schema.BRANCHES[row.kind], row.address))
    system = names = 0
    if row.kind is MailboxKind.PER:
        id_nat = holder_of(row)
        holder = hash(id_nat)
        system = {"8": 1, "0": 2}.get(id_nat[:1], 0)
        names = hash((comparable(folded(row.family_name)), comparable(folded(row.given_name))))
    else:
        holder = hash(structure_id_nat(row.structure_identifier_type, row.structure_identifier))
    mine = (holder & _WORD) << 66 | (names & _HALF) << 34 | system << 32 | number
    before = holders.setdefault(key, mine)
    if before == mine:
        return
    if before >> 66 == mine >> 66:
        result.repeated += 1
    elif (before >> 32 & 3) + system == 3 and system and (before >> 34 & _HALF) == (mine >> 34 & _HALF):
        result.repeated += 1
        result.twins.add(row.address)
    else:
        result.conflicts += 1
        result.addresses.add(row.address)
        if len(result.conflict_lines) < _EXAMPLES:
            result.conflict_lines.append((before & _HALF, number))


_HALF = 0xFFFFFFFF
_WORD = 0xFFFFFFFFFFFFFFFF


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(
                each for each in path.iterdir() if each.suffix.lower() in (".txt", ".zip") and each.is_file()
            )
        else:
            yield path


def _what(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, published) of what one file holds. A damaged archive counts as what its name says."""
    names = [path.name]
    try:
        with opened_archive(path) as archive:
            names = archive.namelist()
    except ExtractionError:
        if path.name.startswith("PS_LibreAcces") and path.suffix.lower() == ".zip":
            names = [_NAMES["practice"] + path.name.removeprefix("PS_LibreAcces")]
    known = [(kind, name) for name in names for kind, prefix in _NAMES.items() if is_named(name, prefix)]
    if not known and len(names) == 1 and (kind := _by_header(path)):
        known = [(kind, names[0])]
    for kind, name in known:
        published = _PUBLISHED.search(name) or _PUBLISHED.search(path.name)
        yield kind, published[1].ljust(12, "0") if published else ""


def _by_header(path: Path) -> str:
    """The kind of a file with another name: by a column that only one kind has."""
    try:
        columns = first_line(path)
    except ExtractionError:
        return ""
    for column, kind in (
        ("typedebal", "mssante"),
        ("adressebal", "mssante"),
        ("numerofinesssite", "practice"),
        ("codediplomeobtenu", "diplomas"),
        ("codesavoirfaire", "skills"),
    ):
        if column in columns:
            return kind
    return ""
