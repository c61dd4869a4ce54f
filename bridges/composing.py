"""The stage that turns a sending system's message into the mail one correspondent reads.

A report to fifteen correspondents is composed fifteen times, mostly at the same moment. What these mails have in common
is made once and forgotten with the last of them: no page of results stays in memory for a next time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime

from bridges import pdf
from bridges.compose import ComposeOptions, compose
from bridges.intake import HL7_CONTENT
from bridges.report import Audience, Correspondent, Document, Report
from bridges.routing import ADDRESS_INVALID, IDENTIFIER, RoutingOptions, addressed
from mta.message import Message, Phase
from mta.notifications import xtext_decoded
from trust.refusals import Refused

MAIL_CONTENT = "message/rfc822"


class _Common:
    """What the mails of one accepted message share while any of them is being composed. Thread-safe."""

    def __init__(self) -> None:
        self.users = 0
        """Compositions under way; counted on the event loop."""
        self._lock = threading.Lock()
        self._report: Report | Refused | None = None
        self._twins: dict[tuple[int, Audience], bytes] = {}

    def report(self, parse: Callable[[bytes], Report | Refused], content: bytes) -> Report | Refused:
        with self._lock:
            if self._report is None:
                self._report = parse(content)
            return self._report

    def twin(self, report: Report, document: Document, audience: Audience) -> bytes:
        """As `bridges.pdf.twin`; `report` is the one from here, so its documents are known by their identity."""
        with self._lock:
            key = id(document), audience
            if key not in self._twins:
                self._twins[key] = pdf.twin(report, document, audience)
            return self._twins[key]


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
        self._common: dict[str, _Common] = {}
        """By spool id, of the messages whose mails are being composed now."""

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        if phase is not Phase.ENRICH or message.content_type != HL7_CONTENT:
            return message
        common = self._common.setdefault(message.spool_id, _Common())
        common.users += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._compose, message, common)
        finally:
            common.users -= 1
            if not common.users:
                del self._common[message.spool_id]

    def _compose(self, message: Message, common: _Common) -> Message | Refused:
        report = common.report(self._parse, message.content)
        if isinstance(report, Refused):
            return report
        kind, name = _named_as(message)
        address = message.recipient.lower() if kind == IDENTIFIER else ""
        correspondent = addressed(report, name, self._routing, address)
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
            twin_of=common.twin,
        )
        return replace(message, content=content, content_type=MAIL_CONTENT)


def _named_as(message: Message) -> tuple[str, str]:
    """Address type, and how the report names the recipient: as it was before the operator redirected it (`mta.queue`),
    or by identifier (`bridges.routing.named`)."""
    kind, _, original = message.facts.get("dsn.orcpt", "").partition(";")
    if kind.lower() in ("rfc822", IDENTIFIER) and original:
        return kind.lower(), xtext_decoded(original)
    return "rfc822", message.recipient


def _name(correspondent: Correspondent) -> str:
    party = correspondent.party
    return " ".join(part for part in (party.given, party.family) if part) or party.organisation
