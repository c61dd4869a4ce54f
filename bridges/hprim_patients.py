"""Whom an HPRIM file is about: the identity lines of HPRIM Médecin (1997) and the P segments of HPRIM Santé (H2.x).

No more of the file is understood here, and nothing of it is changed. Files are recognised by what they hold, because
what laboratories name them is anybody's guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKERS = ("****LAB****", "****FIN****", "****FINFICHIER****")
_SUFFIXES = (".hpr", ".hpm", ".hprim")
_BOM = b"\xef\xbb\xbf"
_HEADER_LINES = 12
_LONGEST = 4 * 1024 * 1024
"""Octets that are looked at."""
_MOST = 100
"""Patients of one file; more are not told apart."""
_SLASHED = re.compile(r"(\d{1,2})[/.-](\d{1,2})[/.-](\d{4}|\d{2})")
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_RUN = re.compile(r"(?:19|20)\d{6}")


@dataclass(frozen=True, slots=True)
class HprimPatient:
    """As written; empty when the file does not say."""

    family: str
    given: str
    birth_date: str
    """`YYYYMMDD`, `??YYMMDD` where the century is not said; empty when unreadable."""
    birth_name: str = ""


def looks_like_hprim(name: str, data: bytes) -> bool:
    """By its name or by how it begins."""
    suffix = name.lower().rpartition(".")[2]
    named = name.lower().endswith(_SUFFIXES) or re.fullmatch(r"hp[rm]\d", suffix) is not None
    # free text begins with an H, too; a bar after it is what everybody writes
    return named or (_is_health(data) and data.removeprefix(_BOM)[1:2] == b"|") or has_markers(data)


def has_markers(data: bytes) -> bool:
    """Whether the separators of HPRIM Médecin stand in it; also laboratories' mails whose text is the file."""
    head = data[:_LONGEST]
    return any(marker.encode("ascii") in head for marker in _MARKERS)


def hprim_patients(data: bytes) -> tuple[HprimPatient, ...]:
    """Whom the file names, each once; empty when that cannot be read. Never raises."""
    text = _text(data[:_LONGEST])
    found = _health(text) if _is_health(data) else _medical(text)
    return tuple(dict.fromkeys(found[:_MOST]))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("windows-1252", "replace")


def _is_health(data: bytes) -> bool:
    head = data.removeprefix(_BOM)[:6]
    signs = head[1:]
    return head[:1] == b"H" and len(set(signs)) == 5 and all(33 <= c < 127 and not chr(c).isalnum() for c in signs)


def _health(text: str) -> list[HprimPatient]:
    """The delimiters stand after the H of each file: field, component, repetition, escape, sub-component."""
    text = text.removeprefix("\ufeff")
    field, component = text[1], text[2]
    segments: list[str] = []
    for line in re.split(r"[\r\n]+", text):
        if line.startswith("A" + field) and segments:  # what did not fit into the line before goes on here
            segments[-1] += line[2:]
        elif line:
            segments.append(line)
    found: list[HprimPatient] = []
    for segment in segments:
        if segment.startswith("P" + field):
            values = [*segment.split(field), *[""] * 8]
            family, _, given = values[5].partition(component)
            given = given.partition(component)[0]
            found.append(HprimPatient(family.strip(), given.strip(), _date(values[7]), values[6].strip()))
    return found


def _medical(text: str) -> list[HprimPatient]:
    """One header of twelve lines or thirteen for each report; files with several have one after each end mark."""
    found: list[HprimPatient] = []
    for report in re.split(r"^\*{4}FIN(?:FICHIER)?\*{4}[^\n]*$", text.replace("\r\n", "\n"), flags=re.MULTILINE):
        lines = report.replace("\r", "\n").lstrip("\n").split("\n", _HEADER_LINES + 1)[: _HEADER_LINES + 1]
        if len(lines) < _HEADER_LINES - 2:
            continue
        # the birth date is line 7, or 8 in files with one more line; the names are always 2 and 3
        date = next((_date(line) for line in lines[5:8] if _date(line)), "")
        family, given = lines[1].strip(), lines[2].strip()
        if date and family and _is_name(family) and (not given or _is_name(given)):
            found.append(HprimPatient(family, given, date))
    return found


def _is_name(line: str) -> bool:
    return len(line) <= 80 and not any(character.isdigit() or character in "|;<>@" for character in line)


def _date(written: str) -> str:
    written = written.strip()
    if match := _ISO.fullmatch(written):
        return "".join(match.groups())
    if _RUN.fullmatch(written):
        return written
    if match := _SLASHED.fullmatch(written):
        day, month, year = match.groups()
        return f"{year:?>4}{int(month):02d}{int(day):02d}"
    if re.fullmatch(r"(?:19|20)\d{6}\d{4,6}", written):  # with a time
        return written[:8]
    return ""
