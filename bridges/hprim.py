"""A laboratory report as HPRIM Médecin (version 3.0, 1997), for practice software that reads nothing newer.

Twelve lines say who, when and from whom; then comes the text a person reads, then the values between `****LAB****` and
`****FIN****`, one `RES|` line each. The file is in Windows-1252 with CRLF lines. It is a copy for software: the CDA
document in the same mail is the report.
"""

from __future__ import annotations

import re
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


def write_hprim(document: Document) -> bytes:
    """The file. Values stand as the sender wrote them; no interpretation is added."""
    text = [line[:_WIDTH] for line in _text(document).split("\n")]
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
    return "\n".join(words).translate(_TABLE).replace("****", "*")


def _values(result: Result) -> list[str]:
    value = _field(result.value, 100)
    if not value:
        return []
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


def _field(value: str, limit: int) -> str:
    return one_line(value).translate(_TABLE)[:limit].strip()


def _matricule(patient: PatientIdentity) -> str:
    """Line 8 is the NIR with its key; another authority's number is none."""
    return _field(patient.matricule, 15) if patient.matricule_oid in _NIR else ""


def _local_id(patient: PatientIdentity) -> str:
    return next((_field(identifier, 10) for identifier, _ in patient.local_ids), "")
