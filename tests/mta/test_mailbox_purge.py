"""The mail of closed mailboxes: kept for its time, then gone, however often the purge is interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta.mailboxes.purging import MailboxPeriods, MailboxPurge
from mta.retention import DAY
from trust.identities import AccountError
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock
from .mailbox_house import DOCTOR, OTHER, PATIENT, TEAM, House


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for address in (DOCTOR, OTHER, TEAM):
        folder = tmp_path / "mail" / address / "mail" / "mailboxes"
        folder.mkdir(parents=True)
        (folder / "u.1").write_text("un compte rendu")
    return tmp_path / "mail"


class Purge:
    def __init__(self, house: House, home: Path, clock: Clock) -> None:
        self.forgotten: list[str] = []
        self.broken = False
        self.purge = MailboxPurge(
            house.registry,
            house.exchanges,
            house.database,
            house.journal,
            lambda address: home / address,
            MailboxPeriods(closed=30 * DAY),
            forget=[self._forget],
            clock=clock,
            batch=1,
        )

    def _forget(self, address: str) -> None:
        if self.broken:
            raise OSError("the disk")
        self.forgotten.append(address)

    def run(self) -> int:
        purged = 0
        while (batch := self.purge.turn()).more:
            purged += batch.purged
        return purged


def test_kept_for_its_time_then_gone(house: House, home: Path, clock: Clock) -> None:
    purge = Purge(house, home, clock)
    for address in (DOCTOR, OTHER, PATIENT):
        house.administration.close(address, "fermée", "root")
    clock.now += 29 * DAY
    assert purge.run() == 0
    assert (home / DOCTOR).exists()
    house.administration.open(OTHER, "root")
    clock.now += 2 * DAY
    assert purge.run() == 2
    assert not (home / DOCTOR).exists()
    assert (home / OTHER).exists(), "opened again in time"
    assert (home / TEAM).exists()
    assert sorted(purge.forgotten) == sorted([DOCTOR, PATIENT])
    assert purge.run() == 0
    assert house.actions().count("mailbox.purged") == 2
    with pytest.raises(AccountError, match="stays closed"):
        house.administration.open(DOCTOR, "root")
    refused = house.rules.receives(DOCTOR)
    assert refused is not None
    assert refused.detail == "fermée", "its senders are still told why"
    assert [each.name for each in home.iterdir()].count(f"{DOCTOR}.purged") == 0


def test_interrupted_it_goes_on(house: House, home: Path, clock: Clock) -> None:
    purge = Purge(house, home, clock)
    house.administration.close(DOCTOR, "fermée", "root")
    clock.now += 31 * DAY
    purge.broken = True
    with pytest.raises(OSError, match="the disk"):
        purge.run()
    assert (home / DOCTOR).exists()
    with pytest.raises(AccountError, match="stays closed"):
        house.administration.open(DOCTOR, "root")
    (home / DOCTOR).rename(home / f"{DOCTOR}.purged")  # killed between both steps
    purge.broken = False
    assert purge.run() == 1
    assert sorted(each.name for each in home.iterdir()) == sorted([OTHER, TEAM])
    assert house.actions().count("mailbox.purged") == 1


def test_opened_while_the_purge_looks(house: House, home: Path, clock: Clock) -> None:
    purge = Purge(house, home, clock)
    house.administration.close(DOCTOR, "fermée", "root")
    clock.now += 31 * DAY
    (entry,) = house.database.read(lambda c: house.registry.closed_before(c, clock.now, 10))
    house.administration.open(DOCTOR, "root")
    assert purge.purge._purge(entry) == 0
    assert (home / DOCTOR).exists()
