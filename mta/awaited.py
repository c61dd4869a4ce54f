"""Receipts of other operators that come back by mail: the deliveries they answer are waited for no longer.

Whoever passed a message on to an operator that reports in our place (`relayed`) knows nothing until its notification
(RFC 3464) arrives in the sender's mailbox. Like any mail it is opened and delivered; here it is read once more, so that
monitoring and the trace know that the sender has its answer. It is believed only from the mail system of the operator
of the recipient's domain.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from mta.delivery import EndedDelivery
from mta.message import DeliveryState, Origin, TargetKind
from mta.notifications import DeliveryNotification, by_mail_system, parse_notification
from mta.reporting import NotSettledError
from mta.smtp.address import domain_of
from mta.smtp.content import with_crlf
from mta.spool import RELAYED, Spool
from smime.mime import parse_entity

_FINAL = frozenset(("delivered", "failed", "relayed", "expanded"))
"""Actions after which no other receipt comes (RFC 3464 §2.3.3): all but `delayed`."""
_SPOOL_ID = re.compile(r"[0-9a-f]{32}")
_MESSAGES = 20
"""Of one sender's that have the same Message-ID and are looked at."""


class AwaitedReceipts:
    """A `mta.reporting.EndConsumer`. Thread-safe and idempotent."""

    def __init__(self, spool: Spool, operator_may_report: Callable[[str, str], bool]) -> None:
        """`operator_may_report(peer, domain)`: whether who handed a notification over answers for this mail domain."""
        self._spool = spool
        self._operator_may_report = operator_may_report

    async def ended(self, delivery: EndedDelivery) -> None:
        """See `mta.reporting.EndConsumer`. Raises `NotSettledError`, and what the store raises: tried again later."""
        by_another = delivery.origin is not Origin.SYSTEM and not delivery.sender  # the rest is not read for nothing
        if delivery.target is TargetKind.MAILBOX and delivery.delivered and by_another:
            await asyncio.to_thread(self._read, delivery)

    def _read(self, mail: EndedDelivery) -> None:
        content = self._spool.prepared(mail)
        notification = None if content is None else parse_notification(content)
        if content is None or not isinstance(notification, DeliveryNotification):
            return
        if not by_mail_system(mail, parse_entity(with_crlf(content))):  # read once already: does not raise
            return
        said = {
            address.lower(): group.action
            for group in notification.recipients
            if group.action in _FINAL
            for address in (group.final_recipient, group.original_recipient)
        }
        for spool_id in self._originals(notification):
            for end in self._spool.ended_of(spool_id):
                action = said.get(end.recipient.lower())
                if action is not None and end.code == RELAYED and self._answers(mail, end):
                    self._spool.answered(end, action)
            for record in self._spool.deliveries(spool_id):
                if record.state is DeliveryState.READY and record.recipient.lower() in said:
                    raise NotSettledError(record.delivery_id)

    def _originals(self, notification: DeliveryNotification) -> list[str]:
        """Spool ids of the messages it may be about: our own envelope id (`mta.smtp.target.dsn_request`), or what the
        submitter's client gave instead and the Message-ID that came back."""
        envelope_id = notification.original_envelope_id
        if _SPOOL_ID.fullmatch(envelope_id) and self._spool.message(envelope_id) is not None:
            return [envelope_id]
        return self._spool.find(notification.original_message_id)[:_MESSAGES]

    def _answers(self, mail: EndedDelivery, end: EndedDelivery) -> bool:
        to_sender = mail.recipient.lower() == end.sender.lower()
        return to_sender and self._operator_may_report(mail.peer, domain_of(end.recipient))
