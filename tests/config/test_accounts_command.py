"""`relais account`, on the state of a stopped gateway and through the socket of a running one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from config.accounts_answers import AccountAnswers
from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket
from config.migrations import upgrade
from mta.mailboxes.registry import Registry
from tests.config.test_keys_command import CONFIGURATION
from tests.support.private import service_directory
from tests.trust.certificate_authority import NOW, name
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.identities import Identity
from trust.journal import Journal
from trust.store.database import Database
from trust.vault import KeyVault

DOCTOR, PRACTICE, SECRETARY = "dr.fictif@cabinet.example", "cabinet@cabinet.example", "secretaire@cabinet.example"
ISSUER = "https://psc.example/realms/esante-wallet"
OIDC = f"""
[[oidc]]
issuer = "{ISSUER}"
audiences = ["relais"]
"""
CA_KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(common: str, key, *, ca: bool = False, issuer_key=CA_KEY) -> x509.Certificate:
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common))
        .issuer_name(name("AC"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(
            x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **usage), True
        )
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    return builder.sign(issuer_key, SHA256())


class Place:
    """An operator's folder, its gateway stopped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        (root / "relais.toml").write_text(CONFIGURATION.format(keys="") + OIDC)
        (root / "anchors.pem").write_bytes(certificate("AC", CA_KEY, ca=True).public_bytes(Encoding.PEM))
        self.state.mkdir(mode=0o700)
        KeyVault.create(self.state / "vault")

    def run(self, *arguments: str, text: str | None = None) -> Result:
        result = CliRunner().invoke(
            relais, ["account", *arguments, "--config", str(self.root / "relais.toml")], input=text
        )
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    def document(self, *arguments: str, text: str | None = None):
        result = self.run(*arguments, "--json", text=text)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def refusal(self, *arguments: str, text: str | None = None) -> str:
        result = self.run(*arguments, text=text)
        assert result.exit_code == 1, result.output
        assert not result.stdout
        return result.stderr.strip()

    def authenticate(self, login: str, password: str):
        database = Database(f"sqlite:///{self.state}/relais.db")
        try:
            return Accounts(database, KeyVault.open(self.state / "vault")).authenticate(login, password)
        finally:
            database.close()

    def actions(self) -> list[str]:
        database = Database(f"sqlite:///{self.state}/relais.db")
        try:
            journal = Journal(KeyVault.open(self.state / "vault"), "relais.cabinet.example")
            assert database.read(journal.verify).ok
            return [each.entry.action for each in reversed(database.read(journal.entries))]
        finally:
            database.close()


