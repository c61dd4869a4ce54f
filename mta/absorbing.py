"""The mailbox target's doorkeeper: a receipt that only repeats what its reader was told is not filed a second time, nor
one of delivery that we asked for and the sender did not: the trace has it.

What contradicts an earlier receipt is filed with a field that says so, and receipts that answer receipts go nowhere
(RFC 8098 §3). Whatever may not be believed is filed like any other mail: its reader decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from mta.any_delivery import AnyReader
from mta.believed import Believed, Receipt
from mta.dispositions import could_be_disposition, without_asking
from mta.message import Delivered, Message, Origin, Outcome, Target
from mta.notices import Notices, Said, Weight
from mta.notifications import DispositionNotification, parse_notification
from mta.smtp.address import valid_notify
from mta.spool_reading import SpoolReader
from smime.mime import MimeError

_log = logging.getLogger("relais.mta.absorbing")

NOTICE_FIELD = "X-Relais-Notice"
_READ = (Said.DISPLAYED, Said.PROCESSED)
_MESSAGES = 20
"""With the same Message-ID that are looked at."""


class ReceiptDoorkeeper:
    """A `mta.message.Target` before another. What the store raises makes the worker try again."""

    def __init__(
        self,
        target: Target,
        spool: SpoolReader,
        believed: Believed,
        notices: Notices,
        wants_readings: Callable[[str], bool] = lambda address: True,
    ) -> None:
        """`wants_readings`: whether a mailbox wants reading receipts as mail; they are in the trace always. One that
        says that the mail could not be taken up is filed always: somebody has to act on it."""
        self._target = target
        self._spool = spool
        self._deliveries = AnyReader(spool)
        self._believed = believed
        self._notices = notices
        self._wants_readings = wants_readings

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`."""
        if message.origin is Origin.SYSTEM or (message.sender and not could_be_disposition(message.content)):
            return await self._target.deliver(message)
        heard = await asyncio.to_thread(self._hear, message)
        if isinstance(heard, Delivered):
            _log.info("delivery %s: %s", message.delivery_id, heard.detail)
            return heard
        return await self._target.deliver(heard)

    def _hear(self, message: Message) -> Message | Delivered:
        """The mail to file, or why there is none. Says the same when asked again.

        To nobody can nothing be answered: a mail with a null sender asks for no reading receipt, whatever it says.
        """
        mdn = parse_notification(message.content)
        if message.sender and not isinstance(mdn, DispositionNotification):
            return message
        try:
            message = replace(message, content=without_asking(message.content))
        except MimeError:
            return message
        if isinstance(mdn, DispositionNotification) and self._answers_a_receipt(mdn):
            return Delivered("not filed: a receipt about a receipt")
        found = self._believed.receipts(message, message.content)
        if found is None:
            return message
        heard = [self._notices.hear(each.about, message.delivery_id, each.said, each.words) for each in found.receipts]
        if found.whole and all(each.weight is Weight.REPEATED for each in heard):
            return Delivered("not filed: it repeats an earlier receipt")
        if found.whole and all(each.weight is not Weight.CONTRADICTS for each in heard):
            if all(_unasked(each) for each in found.receipts):
                return Delivered("not filed: good news that its reader did not ask for")
            readings = all(each.said in _READ for each in found.receipts)
            if readings and not self._wants_readings(message.recipient.lower()):
                return Delivered("not filed: a reading receipt, which stands in the trace")
        contradicted = next((each for each in heard if each.weight is Weight.CONTRADICTS), None)
        if contradicted is None or contradicted.before is None:
            return message
        field = f"{NOTICE_FIELD}: contradicts; earlier={contradicted.before.value}\r\n".encode("ascii")
        return replace(message, content=field + message.content)

    def _answers_a_receipt(self, mdn: DispositionNotification) -> bool:
        """Whether it is a reading receipt for what nobody should have answered: mail with a null sender."""
        found = self._spool.find(mdn.original_message_id)[:_MESSAGES]
        sent = [each for spool_id in found for each in self._deliveries.of_message(spool_id)]
        return bool(sent) and not any(each.sender for each in sent)


def _unasked(receipt: Receipt) -> bool:
    """Of a delivery whose sender said nothing about receipts, so that only we wished to know (RFC 3461 §4.1: without a
    NOTIFY of his own he hears of failures)."""
    by_hand = receipt.about.origin in (Origin.SUBMISSION, Origin.LMTP) and not valid_notify(receipt.about.notify)
    return by_hand and receipt.said in (Said.DELIVERED, Said.RELAYED)
