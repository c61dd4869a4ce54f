"""`relais mailbox`, on the state of a stopped gateway and through the socket of a running one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pypdfium2
import pytest
from click.testing import CliRunner, Result

from config import doctor
from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket
from config.mailbox_answers import MailboxAnswers
from config.migrations import upgrade
from config.settings import load
from directory.records import MailboxKind, Recipient
from mta.mailboxes.administration import MailboxAdministration
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.registry import Registry
from tests.config.test_keys_command import CONFIGURATION
from tests.support.private import give, service_directory
from trust.accounts import Accounts
from trust.identities import Identity
from trust.journal import Journal
from trust.store.database import Database
from trust.vault import KeyVault

DOMAIN = "cabinet.example"
DOCTOR, TEAM, MACHINE, NURSE = (f"{each}@{DOMAIN}" for each in ("dr.fictif", "equipe", "automate", "infirmiere"))


class Place:
    """An operator's folder, its gateway stopped."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "state"
        (root / "relais.toml").write_text(CONFIGURATION.format(keys=""))
        self.state.mkdir(mode=0o700)
        KeyVault.create(self.state / "vault")

    def run(self, *arguments: str, text: str | None = None) -> Result:
        command = ["mailbox", *arguments, "--config", str(self.root / "relais.toml")]
        result = CliRunner().invoke(relais, command, input=text)
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

    def opened(self) -> tuple[Database, KeyVault, Accounts]:
        database, vault = Database(f"sqlite:///{self.state}/relais.db"), KeyVault.open(self.state / "vault")
        return database, vault, Accounts(database, vault)

    def authenticate(self, login: str, password: str):
        database, _, accounts = self.opened()
        try:
            return accounts.authenticate(login, password)
        finally:
            database.close()


def test_files_for_a_dovecot_of_the_operator_s_own_are_written_where_only_root_may() -> None:
    """The documented command, as the documented user."""
    with service_directory() as root, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        place = Place(root)
        file = root / "relais.toml"
        file.write_text(file.read_text().replace('home = "mail"', f'home = "mail"\nmemory = "{memory}"'))
        give(root)
        place.state.chmod(0o700)
        target = root / "etc" / "relais"
        target.parent.mkdir(mode=0o755)  # root's, where the test is
        written = place.run("dovecot-files", str(target), "--loopback-port", "143")
        assert written.exit_code == 0, written.output
        assert written.stdout.splitlines()[0] == str(target / "relais.conf")
        owner = place.state.stat().st_uid
        assert {each.stat().st_uid for each in (target, *target.iterdir())} == {owner}
        assert {each.stat().st_mode & 0o777 for each in target.iterdir()} == {0o600}
        file.write_text(file.read_text().replace(memory, str(root / "memory")))
        assert "tmpfs" in place.refusal("dovecot-files", str(target))


def test_doctor_says_when_dovecot_s_memory_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "relais.toml"
    file.write_text(CONFIGURATION.format(keys="").replace('home = "mail"', f'home = "mail"\nmemory = "{tmp_path}"'))

    def told(free: int) -> list[str]:
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return [each.text for each in doctor._memory(load(file))]

    assert told(1 << 30) == []
    assert "100 MB left" in told(100 << 20)[0]


