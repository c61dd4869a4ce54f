"""How arriving mail is made ready for each of our mailboxes: who opens it, what is put before it, what is filed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509

from bridges.arriving.earlier import DossierValues
from bridges.arriving.stage import ArrivalStage
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import Reader, load_matrix
from config.gateway.places import Places
from config.gateway.store import Store
from config.settings import Loaded
from directory.records import MailboxKind
from directory.resolve import Directory
from mta.mailboxes.records import Custody, MailboxRecord

FindMailbox = Callable[[str], MailboxRecord | None]
"""`MailboxRegistry.find`."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """Of one gateway."""

    find: FindMailbox
    directory: Directory
    stage: ArrivalStage
    """The last of all."""

    def custody(self, address: str) -> Custody:
        """Who opens what comes for this mailbox."""
        record = self.find(address.lower())
        return Custody.GATEWAY if record is None else record.preferences.custody

    def held_elsewhere(self, address: str) -> Sequence[x509.Certificate]:
        """The certificates published for it. Raises `DirectoryUnavailableError`."""
        recipient = self.directory.resolve(address)
        return () if recipient is None else recipient.encryption_certificates

    def wants_readings(self, address: str) -> bool:
        """Whether reading receipts are filed as mail."""
        record = self.find(address.lower())
        return record is None or record.preferences.receipts_as_mail


def open_arriving(loaded: Loaded, store: Store, places: Places, find: FindMailbox) -> Arriving:
    """Earlier values only where a dossier is kept."""
    settings, directory = loaded.settings, places.directory

    def reader_of(address: str) -> Reader | None:
        person = directory.resolve(address)
        if person is None or person.kind is not MailboxKind.PER or not person.profession:
            return None
        return Reader(person.id_nat, person.display_name, person.profession)

    earlier = None
    if settings.dossier.enabled:
        dossier = Dossier(store.database, store.blobs, store.vault, store.journal, load_matrix())
        earlier = DossierValues(dossier, reader_of)
    return Arriving(find, directory, ArrivalStage(settings.operator.host, find, earlier))
