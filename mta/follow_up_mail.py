"""The words of a follow-up: what a laboratory is told of a critical result that nobody has read, and who reads instead.

Neither a value nor a patient is named: the reference finds them for whoever may.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

from mta.any_delivery import AnyDelivery
from mta.enclosing import text_part
from mta.message import DeliveryState
from mta.system_mail import HIDDEN, Sent, SystemMail

KIND = "unread"
_SUBJECTS = {
    "told": "Resultat critique non lu / Critical result not read",
    "instead": "Resultat critique a lire sans delai / Critical result to be read at once",
}


def _where(delivery: AnyDelivery, french: bool) -> str:
    """Where it stands, in words."""
    if delivery.state is DeliveryState.DELIVERED:
        return (
            "il est arrivé, et rien n'indique qu'il ait été lu"
            if french
            else "it arrived, and nothing says it was read"
        )
    if delivery.state is DeliveryState.READY:
        return "il n'a pas encore pu être remis" if french else "it could not be delivered yet"
    return "il n'a pas pu être remis" if french else "it could not be delivered"


def told_mail(
    mail: SystemMail, sent: Sent, delivery: AnyDelivery, to: str, reader: str, seconds: float, now: float
) -> bytes:
    """The whole message (CRLF, ASCII): French, then English."""
    minutes = f"{seconds / 60:g}"
    came = format_datetime(datetime.fromtimestamp(int(delivery.accepted_at), UTC))
    shown = "" if reader == HIDDEN else f" ({reader})"
    if sent.action == "told":
        french = (
            f"Un résultat critique que vous avez envoyé n'a pas été lu dans le délai de {minutes} minutes : "
            f"{_where(delivery, True)}. Joignez son destinataire{shown} par téléphone, puis inscrivez qui en a pris "
            "connaissance avec la commande relais reading acknowledge."
        )
        english = (
            f"A critical result you sent was not read within {minutes} minutes: {_where(delivery, False)}. Call its "
            f"recipient{shown}, then write down who took note of it with relais reading acknowledge."
        )
    else:
        french = (
            f"Un résultat critique n'a pas été lu par son destinataire{shown} : {_where(delivery, True)}. Vous êtes "
            "désigné pour le lire à sa place ; il vous parvient dans un message à part. Lisez-le sans délai et "
            "prévenez le laboratoire."
        )
        english = (
            f"A critical result was not read by its recipient{shown}: {_where(delivery, False)}. You are named to read "
            "it in his place; it comes to you in a message of its own. Read it at once and tell the laboratory."
        )
    text = (
        f"Bonjour,\n\n{french}\n\nRéférence / Reference : {delivery.delivery_id}\n"
        f"Envoyé le / Sent : {came}\nMessage-ID : {delivery.message_id}\n\n--\n\n{english}\n"
    )
    head = (
        f"Date: {format_datetime(datetime.fromtimestamp(int(now), UTC))}",
        f"From: {mail.postmaster}",
        f"To: {to}",
        f"Subject: {_SUBJECTS[sent.action]}",
        f"Message-ID: {mail.message_id(sent)}",
        "Auto-Submitted: auto-generated",
        "Importance: high",
        "MIME-Version: 1.0",
    )
    return ("\r\n".join(head) + "\r\n").encode("ascii") + text_part(text)
