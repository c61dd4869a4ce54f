"""Delivery status notifications to the sender of a mail (RFC 3461, RFC 3464): who gets one, and what it says.

A receipt is an ordinary message of ours: it goes through the spool to the envelope's sender, signed by the postmaster
and encrypted, for it names a recipient, a patient's address holds the national health identity, and with a failure the
message itself comes back. To a sender without a certificate only the bare fact goes, in clear (`mta.system_mail`).
Nobody is told what became of a receipt (RFC 5321 §6.1). Who was told, and who could not be, stands in the trace.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, select

from mta import refusals
from mta.any_delivery import AnyDelivery, AnyReader, add_step
from mta.delivery import EndedDelivery
from mta.dsn_conditions import DELAYED, DELIVERED, FAILED, RELAYED_ON, action_of, concerns_its_reader
from mta.message import DeliveryState, Origin, TargetKind
from mta.notices import Notices, Said
from mta.notifications import DeliveryNotification, RecipientStatus, Returned, compose_dsn, xtext_decoded
from mta.spool import Spool
from mta.system_mail import Form, Sent, SystemMail
from mta.tables import messages, steps
from smime.mime import MimeError, parse_entity
from trust.refusals import Refusal, Refused
from trust.store.blobs import BlobDamagedError, BlobMissingError

__all__ = ["DsnConsumer", "DsnOptions", "action_of"]

_log = logging.getLogger("relais.mta.dsn")

SILENT = "silent"
"""Not one of them: relayed to an operator that promised a receipt and sent none. Told as `relayed`."""
KIND = "dsn"

_REMOTE_REPLY = re.compile(r"([245][0-9]{2}(?: ([245]\.[0-9]{1,3}\.[0-9]{1,3}))?(?: .*)?)$")
_LAST_DEFERRAL = re.compile(rf"{re.escape(refusals.REMOTE_DEFERRED.code)} (.*)$")
_SUBJECTS = {
    FAILED: "Message non remis / Message not delivered",
    DELIVERED: "Message remis / Message delivered",
    RELAYED_ON: "Message transmis / Message relayed",
    DELAYED: "Message en attente / Message delayed",
    SILENT: "Message transmis, sans accuse / Message relayed, no receipt",
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
    DELAYED: (
        "Votre message n'a pas encore pu être remis à {}. Les essais continuent : il est inutile de le renvoyer. "
        "S'il est urgent, joignez le destinataire autrement.",
        "Your message could not be delivered to {} yet. It will be tried again: do not send it again. If it is urgent, "
        "reach the recipient by another way.",
    ),
    SILENT: (
        "Votre message pour {} a été pris en charge par l'opérateur du destinataire, qui avait promis un accusé de "
        "remise et n'en a pas encore envoyé. Si le message est important, vérifiez auprès du destinataire.",
        "Your message for {} was taken by the recipient's operator, which promised a delivery receipt and has sent "
        "none yet. If the message matters, ask the recipient.",
    ),
}
_COLLECTED = (
    "Il a été relevé dans une boîte d'un autre opérateur ; son expéditeur, dont personne ne répond, l'ignore.",
    "It was collected from a mailbox at another operator; its sender is not told, for nobody vouches for who that is.",
)
_FOR_ITS_READER = {
    TargetKind.MAILBOX: (
        "Un message relevé pour vous n'a pas pu être déposé dans votre boîte aux lettres ici. Il est resté dans votre "
        "boîte chez votre opérateur : lisez-le là, par exemple avec son webmail. Son expéditeur n'en est pas averti.",
        "A message collected for you could not be filed in your mailbox here. It stayed in your mailbox at your "
        "operator: read it there. Its sender is not told.",
    ),
    TargetKind.FOLDER: (
        "Les fichiers d'un message relevé pour vous n'ont pas pu être déposés dans le dossier de votre logiciel "
        "métier : ce message n'y sera pas intégré.",
        "The files of a message collected for you could not be put into the folder of your practice software.",
    ),
}
"""Of a collected mail that failed, told to the one it was collected for; the same words for whom it came from."""
_FOR_ITS_READER_SUBJECT = "Message releve non depose / Collected message not filed"
_RETURNED = ("Le message d'origine est joint.", "The original message is attached.")


@dataclass(frozen=True, slots=True)
class DsnOptions:
    return_max_bytes: int = 5 * 1024 * 1024
    """A larger original does not come back, only its header."""
    never_returned: frozenset[str] = frozenset((refusals.MALWARE_FOUND.code, refusals.SCAN_TOO_LARGE.code))
    """Catalogue codes of failures after which nothing of the content comes back."""
    lifetime: float = 5 * 86400.0
    """Seconds a delivery is tried for, so that a warning says until when."""


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
        *,
        patient_domains: Collection[str] = (),
        options: DsnOptions | None = None,
        notices: Notices | None = None,
        node: str = "",
        collected_to_reader: bool = False,
    ) -> None:
        """`postmaster` is a local mailbox whose signing key we hold; `is_trusted` judges a lower-case mail domain and
        may block; `catalogue` explains the codes of failed deliveries. Addresses in `patient_domains` never travel in
        clear. `notices` knows what other operators have said meanwhile. `node` stands in the trace.
        `collected_to_reader`: what becomes of collected mail is told to whom it was collected for, not to the
        postmaster, who may be another reader (`relais connect`)."""
        self._spool = spool
        self._node = node
        self._mail = SystemMail(spool, postmaster, reporting_mta, local_domains, is_trusted, patient_domains)
        self._catalogue = catalogue
        self._options = options or DsnOptions()
        self._collected_to_reader = collected_to_reader
        self._notices = notices
        self._deliveries = AnyReader(spool)

    async def ended(self, delivery: EndedDelivery) -> None:
        """Write the receipt this delivery calls for, if any. Raises what the spool raises."""
        ours = self._mail.not_sent(delivery)
        if ours is not None and ours.kind == KIND:
            await asyncio.to_thread(self._say_again, ours, self._mail.to_say_again(delivery), delivery.code)
            return
        action = action_of(delivery)
        if self._collected_to_reader and delivery.origin is Origin.COLLECTED:
            # what is in quarantine, its reader is told of by the quarantine
            told = concerns_its_reader(delivery) and delivery.code not in self._options.never_returned
            action = FAILED if told else None
        if action is not None:
            await asyncio.to_thread(self._tell_end, AnyDelivery.of(delivery), action)

    def warn(self, delivery: AnyDelivery, action: str, also: Callable[[Connection], None]) -> None:
        """Tell the sender of one that has no answer yet: DELAYED or SILENT. `also` writes in the same transaction.
        Idempotent; blocks; raises what the spool raises."""
        self._tell(delivery, action, Form.WHOLE, also)

    def _tell_end(self, delivery: AnyDelivery, action: str) -> None:
        said = None if self._notices is None else self._notices.latest(delivery.delivery_id)
        if action == FAILED and said is Said.DELIVERED:
            # the operator's word comes from behind the failure: its 250 was lost on the way to us
            _log.warning("delivery %s failed here and was delivered there: not told", delivery.delivery_id)
            return
        self._tell(delivery, action, Form.WHOLE)

    def _say_again(self, sent: Sent, again: Sent | None, why: str) -> None:
        """A notice of ours could not be delivered: say less, or write down that nobody was told."""
        original = self._deliveries.one(sent.about)
        if original is None or sent.action not in _SENTENCES:
            _log.warning("the notice about delivery %s could not be sent, nor written again", sent.about)
            return
        if sent.action == DELAYED and original.state is not DeliveryState.READY:
            return  # it waits no longer
        if again is None:
            self._untold(original, f"{sent.action}: {why}")
        else:
            self._tell(original, again.action, again.form)

    def _tell(
        self,
        delivery: AnyDelivery,
        action: str,
        form: Form,
        also: Callable[[Connection], None] | None = None,
    ) -> None:
        to = delivery.sender
        if delivery.origin is Origin.COLLECTED:
            # whoever wrote its Return-Path: no operator vouched for it. Our own people are told, without the content
            to = delivery.recipient if self._collected_to_reader else self._mail.postmaster
            form = Form.BARE if form is Form.WHOLE else form
        sent = Sent(KIND, delivery.delivery_id, action, form)
        if self._mail.route(to) is None:  # asked first: composing reads the content
            self._untold(delivery, f"{action}: its sender is nobody we can write to")
            return

        def note(connection: Connection) -> None:
            said = action if form is Form.WHOLE else f"{action}, {form.value}"
            self._note(connection, delivery, "told", said)

        self._mail.send(sent, to, self._compose(delivery, sent, to), delivery.spool_id, also or note)

    def _untold(self, delivery: AnyDelivery, why: str) -> None:
        """Somebody should have been told: the trace says so, once."""
        _log.warning("delivery %s: nobody was told (%s)", delivery.delivery_id, why)

        def write(connection: Connection) -> None:
            said = select(steps.c.id).where(steps.c.spool_id == delivery.spool_id)
            said = said.where(steps.c.delivery_id == delivery.delivery_id, steps.c.kind == "untold")
            if connection.execute(said).first() is None:
                self._note(connection, delivery, "untold", why)

        self._spool._database.transact(write)

    def _note(self, connection: Connection, delivery: AnyDelivery, kind: str, detail: str) -> None:
        """In the trace, if it was not purged: whoever is to be told is told all the same."""
        kept = select(messages.c.id).where(messages.c.id == delivery.spool_id)
        if connection.execute(kept).first() is not None:
            add_step(connection, self._node, delivery, kind, self._spool._clock(), detail)

    def _compose(self, delivery: AnyDelivery, sent: Sent, to: str) -> bytes:
        action, form = sent.action, sent.form
        status, diagnostic = "2.0.0", ""
        reason: Refusal | None = None
        if action in (FAILED, DELAYED):
            reason = self._catalogue.get(delivery.code)
            status, diagnostic = _failure(delivery, reason)
        if form is Form.CLEAR:
            diagnostic = ""
        envelope_id = xtext_decoded(delivery.envelope_id)
        if not envelope_id and delivery.origin is Origin.MLLP:
            envelope_id = delivery.spool_id  # as `mta.smtp.target.dsn_request` has it: the sender has no other handle
        kind, _, original = delivery.original_recipient.partition(";")
        original = xtext_decoded(original) if form is not Form.CLEAR else ""
        name = self._mail.shown(delivery.recipient, form)
        recipient = RecipientStatus(
            final_recipient=name,
            action=RELAYED_ON if action == SILENT else action,
            status=status,
            original_recipient=original if kind.lower() == "rfc822" or not original else f"{kind};{original}",
            diagnostic=diagnostic,
        )
        returned = self._returned(delivery, action) if form is Form.WHOLE else None
        to_reader = self._collected_to_reader and delivery.origin is Origin.COLLECTED
        own = _FOR_ITS_READER[delivery.target] if to_reader else None
        text = _text(delivery, name, action, status, diagnostic, reason, own)
        if returned is not None and returned.whole:
            text = _RETURNED[0] + "\n\n" + text + _RETURNED[1] + "\n"
        return compose_dsn(
            DeliveryNotification(
                (recipient,),
                original_envelope_id=envelope_id,
                original_message_id=delivery.message_id,
                reporting_mta=self._mail.host,
            ),
            author=self._mail.postmaster,
            to=to,
            subject=_FOR_ITS_READER_SUBJECT if to_reader else _SUBJECTS[action],
            text=text,
            message_id=self._mail.message_id(sent),
            date=delivery.at,
            arrival=delivery.accepted_at,
            retry_until=delivery.accepted_at + self._options.lifetime if action == DELAYED else None,
            returned=returned,
        )

    def _returned(self, delivery: AnyDelivery, action: str) -> Returned | None:
        """What comes back of the message with a failure (RFC 3461 §4.3): all of it, or its header where that was asked
        for or it is large. None: its Message-ID is enough, or all there is. Other news names no patient, as a subject
        would."""
        if (
            action != FAILED
            or delivery.content_type != "message/rfc822"
            or delivery.code in self._options.never_returned
        ):
            return None
        try:
            content = self._spool.content(delivery)
            header = parse_entity(content)
        except (BlobMissingError, BlobDamagedError, MimeError):  # that it failed must be told all the same
            return None
        fits = len(content) <= self._options.return_max_bytes
        if fits and "RET=HDRS" not in delivery.flags:
            return Returned(content, whole=True)
        return Returned(b"".join(each.raw for each in header.fields if each.name not in ("bcc", "resent-bcc")))


def _failure(delivery: AnyDelivery, reason: Refusal | None) -> tuple[str, str]:
    """Status and Diagnostic-Code: the other server's own where it refused, else what we would reply ourselves."""
    if delivery.code in (refusals.REMOTE_REFUSED.code, refusals.REMOTE_DEFERRED.code):
        # as `mta.smtp.target.outcome_of` has written it: `RCPT: 550 5.1.1 no such mailbox`
        reply = _REMOTE_REPLY.match(delivery.detail.partition(": ")[2])
        if reply is not None:
            return reply[2] or (reason or refusals.REMOTE_REFUSED).enhanced, f"smtp; {reply[1]}"
    if reason is None:
        return ("5.0.0" if delivery.state is not DeliveryState.READY else "4.4.7"), ""
    return reason.enhanced, f"smtp; {Refused(reason, delivery.detail).reply}"


