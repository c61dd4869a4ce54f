"""Mailboxes on a real database: what each is, who may do what, and what an operator may do to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from directory.records import MailboxKind, Recipient
from directory.resolve import DirectoryUnavailableError
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.records import Custody, MailboxRecord, MailboxState, Member, MemberRight, ReadingPreferences
from mta.mailboxes.registry import preferences_of
from mta.mailboxes.tables import mailboxes
from trust.accounts_administration import Administration
from trust.identities import AccountError, Right
from trust.shared_addresses import Access
from trust.store.database import Database
from trust.tables import identity_addresses
from trust.vault import KeyVault, VaultError

from .conftest import Clock
from .mailbox_house import (
    DOCTOR,
    DOMAIN,
    MACHINE,
    OTHER,
    PASSWORD,
    PATIENT,
    PATIENTS,
    READ,
    SECRETARY,
    SEND,
    TEAM,
    WRITE,
    House,
)


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


@pytest.fixture
def either(each_database: Database, vault: KeyVault, clock: Clock) -> House:
    """On each kind of database."""
    made = House(each_database, vault, clock)
    made.furnish()
    return made


def test_each_is_what_it_was_made(either: House, clock: Clock) -> None:
    kinds = {DOCTOR: "PER", TEAM: "ORG", MACHINE: "APP", PATIENT: "PATIENT"}
    for address, kind in kinds.items():
        found = either.registry.find(address.upper())
        assert found is not None
        assert (found.address, found.kind.value, found.state) == (address, kind, MailboxState.ACTIVE)
        assert found.created_at == clock.now
    assert either.registry.find("personne@op1.example") is None
    assert either.registry.find("") is None
    assert either.actions()[:2] == ["mailbox.created"] * 2


def test_no_address_and_no_name_is_readable_in_the_database(house: House) -> None:
    entry = house.administration.close(PATIENT, "compte fermé à sa demande", "root")
    dumped = []
    with house.database.engine.connect() as connection:
        for table in ("mta_mailboxes", "journal_payloads", "identities", "identity_addresses", "address_grants"):
            dumped += [repr(tuple(row)) for row in connection.execute(text(f"SELECT * FROM {table}"))]
    written = " ".join(dumped)
    for secret in (PATIENT, "299019900100133", "GRIS", "à sa demande", DOCTOR):
        assert secret not in written
    assert entry.id in written


def test_a_row_moved_to_another_mailbox_does_not_open(house: House) -> None:
    ids = {name: house.registry.id_of(name) for name in (DOCTOR, TEAM)}

    def swap(connection) -> None:
        sealed = connection.scalar(select(mailboxes.c.sealed).where(mailboxes.c.address == ids[TEAM]))
        connection.execute(update(mailboxes).where(mailboxes.c.address == ids[DOCTOR]).values(sealed=sealed))

    house.database.transact(swap)
    with pytest.raises(VaultError):
        house.registry.find(DOCTOR)


@pytest.mark.parametrize(
    ("address", "kind", "label", "words"),
    [
        (f"x@{PATIENTS}", MailboxKind.PER, "X", "patients' mailboxes"),
        (f"299019900100133@{DOMAIN}", MailboxKind.PATIENT, "", "patients' mailboxes"),
        (f"dupont@{PATIENTS}", MailboxKind.PATIENT, "", "matricule"),
        (f"2990199001001@{PATIENTS}", MailboxKind.PATIENT, "", "15 characters"),
        (f"199019900100133@{PATIENTS}", MailboxKind.PATIENT, "Jean", "no label"),
        ("x@ailleurs.example", MailboxKind.PER, "X", "not one of this operator's"),
        (f"x@{DOMAIN}", MailboxKind.PER, "", "--label"),
        (f"x@{DOMAIN}", MailboxKind.ORG, "é" * 201, "at most 200"),
        (f"x@{DOMAIN}", MailboxKind.ORG, "a\x1b[2Jb", "none of them for control"),
        (f"x/y@{DOMAIN}", MailboxKind.ORG, "X", "local@domain"),
        (DOCTOR, MailboxKind.PER, "X", "already"),
    ],
)
def test_what_cannot_be_made_says_why(house: House, address: str, kind: MailboxKind, label: str, words: str) -> None:
    with pytest.raises(AccountError, match=words):
        house.administration.create(MailboxRecord(address=address, kind=kind, label=label), "", None, "root")
    assert "mailbox.created" not in house.actions()[7:]


def test_nor_a_quota_that_no_database_holds(house: House) -> None:
    record = MailboxRecord(address=f"x@{DOMAIN}", kind=MailboxKind.ORG, label="X", quota_bytes=1 << 70)
    with pytest.raises(AccountError, match="one pebibyte"):
        house.administration.create(record, "", None, "root")


def test_corsica_has_letters(house: House) -> None:
    house.create(f"299012b00100133@{PATIENTS}", MailboxKind.PATIENT)


def test_a_machine_has_no_password(house: House) -> None:
    with pytest.raises(AccountError, match="certificate"):
        house.create(f"autre@{DOMAIN}", MailboxKind.APP, "Autre", PASSWORD)
    with pytest.raises(AccountError, match="certificate"):
        house.administration.set_password(MACHINE, PASSWORD, "root")
    house.administration.set_password(MACHINE, None, "root")


def test_one_account_may_have_several(house: House) -> None:
    second = MailboxRecord(address=f"recherche@{DOMAIN}", kind=MailboxKind.PER, label="Dr Camille GRIS")
    house.administration.create(second, DOCTOR, None, "root")
    owner = house.accounts.by_address(second.address)
    assert owner is not None
    assert owner.addresses == (DOCTOR, second.address)
    with pytest.raises(AccountError, match="exists already"):
        house.administration.create(replace(second, address=f"z@{DOMAIN}"), DOCTOR, "autre", "root")
    assert house.registry.find(f"z@{DOMAIN}") is None, "nothing is half-done"


# Members


def test_rights_of_members_are_rights_of_their_accounts(either: House) -> None:
    secretary = either.accounts.by_address(SECRETARY)
    assert secretary is not None
    accounts = either.accounts
    expected = {
        READ: (False, False, Access.READ),
        READ | WRITE: (True, False, Access.READ | Access.WRITE),
        SEND: (False, True, Access.SEND | Access.SIGN),
        READ | WRITE | SEND: (True, True, ~Access(0)),
    }
    for rights, (opens, sends, access) in expected.items():
        shown = either.administration.set_member(TEAM, SECRETARY, rights, "root")
        assert shown.members == (Member(SECRETARY, rights),)
        assert either.registry.shared_with(SECRETARY) == ((TEAM, rights),)
        assert accounts.access(secretary, TEAM) == access
        assert accounts.may_open(secretary, TEAM) is opens
        assert accounts.may_use(secretary, TEAM) is sends
        assert accounts.may_sign_as(secretary, TEAM) is sends
    either.administration.set_member(TEAM, SECRETARY, MemberRight(0), "root")
    assert either.registry.shared_with(SECRETARY) == ()
    assert accounts.access(secretary, TEAM) == Access(0)
    with pytest.raises(AccountError, match="no member"):
        either.administration.set_member(TEAM, SECRETARY, MemberRight(0), "root")
    assert either.actions().count("mailbox.member-set") == 6


def test_whoever_is_granted_the_team_s_address_is_a_member(house: House) -> None:
    administration = Administration(house.accounts, house.journal)
    administration.grant(DOCTOR, TEAM, Right.USE, "root")
    administration.join(OTHER, TEAM, "root")
    assert house.registry.members(TEAM) == (
        Member(DOCTOR, READ | WRITE),
        Member(OTHER, READ | WRITE | SEND),
        Member(SECRETARY, READ | SEND),
    )
    assert administration.show(SECRETARY).granted == ((TEAM, "rs"),)
    with pytest.raises(AccountError, match="--member-of"):
        house.administration.set_member(TEAM, OTHER, MemberRight(0), "root")
    administration.lock(TEAM, "", "root")
    assert house.registry.shared_with(OTHER) == (), "a team that is kept out gives nothing"
    administration.lock(SECRETARY, "", "root")
    assert house.registry.shared_with(SECRETARY) == ()


def test_a_right_that_cannot_be_narrowed_is_not_said_to_be(either: House) -> None:
    either.people.join(OTHER, TEAM, "root")
    with pytest.raises(AccountError, match="--member-of"):
        either.administration.set_member(TEAM, OTHER, READ, "root")
    either.people.leave(OTHER, TEAM, "root")
    shown = either.administration.set_member(TEAM, OTHER, READ, "root")
    assert Member(OTHER, READ) in shown.members
    either.create(f"garde@{DOMAIN}", MailboxKind.ORG, "Garde")
    either.people.join(OTHER, f"garde@{DOMAIN}", "root")
    shown = either.administration.set_member(TEAM, f"garde@{DOMAIN}", READ | WRITE, "root")
    assert OTHER in shown.reach, "who has rights through another team has it open too"
    with pytest.raises(AccountError, match="--member-of"):
        either.administration.set_member(TEAM, OTHER, READ, "root")


def test_the_password_of_an_account_opens_all_its_addresses(house: House) -> None:
    second = MailboxRecord(address=f"recherche@{DOMAIN}", kind=MailboxKind.PER, label="Dr Camille GRIS")
    house.administration.create(second, DOCTOR, None, "root")
    shown = house.administration.set_password(second.address, "nouveau", "root")
    assert set(shown.reach) == {DOCTOR, second.address}


def test_only_teams_have_members(house: House) -> None:
    for address in (DOCTOR, MACHINE, PATIENT):
        with pytest.raises(AccountError, match="ORG, CAB"):
            house.administration.set_member(address, SECRETARY, READ, "root")
        assert house.registry.members(address) == ()
    with pytest.raises(AccountError, match="no account"):
        house.administration.set_member(TEAM, "personne", READ, "root")
    with pytest.raises(AccountError, match="own account"):
        house.administration.set_member(TEAM, TEAM, READ, "root")
    Administration(house.accounts, house.journal).grant(SECRETARY, DOCTOR, Right.SIGN, "root")
    assert house.registry.shared_with(SECRETARY) == ((TEAM, READ | SEND),), "a doctor's mailbox is no team's"


def test_nobody_has_a_share_in_what_is_shut(house: House) -> None:
    for act in (house.administration.suspend, house.administration.close):
        act(TEAM, "service fermé", "root")
        assert house.registry.shared_with(SECRETARY) == ()
        assert house.registry.members(TEAM), "and they come back with it"
    house.administration.open(TEAM, "root")
    assert house.registry.shared_with(SECRETARY) == ((TEAM, READ | SEND),)


# Its life


def test_suspended_closed_and_opened_again(either: House, clock: Clock) -> None:
    act = either.administration
    assert act.suspend(DOCTOR, "en congé", "root").record.state is MailboxState.SUSPENDED
    clock.now += 10
    closed = act.close(DOCTOR, "  parti à la   retraite ", "root").record
    assert (closed.state, closed.reason, closed.closed_at) == (
        MailboxState.CLOSED,
        "parti à la retraite",
        clock.now,
    )
    clock.now += 10
    assert act.close(DOCTOR, "autre raison", "root").record.closed_at == closed.closed_at, "it was closed before"
    with pytest.raises(AccountError, match="open it first"):
        act.suspend(DOCTOR, "", "root")
    with pytest.raises(AccountError, match="--reason"):
        act.close(TEAM, " ", "root")
    with pytest.raises(AccountError, match="number of a patient"):
        act.close(TEAM, "dossier 2 99 01 99 001 001 33", "root")
    again = act.open(DOCTOR, "root").record
    assert (again.state, again.reason, again.closed_at) == (MailboxState.ACTIVE, "", None)
    with pytest.raises(AccountError, match="no mailbox"):
        act.open("personne@op1.example", "root")
    assert [each for each in either.actions() if each.startswith("mailbox.") and "created" not in each] == [
        "mailbox.member-set",
        "mailbox.suspended",
        "mailbox.closed",
        "mailbox.closed",
        "mailbox.opened",
    ]


def test_the_address_of_a_closed_mailbox_is_never_given_away(house: House) -> None:
    house.administration.close(DOCTOR, "décision de l'opérateur", "root")
    record = MailboxRecord(address=DOCTOR, kind=MailboxKind.PER, label="Un autre")
    with pytest.raises(AccountError, match="never given to somebody else"):
        house.administration.create(record, "", None, "root")
    house.people.delete(DOCTOR, "root")
    with pytest.raises(AccountError, match="never given to somebody else"):
        house.administration.create(record, "", None, "root")
    found = house.registry.find(DOCTOR)
    assert found is not None
    assert found.state is MailboxState.CLOSED, "its senders are still told why"
    with pytest.raises(AccountError, match="account was deleted"):
        house.administration.open(DOCTOR, "root")


def test_nor_by_another_account(either: House) -> None:
    """A homonym would read, at once, all that is in it."""
    act = either.people
    fresh = f"a.martin@{DOMAIN}"
    act.create(fresh, [fresh], None, "root")
    act.delete(fresh, "root")  # a minute old: nothing of it was written down yet
    act.delete(OTHER, "root")
    act.set_addresses(SECRETARY, [SECRETARY, f"accueil@{DOMAIN}"], "root")
    act.set_addresses(SECRETARY, [SECRETARY], "root")
    for former in (fresh, OTHER, f"accueil@{DOMAIN}"):
        for login in (former, "autre"):
            with pytest.raises(AccountError, match="--former-mailbox"):
                act.create(login, [former], None, "root")
        with pytest.raises(AccountError, match="--former-mailbox"):
            act.set_addresses(DOCTOR, [DOCTOR, former], "root")
        assert either.registry.find(former) is None
    act.set_addresses(DOCTOR, [DOCTOR], "root")
    act.create(OTHER, [OTHER], None, "root", former=True)
    found = either.registry.find(OTHER)
    assert found is not None
    assert found.label == "Dr Dominique NOIR", "it is whose it was"
    with pytest.raises(AccountError, match="already belongs"):
        act.create("autre", [DOCTOR], None, "root")


def test_the_directory_is_to_know_whose_account_went_and_came_back(house: House) -> None:
    with house.database.engine.begin() as connection:
        connection.execute(update(mailboxes).values(published=mailboxes.c.version))
    assert house.registry.untold() == 0
    house.people.delete(OTHER, "root")
    assert house.database.read(lambda c: house.registry.unpublished(c, 10)) == [house.registry.id_of(OTHER)]
    with house.database.engine.begin() as connection:
        connection.execute(update(mailboxes).values(published=mailboxes.c.version))
    house.people.create(OTHER, [OTHER], None, "root", former=True)
    assert house.registry.untold() == 1


def test_without_its_account_it_is_no_mailbox(house: House) -> None:
    Administration(house.accounts, house.journal).delete(OTHER, "root")
    assert house.registry.find(OTHER) is None
    shown = house.administration.show(OTHER)
    assert not shown.entry.owned, "an operator still sees it"
    with pytest.raises(AccountError, match="never given to somebody else"):
        house.create(OTHER, MailboxKind.PER, "Dr Jean BLANC", PASSWORD)
    house.accounts.create(OTHER, [OTHER], PASSWORD)
    found = house.registry.find(OTHER)
    assert found is not None
    assert found.label == "Dr Dominique NOIR"


def test_what_the_directory_was_not_told_stays_to_be_told(house: House) -> None:
    act = house.administration
    before = act.show(DOCTOR).entry
    assert before.published < before.version
    act.set_quota(DOCTOR, 1, "root")
    act.suspend(DOCTOR, "", "root")
    after = act.show(DOCTOR).entry
    assert (after.version, after.published) == (before.version, before.published)


def test_by_the_beginning_of_its_id(either: House) -> None:
    entry = either.administration.show(PATIENT).entry
    assert either.administration.show(entry.id[:12]).entry == entry
    assert either.administration.show(entry.id.upper()).entry == entry
    for wrong in ("0" * 12, entry.id[:7], "", "%", entry.id[:8] + "%"):
        with pytest.raises(AccountError):
            either.administration.show(wrong)


def test_quota_preferences_and_description(house: House) -> None:
    act = house.administration
    before = act.show(DOCTOR).entry
    wanted = ReadingPreferences(custody=Custody.HOLDER, flags=False, hprim=True, seen_per_member=True)
    act.set_preferences(DOCTOR, wanted, "root")
    act.set_quota(DOCTOR, 5 << 30, "root")
    found = house.registry.find(DOCTOR)
    assert found is not None
    assert (found.preferences, found.quota_bytes) == (wanted, 5 << 30)
    assert act.show(DOCTOR).entry.version == before.version, "nothing of that is the directory's affair"
    act.describe(DOCTOR, "root", label="Pr Camille GRIS", id_nat="810000000001")
    assert act.show(DOCTOR).entry.version == before.version + 1
    with pytest.raises(AccountError, match="quota"):
        act.set_quota(DOCTOR, -1, "root")
    with pytest.raises(AccountError, match="identifier"):
        act.describe(DOCTOR, "root", id_nat="8 or 1=1")


def test_preferences_of_other_versions_are_read() -> None:
    assert preferences_of({}) == ReadingPreferences()
    assert preferences_of({"hprim": True, "not yet known": 1}) == ReadingPreferences(hprim=True)


def test_lists_page_by_page(either: House) -> None:
    first = either.administration.list("", 4)
    rest = either.administration.list(first[-1].id, 4)
    assert {each.record.address for each in (*first, *rest)} == {DOCTOR, OTHER, SECRETARY, TEAM, MACHINE, PATIENT}
    either.administration.suspend(TEAM, "", "root")
    (found,) = either.administration.list("", 10, MailboxKind.ORG, MailboxState.SUSPENDED)
    assert found.record.address == TEAM
    assert either.registry.counts()["ORG", "suspended"] == 1


# Accounts that are older


class Known:
    """What the directory says."""

    def __init__(self, *recipients: Recipient) -> None:
        self.recipients = {each.address: each for each in recipients}
        self.down = False

    def resolve(self, address: str) -> Recipient | None:
        if self.down:
            raise DirectoryUnavailableError
        return self.recipients.get(address)


def test_accounts_without_a_record_are_mailboxes_and_get_one(either: House, clock: Clock) -> None:
    old, service, unlisted = f"ancien@{DOMAIN}", f"service@{DOMAIN}", f"accueil@{DOMAIN}"
    patient = f"199019900100133@{PATIENTS}"
    machine = f"automate2@{DOMAIN}"
    for address in (old, service, unlisted, patient, machine):
        either.accounts.create(address, [address], PASSWORD)
    Administration(either.accounts, either.journal).grant(SECRETARY, unlisted, Right.SIGN, "root")
    for address, kind in ((old, "PER"), (unlisted, "ORG"), (patient, "PATIENT")):
        found = either.registry.find(address)
        assert found is not None, "no mail is refused meanwhile"
        assert found.kind.value == kind
    assert either.rules.receives(old) is None
    directory = Known(
        Recipient(old, MailboxKind.APP, "Ancien automate", structure="1750012345"),
        Recipient(service, MailboxKind.CAB, "Cabinet\x00 fictif"),
        Recipient(patient, MailboxKind.PER, "Personne"),
    )
    adoption = Adoption(either.registry, either.database, either.journal, directory, clock)
    directory.down = True
    with pytest.raises(DirectoryUnavailableError):
        adoption.turn()
    assert "mailbox.adopted" not in either.actions(), "asked first"
    directory.down = False
    assert adoption.turn(3) == 3
    assert adoption.turn(3) == 0
    found = either.registry.find(old)
    assert found is not None
    assert (found.kind, found.label, found.id_nat) == (MailboxKind.APP, "Ancien automate", "1750012345")
    kinds = {each: either.registry.find(each) for each in (service, unlisted, patient)}
    assert [each.kind.value for each in kinds.values() if each] == ["CAB", "ORG", "PATIENT"]
    assert kinds[patient].label == ""
    assert either.actions().count("mailbox.adopted") == 5
    entry = either.administration.show(old).entry
    assert entry.published == entry.version, "the directory has nothing to learn from itself"
    guesses = {each.record.address for each in either.administration.list("", 100) if each.guessed}
    assert guesses == {unlisted, machine}, "nobody has said those"
    directory.recipients[machine] = Recipient(machine, MailboxKind.APP, "Automate")
    assert adoption.turn(3) == 0
    found = either.registry.find(machine)
    assert found is not None
    assert found.kind is MailboxKind.APP
    assert not either.administration.show(machine).entry.guessed


def test_what_was_guessed_is_said_by_an_operator_once(either: House) -> None:
    """A machine that no directory lists yet must not be a person for ever, who logs in with a password."""
    machine, team = f"automate2@{DOMAIN}", f"equipe@{DOMAIN}"
    for address in (machine, team):
        either.accounts.create(address, [address], PASSWORD)
    act = either.administration
    act.suspend(machine, "", "root")
    act.set_quota(machine, 1 << 30, "root")
    act.close(machine, "pas encore", "root")
    assert act.open(machine, "root").guessed, "whatever is done to it, its kind is still a guess"
    with pytest.raises(AccountError, match="--kind"):
        act.describe(machine, "root", label="Automate")
    with pytest.raises(AccountError, match="patients' domains"):
        act.describe(machine, "root", MailboxKind.PATIENT)
    with pytest.raises(AccountError, match="--label"):
        act.describe(machine, "root", MailboxKind.APP)
    said = act.describe(machine, "root", MailboxKind.APP, label="Automate")
    assert (said.guessed, said.record.kind, said.record.quota_bytes) == (False, MailboxKind.APP, 1 << 30)
    assert either.rules.opens(machine) is not None, "a machine: with its certificate only"
    for kind in (MailboxKind.PER, MailboxKind.ORG):
        with pytest.raises(AccountError, match="never changes"):
            act.describe(machine, "root", kind)
    act.describe(machine, "root", MailboxKind.APP, label="Automate 2")
    with pytest.raises(AccountError, match="describe --kind"):
        act.set_member(team, SECRETARY, READ, "root")
    act.describe(team, "root", MailboxKind.ORG, label="Équipe")
    act.set_member(team, SECRETARY, READ, "root")


def test_one_that_cannot_be_read_keeps_no_other_from_its_record(house: House, clock: Clock) -> None:
    addresses = [f"ancien{n}@{DOMAIN}" for n in range(6)]
    for address in addresses:
        house.accounts.create(address, [address], None)
    with house.database.engine.begin() as connection:
        for address in addresses[:2]:
            broken = update(identity_addresses).where(identity_addresses.c.address == house.registry.id_of(address))
            connection.execute(broken.values(sealed=b"altered"))
    adoption = Adoption(house.registry, house.database, house.journal, Known(), clock)
    with pytest.raises(VaultError):
        while adoption.turn(2):
            pass
    assert house.actions().count("mailbox.adopted") == 4


def test_an_operator_s_act_writes_the_record_down(house: House) -> None:
    house.accounts.create(f"ancien@{DOMAIN}", [f"ancien@{DOMAIN}"], PASSWORD)
    house.administration.suspend(f"ancien@{DOMAIN}", "", "root")
    found = house.registry.find(f"ancien@{DOMAIN}")
    assert found is not None
    assert found.state is MailboxState.SUSPENDED


def test_kept_across_a_restart(tmp_path: Path, vault: KeyVault, clock: Clock) -> None:
    from tests.mta.conftest import with_tables

    with with_tables(f"sqlite:///{tmp_path / 'again.db'}") as database:
        house = House(database, vault, clock)
        house.furnish()
        house.administration.close(DOCTOR, "départ", "root")
    with with_tables(f"sqlite:///{tmp_path / 'again.db'}") as database:
        again = House(database, vault, clock).registry.find(DOCTOR)
        assert again is not None
        assert (again.state, again.reason) == (MailboxState.CLOSED, "départ")
