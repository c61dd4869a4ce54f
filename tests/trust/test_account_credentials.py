"""Application passwords, certificates, linked subjects, grants and teams; and what the journal says of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from argon2 import PasswordHasher
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.trust.certificate_authority import NOW
from trust.accounts import Accounts, Service
from trust.accounts_administration import Administration
from trust.application_passwords import MAX_EACH, secret_of
from trust.catalogue import ACCOUNT_DISABLED, AUTHENTICATION_FAILED, CERTIFICATE_REFUSED, TOKEN_REFUSED
from trust.certificates import CertificateValidator
from trust.client_certificates import Binding
from trust.identities import AccountError, Identity, NameTakenError, Right
from trust.journal import Journal
from trust.lockout import network_of
from trust.oidc import Subject
from trust.refusals import Refused
from trust.store import metadata
from trust.store.database import Database
from trust.tables import application_passwords
from trust.vault import KeyVault

QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
FAILED = Refused(AUTHENTICATION_FAILED)
DOCTOR, SECRETARY, TEAM = "dr.fictif", "secretaire", "equipe@cabinet.example"
MAIL, PRACTICE = "dr.fictif@cabinet.example", "cabinet@cabinet.example"


class Clock:
    now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


@pytest.fixture
def accounts(database_url, vault, clock):
    database = Database(database_url)
    metadata.create_all(database.engine)
    yield Accounts(database, vault, clock=clock, hasher=QUICK)
    database.close()


@pytest.fixture
def journal(vault):
    return Journal(vault, "here")


@pytest.fixture
def administration(accounts, journal):
    administration = Administration(accounts, journal)
    administration.create(DOCTOR, [MAIL, PRACTICE], "bon", "root")
    administration.create(SECRETARY, ["secretaire@cabinet.example"], "sien", "root")
    administration.create(TEAM, [TEAM], None, "root")
    return administration


def actions(accounts, journal) -> list[str]:
    return [each.entry.action for each in reversed(accounts.database.read(journal.entries))]


# --- Application passwords ----------------------------------------------------------------------------------


def test_application_passwords_log_in_until_revoked(accounts, administration, clock) -> None:
    _, phone = administration.add_application_password(DOCTOR, "Téléphone", [], "root")
    _, tablet = administration.add_application_password(DOCTOR, "Tablette", [Service.IMAP], "root")
    doctor = accounts.authenticate(DOCTOR, "bon")
    for said in (phone, phone.replace("-", ""), phone.upper(), phone.replace("-", " ")):
        assert accounts.authenticate(MAIL, said, "", Service.SUBMISSION) == doctor
    assert accounts.authenticate(MAIL, tablet, "", Service.IMAP) == doctor
    assert accounts.authenticate(MAIL, tablet, "", Service.SUBMISSION) == FAILED
    assert accounts.authenticate(SECRETARY, phone) == FAILED
    assert accounts.authenticate("nobody", phone) == FAILED
    shown = administration.show(DOCTOR).application_passwords
    assert {each.name for each in shown} == {"Téléphone", "Tablette"}
    assert {each.last_used for each in shown} == {int(clock.now // 86400)}
    administration.revoke_application_password(DOCTOR, "téléphone", "root")
    for _ in range(20):
        assert accounts.authenticate(MAIL, phone) == FAILED
    assert accounts.authenticate(MAIL, "bon") == doctor, "a telephone with a withdrawn one locks nobody"
    assert accounts.authenticate(MAIL, tablet, "", Service.IMAP) == doctor


def test_guessing_locks_no_application_password(accounts, administration) -> None:
    _, phone = administration.add_application_password(DOCTOR, "phone", [], "root")
    for number in range(80):
        accounts.authenticate(MAIL, f"guess {number}", f"203.0.{number}.1")
    assert isinstance(accounts.authenticate(MAIL, phone, "203.0.1.1"), Identity)
    administration.lock(DOCTOR, "", "root")
    assert accounts.authenticate(MAIL, phone) == Refused(ACCOUNT_DISABLED)


def test_application_passwords_are_random_and_kept_as_keyed_hashes(accounts, administration, tmp_path) -> None:
    made = [administration.add_application_password(DOCTOR, f"n{n}", [], "root")[1] for n in range(MAX_EACH)]
    assert len(set(made)) == MAX_EACH
    assert all(secret_of(each) is not None and len(each.replace("-", "")) == 25 for each in made)  # 24 x 5 bits
    with pytest.raises(AccountError, match="at most"):
        administration.add_application_password(DOCTOR, "more", [], "root")
    accounts.database.close()
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("relais.db*"))
    assert not any(each.replace("-", "").encode() in stored or each.encode() in stored for each in made)


def test_a_chosen_password_never_looks_like_one(administration) -> None:
    _, phone = administration.add_application_password(DOCTOR, "phone", [], "root")
    with pytest.raises(AccountError, match="application password"):
        administration.set_password(DOCTOR, phone.upper(), "root")


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\0b"])
def test_names_of_application_passwords(administration, name) -> None:
    with pytest.raises(AccountError):
        administration.add_application_password(DOCTOR, name, [], "root")
    administration.add_application_password(DOCTOR, "PC", [], "root")
    with pytest.raises(AccountError, match="already"):
        administration.add_application_password(DOCTOR, " pc ", [], "root")


def test_a_row_moved_to_another_account_is_found_out(accounts, administration) -> None:
    administration.add_application_password(DOCTOR, "phone", [], "root")
    thief = accounts.identities.pseudonym(SECRETARY)
    stolen = application_passwords.update().values(identity_id=thief)
    accounts.database.transact(lambda c: c.execute(stolen) and None)
    with pytest.raises(ValueError, match="altered"):
        administration.show(SECRETARY)


# --- Certificates -------------------------------------------------------------------------------------------


class Pki:
    def __init__(self, name="AC"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._make(name, self.key.public_key(), name, ca=True)
        self.name = name

    def leaf(self, common="labo", key=None, until=365, extended=ExtendedKeyUsageOID.CLIENT_AUTH):
        key = key or ec.generate_private_key(ec.SECP256R1())
        return self._make(common, key.public_key(), self.name, until=until, extended=extended)

    def _make(self, subject, key, issuer, *, ca=False, until=365, extended=None):
        def dn(common):
            return x509.Name(
                [x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"), x509.NameAttribute(NameOID.COMMON_NAME, common)]
            )

        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(dn(subject))
            .issuer_name(dn(issuer))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - timedelta(days=400))
            .not_valid_after(NOW + timedelta(days=until))
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(
                x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **usage),
                True,
            )
        )
        if extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage([extended]), False)
        return builder.sign(self.key, SHA256())


@pytest.fixture(scope="module")
def pki():
    return Pki()


@pytest.fixture(scope="module")
def validator(pki):
    return CertificateValidator([pki.root])


def test_a_certificate_bound_in_each_way(accounts, administration, pki, validator) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first, same_key = pki.leaf(key=key), pki.leaf(key=key)
    same_name, other_name = pki.leaf(), pki.leaf("labo2")
    refused = Refused(CERTIFICATE_REFUSED)

    def lets_in(certificate):
        found = accounts.authenticate_certificate(certificate, (), validator)
        return isinstance(found, Identity) or (found == refused and False)

    for binding, expected in (
        (Binding.CERTIFICATE, [True, False, False, False]),
        (Binding.KEY, [True, True, False, False]),
        (Binding.NAME, [True, True, True, False]),
    ):
        identifier = administration.bind_certificate(DOCTOR, binding, (first, pki.root), "root")
        assert [lets_in(each) for each in (first, same_key, same_name, other_name)] == expected
        administration.withdraw_certificate(DOCTOR, identifier, "root")
        assert not lets_in(first)


def test_a_bound_certificate_that_is_not_believed_stays_out(accounts, administration, pki, validator) -> None:
    stranger = Pki()  # same names, another key
    cases = [
        pki.leaf("old", until=-1),
        pki.leaf("mail", extended=ExtendedKeyUsageOID.EMAIL_PROTECTION),
        stranger.leaf("labo"),
    ]
    for each in cases:
        administration.bind_certificate(DOCTOR, Binding.CERTIFICATE, (each, pki.root), "root")
        found = accounts.authenticate_certificate(each, (), validator)
        assert isinstance(found, Refused) and found.refusal is CERTIFICATE_REFUSED and found.detail
    administration.bind_certificate(SECRETARY, Binding.NAME, (pki.leaf(), pki.root), "root")
    both = CertificateValidator([pki.root, stranger.root])
    assert isinstance(accounts.authenticate_certificate(pki.leaf(), (), both), Identity)
    assert accounts.authenticate_certificate(stranger.leaf("labo3"), (), both) == Refused(CERTIFICATE_REFUSED)
    assert isinstance(accounts.authenticate_certificate(stranger.leaf(), (), both), Refused), "another anchor's name"


def test_renewing_replaces_in_one_moment(accounts, administration, pki, validator, journal) -> None:
    old, new = pki.leaf(), pki.leaf()
    first = administration.bind_certificate(DOCTOR, Binding.CERTIFICATE, (old, pki.root), "root")
    with pytest.raises(AccountError):
        administration.bind_certificate(SECRETARY, Binding.CERTIFICATE, (new, pki.root), "root", replaces=first)
    with pytest.raises(AccountError, match="already"):
        administration.bind_certificate(SECRETARY, Binding.CERTIFICATE, (old, pki.root), "root")
    administration.bind_certificate(DOCTOR, Binding.CERTIFICATE, (new, pki.root), "root", replaces=first)
    assert isinstance(accounts.authenticate_certificate(old, (), validator), Refused)
    assert isinstance(accounts.authenticate_certificate(new, (), validator), Identity)
    assert administration.show(DOCTOR).certificates[0].last_used is not None
    assert actions(accounts, journal)[-2:] == ["account.certificate-bound", "account.certificate-renewed"]


def test_a_certificate_of_two_accounts_is_nobodys(accounts, administration, pki, validator) -> None:
    leaf = pki.leaf()
    administration.bind_certificate(DOCTOR, Binding.CERTIFICATE, (leaf, pki.root), "root")
    administration.bind_certificate(SECRETARY, Binding.KEY, (leaf, pki.root), "root")
    assert accounts.authenticate_certificate(leaf, (), validator) == Refused(CERTIFICATE_REFUSED)


# --- Subjects -----------------------------------------------------------------------------------------------

PSC = "https://auth.psc.example/realms/esante-wallet"


def subject(issuer=PSC, **claims) -> Subject:
    return Subject(issuer, tuple(claims.items()), 0.0, "eidas1")


def test_linked_subjects(accounts, administration) -> None:
    link = administration.link_subject(DOCTOR, PSC, "SubjectNameID", "899700075064", "root")
    doctor = accounts.authenticate(DOCTOR, "bon")
    said = subject(sub="f:1:899700075064", SubjectNameID="899700075064")
    assert accounts.by_subject(said) == doctor
    assert accounts.by_subject(said, PRACTICE.upper()) == doctor
    assert accounts.by_subject(said, "secretaire@cabinet.example") == Refused(TOKEN_REFUSED)
    assert accounts.by_subject(subject("https://other.example", SubjectNameID="899700075064")) == Refused(TOKEN_REFUSED)
    assert accounts.by_subject(subject(sub="899700075064")) == Refused(TOKEN_REFUSED), "another claim"
    with pytest.raises(AccountError, match="already"):
        administration.link_subject(SECRETARY, PSC, "SubjectNameID", "899700075064", "root")
    administration.link_subject(SECRETARY, PSC, "sub", "f:1:899700075064", "root")
    assert accounts.by_subject(said) == Refused(TOKEN_REFUSED), "two links that disagree"
    administration.unlink_subject(DOCTOR, link, "root")
    assert accounts.by_subject(said).login == SECRETARY
    administration.lock(SECRETARY, "", "root")
    assert accounts.by_subject(said) == Refused(ACCOUNT_DISABLED)


# --- Grants -------------------------------------------------------------------------------------------------


def test_a_secretary_sends_as_the_practice_and_signs_only_when_she_may(accounts, administration) -> None:
    secretary = accounts.authenticate(SECRETARY, "sien")
    for asked in (accounts.may_use, accounts.may_sign_as):
        assert not asked(secretary, PRACTICE)
    administration.grant(SECRETARY, PRACTICE, Right.USE, "root")
    assert accounts.may_use(secretary, PRACTICE.upper())
    assert not accounts.may_sign_as(secretary, PRACTICE)
    assert not accounts.may_use(secretary, MAIL)
    administration.grant(SECRETARY, PRACTICE, Right.SIGN, "root")
    assert accounts.may_sign_as(secretary, PRACTICE)
    assert administration.show(DOCTOR).grants == ((PRACTICE, SECRETARY, Right.SIGN),)
    assert administration.show(SECRETARY).granted == ((PRACTICE, Right.SIGN),)
    administration.revoke(SECRETARY, PRACTICE, "root")
    assert not accounts.may_use(secretary, PRACTICE), "whatever the old value says"
    with pytest.raises(AccountError):
        administration.revoke(SECRETARY, PRACTICE, "root")
    with pytest.raises(AccountError, match="own"):
        administration.grant(DOCTOR, PRACTICE, Right.USE, "root")


def test_a_team_mailbox_is_read_by_its_members_with_their_own_application_passwords(accounts, administration) -> None:
    _, phone = administration.add_application_password(SECRETARY, "phone", [], "root")
    assert accounts.open_mailbox(TEAM, phone) == FAILED
    administration.join(SECRETARY, TEAM, "root")
    secretary = accounts.open_mailbox(TEAM, phone)
    assert secretary.login == SECRETARY
    assert accounts.may_sign_as(secretary, TEAM)
    assert accounts.open_mailbox(TEAM, "sien") == FAILED, "a main password logs in under its own names"
    administration.grant(TEAM, MAIL, Right.USE, "root")
    assert accounts.may_use(secretary, MAIL)
    assert not accounts.may_sign_as(secretary, MAIL)
    administration.create("stagiaire", [], None, "root")
    administration.join("stagiaire", SECRETARY, "root")
    trainee = administration.show("stagiaire").identity
    assert accounts.may_use(trainee, "secretaire@cabinet.example")
    assert not accounts.may_use(trainee, TEAM), "membership goes one step"
    administration.leave(SECRETARY, TEAM, "root")
    assert not accounts.may_use(secretary, MAIL)
    assert accounts.open_mailbox(TEAM, phone) == FAILED


def test_grants_end_with_the_address_and_with_the_account(accounts, administration) -> None:
    secretary = accounts.authenticate(SECRETARY, "sien")
    administration.grant(SECRETARY, PRACTICE, Right.SIGN, "root")
    administration.set_addresses(DOCTOR, [MAIL], "root")
    administration.set_addresses(DOCTOR, [PRACTICE, MAIL], "root")
    assert not accounts.may_use(secretary, PRACTICE)
    administration.grant(SECRETARY, PRACTICE, Right.SIGN, "root")
    administration.set_addresses(DOCTOR, [MAIL, PRACTICE], "root")
    assert accounts.may_use(secretary, PRACTICE), "an address that stays keeps what was granted on it"
    administration.delete(SECRETARY, "root")
    assert not accounts.may_use(secretary, PRACTICE)
    assert administration.show(DOCTOR).grants == ()
    assert accounts.authenticate(SECRETARY, "sien") == FAILED
    administration.create(SECRETARY, ["secretaire@cabinet.example"], "sien", "root")
    assert not accounts.may_use(accounts.authenticate(SECRETARY, "sien"), PRACTICE)


# --- Administration -----------------------------------------------------------------------------------------


def test_every_act_is_in_the_journal_and_names_nobody(accounts, administration, journal) -> None:
    administration.set_password(DOCTOR, "nouveau", "root")
    administration.set_password(DOCTOR, None, "root")
    administration.lock(DOCTOR, "parti", "root")
    administration.unlock(DOCTOR, "root")
    administration.grant(SECRETARY, MAIL, Right.USE, "root")
    administration.join(SECRETARY, TEAM, "root")
    administration.delete(DOCTOR, "root")
    with pytest.raises(AccountError):
        administration.lock("nobody", "", "root")
    with pytest.raises(NameTakenError):
        administration.create("other", [TEAM], None, "root")
    assert actions(accounts, journal) == [
        *["account.created"] * 3,
        "account.password-set",
        "account.password-removed",
        "account.closed",
        "account.opened",
        "account.granted",
        "account.joined",
        "account.deleted",
    ]
    entries = accounts.database.read(journal.entries)
    assert {each.entry.actor for each in entries} == {"root"}
    for name in ("fictif", "secretaire", "equipe", "cabinet"):
        assert name not in str(entries)
    assert accounts.database.read(journal.verify).ok


@pytest.mark.parametrize("login", ["", "  ", "a b", "x" * 255, "a\0", "a\nb"])
def test_bad_logins(administration, login) -> None:
    with pytest.raises(AccountError):
        administration.create(login, [], None, "root")


@pytest.mark.parametrize("address", ["", "nobody", "@x", "a@", "a@b@c", "a b@c"])
def test_bad_addresses(administration, address) -> None:
    with pytest.raises(AccountError):
        administration.create("new", [address], None, "root")


def test_creating_an_account_that_exists_changes_nothing(accounts, administration) -> None:
    with pytest.raises(AccountError, match="exists"):
        administration.create(DOCTOR.upper(), [], "volé", "root")
    assert isinstance(accounts.authenticate(DOCTOR, "bon", "192.0.2.1"), Identity)
    assert network_of("192.0.2.1")


@pytest.mark.parametrize(
    "login",
    ["\u212aelly", "dr.gr\u0456s", "h\u00e9l\u00e8ne", "a\tb", "a\u200bb", "a\u00a0b", "\u202ea", "a\x01t", "\udcff"],
)
def test_logins_that_look_like_others_are_none(administration, login) -> None:
    with pytest.raises(AccountError):
        administration.create(login, [], None, "root")


@pytest.mark.parametrize(
    "address",
    [
        "\u212aelly@cabinet.example",
        "dr.gr\u0456s@cabinet.example",
        "a@caf\u00e9.example",
        "a\t@cabinet.example",
        "a/b@cabinet.example",
        "%u@cabinet.example",
        "*@cabinet.example",
        "../x@cabinet.example",
        "a..b@cabinet.example",
        ".a@cabinet.example",
        '"a b"@cabinet.example',
        "a@[192.0.2.1]",
        "a@-x.example",
        "a@x..example",
        "a@x.example.",
        "x" * 65 + "@cabinet.example",
        "a@" + "x." * 130 + "example",
        "a@cabinet.example\n",
    ],
)
def test_addresses_that_some_door_would_read_otherwise_are_none(accounts, administration, address) -> None:
    with pytest.raises(AccountError):
        administration.create("new", [address], None, "root")
    with pytest.raises(AccountError):
        administration.set_addresses(DOCTOR, [address], "root")
    with pytest.raises(AccountError):
        accounts.create("new", [address], None)


@pytest.mark.parametrize(
    "address", ["o'neil@cabinet.example", "a+b@cabinet.example", "279035121518989@patient.example"]
)
def test_addresses_of_the_real_world(accounts, administration, address) -> None:
    administration.create("new", [address.upper()], None, "root")
    assert accounts.by_address(address) is not None


def test_no_character_outside_ascii_finds_a_name_it_is_not_in(accounts, administration) -> None:
    """To Unicode the Kelvin sign is a capital k."""
    administration.create("kelly", ["kelly@cabinet.example"], "mot", "root")
    kelly = accounts.authenticate("KELLY", "mot")
    assert isinstance(kelly, Identity)
    for said in ("\u212aelly@cabinet.example", "kelly@cabinet.example\n", "\u00a0kelly@cabinet.example"):
        assert accounts.authenticate(said, "mot") == FAILED
        assert accounts.by_address(said) is None
        assert not accounts.may_sign_as(kelly, said)
    for said in ("kelly+urgent@cabinet.example", "kelly", "kelly@CABINET.example.", "<kelly@cabinet.example>", "", "@"):
        assert not accounts.may_use(kelly, said)


def test_nobody_signs_for_whoever_is_kept_out_and_a_closed_team_gives_nothing(accounts, administration) -> None:
    secretary = accounts.authenticate(SECRETARY, "sien")
    administration.grant(SECRETARY, PRACTICE, Right.SIGN, "root")
    administration.join(SECRETARY, TEAM, "root")
    administration.lock(DOCTOR, "parti", "root")
    assert accounts.may_use(secretary, PRACTICE), "what patients wrote must still be read"
    assert not accounts.may_sign_as(secretary, PRACTICE)
    administration.unlock(DOCTOR, "root")
    assert accounts.may_sign_as(secretary, PRACTICE)
    administration.grant(TEAM, MAIL, Right.SIGN, "root")
    assert accounts.may_sign_as(secretary, MAIL)
    administration.lock(TEAM, "", "root")
    for address in (TEAM, MAIL):
        assert not accounts.may_use(secretary, address)
        assert not accounts.may_sign_as(secretary, address)
