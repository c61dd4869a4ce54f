"""The directory learns of mailboxes' lives: a real slapd that goes away meanwhile, a writer that may not write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import update

from directory.records import MailboxKind, Recipient
from directory.resolve import Directory, DirectoryOptions, DirectoryRefusedError, DirectoryUnavailableError
from mta.mailboxes import tables
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.listing import Listing
from tests.directory.conftest import Server, running, server_files
from trust.store.database import Database
from trust.vault import KeyVault, VaultError

from .conftest import Clock
from .mailbox_house import DOCTOR, DOMAIN, MACHINE, PATIENT, TEAM, House
from .mailboxes import Mailboxes

__all__ = ["running", "server_files"]


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


def listing_of(house: House, writer: Directory) -> Listing:
    adoption = Adoption(house.registry, house.database, house.journal, writer, house.clock)
    return Listing(house.registry, house.database, house.vault, writer, adoption)


def everything(listing: Listing) -> None:
    while listing.turn(2):
        pass


def test_listed_while_it_is_open(running: Server, house: House, vault: KeyVault, mailboxes: Mailboxes) -> None:
    mailboxes.install(vault, DOCTOR)
    with running.directory("admin") as writer, running.directory("gateway") as reader:
        listing = listing_of(house, writer)
        everything(listing)
        found = reader.resolve(DOCTOR)
        assert found is not None
        assert (found.kind, found.display_name) == (MailboxKind.PER, "Dr Camille GRIS")
        assert len(found.encryption_certificates) == len(found.signing_certificates) == 1
        kinds = {each: reader.resolve(each) for each in (TEAM, MACHINE, PATIENT)}
        assert [each.kind.value for each in kinds.values() if each] == ["ORG", "APP", "PATIENT"]
        house.administration.suspend(DOCTOR, "", "root")
        house.administration.close(TEAM, "fermée", "root")
        house.administration.describe(MACHINE, "root", label="Automate de biologie", id_nat="1750012345")
        assert listing.turn() == 2, "a suspended one receives"
        assert reader.resolve(DOCTOR) is not None
        assert reader.resolve(TEAM) is None
        machine = reader.resolve(MACHINE)
        assert machine is not None
        assert (machine.display_name, machine.structure) == ("Automate de biologie", "1750012345")
        house.administration.open(TEAM, "root")
        everything(listing)
        assert reader.resolve(TEAM) is not None


def test_what_else_the_directory_says_stays(running: Server, house: House, vault: KeyVault) -> None:
    from dataclasses import replace

    with running.directory("admin") as writer, running.directory("gateway") as reader:
        listing = listing_of(house, writer)
        everything(listing)
        known = writer.resolve(DOCTOR)
        assert known is not None
        writer.publish(replace(known, profession="10", rank=1))
        house.administration.describe(DOCTOR, "root", label="Pr Camille GRIS")
        everything(listing)
        found = reader.resolve(DOCTOR)
        assert found is not None
        assert (found.display_name, found.profession, found.rank) == ("Pr Camille GRIS", "10", 1)


def test_a_directory_that_is_away_is_told_later(running: Server, house: House, vault: KeyVault) -> None:
    nowhere = Directory(DirectoryOptions("ldaps://127.0.0.1:9", "dc=x", "cn=x", "x", timeout_seconds=0.5))
    house.administration.close(DOCTOR, "fermée", "root")
    with pytest.raises(DirectoryUnavailableError):
        listing_of(house, nowhere).turn()
    nowhere.close()
    entry = house.administration.show(DOCTOR).entry
    assert entry.published < entry.version
    with running.directory("admin") as writer:
        everything(listing_of(house, writer))
    entry = house.administration.show(DOCTOR).entry
    assert entry.published == entry.version


class Picky:
    """A directory that refuses one entry, and does what is done `meanwhile` while it writes."""

    def __init__(self, refused: str = "", meanwhile: Callable[[], object] = lambda: None) -> None:
        self.refused, self.meanwhile = refused, meanwhile
        self.published: list[str] = []
        self.withdrawn: list[str] = []
        self.certified: list[str] = []

    def resolve(self, address: str) -> Recipient | None:
        return None

    def publish(self, recipient: Recipient, *, certificates: bool = True) -> None:
        if recipient.address == self.refused:
            raise DirectoryRefusedError("invalid syntax")
        self.published.append(recipient.address)
        self.certified += [recipient.address] * certificates
        self.meanwhile()

    def withdraw(self, address: str) -> bool:
        self.withdrawn.append(address)
        self.meanwhile()
        return True


def test_what_the_directory_refuses_stops_nothing_else(house: House) -> None:
    first = min(house.administration.list("", 10), key=lambda each: each.id).record.address
    writer = Picky(first)
    listing = listing_of(house, writer)  # type: ignore[arg-type]
    with pytest.raises(DirectoryRefusedError):
        everything(listing)
    assert len(writer.published) == 5
    assert house.registry.untold() == 1
    house.administration.close(DOCTOR if first != DOCTOR else TEAM, "fermée", "root")
    with pytest.raises(DirectoryRefusedError):
        everything(listing)
    assert len(writer.withdrawn) == 1
    writer.refused = ""
    everything(listing)
    assert house.registry.untold() == 0


def test_a_row_that_cannot_be_read_stops_nothing_else(house: House) -> None:
    first = min(each.id for each in house.administration.list("", 10))
    with house.database.engine.begin() as connection:
        connection.execute(update(tables.mailboxes).where(tables.mailboxes.c.address == first).values(sealed=b"x"))
    writer = Picky()
    with pytest.raises(VaultError):
        everything(listing_of(house, writer))  # type: ignore[arg-type]
    assert len(writer.published) == 5


def test_two_nodes_that_tell_at_once_tell_again(house: House) -> None:
    """Whose word came last nobody knows."""
    everything(listing_of(house, Picky()))  # type: ignore[arg-type]
    other = Picky()

    def meanwhile() -> None:
        slow.meanwhile = lambda: None
        house.administration.open(DOCTOR, "root")
        listing_of(house, other).tell(house.registry.id_of(DOCTOR))  # type: ignore[arg-type]

    slow = Picky(meanwhile=meanwhile)
    house.administration.close(DOCTOR, "fermée", "root")
    listing_of(house, slow).tell(house.registry.id_of(DOCTOR))  # type: ignore[arg-type]
    assert (slow.withdrawn, other.published) == ([DOCTOR], [DOCTOR])
    everything(listing_of(house, slow))  # type: ignore[arg-type]
    assert slow.published == [DOCTOR]


def test_of_a_guess_the_directory_is_asked(running: Server, house: House) -> None:
    machine, new = f"automate2@{DOMAIN}", f"nouveau@{DOMAIN}"
    for address in (machine, new):
        house.accounts.create(address, [address], None)
    with running.directory("admin") as writer:
        writer.publish(Recipient(machine, MailboxKind.APP, "Automate 2"))
        for address in (machine, new):
            house.administration.close(address, "fermée", "root")
            house.administration.open(address, "root")
        everything(listing_of(house, writer))
        found = writer.resolve(machine)
        assert found is not None
        assert (found.kind, found.display_name) == (MailboxKind.APP, "Automate 2")
        entry = house.administration.show(machine).entry
        assert (entry.record.kind, entry.guessed) == (MailboxKind.APP, False)
        assert writer.resolve(new) is None, "listed as nothing that it may not be"
        house.administration.describe(new, "root", MailboxKind.CAB, label="Cabinet")
        everything(listing_of(house, writer))
        found = writer.resolve(new)
        assert found is not None
        assert found.kind is MailboxKind.CAB


def test_whose_account_is_gone_is_listed_no_more(running: Server, house: House) -> None:
    with running.directory("admin") as writer:
        everything(listing_of(house, writer))
        assert writer.resolve(DOCTOR) is not None
        house.people.delete(DOCTOR, "root")
        everything(listing_of(house, writer))
        assert writer.resolve(DOCTOR) is None
        house.people.create(DOCTOR, [DOCTOR], None, "root", former=True)
        everything(listing_of(house, writer))
        assert writer.resolve(DOCTOR) is not None


def test_only_certificates_of_ours_are_written(house: House, vault: KeyVault, mailboxes: Mailboxes) -> None:
    """Those of who holds the keys were learned from his mail, and so will be those that follow them."""
    mailboxes.install(vault, DOCTOR)
    writer = Picky()
    everything(listing_of(house, writer))  # type: ignore[arg-type]
    assert writer.certified == [DOCTOR]
