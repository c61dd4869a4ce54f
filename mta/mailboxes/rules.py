"""What each kind and state of mailbox allows, asked at every door: to receive, to be opened, to send, to answer.

An account may be in order and its mailbox not: who somebody is, `trust.accounts` has said before anybody asks here.
A suspended mailbox receives and does nothing else, a closed one does nothing at all, a machine logs in with a client
certificate, a patient answers. Every answer is looked up when it is asked for: what an operator has just closed is
closed also for sessions that were open before.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable

from directory.records import MailboxKind
from mta import refusals as road
from mta.header import answers_by_itself
from mta.mailboxes import refusals
from mta.mailboxes.exchanges import Exchanges
from mta.mailboxes.records import MailboxRecord, MailboxRegistry, MailboxState
from mta.message import Failed, Message, Outcome, Target
from mta.notifications import DispositionNotification, parse_notification
from smime.mime import Entity, MimeError, parse_entity
from trust.identities import Identity
from trust.refusals import Refused


class MailboxRules:
    """Thread-safe; every method may block, and raises what the database raises."""

    def __init__(self, registry: MailboxRegistry, exchanges: Exchanges, *, machine_passwords: bool = False) -> None:
        """`machine_passwords`: machines may still log in with a password or a token."""
        self._registry = registry
        self._exchanges = exchanges
        self._machine_passwords = machine_passwords

    def receives(self, address: str) -> Refused | None:
        """Why there is no mail for that address; None: it is a mailbox of ours that takes mail."""
        record = self._registry.find(address)
        if record is None:
            return Refused(road.MAILBOX_UNKNOWN)
        if record.state is MailboxState.CLOSED:
            return Refused(refusals.MAILBOX_CLOSED, record.reason)
        return None

    def opens(self, address: str, *, certified: bool = False) -> Refused | None:
        """Why a mailbox is not opened (IMAP, ManageSieve) to who may; `certified`: they showed a certificate."""
        record = self._registry.find(address)
        if record is None:
            return Refused(road.MAILBOX_UNKNOWN)
        if record.state is not MailboxState.ACTIVE:
            return Refused(refusals.MAILBOX_SHUT)
        return self._uncertified(record, certified)

    def enters(self, identity: Identity, *, certified: bool = False) -> Refused | None:
        """Why somebody who could prove who they are may send nothing all the same: all their own mailboxes are shut,
        or are machines' and no certificate was shown. Who owns no mailbox sends for others, if at all."""
        refused = [self.opens(address, certified=certified) for address in identity.addresses]
        return refused[0] if refused and all(refused) else None

    def sends(self, address: str, *, certified: bool = False) -> Refused | None:
        """Why nothing is sent in the name of that address; None also for one that is not ours, which others judge."""
        record = self._registry.find(address)
        if record is None:
            return None
        if record.state is not MailboxState.ACTIVE:
            return Refused(refusals.MAILBOX_SUSPENDED)
        return self._uncertified(record, certified)

    def is_machine(self, identity: Identity) -> bool:
        """Whether it has a machine's mailbox: what it sends is counted by itself."""
        found = (self._registry.find(address) for address in identity.addresses[:1])
        return any(each is not None and each.kind is MailboxKind.APP for each in found)

    # Patients

    def is_patient(self, address: str) -> bool:
        """Does not block."""
        return self._exchanges.is_patient(address)

    def writes_to(self, patient: str, recipient: str) -> Refused | None:
        """Before the content: why a patient does not write to that address. Whoever has ever written to the patient may
        at least be told that it was read; and many mail programs send their user a copy."""
        known = recipient == patient or self._exchanges.knows(patient, recipient)
        return None if known else Refused(refusals.PATIENT_INITIATES)

    def answers(self, patient: str, header: Entity, content: bytes, recipients: Iterable[str]) -> Refused | None:
        """With the content: why a patient's mail is neither an answer in an exchange that is open, nor the receipt for
        a mail of one, be it over."""
        others = {each for each in recipients if each != patient}
        notification = parse_notification(content)
        if isinstance(notification, DispositionNotification):
            digest = hashlib.sha256(content).hexdigest()
            if self._exchanges.receipts(patient, notification.original_message_id, others, digest):
                return None
        return None if self._exchanges.answers(patient, header, others) else Refused(refusals.PATIENT_EXCHANGE_OVER)

    def arrives(self, recipient: str, content: bytes) -> None:
        """A mail is about to be filed: where a patient receives it, it may be answered. A receipt and a notice of
        absence, which programs send by themselves, also with a sender, neither begin an exchange nor go on with one."""
        if not self.is_patient(recipient):
            return
        try:
            header = parse_entity(content)
            report = header.content_type().media_type == "multipart/report"
        except MimeError:  # whatever a stage left of it, it has no author to answer
            return
        if not report and not answers_by_itself(header) and parse_notification(content) is None:
            self._exchanges.arrived(recipient, header)

    def _uncertified(self, record: MailboxRecord, certified: bool) -> Refused | None:
        if record.kind is not MailboxKind.APP or certified or self._machine_passwords:
            return None
        return Refused(refusals.CERTIFICATE_ONLY)


class GuardedMailboxes:
    """A `mta.message.Target` before the mailbox server: what was closed since its mail was accepted takes none."""

    def __init__(
        self, target: Target, rules: MailboxRules, filed: Callable[[Message], Awaitable[Outcome | None]] | None = None
    ) -> None:
        """`filed`: what became of a delivery that was begun before; None when it was not, or when nothing of it is
        there."""
        self._target = target
        self._rules = rules
        self._filed = filed

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. What the database raises makes the worker try again."""
        refused = await asyncio.to_thread(self._look, message)
        if refused is None:
            return await self._target.deliver(message)
        # It may lie there since before the mailbox was closed: its sender must not be told otherwise.
        before = None if self._filed is None else await self._filed(message)
        return before or Failed(refused)

    def _look(self, message: Message) -> Refused | None:
        refused = self._rules.receives(message.recipient)
        if refused is None and message.sender:
            self._rules.arrives(message.recipient, message.content)
        return refused
