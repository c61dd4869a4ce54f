"""What guessing achieves, and what it cannot do to the one whose account it is."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import thread_time

import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select

from trust.accounts import Accounts, Service
from trust.accounts_administration import Administration
from trust.catalogue import ACCOUNT_DISABLED, ACCOUNT_LOCKED, AUTHENTICATION_FAILED
from trust.identities import Identity
from trust.journal import Journal
from trust.lockout import neighbourhood_of, network_of
from trust.refusals import Refused
from trust.store import metadata
from trust.store.database import Database
from trust.tables import login_sources
from trust.vault import KeyVault

QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
FAILED, LOCKED = Refused(AUTHENTICATION_FAILED), Refused(ACCOUNT_LOCKED)
DOCTOR, GOOD = "dr.fictif", "le bon mot"
PRACTICE, ATTACKER = "192.0.2.10", "198.51.100.7"
DAY = 86400


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


THOUSANDS = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""Of guesses: what is counted is the same wherever it is kept, and the other tests see that it is kept."""


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def journal(vault):
    return Journal(vault, "here")


@pytest.fixture
def accounts(database, vault, clock, journal):
    accounts = Accounts(database, vault, clock=clock, hasher=QUICK, journal=journal)
    accounts.create(DOCTOR, ["dr.fictif@cabinet.example"], GOOD)
    return accounts


@pytest.fixture
def log_in(accounts):
    def attempt(password=GOOD, client=PRACTICE):
        return accounts.authenticate(DOCTOR, password, client, Service.IMAP)

    return attempt


def guess(log_in, client, count, start=0) -> list:
    return [log_in(f"guess {number}", client) for number in range(start, start + count)]


def passes(answer) -> bool:
    return isinstance(answer, Identity)


def test_a_stranger_locks_his_own_network_and_nobody_elses(log_in) -> None:
    assert guess(log_in, ATTACKER, 5) == [FAILED] * 5
    assert log_in("guess", ATTACKER) == LOCKED
    assert log_in(GOOD, "198.51.100.200") == LOCKED, "the same network"
    assert passes(log_in(GOOD, PRACTICE))
    assert passes(log_in(GOOD, "2001:db8::1"))


def test_the_right_password_passes_from_a_familiar_network_whatever_others_do(log_in, clock) -> None:
    assert passes(log_in())
    answers = [answer for net in range(20) for answer in guess(log_in, f"203.0.{net}.1", 5, 5 * net)]
    assert answers.count(FAILED) == 50, "and no more, from however many networks"
    assert log_in(GOOD, "203.0.200.1") == LOCKED, "a network it was never used in waits"
    for _ in range(40):
        clock.now += 600
        guess(log_in, f"203.0.{int(clock.now) % 250}.9", 3)
        assert passes(log_in())


@THOUSANDS
def test_guesses_from_everywhere_are_bounded_for_ever(log_in, clock) -> None:
    judged = 0
    for step in range(3 * 24 * 6):
        clock.now += 600
        judged += guess(log_in, f"203.0.{step % 256}.{step % 7}", 3, 3 * step).count(FAILED)
    assert judged <= 50 + 3 * 50 + 1


@THOUSANDS
def test_locks_of_one_network_grow(log_in, accounts, clock) -> None:
    pauses = []
    for turn in range(9):
        assert guess(log_in, "", 5, 5 * turn) == [FAILED] * 5 or turn > 7
        start = clock.now
        while log_in("x", "") == LOCKED:
            clock.now += 450
        pauses.append(clock.now - start)
        accounts.database.transact(
            lambda c: c.exec_driver_sql("UPDATE identities SET failures=0, locked_until=0") and None
        )
        clock.now += 901
    assert pauses[:5] == [900, 1800, 3600, 7200, 14400]
    assert max(pauses) <= DAY


@THOUSANDS
def test_the_doctors_own_telephone_with_the_old_password_locks_nobody(log_in, clock) -> None:
    assert passes(log_in())
    for _ in range(500):
        clock.now += 60
        assert log_in("le vieux mot") == FAILED
    assert passes(log_in())
    on_the_train = "203.0.113.5"
    for _ in range(200):
        clock.now += 300
        assert log_in("le vieux mot", on_the_train) in (FAILED, LOCKED)
    assert passes(log_in())
    assert passes(log_in(GOOD, "198.51.100.1")), "one telephone does not fill the account's own measure"


def test_a_new_wrong_password_counts_in_a_familiar_network(log_in) -> None:
    assert passes(log_in())
    assert [log_in("old") for _ in range(9)] == [FAILED] * 9
    assert guess(log_in, PRACTICE, 4) == [FAILED] * 4
    assert log_in("old") == LOCKED
    assert log_in() == LOCKED


