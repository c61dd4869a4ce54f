"""The stage that turns a sending system's message into the mail one correspondent reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime

from bridges.compose import ComposeOptions, compose
from bridges.intake import HL7_CONTENT
from bridges.report import Correspondent, Report
from bridges.routing import ADDRESS_INVALID, RoutingOptions, addressed
from mta.message import Message, Phase
from trust.refusals import Refused

MAIL_CONTENT = "message/rfc822"


class ComposeStage:
    """ENRICH for `application/hl7-v2`: deterministic, so that a second run after a crash composes the same bytes."""

    def __init__(
        self,
        parse: Callable[[bytes], Report | Refused],
        sender_names: Mapping[str, str],
        options: ComposeOptions,
        routing: RoutingOptions,
        executor: Executor,
    ) -> None:
        """`sender_names`: functional name by sender mailbox; `routing` is the intake's."""
        self._parse = parse
        self._sender_names = sender_names
        self._options = options
        self._routing = routing
        self._executor = executor

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        if phase is not Phase.ENRICH or message.content_type != HL7_CONTENT:
            return message
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._compose, message)

    def _compose(self, message: Message) -> Message | Refused:
        report = self._parse(message.content)
        if isinstance(report, Refused):
            return report
        correspondent = addressed(report, message.recipient, self._routing)
        if correspondent is None:
            return Refused(ADDRESS_INVALID)
        content = compose(
            report,
            audience=correspondent.audience,
            sender_address=message.sender,
            sender_name=self._sender_names.get(message.sender, ""),
            recipient_address=message.recipient,
            recipient_name=_name(correspondent),
            message_id=message.message_id,
            at=datetime.fromtimestamp(message.accepted_at, UTC),
            options=self._options,
        )
        return replace(message, content=content, content_type=MAIL_CONTENT)


def _name(correspondent: Correspondent) -> str:
    party = correspondent.party
    return " ".join(part for part in (party.given, party.family) if part) or party.organisation
