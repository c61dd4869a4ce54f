"""What a laboratory or a hospital sends is looked at once before it leaves: is a result in it critical?

`mta.follow_up` keeps the clock and knows nothing of reports; this stage tells it. Critical is what the sender itself
marked so (HH, LL, AA): nothing is worked out here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from bridges.arriving.contents import look
from mta.follow_up import Followed
from mta.message import Message, Origin, Phase
from mta.notifications import parse_notification
from trust.refusals import Refused

_log = logging.getLogger("relais.bridges.following")

_OURS = (Origin.MLLP, Origin.SUBMISSION, Origin.LMTP)
MAIL_CONTENT = "message/rfc822"


class FollowedStage:
    """A `mta.message.Stage` for ENRICH, after whatever composes the mail and before it is protected."""

    def __init__(self, senders: Mapping[str, Followed], begin: Callable[[Message, bool], None]) -> None:
        """`senders` by lower-case address; `begin` is `mta.follow_up.FollowUp.begin`."""
        self._senders = senders
        self._begin = begin

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`. The message is not changed. Raises what the store raises: it is tried again."""
        service = self._senders.get(message.sender.lower())
        if phase is Phase.ENRICH and service is not None and message.origin in _OURS:
            await asyncio.to_thread(self._follow, message, service)
        return message

    def _follow(self, message: Message, service: Followed) -> None:
        if message.content_type != MAIL_CONTENT or parse_notification(message.content) is not None:
            return  # nobody reads a receipt
        critical = False
        if service.critical_seconds:
            try:
                critical = look(message.content).critical
            except Exception as error:  # a bug must not stop a result; its text may quote it
                _log.error("delivery %s is followed up as not critical: %s", message.delivery_id, type(error).__name__)
        self._begin(message, critical)
