"""What a laboratory or a hospital sends is looked at once before it leaves: is a result in it critical?

`mta.follow_up` keeps the clock and knows nothing of reports; this stage tells it, also of what no worker has prepared.
Critical is what the sender itself marked so (HH, LL, AA): nothing is worked out here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from bridges.arriving.contents import OURS, look
from bridges.intake import HL7_CONTENT
from bridges.report import Action, Report
from bridges.screening import MAIL_CONTENT
from bridges.summary import ranked
from mta import follow_up
from mta.any_delivery import AnyDelivery
from mta.follow_up import Followed
from mta.message import Message, Phase
from mta.notifications import parse_notification
from trust.refusals import Refused

_log = logging.getLogger("relais.bridges.following")


class FollowedStage:
    """A `mta.message.Stage` for ENRICH, after whatever composes the mail and before it is protected."""

    def __init__(
        self,
        senders: Mapping[str, Followed],
        begin: Callable[[Message, bool], None],
        parse: Callable[[bytes], Report | Refused],
    ) -> None:
        """`senders` by lower-case address; `begin` is `mta.follow_up.FollowUp.begin`; `parse` reads an HL7 frame."""
        self._senders = senders
        self._begin = begin
        self._parse = parse

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. The message is not changed. Raises what the store raises: it is tried again."""
        followed = message.sender.lower() in self._senders
        if phase is Phase.ENRICH and followed and message.origin in follow_up.OURS:
            await asyncio.to_thread(self._follow, message)
        return message

    def _follow(self, message: Message) -> None:
        critical = self.critical_of(message, message.content)
        if critical is not None:
            self._begin(message, critical)

    def critical_of(self, message: Message | AnyDelivery, content: bytes) -> bool | None:
        """For `mta.follow_up.FollowUp.examine_by`: whether that mail, or the report it is made of, is a critical
        result; None when nobody reads it. Never raises."""
        service = self._senders.get(message.sender.lower())
        try:
            if message.content_type == HL7_CONTENT:
                return service is not None and bool(service.critical_seconds) and self._is_critical(content)
            if message.content_type != MAIL_CONTENT or parse_notification(content) is not None:
                return None  # nobody reads a receipt
            return service is not None and bool(service.critical_seconds) and look(content, OURS).critical
        except Exception as error:  # a bug must not stop a result; its text may quote it
            _log.error("delivery %s is followed up as not critical: %s", message.delivery_id, type(error).__name__)
            return False

    def _is_critical(self, frame: bytes) -> bool:
        report = self._parse(frame)
        if isinstance(report, Refused) or report.action is Action.DELETE:
            return False
        return any(ranked(document.results).critical for document in report.documents)