def _text(
    delivery: AnyDelivery,
    name: str,
    action: str,
    status: str,
    diagnostic: str,
    reason: Refusal | None,
    own: tuple[str, str] | None,
) -> str:
    """For the human who sent it, or with `own` words for the one it was collected for: French, then English."""
    # a sending system can name somebody without any address
    names = (name or nobody for nobody in ("un destinataire sans adresse", "a recipient without address"))
    french, english = (sentence.format(name) for sentence, name in zip(_SENTENCES[action], names, strict=True))
    said = _LAST_DEFERRAL.search(delivery.detail) if diagnostic else None
    if own is not None:
        french, english = own
    elif delivery.origin is Origin.COLLECTED:
        french, english = f"{french} {_COLLECTED[0]}", f"{english} {_COLLECTED[1]}"
    lines = [f"Bonjour,\n\n{french}"]
    if reason is not None:
        lines.append(f"Motif : {reason.text_fr}")
    if said is not None:
        lines.append(f"Dernière réponse du serveur du destinataire : {said[1]}")
    lines.append(f"Identifiant du message : {delivery.message_id}\n\n--\n\n{english}")
    if reason is not None:
        lines.append(f"Reason: {reason.text}")
    if said is not None:
        lines.append(f"Last answer of the recipient's server: {said[1]}")
    if diagnostic:
        lines.append(f"Code: {delivery.code} {status} ({diagnostic.removeprefix('smtp; ')})")
    lines.append(f"Message-ID: {delivery.message_id}")
    return "\n".join(lines) + "\n"
