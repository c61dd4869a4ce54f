"""Delivery status notifications to the sender of a mail (RFC 3461, RFC 3464): who gets one, and what it says.

A receipt is an ordinary message of ours: it goes through the spool to the envelope's sender, signed by the postmaster
and encrypted, for it names a recipient and a patient's address holds the national health identity. Nobody is told what
became of a receipt (RFC 5321 §6.1).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping

from mta import refusals
from mta.delivery import EndedDelivery, NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.notifications import DeliveryNotification, RecipientStatus, compose_dsn, xtext_decoded
from mta.smtp.address import domain_of, is_address
from mta.smtp.target import notify_conditions
from mta.spool import RELAYED, Spool
from trust.refusals import Refusal, Refused

_log = logging.getLogger("relais.mta.dsn")

FAILED, DELIVERED, RELAYED_ON = "failed", "delivered", "relayed"
"""Actions of RFC 3464 §2.3.3 that we report."""

_REMOTE_REPLY = re.compile(r"([245][0-9]{2}(?: ([245]\.[0-9]{1,3}\.[0-9]{1,3}))?(?: .*)?)$")
_SUBJECTS = {
    FAILED: "Message non remis / Message not delivered",
    DELIVERED: "Message remis / Message delivered",
    RELAYED_ON: "Message transmis / Message relayed",
}
_SENTENCES = {
    FAILED: ("Votre message n'a pas pu être remis à {}.", "Your message could not be delivered to {}."),
    DELIVERED: (
        "Votre message a été remis dans la boîte aux lettres de {}.",
        "Your message was delivered to the mailbox of {}.",
    ),
    RELAYED_ON: (
        "Votre message pour {} a été transmis à un serveur qui n'envoie pas d'accusé de remise.",
        "Your message for {} was handed to a server that sends no delivery receipts.",
    ),
}


class DsnConsumer:
    """An `mta.reporting.EndConsumer`. Silent about what goes to the dossier or to a sending system: others tell."""

    def __init__(
        self,
        spool: Spool,
        postmaster: str,
        reporting_mta: str,
        local_domains: Collection[str],
        is_trusted: Callable[[str], bool],
        catalogue: Mapping[str, Refusal],
    ) -> None:
        """`postmaster` is a local mailbox whose signing key we hold; `is_trusted` judges a lower-case mail domain and
        may block; `catalogue` explains the codes of failed deliveries."""
        self._spool = spool
        self._postmaster = postmaster
        self._reporting_mta = reporting_mta
        self._local_domains = frozenset(domain.lower() for domain in local_domains)
        self._is_trusted = is_trusted
        self._catalogue = catalogue

    async def ended(self, delivery: EndedDelivery) -> None:
        """Write the receipt this delivery calls for, if any. Raises what the spool raises."""
        action = action_of(delivery)
        if action is not None:
            await asyncio.to_thread(self._tell, delivery, action)

    def _tell(self, delivery: EndedDelivery, action: str) -> None:
        target = self._route(delivery.sender)
        if target is None:
            _log.warning("delivery %s %s: its sender is nobody we can write to", delivery.delivery_id, action)
            return
        message_id = f"<dsn.{delivery.delivery_id}.{action}@{self._reporting_mta}>"
        self._spool.accept(
            Submission(
                origin=Origin.SYSTEM,
                sender="",
                peer=self._reporting_mta,
                content=self._compose(delivery, action, message_id),
                content_type="message/rfc822",
                deliveries=(NewDelivery(delivery.sender, target, notify="NEVER"),),
                dedup_key=f"dsn:{delivery.delivery_id}:{action}",
                message_id_domain=self._reporting_mta,
                message_id=message_id,
            )
        )

    def _route(self, sender: str) -> TargetKind | None:
        if not is_address(sender):
            return None
        domain = domain_of(sender)
        if domain in self._local_domains:
            return TargetKind.MAILBOX
        return TargetKind.SMTP if self._is_trusted(domain) else None

    def _compose(self, delivery: EndedDelivery, action: str, message_id: str) -> bytes:
        status, diagnostic = "2.0.0", ""
        reason: Refusal | None = None
        if action == FAILED:
            reason = self._catalogue.get(delivery.code)
            status, diagnostic = _failure(delivery, reason)
        envelope_id = xtext_decoded(delivery.envelope_id)
        if not envelope_id and delivery.origin is Origin.MLLP:
            envelope_id = delivery.spool_id  # as `mta.smtp.target.dsn_request` has it: the sender has no other handle
        kind, _, original = delivery.original_recipient.partition(";")
        original = xtext_decoded(original)
        recipient = RecipientStatus(
            final_recipient=delivery.recipient,
            action=action,
            status=status,
            original_recipient=original if kind.lower() == "rfc822" or not original else f"{kind};{original}",
            diagnostic=diagnostic,
        )
        return compose_dsn(
            DeliveryNotification(
                (recipient,),
                original_envelope_id=envelope_id,
                original_message_id=delivery.message_id,
                reporting_mta=self._reporting_mta,
            ),
            author=self._postmaster,
            to=delivery.sender,
            subject=_SUBJECTS[action],
            text=_text(delivery, action, status, diagnostic, reason),
            message_id=message_id,
            date=delivery.ended_at,
            arrival=delivery.accepted_at,
        )


def action_of(delivery: EndedDelivery) -> str | None:
    """What the sender is to be told, None for nothing (RFC 3461 §4.1, §5.2)."""
    if not delivery.sender or delivery.origin is Origin.SYSTEM:
        return None
    if delivery.target not in (TargetKind.MAILBOX, TargetKind.SMTP):
        return None
    asked = notify_conditions(delivery.notify, delivery.origin)
    if not delivery.delivered:
        return FAILED if "FAILURE" in asked else None
    if "SUCCESS" not in asked or delivery.code == RELAYED:
        return None
    return DELIVERED if delivery.target is TargetKind.MAILBOX else RELAYED_ON


def _failure(delivery: EndedDelivery, reason: Refusal | None) -> tuple[str, str]:
    """Status and Diagnostic-Code: the other server's own where it refused, else what we would reply ourselves."""
    if delivery.code == refusals.REMOTE_REFUSED.code:
        # as `mta.smtp.target.outcome_of` has written it: `RCPT: 550 5.1.1 no such mailbox`
        reply = _REMOTE_REPLY.match(delivery.detail.partition(": ")[2])
        if reply is not None:
            return reply[2] or refusals.REMOTE_REFUSED.enhanced, f"smtp; {reply[1]}"
    if reason is None:
        return "5.0.0", ""
    return reason.enhanced, f"smtp; {Refused(reason, delivery.detail).reply}"


def _text(delivery: EndedDelivery, action: str, status: str, diagnostic: str, reason: Refusal | None) -> str:
    """For the human who sent it: French, then English."""
    # a sending system can name somebody without any address
    names = (delivery.recipient or nobody for nobody in ("un destinataire sans adresse", "a recipient without address"))
    french, english = (sentence.format(name) for sentence, name in zip(_SENTENCES[action], names, strict=True))
    lines = [f"Bonjour,\n\n{french}"]
    if reason is not None:
        lines.append(f"Motif : {reason.text_fr}")
    lines.append(f"Identifiant du message : {delivery.message_id}\n\n--\n\n{english}")
    if reason is not None:
        lines.append(f"Reason: {reason.text}")
    if diagnostic:
        lines.append(f"Code: {delivery.code} {status} ({diagnostic.removeprefix('smtp; ')})")
    lines.append(f"Message-ID: {delivery.message_id}")
    return "\n".join(lines) + "\n"