def test_a_repeated_wrong_password_is_not_told_from_a_new_one(log_in) -> None:
    """Elsewhere what the practice's telephone gets wrong helps nobody: it counts like any other guess."""
    assert passes(log_in())
    assert log_in("le vieux mot") == FAILED
    assert [log_in("le vieux mot", ATTACKER) for _ in range(6)] == [FAILED] * 5 + [LOCKED]


def test_familiarity_ends(log_in, clock) -> None:
    assert passes(log_in())
    clock.now += 31 * DAY
    assert [log_in("old") for _ in range(6)] == [FAILED] * 5 + [LOCKED]


def test_a_new_password_forgets_guesses(log_in, accounts, journal) -> None:
    guess(log_in, PRACTICE, 5)
    assert log_in() == LOCKED
    Administration(accounts, journal).set_password(DOCTOR, "tout neuf", "root")
    assert passes(log_in("tout neuf"))


def test_parallel_guesses_from_many_networks(log_in) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: log_in(f"guess {n}", f"203.0.{n % 60}.1"), range(200)))
    assert answers.count(FAILED) == 50
    assert answers.count(LOCKED) == 150


def test_an_automatic_lock_is_in_the_journal_once(log_in, accounts, journal) -> None:
    for _ in range(9):
        log_in("guess", ATTACKER)
    entries = accounts.database.read(journal.entries)
    assert [each.entry.action for each in entries] == ["account.locked"]
    assert DOCTOR not in str(entries) and "198.51" not in str(entries)


def test_what_is_kept_of_wrong_passwords_and_networks_says_nothing(log_in, database, tmp_path) -> None:
    log_in("secret presque juste")
    database.close()
    for file in tmp_path.glob("relais.db*"):
        stored = file.read_bytes()
        assert b"presque" not in stored
        assert b"192.0.2" not in stored


@THOUSANDS
def test_networks_remembered_are_bounded(log_in, accounts, clock) -> None:
    for number in range(700):
        clock.now += 2000
        log_in(f"guess {number}", f"10.{number // 250}.{number % 250}.1")
    count = accounts.database.read(lambda c: c.scalar(select(func.count()).select_from(login_sources)))
    assert count <= 512


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:0:1ff::9", "2001:db8:0:100::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("", ""),
        ("unix", ""),
        ("192.0.2.300", ""),
    ],
)
def test_networks(address, network) -> None:
    assert network_of(address) == network


def test_a_closed_account_says_so_whatever_the_password(log_in, accounts, journal) -> None:
    administration = Administration(accounts, journal)
    doctor = log_in()
    administration.lock(DOCTOR, "parti", "root")
    assert log_in() == log_in("wrong") == Refused(ACCOUNT_DISABLED)
    assert not accounts.may_use(doctor, "dr.fictif@cabinet.example")
    assert accounts.by_address("dr.fictif@cabinet.example") == doctor, "mail still arrives"
    administration.unlock(DOCTOR, "root")
    assert passes(log_in())


def test_the_same_work_for_every_failure(database, vault) -> None:
    """Unknown login, wrong password, repeated wrong password, no password, withdrawn application password."""
    hasher = PasswordHasher(time_cost=4, memory_cost=16384, parallelism=1)
    accounts = Accounts(database, vault, hasher=hasher, max_failures=10_000)
    accounts.create(DOCTOR, [], GOOD)
    accounts.create("labo", [], None)
    accounts.authenticate(DOCTOR, GOOD, PRACTICE)
    journal = Journal(vault, "here")
    administration = Administration(accounts, journal)
    identifier, withdrawn = administration.add_application_password(DOCTOR, "phone", [], "root")
    administration.revoke_application_password(DOCTOR, identifier, "root")
    cases = {
        "unknown": ("nobody", lambda n: f"x{n}"),
        "wrong": (DOCTOR, lambda n: f"x{n}"),
        "repeated": (DOCTOR, lambda _: "old"),
        "none": ("labo", lambda n: f"x{n}"),
        "withdrawn": (DOCTOR, lambda _: withdrawn),
        "long": (DOCTOR, lambda n: f"{n}" * 3000),
    }
    times = {name: [] for name in cases}
    for turn in range(7):
        for name, (login, password) in cases.items():
            start = thread_time()
            assert accounts.authenticate(login, password(turn), PRACTICE) == FAILED
            times[name].append(thread_time() - start)
    shortest = {name: min(each) for name, each in times.items()}
    assert max(shortest.values()) < 2 * min(shortest.values()), shortest


def _guess_elsewhere(root: str, url: str, pipe) -> None:
    database = Database(url)
    accounts = Accounts(database, KeyVault.open(Path(root) / "vault"), hasher=QUICK, clock=Clock())
    answers = [accounts.authenticate(DOCTOR, f"other {n}", ATTACKER).refusal.code for n in range(20)]
    database.close()
    pipe.send(answers)


