"""The life of our mailboxes as the directory tells it: listed with their certificates while they are open, withdrawn
when they are closed.

What the directory does not know yet is marked in the rows (`version`, `published`), in the transaction that changed
them, so that neither a crash nor a directory that is away loses any of it. A suspended mailbox stays listed: it
receives. Of a mailbox whose kind is a guess the directory is asked, not told.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from cryptography import x509
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryUnavailableError
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.records import MailboxRecord, MailboxState
from mta.mailboxes.registry import Entry, Registry
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault


class Listing:
    """Thread-safe, but for `turn`: one thread at a time. Every method may block, and raises
    `DirectoryUnavailableError`, `DirectoryRefusedError`, ValueError for what the directory cannot hold, and what the
    vault and the database raise: asked again, it goes on."""

    def __init__(
        self, registry: Registry, database: Database, vault: KeyVault, writer: Directory, adoption: Adoption
    ) -> None:
        self._registry = registry
        self._database = database
        self._vault = vault
        self._writer = writer
        self._adoption = adoption
        self._after = ""
        self._failed: Exception | None = None
        self._lock = threading.Lock()

    def turn(self, size: int = 100) -> int:
        """Tell of so many at most; how many there were. One that cannot be told of, because the directory refuses it or
        its keys cannot be read, keeps no other from its turn; it is raised when all had theirs."""
        waiting = self._database.read(lambda connection: self._registry.unpublished(connection, size, self._after))
        for mailbox_id in waiting:
            try:
                self.tell(mailbox_id)
            except (DirectoryUnavailableError, SQLAlchemyError):
                raise  # for the others too
            except Exception as error:
                self._failed = error
        if len(waiting) == size:
            self._after = waiting[-1]
            return size
        self._after = ""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        return len(waiting)

    def tell(self, mailbox_id: str) -> None:
        """Tell of one, as it is now, if the directory does not know."""
        with self._lock:  # or an older state might be written over a newer one
            entry = self._database.read(lambda connection: self._registry.entry_of(connection, mailbox_id))
            if entry is None or entry.published >= entry.version:
                return
            self._tell(entry)
            self._database.transact(lambda connection: self._mark(connection, entry))

    def _mark(self, connection: Connection, entry: Entry) -> None:
        self._registry.mark_published(connection, entry)

    def _tell(self, entry: Entry) -> None:
        present = None
        if entry.guessed:
            present = self._writer.resolve(entry.record.address)
            settled = self._adoption.settle(entry, present)
            if settled is None or settled.guessed:  # it is not listed, and not before it is known what it is
                return
            entry = settled
        record = entry.record
        if record.state is MailboxState.CLOSED or not entry.owned:
            self._writer.withdraw(record.address)
            return
        present = present or self._writer.resolve(record.address)
        if present is None or present.kind is not record.kind:
            present = Recipient(record.address, record.kind, "")
        own = self._vault.certificates(record.address, KeyUse.ENCRYPTION)
        # Without keys of our own they are the holder's, as the directory learned them: not ours to write.
        self._writer.publish(self._as_listed(record, present, own), certificates=bool(own))

    def _as_listed(self, record: MailboxRecord, present: Recipient, own: tuple[x509.Certificate, ...]) -> Recipient:
        """What we know of it, over what else the directory says (profession, service, rank)."""
        person = record.kind is MailboxKind.PER
        listed = replace(
            present,
            display_name=record.label or present.display_name,
            organisation=record.organisation or present.organisation,
            id_nat=(record.id_nat if person else "") or present.id_nat,
            structure=("" if person else record.id_nat) or present.structure,
            signing_certificates=self._vault.certificates(record.address, KeyUse.SIGNING)
            or present.signing_certificates,
        )
        return replace(listed, encryption_certificates=own, domain_certificate=False) if own else listed
