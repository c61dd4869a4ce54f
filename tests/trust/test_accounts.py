"""Logins, locks and ownership."""

from concurrent.futures import ThreadPoolExecutor
from time import thread_time

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select, update

from trust.accounts import Accounts, Identity, NameTakenError
from trust.catalogue import ACCOUNT_LOCKED, AUTHENTICATION_FAILED, CATALOGUE
from trust.refusals import Refused, join_catalogues
from trust.store import metadata
from trust.store.database import Database
from trust.tables import credentials, identity_addresses
from trust.vault import KeyVault, VaultError

QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
FAILED = Refused(AUTHENTICATION_FAILED)
LOCKED = Refused(ACCOUNT_LOCKED)


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def accounts(database, vault, clock):
    accounts = Accounts(database, vault, clock=clock, hasher=QUICK)
    accounts.create("dr.fictif", ["Dr.Fictif@Cabinet.example", "secretariat@cabinet.example"], "bon café")
    accounts.create("labo", ["labo@labo.example"], None)
    return accounts


DOCTOR_ADDRESSES = ("dr.fictif@cabinet.example", "secretariat@cabinet.example")


@pytest.fixture
def doctor(vault):
    return known(vault, "dr.fictif", *DOCTOR_ADDRESSES)


def known(vault, login, *addresses) -> Identity:
    return Identity(vault.pseudonym("address", login), login, addresses)


@pytest.mark.parametrize(
    "login", ["dr.fictif", "DR.FICTIF", "dr.fictif@cabinet.example", "SECRETARIAT@cabinet.EXAMPLE"]
)
def test_login(accounts, doctor, login) -> None:
    assert accounts.authenticate(login, "bon café") == doctor
    assert accounts.authenticate(login, "Bon café") == FAILED


def test_accents_may_be_composed_otherwise(accounts, doctor) -> None:
    assert accounts.authenticate("dr.fictif", "bon\u00a0cafe\u0301") == doctor


@pytest.mark.parametrize("password", ["", "x" * 5000, "\udc80", "bon café\0", "bon café "])
def test_strange_passwords(accounts, password) -> None:
    assert accounts.authenticate("dr.fictif", password) == FAILED


@pytest.mark.parametrize("login", ["labo", "labo@labo.example", "nobody", "", "%", "'; --"])
def test_who_has_no_password_does_not_log_in(accounts, login) -> None:
    for _ in range(7):
        assert accounts.authenticate(login, "") == FAILED


def test_the_password_is_argon2id_only(accounts, database, stored_octets) -> None:
    stored = database.read(lambda c: c.scalar(select(credentials.c.password_hash)))
    assert stored.startswith("$argon2id$")
    assert "café".encode() not in stored_octets(database)


def test_lock_and_release(accounts, database, vault, doctor, clock) -> None:
    for _ in range(4):
        assert accounts.authenticate("dr.fictif", "wrong") == FAILED
    assert accounts.authenticate("dr.fictif", "bon café") == doctor
    for login in ("dr.fictif", "dr.fictif@cabinet.example", "secretariat@cabinet.example", "dr.fictif", "DR.FICTIF"):
        assert accounts.authenticate(login, "wrong") == FAILED
    assert accounts.authenticate("dr.fictif", "wrong") == LOCKED
    assert accounts.authenticate("dr.fictif", "bon café") == LOCKED
    restarted = Accounts(database, vault, clock=clock, hasher=QUICK)
    clock.now += 899
    assert restarted.authenticate("secretariat@cabinet.example", "bon café") == LOCKED
    clock.now += 1
    assert restarted.authenticate("dr.fictif", "wrong") == FAILED
    assert restarted.authenticate("dr.fictif", "bon café") == doctor


def test_old_failures_are_forgotten(accounts, doctor, clock) -> None:
    for _ in range(10):
        assert accounts.authenticate("dr.fictif", "wrong") == FAILED
        clock.now += 901
    assert accounts.authenticate("dr.fictif", "bon café") == doctor


def test_parallel_guesses_win_nothing(accounts) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: accounts.authenticate("dr.fictif", "wrong"), range(40)))
    assert answers.count(FAILED) == 5
    assert answers.count(LOCKED) == 35


def test_parallel_good_logins_all_pass(accounts, doctor) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: accounts.authenticate("dr.fictif", "bon café"), range(40))) == {doctor}


def test_an_unknown_login_takes_as_long(database, vault) -> None:
    hasher = PasswordHasher(time_cost=4, memory_cost=16384, parallelism=1)
    accounts = Accounts(database, vault, hasher=hasher, max_failures=99)
    accounts.create("known", [], "right")

    def shortest(login) -> float:
        times = []
        for _ in range(5):
            start = thread_time()
            assert accounts.authenticate(login, "wrong") == FAILED
            times.append(thread_time() - start)
        return min(times)

    assert shortest("unknown") > shortest("known") / 2


def test_ownership(accounts, vault, doctor) -> None:
    labo = known(vault, "labo", "labo@labo.example")
    assert accounts.by_address("SECRETARIAT@CABINET.EXAMPLE") == doctor
    assert accounts.by_address("labo@labo.example") == labo
    assert accounts.by_address("dr.fictif") is None
    assert accounts.by_address("x@cabinet.example") is None
    for asked in (accounts.may_use, accounts.may_sign_as):
        assert asked(doctor, "Secretariat@cabinet.example")
        assert not asked(labo, "secretariat@cabinet.example")
        assert not asked(labo, "x@cabinet.example")
    assert accounts.addresses() == ("dr.fictif@cabinet.example", "labo@labo.example", "secretariat@cabinet.example")


