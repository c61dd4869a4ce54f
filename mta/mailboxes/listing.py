"""The life of our mailboxes as the directory tells it: listed with their certificates while they are open, withdrawn
when they are closed.

What the directory does not know yet is marked in the rows (`version`, `published`), in the transaction that changed
them, so that neither a crash nor a directory that is away loses any of it. A suspended mailbox stays listed: it
receives.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from sqlalchemy import Connection

from directory.records import MailboxKind, Recipient
from directory.resolve import Directory
from mta.mailboxes.records import MailboxRecord, MailboxState
from mta.mailboxes.registry import Entry, Registry
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault


class Listing:
    """Thread-safe; every method may block, and raises `DirectoryUnavailableError`, `DirectoryRefusedError` and what the
    database raises: asked again, it goes on."""

    def __init__(self, registry: Registry, database: Database, vault: KeyVault, writer: Directory) -> None:
        self._registry = registry
        self._database = database
        self._vault = vault
        self._writer = writer
        self._lock = threading.Lock()

    def turn(self, size: int = 100) -> int:
        """Tell of so many at most; how many there were."""
        waiting = self._database.read(lambda connection: self._registry.unpublished(connection, size))
        for entry in waiting:
            self.tell(entry.id)
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
        record = entry.record
        if record.state is MailboxState.CLOSED or not entry.owned:
            self._writer.withdraw(record.address)
            return
        present = self._writer.resolve(record.address)
        if present is None or present.kind is not record.kind:
            present = Recipient(record.address, record.kind, "")
        self._writer.publish(self._as_listed(record, present))

    def _as_listed(self, record: MailboxRecord, present: Recipient) -> Recipient:
        """What we know of it, over what else the directory says (profession, service, rank)."""
        person = record.kind is MailboxKind.PER
        own = self._vault.certificates(record.address, KeyUse.ENCRYPTION)
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
