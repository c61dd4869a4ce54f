"""Accounts that are older than the record of their mailbox get one, as the directory describes them.

An address of an account without a row is a mailbox already (`mta.mailboxes.registry`); what is missing is its kind and
label for good. The directory knows them. While it does not answer nothing is written, for a kind never changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sqlalchemy import Connection

from directory.records import MailboxKind, Recipient
from mta.mailboxes.administration import checked_text
from mta.mailboxes.records import MailboxRecord
from mta.mailboxes.registry import Entry, Registry
from trust.identities import AccountError
from trust.journal import Journal, JournalEntry
from trust.store.database import Database


class Describing(Protocol):
    """What is needed of `directory.resolve.Directory`."""

    def resolve(self, address: str) -> Recipient | None: ...


class Adoption:
    """Synchronous; one thread at a time."""

    def __init__(
        self,
        registry: Registry,
        database: Database,
        journal: Journal,
        directory: Describing,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._database = database
        self._journal = journal
        self._directory = directory
        self._clock = clock

    def turn(self, size: int = 100) -> int:
        """Write down so many at most; how many there were. Raises what the directory and the database raise: asked
        again, it goes on."""
        addresses = self._database.read(lambda connection: self._registry.without_row(connection, size))
        for address in addresses:
            recipient = self._directory.resolve(address)
            self._database.transact(lambda c, a=address, r=recipient: self._adopt(c, a, r))  # type: ignore[misc]
        return len(addresses)

    def _adopt(self, connection: Connection, address: str, recipient: Recipient | None) -> None:
        entry = self._registry.entry(connection, address)
        if entry is None or entry.version:  # gone, or written meanwhile
            return
        record = replace(described(entry.record, recipient), created_at=self._clock())
        kept: Entry = self._registry.put(connection, replace(entry, record=record), tell=False)
        details = {"kind": record.kind.value, "listed": "yes" if recipient else "no"}
        self._journal.append(
            connection, JournalEntry("mailboxes", "mailbox.adopted", "done", object_id=kept.id, details=details)
        )


def described(record: MailboxRecord, recipient: Recipient | None) -> MailboxRecord:
    """What the directory says, where it can be: a domain of patients has no others, and no other has patients."""
    if recipient is None or MailboxKind.PATIENT in (record.kind, recipient.kind):
        return record
    return replace(
        record,
        kind=recipient.kind,
        label=_text(recipient.display_name),
        organisation=_text(recipient.organisation),
        id_nat=recipient.id_nat or recipient.structure,
    )


def _text(text: str) -> str:
    try:
        return checked_text(text, "")
    except AccountError:
        return ""
