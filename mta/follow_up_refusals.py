"""Why nobody can acknowledge a result so, as entries of the catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(name: str, text: str, text_fr: str) -> Refusal:
    return Refusal(
        code=f"mta.follow-up-{name}",
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
    "No mail that is followed up has this reference: relais reading unread shows what there is.",
    "Aucun message suivi n'a cette référence : relais reading unread montre ce qu'il y a.",
)
SEVERAL = _entry(
    "several",
    "This message went to several recipients: give the reference of one of them, as relais reading unread shows it.",
    "Ce message a plusieurs destinataires : indiquez la référence de l'un d'eux, que montre relais reading unread.",
)
NAMELESS = _entry(
    "nameless",
    "An acknowledgement needs the name of who took note, and how, of at most 1000 characters each: "
    "give --by and --reason.",
    "Un acquittement demande le nom de qui a pris connaissance, et comment, en 1000 caractères au plus : "
    "indiquez --by et --reason.",
)

CATALOGUE = (UNKNOWN, SEVERAL, NAMELESS)
