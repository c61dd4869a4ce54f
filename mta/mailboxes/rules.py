"""What each kind and state of mailbox allows, asked at every door: to receive, to be opened, to send, to answer.

An account may be in order and its mailbox not: who somebody is, `trust.accounts` has said before anybody asks here.
A suspended mailbox receives and does nothing else, a closed one does nothing at all, a machine logs in with a client
certificate, a patient answers. Every answer is looked up when it is asked for: what an operator has just closed is
closed also for sessions that were open before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from directory.records import MailboxKind
from mta import refusals as road
from mta.mailboxes import refusals
from mta.mailboxes.exchanges import Exchanges
from mta.mailboxes.records import MailboxRecord, MailboxRegistry, MailboxState
from mta.message import Failed, Message, Outcome, Target
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

    def writes_to(self, patient: str, recipient: str, *, receipt: bool = False) -> Refused | None:
        """Before the content: why a patient does not write to that address. `receipt`: what comes may be a reading
        receipt, which an exchange that is over still brings."""
        if self._exchanges.may_write_to(patient, recipient, receipt=receipt):
            return None
        if not receipt and self._exchanges.may_write_to(patient, recipient, receipt=True):
            return Refused(refusals.PATIENT_EXCHANGE_OVER)
        return Refused(refusals.PATIENT_INITIATES)

    def answers(self, patient: str, header: Entity, recipients: Iterable[str]) -> Refused | None:
        """With the content: why a patient's mail is no answer."""
        if self._exchanges.answers(patient, header, recipients):
            return None
        return Refused(refusals.PATIENT_EXCHANGE_OVER)

    def arrives(self, recipient: str, content: bytes) -> None:
        """A mail is about to be filed: where a patient receives it, it may be answered."""
        if self.is_patient(recipient):
            try:
                self._exchanges.arrived(recipient, parse_entity(content))
            except MimeError:  # whatever a stage left of it, it has no author to answer
                return

    def _uncertified(self, record: MailboxRecord, certified: bool) -> Refused | None:
        if record.kind is not MailboxKind.APP or certified or self._machine_passwords:
            return None
        return Refused(refusals.CERTIFICATE_ONLY)


class GuardedMailboxes:
    """A `mta.message.Target` before the mailbox server: what was closed since its mail was accepted takes none."""

    def __init__(self, target: Target, rules: MailboxRules) -> None:
        self._target = target
        self._rules = rules

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. What the database raises makes the worker try again."""
        refused = await asyncio.to_thread(self._look, message)
        return Failed(refused) if refused is not None else await self._target.deliver(message)

    def _look(self, message: Message) -> Refused | None:
        refused = self._rules.receives(message.recipient)
        if refused is None and message.sender:
            self._rules.arrives(message.recipient, message.content)
        return refused
