"""`relais keys` on a real vault: what operators type, exit codes, and sentences instead of stack traces."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket, ask
from config.key_journal import KeyAnswers
from config.key_places import as_owner
from config.keys_command import keys
from config.migrations import upgrade
from tests.support.private import service_directory, service_ids
from tests.trust.certificate_authority import NOW, Authority
from tests.trust.softhsm import LABEL, MODULE, PIN, make_token, needs_softhsm
from trust.journal import Journal
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault

AUTHORITY = Authority()
ADDRESS = "medecin@cabinet.example"
ROOT = Path(__file__).parents[2]
CONFIGURATION = """
[operator]
name = "Cabinet"
host = "relais.cabinet.example"
domains = ["cabinet.example"]
postmaster = "postmaster@cabinet.example"
state = "state"
[trust]
anchors = "anchors.pem"
list = "list.xml"
list_signer = "CN=x"
operator_chain = "operator.pem"
operator_key = "operator.key"
[directory]
uri = "ldap://127.0.0.1"
[mailboxes]
lmtp_socket = "lmtp"
authentication_socket = "authentication"
home = "mail"
[keys]
{keys}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An operator's folder: configuration, anchors, an empty state."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELAIS_STATE", raising=False)
    (tmp_path / "relais.toml").write_text(CONFIGURATION.format(keys=""))
    (tmp_path / "anchors.pem").write_bytes(AUTHORITY.root.public_bytes(Encoding.PEM))
    (tmp_path / "state").mkdir(mode=0o700)
    return tmp_path