def test_creating_again_replaces(accounts, vault, doctor) -> None:
    for _ in range(6):
        accounts.authenticate("dr.fictif", "wrong")
    accounts.create("Dr.Fictif", ["nouveau@cabinet.example"], "autre")
    assert accounts.authenticate("dr.fictif", "bon café") == FAILED
    assert accounts.authenticate("dr.fictif", "autre") == known(vault, "dr.fictif", "nouveau@cabinet.example")
    assert not accounts.may_use(doctor, "secretariat@cabinet.example")  # revoked, whatever the old value says
    accounts.create("dr.fictif", ["nouveau@cabinet.example"], None)
    assert accounts.authenticate("dr.fictif", "autre") == FAILED


@pytest.mark.parametrize(
    ("name", "addresses"),
    [("autre", ["labo@labo.example"]), ("LABO@labo.example", []), ("autre", ["x@y.example", "Labo"])],
)
def test_a_login_means_one_identity(accounts, name, addresses) -> None:
    with pytest.raises(NameTakenError):
        accounts.create(name, addresses, "secret")
    assert accounts.authenticate(name, "secret") == FAILED


def test_an_identity_may_be_named_by_its_own_address(accounts, vault) -> None:
    accounts.create("a@x.example", ["A@x.example", "a@x.example"], "secret")
    accounts.create("a@x.example", ["A@x.example"], "secret")
    assert accounts.authenticate("a@x.example", "secret") == known(vault, "a@x.example", "a@x.example")


PATIENT = "279035121518989@patient.example"


def test_neither_login_nor_address_is_stored_or_shown_in_clear(accounts, database, tmp_path) -> None:
    accounts.create(PATIENT, [PATIENT], "secret")
    identity = accounts.authenticate(PATIENT.upper(), "secret")
    assert (identity.login, identity.addresses) == (PATIENT, (PATIENT,))
    assert "279035121518989" not in repr(identity)
    database.close()
    for file in tmp_path.glob("relais.db*"):
        stored = file.read_bytes().lower()
        for clear in (b"279035121518989", b"patient.example", b"cabinet.example", b"fictif", b"labo"):
            assert clear not in stored


def test_a_row_given_to_somebody_else_does_not_open(accounts, database, vault) -> None:
    accounts.create("noir", ["noir@x.example"], "secret")
    doctors = identity_addresses.c.address == vault.pseudonym("address", DOCTOR_ADDRESSES[0])
    stolen = update(identity_addresses).where(doctors).values(identity_id=vault.pseudonym("address", "noir"))
    database.transact(lambda c: c.execute(stolen) and None)
    for asked in (lambda: accounts.authenticate("noir", "secret"), lambda: accounts.by_address(DOCTOR_ADDRESSES[0])):
        with pytest.raises(VaultError):
            asked()


def test_another_vault_knows_nobody(accounts, database, tmp_path) -> None:
    other = Accounts(database, KeyVault.create(tmp_path / "other"), hasher=QUICK)
    assert other.by_address(DOCTOR_ADDRESSES[0]) is None
    assert other.authenticate("dr.fictif", "bon café") == FAILED


@pytest.mark.parametrize("password", ["", "é" * 513])
def test_bad_new_passwords(accounts, password) -> None:
    with pytest.raises(ValueError, match="a password has 1 to 1024 bytes"):
        accounts.create("new", [], password)


@pytest.mark.parametrize("password", ["a\0b", "ligne\n", "\x7f", "\udc80", "a\u0085"])
def test_passwords_no_client_could_send(accounts, password) -> None:
    with pytest.raises(ValueError, match="control characters"):
        accounts.create("new", [], password)


def test_a_huge_password_costs_no_more(accounts) -> None:
    start = thread_time()
    assert accounts.authenticate("dr.fictif", "e\u0301" * 20_000_000) == FAILED
    assert thread_time() - start < 1


def test_a_password_as_long_as_it_may_be(accounts) -> None:
    accounts.create("new", [], "e\u0301" * 512)
    assert isinstance(accounts.authenticate("new", "é" * 512), Identity)
    assert accounts.authenticate("new", "é" * 513) == FAILED


def test_a_right_password_is_kept_by_the_parameters_of_today(accounts, database, vault, doctor) -> None:
    def stored() -> str:
        return database.read(lambda c: c.scalar(select(credentials.c.password_hash)))

    before = stored()
    stronger = PasswordHasher(time_cost=2, memory_cost=128, parallelism=1)
    today = Accounts(database, vault, hasher=stronger)
    assert today.authenticate("dr.fictif", "mauvais") == FAILED
    assert stored() == before
    assert today.authenticate("dr.fictif", "bon café") == doctor
    renewed = stored()
    assert "m=128,t=2" in renewed
    assert today.authenticate("dr.fictif", "bon cafe\u0301") == doctor
    assert stored() == renewed


def test_catalogue() -> None:
    assert join_catalogues([CATALOGUE])
    for refusal in CATALOGUE:
        assert refusal.enhanced[0] == str(refusal.smtp)[0]
        assert refusal.text.isascii()
        assert refusal.permanent == (refusal.hl7.value == "AE")
