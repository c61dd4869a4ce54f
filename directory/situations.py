"""One practice situation as a single LDAP value: who reads a professional reads all of them at once.

Fields are separated by `$`, as in a Postal Address (RFC 4517 §3.3.28): `$` within one is written `\\24`, a backslash
`\\5C`. Fields may be added at the end one day: a reader takes those it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

from directory.entries import directory_string


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a professional practises, as what. Fields in the order of the value, empty when the register's are."""

    profession_code: str = ""
    """TRE_G15."""
    category_code: str = ""
    """`C` civil, `M` military, `E` student."""
    skill_code: str = ""
    """TRE_R38."""
    structure: str = ""
    """IdNat_Struct."""
    organisation: str = ""
    postal_code: str = ""
    town: str = ""
    telephone: str = ""
    mode_code: str = ""
    """TRE_R22: `L` self-employed, `S` employed, `B` volunteer."""
    sector_code: str = ""
    """TRE_R02, `SA07`."""
    function_code: str = ""

    def __str__(self) -> str:
        """The value, without empty fields at its end."""
        texts: tuple[str, ...] = _TEXTS(self)
        whole = "$".join(texts)
        if whole.count("$") >= len(texts) or "\\" in whole:
            whole = "$".join(text.replace("\\", "\\5C").replace("$", "\\24") for text in texts)
        return directory_string(whole).rstrip("$")


_TEXTS = attrgetter(*(field.name for field in fields(Situation)))


def parse_situation(value: str) -> Situation:
    """The situation a value describes; what it does not say is empty."""
    texts = [text.replace("\\24", "$").replace("\\5C", "\\").replace("\\5c", "\\") for text in value.split("$")]
    return Situation(*texts[: len(fields(Situation))])