class Running(threading.Thread):
    """What a gateway does about it: holds the lock, answers on the socket."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.ready, self.end = threading.Event(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        state = self.place.state
        lock = os.open(state / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        database = Database(f"sqlite:///{state}/relais.db")
        upgrade(database)
        vault = KeyVault.open(state / "vault")
        accounts = Accounts(database, vault)
        journal = Journal(vault, "relais.cabinet.example")
        administration = Administration(accounts, journal, Registry(accounts, vault))
        from trust.certificates import CertificateValidator

        anchors = x509.load_pem_x509_certificates((self.place.root / "anchors.pem").read_bytes())
        answers = AccountAnswers(administration, CertificateValidator(anchors), frozenset({ISSUER}))
        with ThreadPoolExecutor(2) as threads:
            control = ControlSocket(state / "control.sock", off_loop(answers.calls(), threads))
            await control.start()
            self.ready.set()
            await asyncio.to_thread(self.end.wait)
            await control.stop()
        database.close()
        os.close(lock)


@pytest.fixture(params=["stopped", "running"])
def place(request, monkeypatch):
    monkeypatch.delenv("RELAIS_STATE", raising=False)
    with service_directory() as root:
        place = Place(root)
        if request.param == "stopped":
            yield place
            return
        gateway = Running(place)
        gateway.start()
        assert gateway.ready.wait(20)
        yield place
        gateway.end.set()
        gateway.join(20)


@pytest.fixture
def stopped(monkeypatch):
    monkeypatch.delenv("RELAIS_STATE", raising=False)
    with service_directory() as root:
        yield Place(root)


def test_the_life_of_an_account(place) -> None:
    made = place.document("create", DOCTOR, "--address", DOCTOR, "--address", PRACTICE, text="bon\nbon\n")
    assert (made["login"], made["addresses"], made["password"]) == (DOCTOR, [DOCTOR, PRACTICE], True)
    place.document("create", SECRETARY, "--password-file", "-", text="sien\nrest ignored")
    assert isinstance(place.authenticate(PRACTICE, "bon"), Identity)
    assert isinstance(place.authenticate(SECRETARY, "sien"), Identity)
    assert [row["login"] for row in place.document("list")] == [DOCTOR, SECRETARY]
    assert place.document("lock", DOCTOR, "--reason", "départ")["closed"]
    assert place.authenticate(DOCTOR, "bon").refusal.code == "trust.account-disabled"
    assert not place.document("unlock", DOCTOR)["closed"]
    place.document("password", PRACTICE, "--password-file", "-", text="autre\n")
    assert isinstance(place.authenticate(DOCTOR, "autre"), Identity)
    assert not place.document("password", DOCTOR, "--no-password")["password"]

    secret = place.document("app-password", "add", DOCTOR, "Téléphone", "--only", "imap")
    assert len(secret["password"]) == 29
    assert secret["password"] not in place.run("show", DOCTOR, "--json").stdout
    assert place.document("show", DOCTOR)["application_passwords"][0]["services"] == ["imap"]
    assert place.document("app-password", "revoke", DOCTOR, secret["id"])["application_passwords"] == []

    link = place.document("oidc", "link", DOCTOR, "899700075064")
    assert link["issuer"] == ISSUER and link["accepted"]
    assert place.document("show", DOCTOR)["oidc"][0]["claim"] == "SubjectNameID"
    assert place.document("oidc", "unlink", DOCTOR, link["id"])["oidc"] == []

    granted = place.document("grant", SECRETARY, PRACTICE, "--right", "sign")["granted"]
    assert granted == [{"address": PRACTICE, "right": "sign"}]
    assert place.document("revoke", SECRETARY, PRACTICE)["granted"] == []
    assert place.document("grant", SECRETARY, "--member-of", DOCTOR)["teams"] == [DOCTOR]
    assert place.document("revoke", SECRETARY, "--member-of", DOCTOR)["teams"] == []
    assert place.document("addresses", DOCTOR, DOCTOR)["addresses"] == [DOCTOR]
    assert "address    " + DOCTOR in place.run("show", DOCTOR).stdout
    assert place.run("delete", DOCTOR, text="n\n").exit_code == 1
    assert place.run("delete", DOCTOR, "--yes").exit_code == 0
    assert [row["login"] for row in place.document("list")] == [SECRETARY]
    actions = place.actions()
    assert len(actions) == 16 and actions[-1] == "account.deleted"


def test_whoever_gets_a_former_mailbox_gets_it_knowingly(place) -> None:
    """A homonym would read what is in it."""
    place.document("create", DOCTOR, "--no-password")
    place.run("delete", DOCTOR, "--yes")
    assert "--former-mailbox" in place.refusal("create", DOCTOR, "--no-password")
    place.document("create", SECRETARY, "--no-password")
    assert "--former-mailbox" in place.refusal("addresses", SECRETARY, SECRETARY, DOCTOR)
    shown = place.document("addresses", SECRETARY, SECRETARY, DOCTOR, "--former-mailbox")
    assert shown["addresses"] == [SECRETARY, DOCTOR]
    place.document("addresses", SECRETARY, SECRETARY)
    assert place.document("create", DOCTOR, "--no-password", "--former-mailbox")["addresses"] == [DOCTOR]


def test_certificates(place) -> None:
    place.document("create", "labo", "--no-password")
    key = ec.generate_private_key(ec.SECP256R1())
    file, new, secret = (place.root / each for each in ("labo.pem", "new.pem", "labo.key"))
    file.write_bytes(certificate("labo", key).public_bytes(Encoding.PEM))
    new.write_bytes(certificate("labo", key).public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    bound = place.document("certificate", "bind", "labo", str(file), "--by", "name")
    (shown,) = place.document("show", "labo")["certificates"]
    assert (shown["id"], shown["binding"], shown["subject"]) == (bound["id"], "name", "CN=labo")
    renewed = place.document("certificate", "renew", "labo", bound["id"], str(new))
    assert [each["id"] for each in place.document("show", "labo")["certificates"]] == [renewed["id"]]
    assert "already" in place.refusal("certificate", "bind", "labo", str(new))
    assert "private key" in place.refusal("certificate", "bind", "labo", str(secret))
    selfmade = place.root / "self.pem"
    selfmade.write_bytes(certificate("labo", key, issuer_key=key).public_bytes(Encoding.PEM))
    assert "not believed" in place.refusal("certificate", "bind", "labo", str(selfmade))
    assert place.document("certificate", "withdraw", "labo", renewed["id"])["certificates"] == []


def test_mistakes_are_sentences(place) -> None:
    place.document("create", DOCTOR, "--no-password")
    assert "exists" in place.refusal("create", DOCTOR.upper(), "--no-password")
    assert "domain" in place.refusal("create", "x", "--address", "x@elsewhere.example", "--no-password")
    for command in (["show"], ["lock"], ["unlock"], ["delete", "--yes"], ["password", "--no-password"]):
        assert "no account" in place.refusal(command[0], "nobody", *command[1:]).lower()
    assert "1 to 1024" in place.refusal("password", DOCTOR, "--password-file", "-", text="\n")
    assert "own" in place.refusal("grant", DOCTOR, DOCTOR)
    assert "no application password" in place.refusal("app-password", "revoke", DOCTOR, "x")
    assert "no certificate" in place.refusal("certificate", "withdraw", DOCTOR, "x")
    assert "no linked subject" in place.refusal("oidc", "unlink", DOCTOR, "x")


def test_awkward_words_are_sentences(place) -> None:
    place.document("create", DOCTOR, "--no-password")
    bad = "x\udcff"
    for arguments in (
        ("create", bad, "--no-password"),
        ("show", bad),
        ("lock", DOCTOR, "--reason", bad),
        ("app-password", "add", DOCTOR, bad),
        ("app-password", "revoke", DOCTOR, bad),
        ("certificate", "withdraw", DOCTOR, bad),
        ("oidc", "link", DOCTOR, bad),
        ("oidc", "link", DOCTOR, "1", "--claim", bad),
        ("oidc", "link", DOCTOR, "1", "--issuer", bad),
        ("oidc", "unlink", DOCTOR, bad),
        ("grant", DOCTOR, bad),
        ("grant", DOCTOR, "--member-of", bad),
    ):
        assert "UTF-8" in place.refusal(*arguments)
    assert "500 characters" in place.refusal("lock", DOCTOR, "--reason", "x" * 501)
    assert "control" in place.refusal("lock", DOCTOR, "--reason", "a\x1b[2Jb")
    assert "spaces" in place.refusal("oidc", "link", DOCTOR, " 899700075064")
    assert "255" in place.refusal("oidc", "link", DOCTOR, "1", "--claim", "x" * 256)
    assert "255" in place.refusal("oidc", "link", DOCTOR, "1", "--issuer", "a\nb")
    assert "accents" in place.refusal("create", "h\u00e9l\u00e8ne", "--no-password")
    assert place.document("show", DOCTOR)["closed"] == ""


def test_anchors_that_cannot_be_read_keep_nobody_from_closing_an_account(stopped) -> None:
    stopped.document("create", DOCTOR, "--no-password")
    (stopped.root / "anchors.pem").write_text("broken")
    assert stopped.document("lock", DOCTOR)["closed"]
    file = stopped.root / "labo.pem"
    file.write_bytes(certificate("labo", CA_KEY).public_bytes(Encoding.PEM))
    assert "anchors.pem" in stopped.refusal("certificate", "bind", DOCTOR, str(file))


def test_the_operator_that_knows_a_login(monkeypatch) -> None:
    """Below the state of `relais up` there are several."""
    monkeypatch.delenv("RELAIS_STATE", raising=False)
    with service_directory() as root:
        for domain in ("cabinet.example", "autre.example"):
            state = root / domain
            state.mkdir(mode=0o700)
            text = CONFIGURATION.format(keys="").replace("cabinet.example", domain)
            (state / "relais.toml").write_text(text.replace('state = "state"', 'state = "."'))
            KeyVault.create(state / "vault")

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(relais, ["account", *arguments, "--state", str(root)])

        assert run("create", "labo", "--address", "x@autre.example", "--no-password").exit_code == 0
        assert "x@autre.example" in run("show", " LABO ").stdout
        assert "x@autre.example" in run("show", "x@autre.example").stdout
        assert "exactly one" in run("show", "nobody").stderr
        assert run("show", "nobody").exit_code == 1


def test_a_password_file_of_windows(place) -> None:
    file = place.root / "password"
    file.write_bytes(b"\xef\xbb\xbfmot de passe\r\n")
    place.document("create", DOCTOR, "--password-file", str(file))
    assert isinstance(place.authenticate(DOCTOR, "mot de passe"), Identity)


def test_a_claim_that_is_read_from_no_token_is_told(stopped) -> None:
    stopped.document("create", DOCTOR, "--no-password")
    told = stopped.run("oidc", "link", DOCTOR, "x@example.org", "--claim", "email")
    assert told.exit_code == 0 and "reads email" in told.stderr


def test_what_is_open_ends_when_something_is_taken_away(place) -> None:
    """Nobody answers at this Dovecot's socket: it is done, and said that sessions go on."""
    place.document("create", DOCTOR, "--address", DOCTOR, "--address", PRACTICE, "--no-password")
    place.document("create", SECRETARY, "--no-password")
    place.document("grant", SECRETARY, PRACTICE)
    told = place.run("lock", DOCTOR)
    assert told.exit_code == 0 and "could not be ended" in told.stderr
    assert "sessions_ended" not in place.document("unlock", DOCTOR), "it takes nothing away"
    assert not place.document("revoke", SECRETARY, PRACTICE)["sessions_ended"]
    assert place.document("addresses", DOCTOR, DOCTOR, PRACTICE)["sessions_ended"], "no address went"
    assert not place.document("addresses", DOCTOR, DOCTOR)["sessions_ended"]


