"""Why a mailbox is not opened, not written to, or does not send: the entries of the one catalogue of errors."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(name: str, smtp: int, enhanced: str, text: str, text_fr: str, application: str = "550") -> Refusal:
    return Refusal(
        code=f"mta.{name}",
        smtp=smtp,
        enhanced=enhanced,
        hl7=HL7Code.AE,
        condition="207",
        application=application,
        text=text,
        text_fr=text_fr,
    )


MAILBOX_CLOSED = _entry(
    "mailbox-closed",
    550,
    "5.2.1",
    "This mailbox is closed and takes no mail any more: look for another one in the directory.",
    "Cette boîte aux lettres est fermée et ne reçoit plus de courrier : cherchez une autre adresse dans l'annuaire.",
)
"""The detail is the reason its operator gave (RFC 3463: X.2.1, mailbox disabled)."""
MAILBOX_SUSPENDED = _entry(
    "mailbox-suspended",
    550,
    "5.7.13",
    "This mailbox is suspended or closed and sends nothing: ask your operator to open it again.",
    "Cette boîte aux lettres est suspendue ou fermée et n'envoie rien : demandez à votre opérateur de la rouvrir.",
)
MAILBOX_SHUT = _entry(
    "mailbox-shut",
    535,
    "5.7.13",
    "Your mailbox is suspended or closed: ask your operator to open it again.",
    "Votre boîte aux lettres est suspendue ou fermée : demandez à votre opérateur de la rouvrir.",
    "535",
)
CERTIFICATE_ONLY = _entry(
    "certificate-only",
    534,
    "5.7.9",
    "This is a machine's mailbox: it logs in with its client certificate, never with a password or a token.",
    "Cette boîte est celle d'une machine : elle se connecte avec son certificat client, jamais par mot de passe.",
    "534",
)
"""RFC 4954 §6: 534 5.7.9, the mechanism is too weak."""
PATIENT_INITIATES = _entry(
    "patient-initiates",
    550,
    "5.7.1",
    "From a patient's mailbox only professionals who wrote to you can be answered: answer one of their messages.",
    "Depuis cette boîte, vous ne pouvez que répondre à un professionnel qui vous a écrit :"
    " utilisez « Répondre » sur son message.",
)
PATIENT_EXCHANGE_OVER = _entry(
    "patient-exchange-over",
    550,
    "5.7.1",
    "This is no answer to an open exchange: the professional has ended it, or the answer is to somebody else as well.",
    "Ce message ne répond pas à un échange ouvert : le professionnel y a mis fin, ou il s'adresse à d'autres personnes."
    " Utilisez « Répondre » sur son dernier message.",
)

CATALOGUE = (
    MAILBOX_CLOSED,
    MAILBOX_SUSPENDED,
    MAILBOX_SHUT,
    CERTIFICATE_ONLY,
    PATIENT_INITIATES,
    PATIENT_EXCHANGE_OVER,
)
