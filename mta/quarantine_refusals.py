"""Why a decision about the quarantine was not taken, as entries of the catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(name: str, text: str, text_fr: str) -> Refusal:
    return Refusal(
        code=f"mta.quarantine-{name}",
        smtp=550,
        enhanced="5.7.0",
        hl7=HL7Code.AE,
        condition="207",
        application="550",
        text=text,
        text_fr=text_fr,
    )


UNKNOWN = _entry(
    "unknown",
    "Nothing in quarantine has this reference: relais quarantine list shows what there is.",
    "Rien en quarantaine n'a cette référence : relais quarantine list montre ce qu'il y a.",
)
DECIDED = _entry(
    "decided",
    "Somebody has already decided about this message: relais quarantine show says who and why.",
    "Quelqu'un a déjà décidé de ce message : relais quarantine show dit qui et pourquoi.",
)
NAMELESS = _entry(
    "nameless",
    "A decision needs a name and a reason of at most 1000 characters each: give --by and --reason.",
    "Une décision demande un nom et un motif de 1000 caractères au plus : indiquez --by et --reason.",
)

CATALOGUE = (UNKNOWN, DECIDED, NAMELESS)
