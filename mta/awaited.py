"""Receipts of other operators that come back by mail: the deliveries they answer are waited for no longer.

Whoever passed a message on to an operator that reports in our place (`relayed`) knows nothing until its notification
(RFC 3464) arrives in the sender's mailbox. Like any mail it is opened and delivered; here it is read once more, so that
monitoring and the trace know that the sender has its answer. It is believed only from the mail system of the operator
of the recipient's domain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mta.believed import Believed
from mta.delivery import EndedDelivery
from mta.message import DeliveryState, Origin, TargetKind
from mta.notices import Said
from mta.reporting import NotSettledError
from mta.spool import RELAYED, Spool

_FINAL = (Said.RELAYED, Said.DELIVERED, Said.FAILED)
"""After which no other receipt is waited for."""


class AwaitedReceipts:
    """A `mta.reporting.EndConsumer`. Thread-safe and idempotent."""

    def __init__(
        self, spool: Spool, operator_may_report: Callable[[str, str], bool], *, collected: bool = False
    ) -> None:
        """As `mta.believed.Believed`."""
        self._spool = spool
        self._believed = Believed(spool, operator_may_report, collected=collected)

    async def ended(self, delivery: EndedDelivery) -> None:
        """See `mta.reporting.EndConsumer`. Raises `NotSettledError`, and what the store raises: tried again later."""
        by_another = delivery.origin is not Origin.SYSTEM and not delivery.sender  # the rest is not read for nothing
        if delivery.target is TargetKind.MAILBOX and delivery.delivered and by_another:
            await asyncio.to_thread(self._read, delivery)

    def _read(self, mail: EndedDelivery) -> None:
        content = self._spool.prepared(mail)
        found = None if content is None else self._believed.receipts(mail, content)
        if found is None:
            return
        waiting = ""
        for receipt in found.receipts:
            if receipt.said not in _FINAL:
                continue
            if receipt.about.state is DeliveryState.READY:
                waiting = receipt.about.delivery_id
            elif receipt.about.code == RELAYED:
                self._spool.answered(receipt.about, receipt.action)
        if waiting:
            raise NotSettledError(waiting)
