"""`relais keys` on a real vault: what operators type, exit codes, and sentences instead of stack traces."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
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

from config.cli import relais
from config.keys_command import keys
from tests.support.private import service_directory, service_ids
from tests.trust.certificate_authority import Authority
from tests.trust.softhsm import LABEL, MODULE, PIN, make_token, needs_softhsm
from trust.vault import KeyVault

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
    assert set(keys.commands) == {"list", "import", "request", "install", "rotate", "retire", "discard", "check"}
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