def test_two_processes_count_together(log_in, tmp_path, database_url) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_guess_elsewhere, args=(str(tmp_path), database_url, there))
    process.start()
    answers = [answer.refusal.code for answer in guess(log_in, ATTACKER, 20)] + here.recv()
    process.join()
    assert answers.count(AUTHENTICATION_FAILED.code) == 5


@THOUSANDS
def test_a_telephone_that_changes_its_network_is_locked_out_by_nobody_far_away(log_in, clock, accounts) -> None:
    """A botnet fills the account's measure every day; the doctor's telephone stays with its provider."""
    telephone = "92.184.{}.9"
    assert passes(log_in(GOOD, telephone.format(1)))
    for day in range(3):
        answers = [answer for net in range(20) for answer in guess(log_in, f"203.0.{net}.1", 5, 100 * day + 5 * net)]
        assert answers.count(LOCKED) > 0
        assert passes(log_in(GOOD, telephone.format(10 + day)))
        assert log_in(GOOD, "203.0.200.1") == LOCKED, "a hotel far away waits"
        clock.now += DAY / 4


@THOUSANDS
def test_guesses_from_the_neighbourhood_are_bounded_too(log_in, clock, accounts, journal) -> None:
    assert passes(log_in(GOOD, "92.184.1.9"))
    judged = 0
    for step in range(2 * 24 * 6):
        clock.now += 600
        judged += guess(log_in, f"92.184.{2 + step % 250}.{step % 7}", 3, 3 * step).count(FAILED)
        judged += guess(log_in, f"203.0.{step % 250}.{step % 7}", 3, 3 * step).count(FAILED)
    assert judged <= 2 * (50 + 2 * 50 + 1)
    assert log_in(GOOD, "92.184.254.1") == LOCKED
    assert passes(log_in(GOOD, "92.184.1.200")), "the familiar network itself"
    scopes = {each.entry.details["for"] for each in accounts.database.read(journal.entries)}
    assert scopes >= {"neighbourhood", "unfamiliar networks"}
    administration = Administration(accounts, journal)
    assert administration.show(DOCTOR).networks_familiar == 1, "a neighbourhood is no network"
    assert administration.show(DOCTOR).networks_locked >= 1
    administration.unlock(DOCTOR, "root")
    assert passes(log_in(GOOD, "92.184.254.1"))


@THOUSANDS
def test_one_password_for_everybody(accounts, log_in, clock) -> None:
    assert passes(log_in())
    for number in range(60):
        accounts.create(f"n{number}", [f"n{number}@cabinet.example"], GOOD + "!")
    answers = [accounts.authenticate(f"n{turn % 60}", f"Printemps {turn // 60}", ATTACKER) for turn in range(240)]
    answers += [accounts.authenticate(f"nobody{turn}", GOOD, ATTACKER) for turn in range(100)]
    assert answers.count(FAILED) == 300
    assert accounts.authenticate("n1", GOOD + "!", ATTACKER) == LOCKED
    assert accounts.authenticate("nobody", GOOD, ATTACKER) == LOCKED, "who is nobody is told the same"
    assert passes(log_in()) and passes(accounts.authenticate("n1", GOOD + "!", "192.0.2.77"))
    for turn in range(400):
        accounts.authenticate(DOCTOR, f"guess {turn}", PRACTICE)
    assert passes(accounts.authenticate("n2", GOOD + "!", PRACTICE)), "where somebody is known it does not count"
    clock.now += 3600
    assert passes(accounts.authenticate("n3", GOOD + "!", ATTACKER))


def test_who_is_sent_away_for_spraying_costs_no_work(database, vault) -> None:
    accounts = Accounts(database, vault, hasher=PasswordHasher(time_cost=8, memory_cost=65536, parallelism=1))
    for _ in range(300):
        accounts._spraying.count(network_of(ATTACKER), accounts.clock())
    start = thread_time()
    for turn in range(20):
        assert accounts.authenticate(f"nobody{turn}", GOOD, ATTACKER) == LOCKED
    assert thread_time() - start < 0.5


def test_a_clock_that_was_wrong_locks_nobody_for_years(log_in, clock) -> None:
    right_time = clock.now
    clock.now += 10 * 365 * DAY
    for net in range(20):
        guess(log_in, f"203.0.{net}.1", 5, 5 * net)
    assert log_in(GOOD, "203.0.1.1") == LOCKED
    clock.now = right_time
    assert passes(log_in(GOOD, "203.0.1.1"))
    assert passes(log_in(GOOD, "198.51.100.1"))


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("192.0.2.77", "192.0.0.0/16"),
        ("::ffff:192.0.2.77", "192.0.0.0/16"),
        ("2001:db8:9:1ff::9", "2001:db8::/32"),
        ("", ""),
        ("x", ""),
    ],
)
def test_neighbourhoods(address, near) -> None:
    assert neighbourhood_of(address) == near
