"""The national health identity (INS) as a key: the matricule in its canonical form, and which OIDs are for tests."""

from __future__ import annotations

import re

INS_NIR = "1.2.250.1.213.1.4.8"
INS_NIA = "1.2.250.1.213.1.4.9"
INS_NIR_TEST = "1.2.250.1.213.1.4.10"
INS_NIR_DEMONSTRATION = "1.2.250.1.213.1.4.11"
REAL_OIDS = frozenset({INS_NIR, INS_NIA})
TEST_OIDS = frozenset({INS_NIR_TEST, INS_NIR_DEMONSTRATION})

_BODY = re.compile(r"\d{6}[0-9A-Z]\d{6}", re.ASCII)
_KEY = re.compile(r"\d{2}", re.ASCII)


def matricule_key(body: str) -> str:
    """The two-digit key of a 13-character matricule: 97 - (n mod 97), Corsica's 2A and 2B counted as 19 and 18."""
    digits = body[:5] + body[5:7].replace("2A", "19").replace("2B", "18") + body[7:]
    number = int("".join(c if c.isdigit() else "0" for c in digits))
    return f"{97 - number % 97:02d}"


def canonical_matricule(matricule: str) -> str | None:
    """15 characters: what was sent with its key, or 13 characters completed with theirs. None when it is no matricule.

    A key that was sent is kept as it is: official test identities carry wrong ones.
    """
    matricule = matricule.strip().upper()
    body, key = matricule[:13], matricule[13:]
    if not _BODY.fullmatch(body):
        return None
    if not key:
        return body + matricule_key(body)
    return matricule if _KEY.fullmatch(key) else None