class Running(threading.Thread):
    """What a gateway does about it: holds the lock, answers on the socket."""

    def __init__(self, place: Place) -> None:
        super().__init__(daemon=True)
        self.place, self.ended = place, []
        self.ready, self.end = threading.Event(), threading.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    def resolve(self, address: str) -> Recipient | None:
        return Recipient(address, MailboxKind.CAB, "Cabinet fictif")

    async def _serve(self) -> None:
        state = self.place.state
        lock = os.open(state / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        database, vault, accounts = self.place.opened()
        upgrade(database)
        registry, journal = Registry(accounts, vault), Journal(vault, "relais.cabinet.example")
        accounts.create("ancien@cabinet.example", ["ancien@cabinet.example"], None)
        answers = MailboxAnswers(
            MailboxAdministration(registry, accounts, journal, [DOMAIN]),
            end_sessions=lambda addresses: bool(self.ended.append(sorted(addresses)) or True),
            adoption=Adoption(registry, database, journal, self),
        )
        with ThreadPoolExecutor(2) as threads:
            control = ControlSocket(state / "control.sock", off_loop(answers.calls(), threads))
            await control.start()
            self.ready.set()
            await asyncio.to_thread(self.end.wait)
            await control.stop()
        database.close()
        os.close(lock)


@pytest.fixture
def place():
    with service_directory() as root:
        yield Place(root)


def test_the_life_of_a_mailbox(place: Place) -> None:
    made = place.document(
        *("create", DOCTOR, "--kind", "PER", "--label", "Dr Camille FICTIF", "--id-nat", "810000000001"),
        *("--quota", "2G", "--password-file", "-"),
        text="mot de passe\n",
    )
    assert (made["kind"], made["label"], made["quota_bytes"], made["state"]) == (
        *("PER", "Dr Camille FICTIF"),
        *(2 << 30, "active"),
    )
    assert isinstance(place.authenticate(DOCTOR, "mot de passe"), Identity)
    suspended = place.run("suspend", DOCTOR, "--reason", "en congé")
    assert suspended.exit_code == 0
    assert "(PER, suspended)" in suspended.stdout
    assert "en congé" in suspended.stdout
    assert place.document("open", DOCTOR)["state"] == "active"
    assert place.run("close", DOCTOR).exit_code == 2, "whoever writes wants to know why"
    closed = place.document("close", DOCTOR, "--reason", "départ à la retraite")
    assert closed["closed"]
    assert not closed["directory_told"], "the gateway is stopped"
    assert place.document("password", DOCTOR, "--password-file", "-", text="nouveau\n")["state"] == "closed"
    assert isinstance(place.authenticate(DOCTOR, "nouveau"), Identity)
    (row,) = place.document("list")
    assert row["reason"] == "départ à la retraite"
    assert place.document("list", "--only", "active") == []
    assert place.run("list", "--kind", "ORG").stdout == "No mailboxes.\n"
    assert DOCTOR in place.run("list").stdout


def test_members(place: Place) -> None:
    place.document("create", TEAM, "--kind", "ORG", "--label", "Équipe")
    place.document("create", NURSE, "--kind", "PER", "--label", "Claude FICTIF", "--no-password")
    shown = place.document("members", TEAM, NURSE, "--read", "--send")
    assert shown["members"] == [{"login": NURSE, "rights": ["read", "send"]}]
    assert "read, send" in place.run("members", TEAM).stdout
    assert place.run("members", TEAM, NURSE).exit_code == 2
    assert place.run("members", TEAM, NURSE, "--read", "--remove").exit_code == 2
    assert place.run("members", TEAM, "--read").exit_code == 2
    assert place.document("members", TEAM, NURSE, "--remove")["members"] == []
    assert "no member" in place.refusal("members", TEAM, NURSE, "--remove")
    assert "ORG, CAB" in place.refusal("members", NURSE, TEAM, "--read")


def test_the_kind_of_an_account_s_mailbox_is_said_once(place: Place) -> None:
    place.document("create", TEAM, "--kind", "ORG", "--label", "Équipe")  # makes the database
    database, _, accounts = place.opened()
    accounts.create(MACHINE, [MACHINE], None)
    database.close()
    assert place.document("quota", MACHINE, "1G")["kind_guessed"]
    assert "--kind" in place.refusal("describe", MACHINE, "--label", "Automate")
    shown = place.document("describe", MACHINE, "--kind", "APP", "--label", "Automate")
    assert (shown["kind"], shown["kind_guessed"]) == ("APP", False)
    assert "never changes" in place.refusal("describe", MACHINE, "--kind", "PER")


def test_preferences_and_quota(place: Place) -> None:
    place.document("create", TEAM, "--kind", "CAB", "--label", "Cabinet")
    shown = place.document("preferences", TEAM, "custody=holder", "hprim=yes", "flags=no")
    changed = shown["preferences"]
    assert (changed["custody"], changed["hprim"], changed["flags"], changed["summary"]) == ("holder", True, False, True)
    assert "custody=holder" in place.run("preferences", TEAM).stdout
    for wrong, words in (("custody=us", "gateway or holder"), ("hprim=1", "yes or no"), ("color=red", "there are")):
        assert words in place.refusal("preferences", TEAM, wrong)
    assert place.document("quota", TEAM, "500m")["quota_bytes"] == 500 << 20
    for wrong in ("", "-1", "1.5G", "1e9", "9" * 16):
        assert place.run("quota", TEAM, "--", wrong).exit_code != 0
    assert "one pebibyte" in place.refusal("quota", TEAM, "99999T")
    assert place.document("describe", TEAM, "--label", "Maison de santé")["label"] == "Maison de santé"


def test_a_patient_s_address_need_not_be_on_the_command_line(place: Place) -> None:
    text = (place.root / "relais.toml").read_text()
    text = text.replace(f'domains = ["{DOMAIN}"]', f'domains = ["{DOMAIN}", "patient.cabinet.example"]')
    text = text.replace("[trust]", '[identity]\npatient_domains = ["patient.cabinet.example"]\n[trust]', 1)
    (place.root / "relais.toml").write_text(text)
    patient = "299019900100133@patient.cabinet.example"
    made = place.document(
        *("create", "-", "--kind", "PATIENT", "--password-file", "-"), text=f"{patient}\nmot de passe\n"
    )
    assert made["address"] == patient
    assert isinstance(place.authenticate(patient, "mot de passe"), Identity)
    assert place.document("suspend", made["id"][:12])["state"] == "suspended"
    assert place.document("show", "-", text=patient)["state"] == "suspended"
    assert "no mailbox" in place.refusal("show", "0123456789ab")


def words_of(sheet: Path) -> str:
    with pypdfium2.PdfDocument(sheet) as document:
        text = document[0].get_textpage()
        try:
            return " ".join(text.get_text_bounded().split())
        finally:
            text.close()


def test_a_sheet_for_a_mailbox_that_can_be_opened(place: Place) -> None:
    output = place.root / "fiche.pdf"
    sheet = ("sheet", "-o", str(output))
    place.document("create", DOCTOR, "--kind", "PER", "--label", "Dr Camille FICTIF", "--no-password")
    assert "no [discovery] section" in place.refusal(*sheet, DOCTOR)
    text = (place.root / "relais.toml").read_text()
    text = text.replace(f'domains = ["{DOMAIN}"]', f'domains = ["{DOMAIN}", "patient.cabinet.example"]')
    text = text.replace("[trust]", '[identity]\npatient_domains = ["patient.cabinet.example"]\n[trust]', 1)
    text += '[discovery]\n[submission]\nport = 587\nchain = "server.pem"\nkey = "server.key"\n'
    (place.root / "relais.toml").write_text(text)
    assert place.run(*sheet, DOCTOR).exit_code == 0
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    words = words_of(output)
    assert "Dr Camille FICTIF" in words
    assert "Ce que votre messagerie fait pour vous" in words
    place.document("preferences", DOCTOR, "custody=holder")
    assert place.run(*sheet, DOCTOR, "--name", "Cabinet médical").exit_code == 0
    words = words_of(output)
    assert "Cabinet médical" in words
    assert "Ce que votre messagerie fait pour vous" not in words

    patient = "299019900100133@patient.cabinet.example"
    made = place.document("create", "-", "--kind", "PATIENT", "--no-password", text=patient)
    for name, given in (("-", f"{patient}\n"), (made["id"][:12], "")):
        output.unlink()
        assert place.run(*sheet, name, text=given).exit_code == 0
        assert patient in words_of(output)

    output.unlink()
    wrong = place.refusal(*sheet, "-", text="299019900100134@patient.cabinet.example")
    assert "no mailbox" in wrong
    assert "29901990010013" not in wrong
    place.document("create", MACHINE, "--kind", "APP", "--label", "Automate")
    assert "certificate" in place.refusal(*sheet, MACHINE)
    place.document("close", DOCTOR, "--reason", "départ")
    assert "log in" in place.refusal(*sheet, DOCTOR)
    assert not output.exists()
    assert "cannot be written" in place.refusal("sheet", "-o", f"{output}/x/y.pdf", made["id"][:12])


def test_what_cannot_be_done_is_a_sentence(place: Place) -> None:
    place.document("create", MACHINE, "--kind", "APP", "--label", "Automate")
    assert "certificate" in place.refusal("password", MACHINE, "--password-file", "-", text="x\n")
    wrong = ("create", f"autre@{DOMAIN}", "--kind", "APP", "--label", "A", "--password-file", "-")
    assert "certificate" in place.refusal(*wrong, text="x\n")
    assert "already" in place.refusal("create", MACHINE, "--kind", "APP", "--label", "A")
    assert "No operator here" in place.refusal("create", "x@ailleurs.example", "--kind", "ORG", "--label", "A")
    assert "no mailbox" in place.refusal("open", f"personne@{DOMAIN}")
    assert "for control" in place.refusal("suspend", MACHINE, "--reason", "a\x07b")


def test_a_running_gateway_is_asked_and_ends_sessions(place: Place) -> None:
    gateway = Running(place)
    gateway.start()
    assert gateway.ready.wait(20)
    try:
        place.document("create", TEAM, "--kind", "ORG", "--label", "Équipe")
        place.document(
            "create", NURSE, "--kind", "PER", "--label", "Claude FICTIF", "--password-file", "-", text="x y\n"
        )
        place.document("members", TEAM, NURSE, "--read")
        gateway.ended.clear()
        place.document("suspend", TEAM)
        assert gateway.ended == [[TEAM, NURSE]], "whoever has it open through a share of it"
        assert place.document("suspend", "ancien@cabinet.example")["kind_guessed"], "that waits for no directory"
        assert "Nobody has said its kind" in place.run("show", "ancien@cabinet.example").stderr
        assert "PER?" in place.run("list").stdout
        shown = place.document("quota", "ancien@cabinet.example", "1G")
        assert (shown["kind"], shown["label"], shown["kind_guessed"]) == ("CAB", "Cabinet fictif", False), "asked first"
        assert shown["state"] == "suspended"
    finally:
        gateway.end.set()
        gateway.join(20)
