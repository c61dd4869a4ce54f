"""What accounts' addresses are, written down as the directory describes them.

An address of an account without a row is a mailbox already (`mta.mailboxes.registry`). It gets its row whether the
directory knows it or not, so that it is never given to somebody else; but its kind, which never changes, is written for
good only when somebody has said it: the directory, here, or an operator. Until then it stays a guess, the directory is
told nothing that rests on it, and is asked again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from directory.records import MailboxKind, Recipient
from directory.resolve import DirectoryUnavailableError
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
    """Synchronous and thread-safe, but for `turn`: one thread at a time. Every method raises what the directory, the
    vault and the database raise: asked again, it goes on."""

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
        self._new, self._guessed = "", ""
        self._failed: Exception | None = None

    def turn(self, size: int = 100) -> int:
        """Look at so many at most: first at those that have no row, how many there were; when there are none, at some
        of those whose kind is a guess, which is no work that waits: 0. One that fails keeps no other from its turn; it
        is raised when all had theirs."""
        new = self._database.read(lambda connection: self._registry.without_row(connection, size, self._new))
        self._each(new)
        self._new = new[-1] if len(new) == size else ""
        if self._new:
            return len(new)
        guessed = self._database.read(lambda connection: self._registry.guessed(connection, size, self._guessed))
        self._each(guessed)
        self._guessed = guessed[-1] if len(guessed) == size else ""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        return 0

    def _each(self, ids: list[str]) -> None:
        for each in ids:
            try:
                self.one(each)
            except (DirectoryUnavailableError, SQLAlchemyError):
                raise  # for the others too
            except Exception as error:
                self._failed = error

    def one(self, mailbox_id: str) -> None:
        """Look at this one."""
        entry = self._database.read(lambda connection: self._registry.entry_of(connection, mailbox_id))
        if entry is not None and (entry.guessed or not entry.version):
            self.settle(entry, self._directory.resolve(entry.record.address))

    def settle(self, entry: Entry, recipient: Recipient | None) -> Entry | None:
        """Write down what the directory says of a mailbox whose kind is a guess, or that has no row. How it is now;
        None when it is gone."""
        try:
            return self._database.transact(lambda connection: self._settle(connection, entry.id, recipient))
        except IntegrityError:  # another node has just made its row
            return self._database.transact(lambda connection: self._settle(connection, entry.id, recipient))

    def _settle(self, connection: Connection, mailbox_id: str, recipient: Recipient | None) -> Entry | None:
        self._registry.lock(connection, mailbox_id)
        entry = self._registry.entry_of(connection, mailbox_id)
        if entry is None:
            return None
        # A domain of patients has no others, and no other has patients.
        if recipient is not None and MailboxKind.PATIENT in (entry.record.kind, recipient.kind):
            recipient = None
        if entry.version and not (entry.guessed and recipient):  # nothing to write
            return entry
        record = entry.record if recipient is None else described(entry.record, recipient)
        if not record.created_at:
            record = replace(record, created_at=self._clock())
        guessed = entry.guessed and recipient is None
        kept: Entry = self._registry.put(connection, replace(entry, record=record, guessed=guessed), tell=False)
        details = {"kind": record.kind.value, "listed": "yes" if recipient else "no"}
        self._journal.append(
            connection, JournalEntry("mailboxes", "mailbox.adopted", "done", object_id=kept.id, details=details)
        )
        return kept


def described(record: MailboxRecord, recipient: Recipient) -> MailboxRecord:
    """With what the directory says."""
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
