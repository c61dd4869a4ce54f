"""What becomes of a business acknowledgement on its way to a sending system, as entries of the catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(code: str, smtp: int, enhanced: str, text: str, text_fr: str) -> Refusal:
    permanent = smtp >= 500
    return Refusal(
        code=f"bridges.receiver-{code}",
        smtp=smtp,
        enhanced=enhanced,
        hl7=HL7Code.AE if permanent else HL7Code.AR,
        condition="207",
        application=str(smtp),
        text=text,
        text_fr=text_fr,
    )


UNKNOWN = _entry(
    "unknown",
    451,
    "4.4.4",
    "No receiver is configured for this sending system: declare its host and port.",
    "Aucun récepteur n'est configuré pour ce système émetteur : déclarez son adresse et son port.",
)
UNREACHABLE = _entry(
    "unreachable",
    451,
    "4.4.1",
    "The sending system's receiver does not take connections: the acknowledgement is tried again.",
    "Le récepteur du système émetteur n'accepte pas de connexion : un nouvel essai aura lieu.",
)
SILENT = _entry(
    "silent",
    451,
    "4.4.2",
    "The sending system's receiver gave no answer to this message: the acknowledgement is tried again.",
    "Le récepteur du système émetteur n'a pas répondu à ce message : un nouvel essai aura lieu.",
)
ANSWER_UNREADABLE = _entry(
    "answer-unreadable",
    451,
    "4.5.0",
    "The sending system's receiver answered something that is no HL7 acknowledgement: check its configuration.",
    "Le récepteur du système émetteur a répondu autre chose qu'un acquittement HL7 : vérifiez sa configuration.",
)
LATER = _entry(
    "later",
    451,
    "4.3.0",
    "The sending system's receiver asked to try again later (AR).",
    "Le récepteur du système émetteur demande un nouvel essai plus tard (AR).",
)
REFUSED = _entry(
    "refused",
    554,
    "5.0.0",
    "The sending system's receiver refused the acknowledgement (AE): check that it reads ZAM messages.",
    "Le récepteur du système émetteur a refusé l'acquittement (AE) : vérifiez qu'il lit les messages ZAM.",
)
UNFRAMEABLE = _entry(
    "unframeable",
    554,
    "5.6.0",
    "The message cannot travel over MLLP: it has no MSH-10, or contains VT or FS.",
    "Le message ne peut pas circuler en MLLP : il n'a pas de MSH-10, ou contient VT ou FS.",
)

CATALOGUE = (UNKNOWN, UNREACHABLE, SILENT, ANSWER_UNREADABLE, LATER, REFUSED, UNFRAMEABLE)
