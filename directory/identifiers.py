"""National identifiers of professionals and structures, in every spelling reports and people use.

The directory stores an identifier with its type digit in front (IdNat_PP: `8` + RPPS, `0` + ADELI; IdNat_Struct:
`1` + FINESS, `3` + SIRET). A report writes it with or without that digit, and names the numbering system or leaves it
to be guessed from the shape.
"""

from __future__ import annotations

import re

MAX_LENGTH = 64

_BLANKS = re.compile(r"[\s.\u00a0\u202f]+")
_FINESS = re.compile(r"[0-9][0-9A-Z][0-9]{7}")

_PERSON = re.compile(r"8[0-9]{11}|0[0-9]{9}|[13456][0-9A-Z]+/[0-9A-Z]+")

_SYSTEMS = {
    "RPPS": "8",
    "ADELI": "0",
    "FINESS": "1",
    "FINEG": "1",
    "FINEJ": "1",
    "SIREN": "2",
    "SIRET": "3",
    "SIREG": "3",
    "SIREJ": "2",
    "HTTPS://RPPS.ESANTE.GOUV.FR": "8",
    "HTTPS://FINESS.ESANTE.GOUV.FR": "1",
    "HTTPS://SIRENE.FR": "3",
}
"""By what HL7 tables, FHIR and people call a numbering system, the type digit in front of its identifiers."""
_BARE_LENGTHS = {"8": 11, "0": 9, "1": 9, "2": 9, "3": 14}


def person_id_nat(text: str) -> str:
    """The IdNat_PP of a professional, when nothing else can be meant by `text`; else empty.

    An RPPS number with or without its type digit, an ADELI number with it (nine digits alone could be a FINESS), or an
    identifier within a structure (`3` + FINESS, a slash, ...). For who writes to somebody on the strength of it.
    """
    value = _BLANKS.sub("", text).upper()
    if re.fullmatch(r"[0-9]{11}", value):
        return "8" + value
    return value if len(value) <= MAX_LENGTH and _PERSON.fullmatch(value) else ""


def id_nats(text: str, system: str = "") -> tuple[str, ...]:
    """What the directory may know this identifier as: IdNat_PP or IdNat_Struct, the likeliest first.

    `system` names the numbering (`RPPS`, `ADELI`, `FINESS`, `SIRET`, their URIs); empty or any other (`IDNPS`, `IDNST`,
    `urn:oid:1.2.250.1.71.4.2.1`): the identifier has its digit already, or its shape must tell. Nine digits alone may
    be a FINESS, an ADELI or a SIREN: all three come back. Empty when this can be no identifier.
    """
    value = _BLANKS.sub("", text).upper()
    if not value or len(value) > MAX_LENGTH or not value.isascii() or not value.isprintable():
        return ()
    digit = _SYSTEMS.get(system.strip().upper().rstrip("/"))
    if digit is not None:
        return (value,) if len(value) == _BARE_LENGTHS[digit] + 1 and value[0] == digit else (digit + value,)
    if len(value) == 9 and _FINESS.fullmatch(value):
        return ("1" + value, "0" + value, "2" + value) if value.isdigit() else ("1" + value, value)
    if value.isdigit() and len(value) in (11, 14):
        return ("8" + value if len(value) == 11 else "3" + value, value)
    return (value,)
