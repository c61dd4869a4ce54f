"""The stage that makes our own people's mail ready: what `bridges.plain_mail` does, once for all who read the same.

A letter to fifteen correspondents is fifteen deliveries, mostly at the same moment: while any of them is being made
ready the others share its work, and with the last of them it is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from bridges.carried import carried_by
from bridges.compose import ComposeOptions
from bridges.plain_mail import Envelope, made_ready
from bridges.report import Audience
from mta import refusals
from mta.header import author_of
from mta.mailboxes.records import MailboxRecord
from mta.message import Message, Origin, Phase
from mta.smtp.address import domain_of
from mta.smtp.content import with_crlf
from smime.addresses import AddressError, from_addresses
from smime.mime import Entity, MimeError, parse_entity
from trust.refusals import Refused

MAIL_CONTENT = "message/rfc822"
_Made = tuple[bytes, Mapping[str, str]] | Refused


@dataclass(slots=True)
class _Shared:
    future: asyncio.Future[_Made]
    users: int = 0


class PlainMailStage:
    """A `mta.message.Stage` for ENRICH of submitted mail; after whatever screens it. Deterministic, so that a second
    run after a crash makes the same bytes."""

    def __init__(
        self,
        mailbox: Callable[[str], MailboxRecord | None],
        options: ComposeOptions,
        patient_domains: Collection[str],
        executor: Executor,
    ) -> None:
        """`mailbox` is `mta.mailboxes.records.MailboxRegistry.find`; domains in lower case."""
        self._mailbox = mailbox
        self._options = options
        self._patient_domains = frozenset(patient_domains)
        self._executor = executor
        self._under_way: dict[tuple[str, Audience], _Shared] = {}

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`."""
        submitted = message.origin in (Origin.SUBMISSION, Origin.LMTP) and message.content_type == MAIL_CONTENT
        if phase is not Phase.ENRICH or not submitted:
            return message
        patient = domain_of(message.recipient) in self._patient_domains
        audience = Audience.PATIENT if patient else Audience.PROFESSIONAL
        key = (message.spool_id, audience)
        shared = self._under_way.get(key)
        if shared is None:
            work = asyncio.get_running_loop().run_in_executor(self._executor, self._make, message, audience)
            shared = self._under_way[key] = _Shared(work)
        shared.users += 1
        try:
            made = await asyncio.shield(shared.future)
        finally:
            shared.users -= 1
            if not shared.users:
                del self._under_way[key]
        if isinstance(made, Refused):
            return made
        content, facts = made
        return replace(message, content=content, facts={**message.facts, **facts})

    def _make(self, message: Message, audience: Audience) -> _Made:
        content = with_crlf(message.content)
        carried = carried_by(content)
        if isinstance(carried, Refused):
            return carried
        try:
            header = parse_entity(content)
            author = author_of(header)
            record = self._mailbox(author) if author else None
            at = datetime.fromtimestamp(message.accepted_at, UTC)
            with_patient = audience is Audience.PATIENT or self._names_patient(header)
            envelope = Envelope(message.sender, audience, message.message_id, at, with_patient)
            return made_ready(content, carried, record, envelope, self._options), carried.warnings
        except MimeError:
            return Refused(refusals.CONTENT_INVALID)

    def _names_patient(self, header: Entity) -> bool:
        """Whether a patient's mailbox is said to have written it, or to be written to."""
        for name in ("from", "to", "cc"):
            try:
                addresses = from_addresses(header, name)
            except AddressError:
                continue
            if any(domain_of(each) in self._patient_domains for each in addresses):
                return True
        return False