def test_whose_sessions_end(stopped) -> None:
    ended: list[list[str]] = []
    database = Database(f"sqlite:///{stopped.state}/relais.db")
    upgrade(database)
    vault = KeyVault.open(stopped.state / "vault")
    administration = Administration(Accounts(database, vault), Journal(vault, "relais.cabinet.example"))
    answers = AccountAnswers(administration, None, frozenset({ISSUER}), lambda asked: bool(ended.append(asked)) or True)
    calls = answers.calls()

    def do(call: str, **request) -> list[str]:
        ended.clear()
        answer = calls[f"account.{call}"]({"by": "root", **request})
        assert "problem" not in answer, answer
        return [address for asked in ended for address in asked]

    team = "equipe@cabinet.example"
    for login, addresses in ((DOCTOR, [DOCTOR, PRACTICE]), (SECRETARY, [SECRETARY]), (team, [team])):
        assert do("create", name=login, addresses=addresses, password=None) == []
    assert do("grant", name=SECRETARY, address=PRACTICE, right="use") == []
    assert do("grant", name=team, address=DOCTOR, right="use") == []
    assert do("join", name=SECRETARY, team=team) == []
    assert do("lock", name=SECRETARY, reason="") == sorted([SECRETARY, PRACTICE, team, DOCTOR])
    assert do("unlock", name=SECRETARY) == []
    assert do("password", name=DOCTOR, password=None) == sorted([DOCTOR, PRACTICE])
    made = calls["account.app-password.add"]({"by": "root", "name": SECRETARY, "title": "x", "services": []})
    assert len(do("app-password.revoke", name=SECRETARY, which=made["id"])) == 4
    assert do("revoke", name=SECRETARY, address=PRACTICE.upper()) == [PRACTICE]
    assert do("leave", name=SECRETARY, team=team) == sorted([team, DOCTOR])
    assert do("addresses", name=PRACTICE, addresses=[DOCTOR]) == [PRACTICE]
    assert do("delete", name=DOCTOR) == [DOCTOR]
    database.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("create",),
        ("create", "x", "--password", "secret"),
        ("grant", DOCTOR),
        ("grant", DOCTOR, PRACTICE, "--member-of", "x"),
        ("grant", DOCTOR, PRACTICE, "--right", "all"),
        ("app-password", "add", DOCTOR, "x", "--only", "pop3"),
        ("certificate", "bind", DOCTOR, "/absent.pem"),
    ],
)
def test_a_wrong_command_line_is_status_two(stopped, arguments) -> None:
    assert stopped.run(*arguments).exit_code == 2


def test_passwords_are_never_options(stopped) -> None:
    for command in (("create",), ("password",), ("app-password", "add")):
        shown = stopped.run(*command, "--help").output
        assert "--password " not in shown


def test_a_gateway_that_holds_its_state_and_does_not_answer(stopped) -> None:
    stopped.document("create", DOCTOR, "--no-password")
    lock = os.open(stopped.state / "serve.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        assert "no gateway answers" in stopped.refusal("list")
    finally:
        os.close(lock)
    assert len(stopped.document("list")) == 1


def _create_some(root: str, start: int) -> None:
    for number in range(start, start + 4):
        arguments = ["account", "create", f"n{number}", "--no-password", "--config", f"{root}/relais.toml"]
        while CliRunner().invoke(relais, arguments).exit_code:
            pass  # the other one holds the state: try again


def test_two_commands_at_once_never_write_together(stopped) -> None:
    stopped.document("create", DOCTOR, "--no-password")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_create_some, args=(str(stopped.root), start)) for start in (0, 10)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(60)
    assert len(stopped.document("list")) == 9
    assert stopped.actions() == ["account.created"] * 9
