"""The directory learns of mailboxes' lives: a real slapd that goes away meanwhile, a writer that may not write."""

from __future__ import annotations

import pytest

from directory.records import MailboxKind
from directory.resolve import Directory, DirectoryOptions, DirectoryUnavailableError
from mta.mailboxes.listing import Listing
from tests.directory.conftest import Server, running, server_files
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock
from .mailbox_house import DOCTOR, MACHINE, PATIENT, TEAM, House
from .mailboxes import Mailboxes

__all__ = ["running", "server_files"]


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


def everything(listing: Listing) -> None:
    while listing.turn(2):
        pass


def test_listed_while_it_is_open(running: Server, house: House, vault: KeyVault, mailboxes: Mailboxes) -> None:
    mailboxes.install(vault, DOCTOR)
    with running.directory("admin") as writer, running.directory("gateway") as reader:
        listing = Listing(house.registry, house.database, vault, writer)
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
        listing = Listing(house.registry, house.database, vault, writer)
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
        Listing(house.registry, house.database, vault, nowhere).turn()
    nowhere.close()
    entry = house.administration.show(DOCTOR).entry
    assert entry.published < entry.version
    with running.directory("admin") as writer:
        everything(Listing(house.registry, house.database, vault, writer))
    entry = house.administration.show(DOCTOR).entry
    assert entry.published == entry.version
