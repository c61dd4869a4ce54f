"""The national register's open files, read line by line: mailboxes, activities, skills and diplomas.

Files of the Annuaire Santé: `Extraction_Correspondance_MSSante_*.txt` (31 columns, one line per mailbox) and
`PS_LibreAcces_Personne_activite_*.txt` (55 or 56 columns and a trailing bar, one line per situation) with its
`SavoirFaire` and `Dipl_AutExerc` (13 columns, one line per skill and per diploma). UTF-8, separated
by `|`, no quoting, one header line, alone or in the ZIP they are published in. Headers vary in case and accents, some
columns come and go: they are found by normalised name. A bad line is reported and skipped, never fatal: one broken name
among half a million must not stop the directory.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from dataclasses import fields as fields_of
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from directory.entries import is_address
from directory.packed import LINE_BYTES, ExtractionError, lines_of, opened
from directory.records import MailboxKind

_COLUMNS_LOOKED_AT = 200
_ESCAPED = re.compile(r'[,+"\\<>;=#]')
_NAME_BYTES = 240
"""Of an address as a part of a name in the directory: slapd's database keeps it twice in 511 bytes (LMDB), each special
character in three. A longer one would be refused, and the whole first load with it."""
_IDENTIFIER = re.compile(r"[ -~]{1,64}")
"""Of a professional or a structure; it becomes a part of a name in the directory as well."""
_ID_NAT = re.compile(r"[0-9][0-9A-Z]{9,14}")
_NOT_IN_A_NUMBER = re.compile(r"[^0-9A-Za-z'()+,./:? -]")
"""What a Telephone Number (RFC 4517 §3.3.31) cannot hold: slapd would refuse the whole entry."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """One line that was left aside."""

    number: int
    """Line number in the file, the header is 1."""
    reason: str
    """`encoding`, `columns`, `truncated`, `control-character`, `too-long`, `kind`, `address` or `identifier`.

    Never a value. `truncated` is a last line that ends before its columns do: the file was cut.
    """
    about: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """Whom the line was about, as far as can be seen: addresses, and IdNat of professionals; lower case.

    What the directory holds about them is left as it is: a broken line must not remove anybody.
    """


@dataclass(frozen=True, slots=True)
class MailboxRow:
    """One line of the MSSanté extraction. Fields in the order of the columns, empty when the column is."""

    kind: MailboxKind
    address: str
    """Lower case."""
    pp_identifier_type: str = ""
    """`8` RPPS, `0` ADELI."""
    pp_identifier: str = ""
    """Without the type digit."""
    pp_id_nat: str = ""
    """IdNat_PP: the type digit, then the identifier."""
    structure_identifier_type: str = ""
    structure_identifier: str = ""
    service: str = ""
    civility: str = ""
    family_name: str = ""
    given_name: str = ""
    category_code: str = ""
    category: str = ""
    profession_code: str = ""
    """TRE_G15."""
    profession: str = ""
    skill_code: str = ""
    """TRE_R38."""
    skill: str = ""
    dematerialisation: str = ""
    """`O` or `N`."""
    organisation: str = ""
    organisation_brand: str = ""
    l2_location: str = ""
    l3_distribution: str = ""
    l4_number: str = ""
    l4_number_suffix: str = ""
    l4_street_type: str = ""
    l4_street: str = ""
    l5_locality: str = ""
    l6_delivery: str = ""
    postal_code: str = ""
    department: str = ""
    country: str = ""


MAILBOX_COLUMNS: tuple[tuple[str, str], ...] = (
    ("Type de BAL", "kind"),
    ("Adresse BAL", "address"),
    ("Type Identifiant PP", "pp_identifier_type"),
    ("Identifiant PP", "pp_identifier"),
    ("Identification nationale PP", "pp_id_nat"),
    ("Type identifiant structure", "structure_identifier_type"),
    ("Identification Structure", "structure_identifier"),
    ("Service de rattachement", "service"),
    ("Civilité d'exercice", "civility"),
    ("Nom d'exercice", "family_name"),
    ("Prénom d'exercice", "given_name"),
    ("Catégorie profession", "category_code"),
    ("Libellé de catégorie profession", "category"),
    ("Code Profession", "profession_code"),
    ("Libellé Profession", "profession"),
    ("Code savoir-faire", "skill_code"),
    ("Libellé savoir-faire", "skill"),
    ("Dématérialisation", "dematerialisation"),
    ("Raison Sociale structure BAL", "organisation"),
    ("Enseigne commerciale structure BAL", "organisation_brand"),
    ("L2COMPLEMENTLOCALISATION", "l2_location"),
    ("L3COMPLEMENTDISTRIBUTION", "l3_distribution"),
    ("L4NUMEROVOIE", "l4_number"),
    ("L4COMPLEMENTNUMEROVOIE", "l4_number_suffix"),
    ("NL4TYPEVOIE", "l4_street_type"),
    ("L4LIBELLEVOIE", "l4_street"),
    ("L5LIEUDITMENTION", "l5_locality"),
    ("L6LIGNEACHEMINEMENT", "l6_delivery"),
    ("Code postal", "postal_code"),
    ("Département", "department"),
    ("Pays", "country"),
)
"""Header of the MSSanté extraction, and the field of `MailboxRow` each column fills."""


@dataclass(frozen=True, slots=True)
class PracticeRow:
    """One situation of one professional (Personne_activite): what the directory uses of its 56 columns."""

    pp_id_nat: str
    pp_identifier_type: str = ""
    pp_identifier: str = ""
    civility: str = ""
    family_name: str = ""
    given_name: str = ""
    profession_code: str = ""
    profession: str = ""
    category_code: str = ""
    category: str = ""
    skill_type_code: str = ""
    skill_code: str = ""
    skill: str = ""
    siret: str = ""
    finess: str = ""
    """FINESS of the site."""
    organisation: str = ""
    organisation_brand: str = ""
    postal_code: str = ""
    town: str = ""
    telephone: str = ""
    mode_code: str = ""
    """TRE_R22: `L` self-employed, `S` employed, `B` volunteer."""
    legal_finess: str = ""
    """FINESS of the legal entity."""
    technical_id: str = ""
    """Identifiant technique de la structure."""
    street_number: str = ""
    street_number_suffix: str = ""
    street_type: str = ""
    street: str = ""
    sector_code: str = ""
    """TRE_R02, `SA07`."""
    function_code: str = ""


PRACTICE_COLUMNS: tuple[tuple[str, str], ...] = (
    ("Type d'identifiant PP", "pp_identifier_type"),
    ("Identifiant PP", "pp_identifier"),
    ("Identification nationale PP", "pp_id_nat"),
    ("Code civilité d'exercice", "civility"),
    ("Libellé civilité d'exercice", ""),
    ("Code civilité", ""),
    ("Libellé civilité", ""),
    ("Nom d'exercice", "family_name"),
    ("Prénom d'exercice", "given_name"),
    ("Code profession", "profession_code"),
    ("Libellé profession", "profession"),
    ("Code catégorie professionnelle", "category_code"),
    ("Libellé catégorie professionnelle", "category"),
    ("Code type savoir-faire", "skill_type_code"),
    ("Libellé type savoir-faire", ""),
    ("Code savoir-faire", "skill_code"),
    ("Libellé savoir-faire", "skill"),
    ("Code mode exercice", "mode_code"),
    ("Libellé mode exercice", ""),
    ("Numéro SIRET site", "siret"),
    ("Numéro SIREN site", ""),
    ("Numéro FINESS site", "finess"),
    ("Numéro FINESS établissement juridique", "legal_finess"),
    ("Identifiant technique de la structure", "technical_id"),
    ("Raison sociale site", "organisation"),
    ("Enseigne commerciale site", "organisation_brand"),
    ("Complément destinataire (coord. structure)", ""),
    ("Complément point géographique (coord. structure)", ""),
    ("Numéro Voie (coord. structure)", "street_number"),
    ("Indice répétition voie (coord. structure)", "street_number_suffix"),
    ("Code type de voie (coord. structure)", ""),
    ("Libellé type de voie (coord. structure)", "street_type"),
    ("Libellé Voie (coord. structure)", "street"),
    ("Mention distribution (coord. structure)", ""),
    ("Bureau cedex (coord. structure)", ""),
    ("Code postal (coord. structure)", "postal_code"),
    ("Code commune (coord. structure)", ""),
    ("Libellé commune (coord. structure)", "town"),
    ("Code pays (coord. structure)", ""),
    ("Libellé pays (coord. structure)", ""),
    ("Téléphone (coord. structure)", "telephone"),
    ("Téléphone 2 (coord. structure)", ""),
    ("Télécopie (coord. structure)", ""),
    ("Adresse e-mail (coord. structure)", ""),
    ("Code Département (structure)", ""),
    ("Libellé Département (structure)", ""),
    ("Ancien identifiant de la structure", ""),
    ("Autorité d'enregistrement", ""),
    ("Code secteur d'activité", "sector_code"),
    ("Libellé secteur d'activité", ""),
    ("Code section tableau pharmaciens", ""),
    ("Libellé section tableau pharmaciens", ""),
    ("Code fonction", "function_code"),
    ("Libellé fonction", ""),
    ("Code genre activité", ""),
    ("Libellé genre activité", ""),
)
"""Header of Personne_activite, and the field of `PracticeRow` each column fills, if any."""


@dataclass(frozen=True, slots=True)
class SkillRow:
    """One savoir-faire of one professional (SavoirFaire)."""

    pp_id_nat: str
    profession_code: str = ""
    skill_type_code: str = ""
    skill_type: str = ""
    skill_code: str = ""
    skill: str = ""


SKILL_COLUMNS: tuple[tuple[str, str], ...] = (
    ("Type d'identifiant PP", ""),
    ("Identifiant PP", ""),
    ("Identification nationale PP", "pp_id_nat"),
    ("Nom d'exercice", ""),
    ("Prénom d'exercice", ""),
    ("Code profession", "profession_code"),
    ("Libellé profession", ""),
    ("Code catégorie professionnelle", ""),
    ("Libellé catégorie professionnelle", ""),
    ("Code type savoir-faire", "skill_type_code"),
    ("Libellé type savoir-faire", "skill_type"),
    ("Code savoir-faire", "skill_code"),
    ("Libellé savoir-faire", "skill"),
)
"""Header of SavoirFaire, and the field of `SkillRow` each column fills, if any."""


@dataclass(frozen=True, slots=True)
class DiplomaRow:
    """One diploma or authorisation of one professional (Dipl_AutExerc)."""

    pp_id_nat: str
    diploma_type_code: str = ""
    diploma_code: str = ""
    diploma: str = ""
    authorisation_code: str = ""
    discipline_code: str = ""
    discipline: str = ""


DIPLOMA_COLUMNS: tuple[tuple[str, str], ...] = (
    ("Type d'identifiant PP", ""),
    ("Identifiant PP", ""),
    ("Identification nationale PP", "pp_id_nat"),
    ("Nom d'exercice", ""),
    ("Prénom d'exercice", ""),
    ("Code type diplôme obtenu", "diploma_type_code"),
    ("Libellé type diplôme obtenu", ""),
    ("Code diplôme obtenu", "diploma_code"),
    ("Libellé diplôme obtenu", "diploma"),
    ("Code type autorisation", "authorisation_code"),
    ("Libellé type autorisation", ""),
    ("Code discipline autorisation", "discipline_code"),
    ("Libellé discipline autorisation", "discipline"),
)
"""Header of Dipl_AutExerc, and the field of `DiplomaRow` each column fills, if any."""


def read_mssante(path: Path) -> Iterator[MailboxRow | RejectedLine]:
    """The mailboxes of an MSSanté extraction (text, or the ZIP that holds it), in file order.

    Raises `ExtractionError` when the file cannot be one: no `Type de BAL` or `Adresse BAL` column, not UTF-8 in its
    header, a damaged or oversized archive.
    """
    required = ("kind", "address")
    return _read(path, "Extraction_Correspondance_MSSante", MAILBOX_COLUMNS, required, MailboxRow, _mailbox)


def read_practice(path: Path) -> Iterator[PracticeRow | RejectedLine]:
    """The situations of a Personne_activite file (text, or the PS_LibreAcces ZIP that holds it), in file order.

    Raises `ExtractionError` when the file cannot be one, as `read_mssante`.
    """
    required = ("pp_id_nat",)
    return _read(path, "PS_LibreAcces_Personne_activite", PRACTICE_COLUMNS, required, PracticeRow, _situation)


def read_skills(path: Path) -> Iterator[SkillRow | RejectedLine]:
    """The savoir-faire of a SavoirFaire file, as `read_practice`."""
    return _read(path, "PS_LibreAcces_SavoirFaire", SKILL_COLUMNS, ("pp_id_nat", "skill_code"), SkillRow, _person)


def read_diplomas(path: Path) -> Iterator[DiplomaRow | RejectedLine]:
    """The diplomas and authorisations of a Dipl_AutExerc file, as `read_practice`."""
    required = ("pp_id_nat", "diploma_code")
    return _read(path, "PS_LibreAcces_Dipl_AutExerc", DIPLOMA_COLUMNS, required, DiplomaRow, _person)


def first_line(path: Path) -> frozenset[str]:
    """The normalised column names of any of these files, alone in its ZIP or not in one; empty when it has no header.

    Raises `ExtractionError` when the archive is damaged or holds several texts.
    """
    with opened(path, "") as file:
        return frozenset(map(_normal, file.readline(LINE_BYTES).decode("utf-8-sig", "replace").split("|"))) - {""}


_KINDS = {kind.value: kind for kind in MailboxKind if kind is not MailboxKind.PATIENT}
"""The national register has no patients: a line that says so was slipped in."""


def _mailbox(values: tuple[str, ...]) -> tuple[Any, ...] | str:
    kind = _KINDS.get(values[0].upper())
    if kind is None:
        return "kind"
    address = values[1].lower()
    if not is_address(address) or len(address) + 2 * len(_ESCAPED.findall(address)) > _NAME_BYTES:
        return "address"
    return (kind, address, *values[2:]) if _are_identifiers(values[2:7]) else "identifier"


def _person(values: tuple[str, ...]) -> tuple[Any, ...] | str:
    return values if _IDENTIFIER.fullmatch(values[0]) else "identifier"


def _situation(values: tuple[str, ...]) -> tuple[Any, ...] | str:
    if not _IDENTIFIER.fullmatch(values[0]) or not _are_identifiers((values[_SIRET], values[_FINESS])):
        return "identifier"
    telephone = values[_TELEPHONE]
    if telephone and _NOT_IN_A_NUMBER.search(telephone):
        return (*values[:_TELEPHONE], _NOT_IN_A_NUMBER.sub(" ", telephone).strip(), *values[_TELEPHONE + 1 :])
    return values


def _are_identifiers(values: Iterable[str]) -> bool:
    return all(not value or _IDENTIFIER.fullmatch(value) for value in values)


_SIRET, _FINESS, _TELEPHONE = (PracticeRow.__slots__.index(name) for name in ("siret", "finess", "telephone"))


def _read(
    path: Path,
    member: str,
    columns: tuple[tuple[str, str], ...],
    required: tuple[str, ...],
    row_type: Callable[..., _Row],
    check: Callable[[tuple[str, ...]], tuple[Any, ...] | str],
) -> Iterator[_Row | RejectedLine]:
    """`check` gets the values in the order of the fields of `row_type`, and answers with those, or why not."""
    names = [each.name for each in fields_of(row_type)]  # type: ignore[arg-type]
    with opened(path, member) as file:
        lines = lines_of(file)
        _, header = next(lines, (0, b""))
        positions, width = _columns(path, header, columns, required)
        # The columns that are not there are read from an empty field put behind the last one.
        pick = itemgetter(*(positions.get(name, width) for name in names))
        for number, line in lines:
            if len(line) > LINE_BYTES:
                yield RejectedLine(number, "too-long", _about(line))
                continue
            fields = _split(line, width)
            if isinstance(fields, str):
                if fields:
                    cut = (
                        fields in ("columns", "encoding") and not line.endswith(b"\n") and line.count(b"|") < width - 1
                    )
                    yield RejectedLine(number, "truncated" if cut else fields, _about(line))
                continue
            row = check(tuple(map(str.strip, pick(fields))))
            if isinstance(row, str):
                yield RejectedLine(number, row, _about(line))
            else:
                yield row_type(*row)


def _about(line: bytes) -> tuple[str, ...]:
    """What looks like an address or an IdNat, wherever it stands: the columns of such a line may have slipped."""
    fields = [field.strip() for field in line.decode("utf-8", "replace").split("|")[:_COLUMNS_LOOKED_AT]]
    return tuple(text.lower() for text in fields if is_address(text) or _ID_NAT.fullmatch(text))


def _split(line: bytes, width: int) -> list[str] | str:
    """The fields of one line and an empty one behind them, else why there are none.

    An empty reason for an empty line, which nobody misses.
    """
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return "encoding"
    if not text:
        return ""
    if _CONTROL.search(text):
        return "control-character"
    fields = text.split("|")
    if len(fields) < width or any(fields[width:]):
        return "columns"
    fields[width:] = ("",)
    return fields


def _columns(
    path: Path, header: bytes | None, columns: tuple[tuple[str, str], ...], required: tuple[str, ...]
) -> tuple[dict[str, int], int]:
    """Position by field of the columns we use, and how many columns the file has, its trailing bar left aside."""
    try:
        names = (header or b"").decode("utf-8-sig").rstrip("\r\n").split("|")
    except UnicodeDecodeError as error:
        raise ExtractionError(f"{path.name} is not an extraction: its header is not UTF-8") from error
    if not names[-1].strip():
        names.pop()
    found: dict[str, int] = {}
    for position, name in enumerate(names):
        found.setdefault(_normal(name), position)
    positions = {field: found[_normal(name)] for name, field in columns if field and _normal(name) in found}
    for name, wanted in columns:
        if wanted in required and wanted not in positions:
            raise ExtractionError(f"{path.name} is not the extraction expected: it has no column {name!r}")
    return positions, len(names)


def _normal(name: str) -> str:
    """A header without accents, case, blanks and punctuation."""
    decomposed = unicodedata.normalize("NFKD", name).casefold()
    return "".join(character for character in decomposed if character.isascii() and character.isalnum())
