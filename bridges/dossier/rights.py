"""Who may read what: one pure function over facts, and the authorisation matrix it consults.

Rules are asked in a fixed order and the first that refuses decides, so that a refusal names one cause. There is no data
yet on blocked professionals, care teams, consent and the attending doctor: those rules will stand between
identification and the matrix. Nothing is ever allowed for want of a rule.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path

import msgspec

from bridges.dossier.entries import AvailabilityStatus, DocumentEntry, DossierStatus


@dataclass(frozen=True, slots=True)
class Reader:
    """A professional, as authenticated."""

    id_nat: str
    """IdNat_PP: `8` and the RPPS number."""
    name: str
    profession: str
    """TRE_G15 code: `10` is a physician."""
    specialty: str = ""
    """TRE_R38 code, e.g. `SM26`."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Which (profession, typeCode) may be read. What is not in it is refused."""

    source: str
    date: date
    allowed: frozenset[tuple[str, str]]

    def opens(self, profession: str, type_code: str) -> bool:
        return (profession, type_code) in self.allowed


@dataclass(frozen=True, slots=True)
class AccessContext:
    """The circumstances of one access."""

    matrix: Matrix
    purpose: str
    """Why, in the reader's words or a VIHF code (`normal`); must not be empty."""
    history: bool = False
    """True when replaced versions were asked for."""


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    rule: str
    """The rule that refused, or `granted`."""
    text: str
    """One sentence for the journal, which the patient reads: French."""


_GRANTED = Decision(True, "granted", "Accès autorisé.")
_CLOSED = Decision(False, "dossier-closed", "Le dossier est fermé.")
_NOT_IDENTIFIED = Decision(False, "not-identified", "Le lecteur n'est pas identifié comme professionnel de santé.")
_NO_PURPOSE = Decision(False, "no-purpose", "Le motif de l'accès n'est pas indiqué.")
_NOT_OPENED = Decision(False, "matrix", "La matrice d'habilitation n'ouvre pas ce type de document à cette profession.")
_MASKED = Decision(False, "masked", "Le document est masqué aux professionnels.")
_DELETED = Decision(False, "deleted", "Le document a été supprimé par son auteur.")
_SUPERSEDED = Decision(False, "superseded", "Le document a été remplacé et l'historique n'est pas demandé.")


def decide_access(reader: Reader, dossier: DossierStatus, context: AccessContext) -> Decision:
    """Whether this reader may open this dossier at all."""
    if dossier is not DossierStatus.OPEN:
        return _CLOSED
    if not reader.id_nat.strip() or not reader.profession.strip():
        return _NOT_IDENTIFIED
    if not context.purpose.strip():
        return _NO_PURPOSE
    return _GRANTED


def decide(reader: Reader, dossier: DossierStatus, document: DocumentEntry, context: AccessContext) -> Decision:
    """Whether this reader may read this document: pure, no clock, no I/O."""
    access = decide_access(reader, dossier, context)
    if not access.allowed:
        return access
    if not context.matrix.opens(reader.profession, document.type_code):
        return _NOT_OPENED
    # Masking does not hold against whoever wrote the document (Code de la santé publique, R1111-49).
    if document.masked_to_professionals and document.author.id_nat != reader.id_nat:
        return _MASKED
    match document.status:
        case AvailabilityStatus.CURRENT:
            return _GRANTED
        case AvailabilityStatus.SUPERSEDED:
            return _GRANTED if context.history else _SUPERSEDED
        case AvailabilityStatus.DELETED:
            return _DELETED


class MatrixError(ValueError):
    """The matrix file does not say what it must; the text says where."""


class _Rule(msgspec.Struct, forbid_unknown_fields=True, rename={"exceptions": "except"}):
    professions: list[str]
    source: str
    families: list[str] = []
    types: list[str] = []
    exceptions: list[str] = []


class _MatrixFile(msgspec.Struct, forbid_unknown_fields=True):
    source: str
    date: date
    families: dict[str, list[str]]
    rules: list[_Rule]


def load_matrix(path: Path | None = None) -> Matrix:
    """The matrix in a TOML file, by default the one that comes with Relais.

    Raises `MatrixError` when it is malformed or an exception names a type that would not be opened anyway (a mistyped
    code must not open anything), OSError when it cannot be read.
    """
    text = (path or resources.files("bridges.dossier") / "matrix.toml").read_text("utf-8")
    try:
        file = msgspec.convert(tomllib.loads(text), _MatrixFile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise MatrixError(f"authorisation matrix: {error}") from error
    allowed: set[tuple[str, str]] = set()
    for rule in file.rules:
        unknown = set(rule.families) - set(file.families)
        if unknown:
            raise MatrixError(f"authorisation matrix: unknown families {sorted(unknown)}")
        opened = {code for family in rule.families for code in file.families[family]} | set(rule.types)
        if strange := set(rule.exceptions) - opened:
            raise MatrixError(f"authorisation matrix: exceptions that except nothing: {sorted(strange)}")
        for profession in rule.professions:
            allowed |= {(profession, code) for code in opened - set(rule.exceptions)}
    return Matrix(file.source, file.date, frozenset(allowed))
