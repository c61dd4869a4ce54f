"""Which receipts that come by mail may be believed, and which of our deliveries they are about.

A delivery notification is believed only from the mail system of the operator of the recipient's domain, for a message
that the mailbox it comes to has sent; a disposition notification only when the recipient signed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from mta.any_delivery import AnyDelivery, AnyReader
from mta.message import Origin, TargetKind
from mta.notices import Said
from mta.notifications import (
    DeliveryNotification,
    DispositionNotification,
    Mail,
    RecipientStatus,
    by_mail_system,
    found_signature,
    parse_notification,
)
from mta.opening import VERDICT_FIELD
from mta.smtp.address import domain_of
from mta.smtp.content import with_crlf
from mta.smtp.reply import scrub
from mta.spool_reading import SpoolReader
from smime.mime import Entity, MimeError, parse_entity

_ACTIONS = {
    "delayed": Said.DELAYED,
    "relayed": Said.RELAYED,
    "expanded": Said.RELAYED,
    "delivered": Said.DELIVERED,
    "failed": Said.FAILED,
}
_DISPOSITIONS = {"displayed": Said.DISPLAYED, "processed": Said.PROCESSED}
_SPOOL_ID = re.compile(r"[0-9a-f]{32}")
_SIGNER = re.compile(r"\bsigner=([^;\s]+)")
_MESSAGES = 20
"""Of one sender's that have the same Message-ID and are looked at."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one mail says about one delivery of ours."""

    about: AnyDelivery
    said: Said
    action: str
    """In the notification's own word."""
    words: str = ""
    """Why, as far as it may be kept in clear: a status and the other server's words without addresses and long numbers,
    or an error code."""


@dataclass(frozen=True, slots=True)
class Receipts:
    """What one mail says in all."""

    receipts: tuple[Receipt, ...]
    whole: bool
    """Every recipient it names was found."""


class Believed:
    """Thread-safe; raises what the database raises."""

    def __init__(
        self, spool: SpoolReader, operator_may_report: Callable[[str, str], bool], *, collected: bool = False
    ) -> None:
        """`operator_may_report(peer, domain)`: whether who handed a notification over answers for this mail domain.
        `collected`: delivery notifications come out of collected mailboxes, whose operators have judged them."""
        self._spool = spool
        self._deliveries = AnyReader(spool)
        self._operator_may_report = operator_may_report
        self._collected = collected

    def receipts(self, mail: Mail, content: bytes) -> Receipts | None:
        """What `content`, opened, says about deliveries of the mailbox it comes to; None when it is no receipt that may
        be believed."""
        notification = parse_notification(content)
        if notification is None:
            return None
        try:
            header = parse_entity(with_crlf(content))
        except MimeError:
            return None
        if isinstance(notification, DispositionNotification):
            return self._disposition(mail, notification, header)
        return self._delivery(mail, notification, header)

    def _delivery(self, mail: Mail, dsn: DeliveryNotification, header: Entity) -> Receipts | None:
        if not by_mail_system(mail, header, collected=self._collected):
            return None
        for spool_id in self._originals(dsn):
            sent = {each.recipient.lower(): each for each in reversed(self._sent(mail, spool_id))}
            receipts = tuple(
                Receipt(sent[name], _ACTIONS[group.action], group.action, _words(group))
                for group in dsn.recipients
                if group.action in _ACTIONS
                and (name := _named(group, dsn, sent)) is not None
                and self._operator_may_report(mail.peer, domain_of(name))
            )
            if receipts:
                return Receipts(receipts, len(receipts) == len(dsn.recipients))
        return None

    def _disposition(self, mail: Mail, mdn: DispositionNotification, header: Entity) -> Receipts | None:
        signer = signer_of(header)
        said = Said.NOT_PROCESSED if mdn.failed else _DISPOSITIONS.get(mdn.disposition)
        if said is Said.DISPLAYED and mdn.by_program:  # shown to nobody
            said = Said.PROCESSED
        if said is None or not signer or found_signature(mail) != "valid":
            return None
        for spool_id in self._spool.find(mdn.original_message_id)[:_MESSAGES]:
            for each in self._sent(mail, spool_id):
                if each.recipient.lower() == signer:
                    return Receipts((Receipt(each, said, mdn.disposition, mdn.error_code),), whole=True)
        return None

    def _originals(self, dsn: DeliveryNotification) -> Iterator[str]:
        """Spool ids of the messages it may be about: our own envelope id (`mta.smtp.target.dsn_request`), or what the
        submitter's client gave instead and the Message-ID that came back."""
        envelope_id = dsn.original_envelope_id
        if _SPOOL_ID.fullmatch(envelope_id) and self._spool.message(envelope_id) is not None:
            yield envelope_id
            return
        yield from self._spool.find(dsn.original_message_id)[:_MESSAGES]

    def _sent(self, mail: Mail, spool_id: str) -> list[AnyDelivery]:
        """What the mailbox that `mail` came to has sent with that message."""
        to = mail.recipient.lower()
        mails = (TargetKind.SMTP, TargetKind.MAILBOX)
        return [
            each
            for each in self._deliveries.of_message(spool_id)
            if each.target in mails and each.sender.lower() == to and each.origin is not Origin.SYSTEM
        ]


def signer_of(header: Entity) -> str:
    """Whom the signature stands for, lower case, from the verdict our open stage wrote on top of the message."""
    found = _SIGNER.search(next(iter(header.values(VERDICT_FIELD.lower())), ""))
    return found[1].lower() if found and "@" in found[1] else ""


def _words(group: RecipientStatus) -> str:
    return f"{group.status} {scrub(group.diagnostic)}".strip()


def _named(group: RecipientStatus, dsn: DeliveryNotification, sent: Collection[str]) -> str | None:
    """Which of `sent` (lower case) the group is about; where a server names only whom it forwarded to, the only one the
    message was for."""
    for name in (group.original_recipient.lower(), group.final_recipient.lower()):
        if name in sent:
            return name
    alone = len(dsn.recipients) == 1 and len(sent) == 1 and not group.original_recipient
    return next(iter(sent)) if alone else None
