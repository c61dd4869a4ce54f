"""The catalogue's entries for what an operator does to the queue: why an act was not done, and how a delivery that
the operator ended is told to its sender."""

from __future__ import annotations

from trust.refusals import HL7Code, Refusal


def _entry(name: str, smtp: int, enhanced: str, text: str, text_fr: str) -> Refusal:
    permanent = smtp >= 500
    return Refusal(
        code=f"mta.queue-{name}",
        smtp=smtp,
        enhanced=enhanced,
        hl7=HL7Code.AE if permanent else HL7Code.AR,
        condition="207",
        application="550" if permanent else "451",
        text=text,
        text_fr=text_fr,
    )


# What a sender is told

EXPIRED = _entry(
    "expired",
    554,
    "5.4.7",
    "The operator ended the attempts to deliver this message: send it by another way.",
    "L'opérateur a mis fin aux essais de remise de ce message : envoyez-le par une autre voie.",
)
DROPPED = _entry(
    "dropped",
    554,
    "5.7.0",
    "The operator removed this message from the queue without telling its sender; the journal says who and why.",
    "L'opérateur a retiré ce message de la file sans prévenir l'expéditeur ; le journal dit qui et pourquoi.",
)

# Why an act was not done

UNKNOWN = _entry(
    "unknown",
    550,
    "5.1.0",
    "No delivery here has this identifier: look it up with relais queue list or relais trace.",
    "Aucune remise n'a cet identifiant ici : cherchez-le avec relais queue list ou relais trace.",
)
UNDER_WAY = _entry(
    "under-way",
    451,
    "4.2.1",
    "An attempt is under way and may succeed: hold the delivery, then ask again once the attempt has ended.",
    "Un essai est en cours et peut aboutir : retenez la remise, puis redemandez une fois l'essai terminé.",
)
ENDED = _entry(
    "ended",
    550,
    "5.5.0",
    "This delivery has come to its end: nothing of it is left to decide.",
    "Cette remise est terminée : il n'y a plus rien à décider.",
)
HELD = _entry(
    "held",
    451,
    "4.2.1",
    "This delivery or its destination is held: release it first.",
    "Cette remise ou sa destination est retenue : libérez-la d'abord.",
)
NOT_HELD = _entry(
    "not-held",
    550,
    "5.5.0",
    "Nothing of this name is held: relais queue list shows what is, also whole destinations.",
    "Rien de ce nom n'est retenu : relais queue list montre ce qui l'est, destinations entières comprises.",
)
ALREADY_DUE = _entry(
    "already-due",
    451,
    "4.2.1",
    "Its next try has come already: it waits for its turn only.",
    "Son prochain essai est déjà dû : elle n'attend que son tour.",
)
BEING_TOLD = _entry(
    "being-told",
    451,
    "4.2.1",
    "Its sender is being told how it ended: ask again in a moment.",
    "L'expéditeur est en train d'être informé de l'issue : redemandez dans un instant.",
)
TOLD = _entry(
    "told",
    550,
    "5.5.0",
    "Its sender was told that it was not delivered, and may have sent it otherwise: ask the sender to send it again.",
    "L'expéditeur a été informé de la non-remise et a pu l'envoyer autrement : demandez-lui de le renvoyer.",
)
SENT_AGAIN = _entry(
    "sent-again",
    550,
    "5.5.0",
    "Its sender has sent the same message again: that one is on its way, or has arrived.",
    "L'expéditeur a renvoyé le même message : celui-ci est en route ou déjà remis.",
)
QUARANTINED = _entry(
    "quarantined",
    550,
    "5.7.1",
    "Malicious software was found in it: it is released or dropped with relais quarantine.",
    "Un logiciel malveillant y a été trouvé : libérez-le ou supprimez-le avec relais quarantine.",
)
CONTENT_PURGED = _entry(
    "content-purged",
    550,
    "5.5.0",
    "Its content was purged at the end of its retention: ask the sender to send it again.",
    "Son contenu a été purgé au terme de sa conservation : demandez à l'expéditeur de le renvoyer.",
)
NOT_REDIRECTABLE = _entry(
    "not-redirectable",
    550,
    "5.7.1",
    "This delivery cannot go to another address: only what leaves our own senders for a professional can.",
    "Cette remise ne peut aller à une autre adresse : seul le peut ce qui part de nos expéditeurs vers un "
    "professionnel.",
)
SEALED_BY_SENDER = _entry(
    "sealed-by-sender",
    550,
    "5.7.1",
    "Its sender encrypted it for its recipient alone: ask the sender to send it to the other address.",
    "L'expéditeur l'a chiffré pour son seul destinataire : demandez-lui de l'envoyer à l'autre adresse.",
)
NOT_DROPPABLE = _entry(
    "not-droppable",
    550,
    "5.7.1",
    "The sending system was promised an answer about this delivery: expire it instead, so that it gets one.",
    "Une réponse a été promise au système émetteur pour cette remise : faites-la expirer, pour qu'il la reçoive.",
)

UNREADABLE = _entry(
    "unreadable",
    550,
    "5.3.5",
    "Its envelope cannot be read with the keys held here: restore the vault, or drop it.",
    "Son enveloppe est illisible avec les clés d'ici : restaurez le coffre, ou supprimez-la.",
)

CATALOGUE = (
    EXPIRED,
    DROPPED,
    UNKNOWN,
    UNDER_WAY,
    ENDED,
    HELD,
    NOT_HELD,
    ALREADY_DUE,
    BEING_TOLD,
    TOLD,
    SENT_AGAIN,
    QUARANTINED,
    CONTENT_PURGED,
    NOT_REDIRECTABLE,
    SEALED_BY_SENDER,
    NOT_DROPPABLE,
    UNREADABLE,
)
