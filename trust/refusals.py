"""The one catalogue of errors, and the value every room uses to say no.

A `Refusal` is an entry of the catalogue: written once, stable for ever, the same whether it reaches a laboratory as an
HL7 acknowledgement, another operator as an SMTP reply or a doctor as a sentence. A `Refused` is one occurrence of it.
Each package declares its entries in its own `refusals.py` as module constants and gathers them in `CATALOGUE`;
`config` joins the catalogues and refuses to start when two entries share a code.

Expected failures are values: functions return `Refused`, they do not raise it. Details never carry clinical content,
patient identity or keys: they are logged, journaled and sent to partners.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_TYPOGRAPHY = str.maketrans({"œ": "oe", "Œ": "OE", "æ": "ae", "’": "'", "«": '"', "»": '"', "–": "-"})


class HL7Code(Enum):
    """MSA-1 acknowledgement codes that refuse (HL7 v2.5 §2.9.2)."""

    AE = "AE"
    """The message itself is wrong: sending it again unchanged will not help."""
    AR = "AR"
    """Circumstances forbid it now: send it again later."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One entry of the catalogue."""

    code: str
    """Stable dotted name, package first: `directory.recipient-unknown`."""
    smtp: int
    """SMTP reply code, 4xx when trying again may help, 5xx when it will not (RFC 5321 §4.2)."""
    enhanced: str
    """Enhanced status code whose class agrees with `smtp` (RFC 3463), e.g. `5.1.1`."""
    hl7: HL7Code
    condition: str
    """ERR-3, HL7 table 0357: 0, 100-103, 198-203 or 207."""
    application: str
    """ERR-5 application code: 900-906 of the French profile (table 0533), or an SMTP code of SMTPERRORCODE."""
    text: str
    """One ASCII sentence in English that says what to do."""
    text_fr: str
    """The same sentence in French."""

    @property
    def permanent(self) -> bool:
        """True when trying again unchanged cannot help."""
        return self.smtp >= 500


@dataclass(frozen=True, slots=True)
class Refused:
    """One occurrence of a catalogue entry."""

    refusal: Refusal
    detail: str = ""
    """What a person needs to find the cause: a position, a field name, a domain. Never a patient, a value or a key."""
    location: str = ""
    """HL7 ERR-2 (segment^sequence^field^repetition^component), empty outside HL7 v2."""
    advice: str = ""
    """What would do instead, in French: said to whoever is refused and to nobody else, neither logged nor kept. It may
    name an address."""

    @property
    def reply(self) -> str:
        """The SMTP reply line without its CRLF: printable ASCII only, so a detail cannot break the protocol. Letters of
        a French detail lose their accents."""
        return self._reply(self.refusal.text)

    @property
    def reply_fr(self) -> str:
        """As `reply`, for a person whose mail program shows it: the French sentence and the advice, in ASCII because
        only replies to SMTPUTF8 may be anything else (RFC 6531 §3.7.4.1)."""
        return self._reply(f"{self.refusal.text_fr} {self.advice}".strip())

    def _reply(self, sentence: str) -> str:
        words = f"{self.refusal.smtp} {self.refusal.enhanced} {sentence}"
        if self.detail:
            words += f" ({self.detail})"
        folded = unicodedata.normalize("NFKD", words.translate(_TYPOGRAPHY))
        return "".join(c if " " <= c <= "~" else "?" for c in folded if not unicodedata.combining(c))[:500]


class DuplicateRefusalError(ValueError):
    """Two packages declared the same code: a programming error found at start."""


def join_catalogues(catalogues: Iterable[Iterable[Refusal]]) -> dict[str, Refusal]:
    """All entries by code; raises `DuplicateRefusalError` when a code is declared twice."""
    joined: dict[str, Refusal] = {}
    for catalogue in catalogues:
        for refusal in catalogue:
            if refusal.code in joined:
                raise DuplicateRefusalError(refusal.code)
            joined[refusal.code] = refusal
    return joined