def run(*arguments: str, text: str | None = None) -> Result:
    result = CliRunner().invoke(relais, ["keys", *arguments, "--config", "relais.toml"], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def document(*arguments: str):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def answer(folder: Path, **validity) -> None:
    """What the authority sends back for every request in a folder."""
    for file in folder.glob("*.csr.pem"):
        certificate = AUTHORITY.answer(x509.load_pem_x509_csr(file.read_bytes()), **validity)
        (folder / f"{file.name.removesuffix('.csr.pem')}.cer").write_bytes(certificate.public_bytes(Encoding.DER))
    (folder / "chain.cer").write_bytes(AUTHORITY.intermediate.public_bytes(Encoding.PEM))


def answers(folder: str) -> list[str]:
    """What a shell makes of `folder/*.cer`."""
    return sorted(str(each) for each in Path(folder).glob("*.cer"))


def vault() -> KeyVault:
    return KeyVault.open(Path("state/vault"))


def p12(name: str = "mailbox.p12", address: str = ADDRESS, signing: bool = True) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = AUTHORITY.issue(key, address, signing=signing)
    encryption = BestAvailableEncryption(b"secret")
    Path(name).write_bytes(
        pkcs12.serialize_key_and_certificates(b"", key, certificate, [AUTHORITY.intermediate], encryption)
    )


def test_a_whole_life(place) -> None:
    made = document("request", ADDRESS, "--kind", "p256", "--out", "requests", "--subject", "CN=Médecin,C=FR")
    assert {row["use"] for row in made} == {"signing", "encryption"}
    assert {row["state"] for row in document("list")} == {"requested"}
    answer(Path("requests"), until=20)
    assert run("check", "requests").exit_code == 0
    installed = document("install", *answers("requests"))
    assert {row["state"] for row in installed} == {"current"}
    told = run("check")
    assert told.exit_code == 1
    assert "cannot sign from" in told.output
    assert run("check", "--days", "1").exit_code == 0

    rotated = document("rotate", ADDRESS, "--use", "signing", "--out", "renewal")
    assert len(rotated) == 1
    assert run("rotate", ADDRESS, "--use", "signing").exit_code == 1  # requested already
    answer(Path("renewal"), since=0)
    new = document("install", *answers("renewal"))[0]
    old = next(row for row in document("list", ADDRESS) if row["use"] == "signing" and row["id"] != new["id"])
    assert (new["state"], old["state"]) == ("current", "older")
    assert document("retire", old["id"][:6])[0]["state"] == "retired"
    signature = vault().signer(ADDRESS).sign(b"x", SHA256())
    vault().signer(ADDRESS).certificate.public_key().verify(signature, b"x", ec.ECDSA(SHA256()))
    last = run("retire", new["id"])
    assert last.exit_code == 0
    assert "cannot sign any more" in last.output


def test_list_says_what_there_is(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    shown = run("list")
    assert ADDRESS in shown.output
    assert "requested" in shown.output
    assert run("list", "nobody@cabinet.example").output == "No keys.\n"


@pytest.mark.parametrize("address", [[], ["--address", ADDRESS]])
def test_import_asks_for_the_passphrase(place, address) -> None:
    p12()
    result = run("import", "mailbox.p12", *address, text="secret\n")
    assert result.exit_code == 0, result.output
    assert "secret" not in result.output
    assert "remove mailbox.p12" in result.output
    assert vault().signer(ADDRESS).chain == (AUTHORITY.intermediate,)
    assert vault().decryptors(ADDRESS) == ()


def test_import_refuses(place) -> None:
    p12()
    Path("wrong").write_text("wrong\n")
    Path("right").write_text("secret\n")
    bare = ec.generate_private_key(ec.SECP256R1())
    Path("bare.der").write_bytes(bare.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    Path("cut.p12").write_bytes(Path("mailbox.p12").read_bytes()[:-9])
    for arguments, said in (
        (("mailbox.p12", "--passphrase-file", "wrong"), "does not open with this passphrase"),
        (("mailbox.p12", "--passphrase-file", "right", "--address", "b@cabinet.example"), "another address"),
        (("mailbox.p12", "--passphrase-file", "right", "--use", "encryption"), "KeyUsage does not allow encryption"),
        (("mailbox.p12", "--passphrase-file", "right", "--address", "a@elsewhere.example"), "another address"),
        (("bare.der",), "private key without a certificate"),
        (("cut.p12",), "is cut short"),
        (("right",), "cannot be read"),
    ):
        result = run("import", *arguments)
        assert result.exit_code == 1, result.output
        assert said in result.output
    p12("elsewhere.p12", "a@elsewhere.example")
    assert "No operator here" in run("import", "elsewhere.p12", "--passphrase-file", "right").output
    assert run("import", "absent.p12").exit_code == 2
    assert not Path("state/vault/keys").exists() or vault().generations() == []


def test_what_cannot_be_installed(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    stranger = ec.generate_private_key(ec.SECP256R1())
    Path("stranger.cer").write_bytes(AUTHORITY.issue(stranger, ADDRESS).public_bytes(Encoding.PEM))
    Path("key.der").write_bytes(stranger.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    Path("cut.cer").write_bytes(Path("stranger.cer").read_bytes()[:200])
    for file, said in (
        ("stranger.cer", "No key here waits for this certificate"),
        ("key.der", "key.der is a private key, not a certificate"),
        ("cut.cer", "cut.cer is a truncated PEM file"),
    ):
        result = run("install", file)
        assert result.exit_code == 1
        assert said in result.output
        assert len(result.output.strip().splitlines()) == 1
    checked = run("check", "key.der", "cut.cer", "stranger.cer")
    assert checked.exit_code == 1
    assert "though its name is key.der" in checked.output


def test_sentences_instead_of_stack_traces(place) -> None:
    empty = run("list")
    assert empty.exit_code == 1
    assert "cannot be read" in empty.output
    run("request", ADDRESS, "--kind", "p256")
    for arguments in (
        ("retire", "0123456789abcdef"),
        ("retire", "0"),
        ("discard", "ffffff"),
        ("rotate", "nobody@cabinet.example"),
        ("rotate", "nobody@elsewhere.example"),
        ("request", "é@cabinet.example"),
        ("request", "no address"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1, arguments
        assert len(result.output.strip().splitlines()) == 1
    for arguments in (
        ("rotate",),
        ("rotate", ADDRESS, "--expiring", "3"),
        ("request", ADDRESS, "--subject", "no name"),
    ):
        assert run(*arguments).exit_code == 2
    Path("state/vault/kek").chmod(0o644)
    assert "chmod 600" in run("list").output
    Path("state/vault/kek").chmod(0o600)
    Path("state/vault/kek").write_bytes(bytes(32))
    assert "not the key this vault was made with" in run("check").output
    Path("anchors.pem").write_text("nothing")
    (place / "relais.toml").write_text("[operator]\n")
    assert run("list").exit_code == 1


def test_without_a_configuration_the_state_is_enough(place, monkeypatch) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    for state in ("state", "."):
        shown = CliRunner().invoke(relais, ["keys", "list", "--json", "--state", state])
        assert [row["address"] for row in json.loads(shown.stdout)] == [ADDRESS]
    nothing = CliRunner().invoke(relais, ["keys", "list", "--state", "absent"])
    assert nothing.exit_code == 1
    assert "no vault" in nothing.output


def test_requests_by_mistake_are_discarded(place) -> None:
    (made,) = document("request", ADDRESS, "--kind", "p256", "--use", "signing")
    assert x509.load_pem_x509_csr(made["request"].encode()).is_signature_valid
    assert run("discard", made["id"]).exit_code == 0
    assert vault().requests() == []


@needs_softhsm
@pytest.mark.xdist_group("softhsm")
def test_keys_in_a_token(place, monkeypatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "")
    pin = make_token(place / "hsm")
    section = f'pkcs11_module = "{MODULE}"\ntoken = "{LABEL}"\npin_file = "{pin}"\nnew_keys = "token"'
    (place / "relais.toml").write_text(CONFIGURATION.format(keys=section))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def separately(*arguments: str, code: int = 0) -> str:
        """In a process of its own, as operators do: a loaded library never reads another configuration."""
        command = [sys.executable, "-P", "-m", "config", "keys", *arguments, "--config", "relais.toml"]
        done = subprocess.run(command, check=False, capture_output=True, env=environment, timeout=60)
        output = (done.stdout + done.stderr).decode()
        assert done.returncode == code, output
        assert PIN not in output
        return done.stdout.decode()

    separately("request", ADDRESS, "--kind", "p256", "--out", "requests")
    answer(Path("requests"))
    installed = json.loads(separately("install", *answers("requests"), "--json"))
    assert {row["kept_in"] for row in installed} == {"token"}
    assert separately("check") == "Nothing is wrong.\n"
    separately("rotate", ADDRESS, "--vault", "--use", "signing", "--out", "renewal")
    assert {(row["state"], row["kept_in"]) for row in json.loads(separately("list", "--json"))} == {
        ("current", "token"),
        ("requested", "vault"),
    }
    pin.write_text("wrong")
    assert "refuses the PIN" in separately("check", code=1)


@pytest.mark.skipif(service_ids() is None, reason="only root can act as another user")
def test_root_acts_as_the_owner_of_the_state(monkeypatch) -> None:
    if not all(each.stat().st_mode & stat.S_IXOTH for each in ROOT.parents):
        pytest.skip(f"another user cannot read the project below {ROOT}, from which the tests run")
    with service_directory() as state:
        uid, gid = service_ids()
        made = CliRunner().invoke(
            relais, ["keys", "request", ADDRESS, "--kind", "p256", "--state", str(state), "--json"]
        )
        assert made.exit_code == 1  # no vault there, and no configuration to say that one is wanted
        subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                f"from pathlib import Path; from trust.vault import KeyVault; "
                f"KeyVault.create(Path({str(state)!r}) / 'vault')",
            ],
            check=True,
            user=uid,
            group=gid,
            extra_groups=[],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd="/",
        )
        made = CliRunner().invoke(
            relais, ["keys", "request", ADDRESS, "--kind", "p256", "--state", str(state), "--json"]
        )
        assert made.exit_code == 0, made.output
        for path in state.rglob("*"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (uid, gid), path
            assert not stat.S_IMODE(status.st_mode) & 0o077
        assert (os.geteuid(), os.getegid()) == (0, 0)


def test_every_command_explains_itself() -> None:
    everyday = {"list", "import", "request", "pending", "install", "rotate", "retire", "discard", "check"}
    assert set(keys.commands) == {*everyday, "rewrap", "escrow", "recover"}
    for name in keys.commands:
        assert run(name, "--help").exit_code == 0


def test_the_walkthrough_of_the_documentation(place) -> None:
    guide = (ROOT / "docs" / "keys.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    run("request", ADDRESS, "--kind", "p256", "--out", "first")
    answer(Path("first"), since=-300, until=20)
    run("install", *answers("first"))
    p12(address="autre@cabinet.example")
    Path("passphrase").write_text("secret\n")
    ran = []
    for line in [line for block in blocks for line in block.splitlines()]:
        old = next(row["id"] for row in document("list") if row["use"] == "signing" and row["serial"])
        words = shlex.split(line.replace("OLD-ID", old[:6]))
        assert words[:2] == ["relais", "keys"]
        expanded = [name for word in words[2:] for name in (answers(word.partition("/")[0]) if "*" in word else [word])]
        result = CliRunner().invoke(relais, ["keys", *expanded])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if words[2] == "rotate":
            assert len(list(Path("renewal").glob("*.csr.pem"))) == 2
            answer(Path("renewal"))
        ran.append(words[2])
    assert set(ran) == {"list", "check", "rotate", "install", "retire", "request", "import"}


# --- the journal ------------------------------------------------------------------------------------------------------


def entries(state: str = "state", writer: str = "relais.cabinet.example"):
    """Oldest first."""
    held = KeyVault.open(Path(state) / "vault")
    database = Database(f"sqlite:///{Path(state).absolute() / 'relais.db'}")
    try:
        journal = Journal(held, writer)
        verdict = database.read(journal.verify)
        assert verdict.ok, verdict.problem
        found = database.read(lambda connection: journal.entries(connection, limit=1000))
    finally:
        database.close()
    return [each.entry for each in sorted(found, key=lambda each: each.sequence)]


def test_every_act_is_in_the_journal_and_nothing_else(place, monkeypatch) -> None:
    monkeypatch.setenv("SUDO_USER", "operatrice")
    made = document("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")[0]
    run("list")
    run("check")
    run("pending")
    answer(Path("requests"), since=-100)
    (first,) = document("install", *answers("requests"))
    (following,) = document("rotate", ADDRESS, "--out", "renewal")
    document("discard", following["id"])
    document("retire", first["id"])
    p12()
    Path("passphrase").write_text("secret\n")
    document("import", "mailbox.p12", "--passphrase-file", "passphrase")
    assert run("rewrap").exit_code == 0
    noted = entries()
    assert [(each.action, each.outcome) for each in noted] == [
        (f"key.{act}", outcome)
        for act in ("request", "install", "rotate", "discard", "retire", "import", "rewrap")
        for outcome in ("begun", "done")
    ]
    assert {each.actor for each in noted} == {"operatrice"}
    pseudonym = vault().pseudonym("address", ADDRESS)
    assert all(each.details.get("mailbox") == pseudonym for each in noted if each.action != "key.rewrap")
    by_action = {each.action: each for each in noted}  # the last of each
    assert by_action["key.request"].object_id == made["id"]
    assert by_action["key.request"].details["kept_in"] == "vault"
    assert by_action["key.install"].object_id == by_action["key.retire"].object_id == first["id"]
    assert by_action["key.discard"].object_id == following["id"]
    everything = repr([(each.actor, each.object_id, each.reason, dict(each.details)) for each in noted])
    assert ADDRESS not in everything
    assert "secret" not in everything
    assert ADDRESS.encode() not in Path("state/relais.db").read_bytes()


def test_what_fails_is_in_the_journal_too(place, monkeypatch) -> None:
    document("request", ADDRESS, "--kind", "p256", "--use", "signing")

    def full(*_, **__):
        raise OSError(28, "No space left on device", "state/vault/keys")

    monkeypatch.setattr(KeyVault, "rotate", full)
    monkeypatch.setattr(KeyVault, "discard", full)
    (waiting,) = document("list")
    result = run("discard", waiting["id"])
    assert result.exit_code == 1
    assert result.output == "state/vault/keys: No space left on device; nothing more was done.\n"
    assert [(each.action, each.outcome) for each in entries()][-2:] == [
        ("key.discard", "begun"),
        ("key.discard", "failed"),
    ]


def test_without_the_journal_nothing_is_done(place) -> None:
    document("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")
    answer(Path("requests"))
    for each in Path("state").glob("relais.db*"):
        each.unlink()
    Path("state/relais.db").write_bytes(b"this is no database, whatever its name " * 40)
    for arguments in (("install", *answers("requests")), ("request", "b@cabinet.example"), ("rewrap",)):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert "journal" in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert vault().generations() == []
    assert len(vault().requests()) == 1


class Gateway:
    """Holds the lock as a running gateway does, and answers on its socket, or does not."""

    def __init__(self, state: Path, *, answering: bool = True) -> None:
        self.state = state
        self.answering = answering

    def __enter__(self) -> None:
        self.lock = os.open(self.state / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.database = Database(f"sqlite:///{self.state / 'relais.db'}")
        upgrade(self.database)
        journal = Journal(KeyVault.open(self.state / "vault"), "relais.cabinet.example")
        calls = KeyAnswers(self.database, journal).calls() if self.answering else {}
        self.threads = ThreadPoolExecutor(1)
        self.socket = ControlSocket(self.state / "control.sock", off_loop(calls, self.threads))
        asyncio.run_coroutine_threadsafe(self.socket.start(), self.loop).result(20)

    def __exit__(self, *_) -> None:
        asyncio.run_coroutine_threadsafe(self.socket.stop(), self.loop).result(20)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(20)
        self.loop.close()
        self.threads.shutdown()
        self.database.close()
        os.close(self.lock)


def test_a_running_gateway_writes_the_journal(place) -> None:
    document("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")
    answer(Path("requests"))
    with Gateway(Path("state").absolute()):
        document("install", *answers("requests"))
    with Gateway(Path("state").absolute(), answering=False):
        result = run("rotate", ADDRESS)
        assert result.exit_code == 1
        assert "The journal cannot be written (the gateway does not know this request" in result.output
        assert "nothing is done" in result.output
    assert vault().requests() == []
    assert [(each.action, each.outcome) for each in entries()] == [
        ("key.request", "begun"),
        ("key.request", "done"),
        ("key.install", "begun"),
        ("key.install", "done"),
    ]


def test_nothing_but_acts_on_keys_is_noted(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    state = Path("state").absolute()
    with Gateway(state):
        row = {"action": "dossier.read", "outcome": "done", "object_id": "", "details": {}}
        told = ask(state / "control.sock", "key.note", by="x", entries=[row])
        assert told == {"problem": "these are no acts on keys"}
    assert len(entries()) == 2


# --- several operators, one document ----------------------------------------------------------------------------------


def test_two_operators(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anchors.pem").write_bytes(AUTHORITY.root.public_bytes(Encoding.PEM))
    for name in ("one", "two"):
        state = tmp_path / "var" / name
        state.mkdir(parents=True, mode=0o700)
        text = CONFIGURATION.format(keys="").replace("cabinet.example", f"{name}.example")
        text = text.replace('state = "state"', 'state = "."').replace("anchors.pem", "../../anchors.pem")
        (state / "relais.toml").write_text(text)
        KeyVault.create(state / "vault")

    def both(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(relais, ["keys", *arguments, "--state", "var"])
        assert result.exit_code == code, result.output
        return result

    for name in ("one", "two"):
        both("request", f"a@{name}.example", "--kind", "p256", "--use", "signing", "--out", "requests")
    assert len(json.loads(both("pending", "--json").stdout)) == 2
    answer(Path("requests"), until=20)
    installed = json.loads(both("install", *answers("requests"), "--json").stdout)
    assert {row["operator"] for row in installed} == {"one", "two"}
    rotated = json.loads(both("rotate", "--expiring", "30", "--json").stdout)
    assert {row["address"] for row in rotated} == {"a@one.example", "a@two.example"}
    assert both("rotate", "--expiring", "30").stdout == "Nothing to rotate.\n"
    retired = json.loads(both("retire", *(row["id"] for row in installed), "--json").stdout)
    assert {row["state"] for row in retired} == {"retired"}
    assert "name one" in both("rewrap", code=1).output
    discarded = json.loads(both("discard", *(row["id"] for row in rotated), "--json").stdout)
    assert {row["state"] for row in discarded} == {"discarded"}


def test_a_certificate_that_belongs_nowhere_is_told(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")
    answer(Path("requests"))
    stranger = AUTHORITY.issue(ec.generate_private_key(ec.SECP256R1()), ADDRESS)
    Path("stranger.cer").write_bytes(stranger.public_bytes(Encoding.DER))
    result = run("install", *answers("requests"), "stranger.cer")
    assert result.exit_code == 1
    assert f"in stranger.cer, serial {stranger.serial_number:x}" in result.output
    assert vault().signer(ADDRESS).chain == (AUTHORITY.intermediate,)


def test_requests_are_printed_again(place) -> None:
    (made,) = document("request", ADDRESS, "--kind", "p256", "--use", "signing")
    again = run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    assert again.exit_code == 1
    assert "relais keys pending" in again.output
    assert document("pending") == [made]
    assert document("pending", "b@cabinet.example") == []
    run("pending", "--out", "again")
    (file,) = Path("again").iterdir()
    assert file.read_text() == made["request"]


def test_what_was_made_before_a_failure_is_given(place, monkeypatch) -> None:
    real, calls = KeyVault.request, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(KeyVault, "request", failing)
    result = run("request", ADDRESS, "--kind", "p256", "--out", "requests")
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert len(list(Path("requests").iterdir())) == 1


def test_rotation_names_who_has_no_key(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")
    answer(Path("requests"))
    run("install", *answers("requests"))
    result = run("rotate", ADDRESS, "nobody@cabinet.example")
    assert result.exit_code == 1
    assert result.output.startswith("nobody@cabinet.example has no such key")
    assert vault().requests() == []


def test_awkward_places(place) -> None:
    Path("file").write_text("x")
    for code, *arguments in (
        (1, "request", ADDRESS, "--out", "file/below"),
        (2, "check", "absent"),
        (1, "import", "file"),
        (1, "install", "file"),
        (2, "install", "state"),
    ):
        result = run(*arguments)
        assert result.exit_code == code, (arguments, result.output)
    assert not Path("state/vault").exists() or vault().requests() == []


@contextmanager
def published(content: bytes) -> Iterator[str]:
    """Its URL on a server of ours."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/list.crl"
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


def test_check_asks_whether_certificates_are_revoked(place) -> None:
    serial = 4711
    revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(days=1)).build()
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(AUTHORITY.intermediate.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + timedelta(days=1))
        .add_revoked_certificate(revoked)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(AUTHORITY.intermediate.public_key()), False)
        .add_extension(x509.CRLNumber(1), False)
        .sign(AUTHORITY._key, SHA256())
    )
    (place / "relais.toml").write_text(
        CONFIGURATION.format(keys="") + '[revocation]\nallowed_hosts = ["127.0.0.1"]\nfetch_seconds = 5\n'
    )
    run("request", ADDRESS, "--kind", "p256", "--use", "signing")
    with published(crl.public_bytes(Encoding.DER)) as url:
        where = x509.CRLDistributionPoints(
            [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)]
        )
        for number in (4712, serial):
            key = ec.generate_private_key(ec.SECP256R1())
            usage = AUTHORITY.issue(key, ADDRESS).extensions
            made = AUTHORITY._sign(
                AUTHORITY.root.subject,
                key.public_key(),
                AUTHORITY.intermediate.subject,
                AUTHORITY._key,
                [
                    *(each for each in usage if not isinstance(each.value, _FROM_AUTHORITY)),
                    x509.Extension(where.oid, False, where),
                ],
                serial=number,
            )
            vault().install(ADDRESS, KeyUse.SIGNING, key, made, [AUTHORITY.intermediate])
            found = json.loads(run("check", "--json").stdout)
            codes = {each["code"] for each in found}
            assert ("revoked" in codes) is (number == serial), found
    assert "revocation-unknown" in {each["code"] for each in json.loads(run("check", "--json").stdout)}


_FROM_AUTHORITY = (x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier)


def test_a_p12_with_two_keys(place) -> None:
    keys_ = {use: ec.generate_private_key(ec.SECP256R1()) for use in (True, False)}
    pem = b""
    for signing, key in keys_.items():
        pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem += AUTHORITY.issue(key, ADDRESS, signing=signing).public_bytes(Encoding.PEM)
    Path("both.pem").write_bytes(pem)
    assert {row["use"] for row in document("import", "both.pem")} == {"signing", "encryption"}
    assert vault().signer(ADDRESS).certificate.public_key() == keys_[True].public_key()


def test_rewrap(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--out", "requests")
    answer(Path("requests"))
    run("install", *answers("requests"))
    before = Path("state/vault/kek").read_bytes()
    assert document("rewrap") == {"sealed_anew": 2, "old_key_opens": False}
    assert Path("state/vault/kek").read_bytes() != before
    assert run("check").output == "Nothing is wrong.\n"
    assert run("rewrap", "--out", "new").exit_code == 1
    assert run("rewrap", "--out", "new", "--forget-old").exit_code == 2
    assert run("rewrap", "--forget-old").exit_code == 0
    Path("state/vault/kek").write_bytes(before)
    result = run("list")
    assert result.exit_code == 1
    assert "not the key" in result.output


def test_nobody_believes_what_was_installed(place) -> None:
    run("request", ADDRESS, "--kind", "p256", "--use", "signing", "--out", "requests")
    stranger = Authority()
    for file in Path("requests").glob("*.csr.pem"):
        made = stranger.answer(x509.load_pem_x509_csr(file.read_bytes()))
        Path("made.cer").write_bytes(made.public_bytes(Encoding.PEM))
    result = run("install", "made.cer")
    assert result.exit_code == 0
    assert "Nobody will believe this certificate now" in result.stderr


@pytest.mark.skipif(service_ids() is None, reason="only root can act as another user")
def test_no_dump_of_who_acts_as_the_owner() -> None:
    libc, (uid, _) = ctypes.CDLL(None), service_ids()
    with service_directory() as state:
        libc.prctl(4, 1, 0, 0, 0)
        with as_owner(state):
            assert os.geteuid() == uid
            assert libc.prctl(3, 0, 0, 0, 0) == 0
        assert libc.prctl(3, 0, 0, 0, 0) == 0


def test_a_sentence_keeps_the_names_of_files(place) -> None:
    result = CliRunner().invoke(relais, ["keys", "list", "--config", "absent.toml"])
    assert (result.exit_code, result.output) == (1, "absent.toml cannot be read: No such file or directory.\n")
