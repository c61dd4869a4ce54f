"""A laboratory report as HPRIM Médecin (version 3.0, 1997), for practice software that reads nothing newer.

Twelve lines say who, when and from whom; then comes the text a person reads, then the values between `****LAB****` and
`****FIN****`, one `RES|` line each. The file is in Windows-1252 with CRLF lines. It is a copy for software: the CDA
document in the same mail is the report.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Container

from bridges.identity import INS_NIR, INS_NIR_DEMONSTRATION, INS_NIR_TEST
from bridges.labels import type_label
from bridges.plain import file_part, french_date, one_line
from bridges.report import Document, PatientIdentity, Result
from bridges.summary import party_name, reference_range, results_text, shown_unit

_NIR = frozenset({INS_NIR, INS_NIR_TEST, INS_NIR_DEMONSTRATION})
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(?:[.,][0-9]{1,15})?")
_FLAGS = frozenset({"N", "L", "LL", "H", "HH"})
_TABLE = str.maketrans({"|": "/", "œ": "oe", "Œ": "OE", "μ": "µ", "≥": ">=", "≤": "<=", "\u202f": " ", "−": "-"})
_WIDTH = 250
"""Characters of one line of text."""
_LONGEST_VALUE = 100
_SEE_TEXT = "voir le texte"
"""Stands for a value that is longer: half of one may say the contrary."""
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_MARKS = re.compile(r"\*{4,}")
"""Such as end a section of the file."""


def write_hprim(document: Document) -> bytes:
    """The file. Values stand as the sender wrote them; no interpretation is added."""
    text = [part for line in _text(document).split("\n") for part in _wrapped(line)]
    values = [line for result in document.results for line in _values(result)]
    lines = [*_header(document), *text, "****LAB****", *values, "****FIN****", "****FINFICHIER****"]
    return "".join(f"{line.rstrip()}\r\n" for line in lines).encode("cp1252", "replace")


def hprim_name(document: Document, taken: Container[str] = ()) -> str:
    """`AAAAMMJJ_<type>.hpr`, ASCII, naming nobody."""
    day = (document.service_start or document.created)[:8]
    kind = file_part(type_label(document.type_code, document.type_label), 30) or "resultats"
    stem = "_".join(part for part in (day if day.isdigit() else "", kind) if part)
    name, number = f"{stem}.hpr", 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}.hpr"
    return name


def _header(document: Document) -> list[str]:
    """The twelve lines, each there even when it is empty."""
    patient = document.patient
    return [
        _local_id(patient)[:10],
        _field(patient.used_name or patient.birth_name, 50),
        _field(" ".join(patient.first_names[:1]), 50),
        *("", "", ""),  # address: a report has none
        french_date(patient.birth_date)[:10] if patient.birth_date else "",
        _matricule(patient),
        _field(document.unique_id.rpartition(".")[2], 10),
        french_date(document.service_start or document.created)[:10],
        _field(party_name(document.author) or document.author.organisation, 60),
        "",
    ]


def _text(document: Document) -> str:
    label = one_line(type_label(document.type_code, document.type_label), 100)
    author = party_name(document.author)
    words = [label, *([f"Auteur : {author}"] if author else []), "", results_text(document)]
    return _plain("\n".join(words))


def _wrapped(line: str) -> list[str]:
    """Nothing of a long line is lost: its end may say that all is well, or not."""
    return textwrap.wrap(line, _WIDTH, break_on_hyphens=False) or [""]


def _values(result: Result) -> list[str]:
    value = _field(result.value)
    if not value:
        return []
    if len(value) > _LONGEST_VALUE:
        value = _SEE_TEXT
    numeric = _NUMBER.fullmatch(value) is not None
    flag = result.interpretation.strip().upper()
    bounds = reference_range(result)
    low, high = (_field(result.low, 20), _field(result.high, 20)) if bounds else ("", "")
    fields = (
        "RES",
        _field(result.label or result.code, 60),
        _field(result.code, 15),
        "N" if numeric else "A",
        "C",
        value,
        _field(shown_unit(result), 20),
        low,
        high,
        flag if flag in _FLAGS else "",
        "F",
        *("", "", "", ""),
    )
    return ["|".join(fields)]


def _field(value: str, limit: int | None = None) -> str:
    return _plain(one_line(value))[:limit].strip()


def _plain(text: str) -> str:
    """In characters of Windows-1252, without what has a meaning in the file. A raised `9` stays raised (`10^9/L`), and
    a Greek letter is called by its name."""
    text = _RAISED.sub(_raised, text.translate(_TABLE))
    if not _fits(text):
        text = "".join(sign if _fits(sign) else _in_ascii(sign) for sign in text)
    return _MARKS.sub("*", text)


def _raised(found: re.Match[str]) -> str:
    return found[0] if _fits(found[0]) else "^" + unicodedata.normalize("NFKD", found[0]).replace("\u2212", "-")


def _in_ascii(sign: str) -> str:
    words = unicodedata.name(sign, "").split(" ")
    if words[0] == "GREEK" and "LETTER" in words[:-1]:
        name = words[words.index("LETTER") + 1]
        return name.capitalize() if "CAPITAL" in words else name.lower()
    return "".join(each for each in unicodedata.normalize("NFKD", sign) if _fits(each)) or "?"


def _fits(text: str) -> bool:
    try:
        text.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def _matricule(patient: PatientIdentity) -> str:
    """Line 8 is the NIR with its key; another authority's number is none."""
    return _field(patient.matricule, 15) if patient.matricule_oid in _NIR else ""


def _local_id(patient: PatientIdentity) -> str:
    return next((_field(identifier, 10) for identifier, _ in patient.local_ids), "")
