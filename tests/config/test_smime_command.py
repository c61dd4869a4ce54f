"""`relais smime` over files as people have them: sentences and exit codes, both ways with openssl."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from config.cli import relais
from smime import encrypt, sign
from tests.smime import craft
from tests.smime.people import ENTITY, Person, authority, message, openssl, person
from trust.vault import KeyUse, KeyVault


def anne() -> Person:
    return person("anne@lab.example")


def paul() -> Person:
    return person("paul@clinic.example", kind="p256", which="paul")


class Desk:
    """A folder with everybody's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anchors, _ = authority().save(folder, "ca")
        self.anne = anne().save(folder, "anne")
        self.paul = paul().save(folder, "paul")

    def keys(self, name: str) -> list[str]:
        certificate, key = getattr(self, name)
        return ["--key", key, "--certificate", certificate]

    def file(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def run(*arguments: str, data: bytes | str | None = None) -> Result:
    result = CliRunner().invoke(relais, ["smime", *arguments], input=data)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def secret_mail() -> bytes:
    return message(encrypt(sign(ENTITY, anne()), [anne().certificate, paul().certificate]))


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_inspect_without_and_with_a_key(desk: Desk) -> None:
    mail = desk.file("mail.eml", secret_mail())
    outside = run("inspect", mail)
    assert outside.exit_code == 0
    assert "authEnveloped-data" in outside.output and "multipart/signed" not in outside.output
    assert f"serial {paul().certificate.serial_number:x}" in outside.output
    assert "encrypted-not-opened" in outside.output
    inside = run("inspect", mail, *desk.keys("paul"))
    assert inside.exit_code == 0
    assert "multipart/signed" in inside.output and "a certificate at hand" in inside.output
    for text in (outside.output, inside.output):
        assert "Nothing to report" not in text and "Synthetic\r" not in text and "Subject" not in text


def test_inspect_as_json(desk: Desk) -> None:
    mail = desk.file("mail.eml", secret_mail())
    document = json.loads(run("inspect", mail, "--json", *desk.keys("anne")).stdout)
    assert document["schema"] == "relais.smime.explanation/1"
    assert [layer["found"] for layer in document["layers"]] == ["authEnveloped-data", "multipart/signed"]
    assert document["signature"] == "sound"
    assert [finding["code"] for finding in document["findings"]] == ["path-not-checked"]
    assert document["findings"][0]["sentence"].endswith("add --anchors.")


def test_inspect_says_what_does_not_open(desk: Desk) -> None:
    result = run("inspect", desk.file("m.eml", message(encrypt(ENTITY, [anne().certificate]))), *desk.keys("paul"))
    assert result.exit_code == 1
    assert "no-key-of-ours" in result.output


def test_standard_input_and_line_feeds(desk: Desk) -> None:
    for data in (secret_mail(), secret_mail().replace(b"\r\n", b"\n")):
        result = run("verify", "-", "--anchors", desk.anchors, *desk.keys("paul"), data=data)
        assert result.exit_code == 0, result.output
        assert "signature valid" in result.output


def test_verify(desk: Desk) -> None:
    signed = message(sign(ENTITY, anne()))
    mail = desk.file("signed.eml", signed)
    assert run("verify", mail, "--anchors", desk.anchors).exit_code == 0
    assert run("verify", mail).exit_code == 1
    assert run("verify", mail, "--anchors", desk.paul[0]).exit_code == 1
    assert run("verify", mail, "--anchors", desk.anchors, "--from", "eve@lab.example").exit_code == 1
    assert run("verify", mail, "--anchors", desk.anchors, "--at", "2055-01-01").exit_code == 1
    altered = desk.file("altered.eml", signed.replace(b"Nothing", b"Something"))
    result = run("verify", altered, "--anchors", desk.anchors, "--json")
    assert result.exit_code == 1
    assert [each["code"] for each in json.loads(result.stdout)["findings"]] == ["content-altered"]
    assert run("verify", desk.file("plain.eml", message(ENTITY)), "--anchors", desk.anchors).exit_code == 1


def test_verify_a_bare_detached_signature(desk: Desk) -> None:
    content = desk.file("report.pdf", b"%PDF-1.7\nsynthetic\n")
    signature = str(desk.path("report.p7s"))
    certificate, key = desk.anne
    openssl("cms", "-sign", "-binary", "-in", content, "-signer", certificate, "-inkey", key, "-outform", "DER",
            "-out", signature)  # fmt: skip
    assert run("verify", signature, "--content", content, "--anchors", desk.anchors).exit_code == 0
    assert run("verify", signature, "--content", desk.anchors, "--anchors", desk.anchors).exit_code == 1
    without = run("verify", signature, "--anchors", desk.anchors)
    assert without.exit_code == 1 and "--content" in without.output
    assert run("inspect", signature, "--anchors", desk.anchors).exit_code == 0


def test_decrypt_writes_for_the_owner_alone(desk: Desk) -> None:
    mail, output = desk.file("mail.eml", message(encrypt(ENTITY, [paul().certificate]))), desk.path("inside.eml")
    output.write_bytes(b"before")
    output.chmod(0o644)
    result = run("decrypt", mail, "--output", str(output), *desk.keys("paul"))
    assert result.exit_code == 0 and result.output == ""
    assert output.read_bytes() == ENTITY
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    assert run("decrypt", mail, *desk.keys("paul")).stdout_bytes == ENTITY


def test_decrypt_writes_nothing_when_it_does_not_open(desk: Desk) -> None:
    output = desk.path("inside.eml")
    mail = desk.file("mail.eml", message(encrypt(ENTITY, [anne().certificate])))
    result = run("decrypt", mail, "--output", str(output), *desk.keys("paul"))
    assert result.exit_code == 1 and "no-key-of-ours" in result.output
    assert run("decrypt", mail, "--output", str(output)).exit_code == 2
    damaged = desk.file("damaged.p7m", craft.enveloped(ENTITY, anne(), flip=1))
    assert run("decrypt", damaged, "--output", str(output), *desk.keys("anne")).exit_code == 1
    assert run("decrypt", desk.file("p.eml", message(ENTITY)), "-o", str(output), *desk.keys("anne")).exit_code == 1
    assert not output.exists()
    assert run("decrypt", mail, "--json", *desk.keys("anne")).exit_code == 2


def test_old_algorithms_behind_their_switches(desk: Desk) -> None:
    certificate, key = desk.anne
    content = desk.file("entity", ENTITY)
    old = str(desk.path("old.p7m"))
    openssl("cms", "-encrypt", "-binary", "-des3", "-in", content, "-outform", "DER", "-out", old, certificate)
    refused = run("inspect", old, *desk.keys("anne"))
    assert refused.exit_code == 1 and "cipher-not-admitted" in refused.output
    admitted = run("decrypt", old, "--triple-des", *desk.keys("anne"))
    assert admitted.exit_code == 0 and admitted.stdout_bytes == ENTITY
    assert "weak-algorithm" in admitted.stderr
    sha1 = str(desk.path("sha1.p7m"))
    openssl("cms", "-sign", "-binary", "-nodetach", "-md", "sha1", "-in", content, "-signer", certificate, "-inkey",
            key, "-outform", "DER", "-out", sha1)  # fmt: skip
    assert run("verify", sha1, "--anchors", desk.anchors).exit_code == 1
    assert run("verify", sha1, "--anchors", desk.anchors, "--sha1").exit_code == 0


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_keys_with_a_passphrase(desk: Desk) -> None:
    mail = desk.file("mail.eml", message(encrypt(ENTITY, [paul().certificate])))
    key = desk.file(
        "locked.key",
        paul().key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
    )
    store = desk.file(
        "paul.p12",
        pkcs12.serialize_key_and_certificates(
            b"paul", paul().key, paul().certificate, [authority().certificate], BestAvailableEncryption(b"secret")
        ),
    )
    right, wrong, empty = desk.file("right", b"secret\n"), desk.file("wrong", b"guess\n"), desk.file("empty", b"")
    for given in (["--key", key, "--certificate", desk.paul[0]], ["--key", store]):
        assert run("decrypt", mail, *given, "--passphrase-file", right).stdout_bytes == ENTITY
        assert run("decrypt", mail, *given, data="secret\n").exit_code == 0
        for file in (wrong, empty, str(desk.path("absent"))):
            result = run("decrypt", mail, *given, "--passphrase-file", file)
            assert result.exit_code == 2 and len(result.output.splitlines()) == 1
        assert run("decrypt", mail, *given, data="").exit_code == 2


def test_an_open_pkcs12_and_der(desk: Desk) -> None:
    mail = desk.file("mail.eml", message(encrypt(ENTITY, [paul().certificate])))
    store = pkcs12.serialize_key_and_certificates(b"paul", paul().key, paul().certificate, None, NoEncryption())
    assert run("decrypt", mail, "--key", desk.file("p.p12", store)).exit_code == 0
    key = desk.file("k.der", paul().key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    certificate = desk.file("c.der", paul().certificate.public_bytes(Encoding.DER))
    assert run("decrypt", mail, "--key", key, "--certificate", certificate).exit_code == 0


def test_a_key_and_a_certificate_that_do_not_fit(desk: Desk) -> None:
    mail = desk.file("mail.eml", secret_mail())
    result = run("decrypt", mail, "--key", desk.paul[1], "--certificate", desk.anne[0])
    assert result.exit_code == 2 and "add its --certificate" in result.output
    for broken in (desk.anchors, desk.file("random", os.urandom(300)), str(desk.path("absent")), str(desk.folder)):
        result = run("decrypt", mail, "--key", broken, "--certificate", desk.paul[0])
        assert result.exit_code == 2 and len(result.output.splitlines()) == 1


def test_the_gateways_vault_and_anchors(desk: Desk) -> None:
    state = desk.path("state")
    state.mkdir(mode=0o700)
    vault = KeyVault.create(state / "vault")
    vault.install("paul@clinic.example", KeyUse.ENCRYPTION, paul().key, paul().certificate, ())
    vault.install("anne@lab.example", KeyUse.SIGNING, anne().key, anne().certificate, ())
    configuration = desk.file(
        "relais.toml",
        b"""
[operator]
name = "Synthetic"
host = "relais.lab.example"
domains = ["lab.example"]
postmaster = "postmaster@lab.example"
state = "state"
[trust]
anchors = "ca.crt"
list = "list.xml"
list_signer = "CN=x"
operator_chain = "operator.pem"
operator_key = "operator.key"
[directory]
uri = "ldap://127.0.0.1"
[mailboxes]
lmtp_socket = "lmtp"
authentication_socket = "auth"
home = "mail"
[smime]
gcm_variants = ["gcm-icv-length-omitted"]
""",
    )
    mail = desk.file("mail.eml", secret_mail())
    ours = ["--config", configuration, "--address", "paul@clinic.example"]
    assert run("verify", mail, *ours).exit_code == 0
    assert run("decrypt", mail, *ours).exit_code == 0
    variant = desk.file("variant.p7m", craft.enveloped(ENTITY, anne(), icv=None))
    assert run("inspect", variant, "--config", configuration, *desk.keys("anne")).exit_code == 0
    assert run("inspect", variant, *desk.keys("anne")).exit_code == 1
    signed = str(desk.path("signed.eml"))
    plain = desk.file("plain.eml", message(ENTITY))
    signer = ["--config", configuration, "--address", "anne@lab.example"]
    assert run("sign", plain, *signer, "--output", signed).exit_code == 0
    assert run("verify", signed, "--config", configuration).exit_code == 0
    assert run("sign", plain, *ours).exit_code == 1
    assert run("decrypt", mail, "--config", configuration, "--address", "nobody@lab.example").exit_code == 1
    assert run("decrypt", mail, "--address", "paul@clinic.example").exit_code == 2
    assert run("decrypt", mail, "--config", "absent.toml", "--address", "a@b.example").exit_code == 2
    (state / "vault" / "kek").chmod(0o644)
    result = run("decrypt", mail, *ours)
    assert result.exit_code == 1 and "chmod 600" in result.output


# --- Writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--opaque"], ["--pss"], ["--opaque", "--pss"]])
def test_sign_for_openssl_and_ourselves(desk: Desk, options: list[str]) -> None:
    plain, signed = desk.file("plain.eml", message(ENTITY)), str(desk.path("signed.eml"))
    assert run("sign", plain, *desk.keys("anne"), *options, "--output", signed).exit_code == 0
    assert run("verify", signed, "--anchors", desk.anchors).exit_code == 0
    assert openssl("cms", "-verify", "-in", signed, "-CAfile", desk.anchors, "-purpose", "any").stdout.endswith(
        b"Second line.\r\n"
    )
    document = json.loads(run("inspect", signed, "--json").stdout)
    assert document["layers"][0]["found"] == ("signed-data" if "--opaque" in options else "multipart/signed")
    parameters = document["layers"][0]["signed"]["signers"][0]["parameters"]
    assert bool(parameters) is ("--pss" in options)
    assert b"Subject: Synthetic" in Path(signed).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--cipher", "aes128-gcm", "--key-transport", "rsa-pkcs1v15"],
        ["--cipher", "aes256-cbc", "--key-id"],
    ],
)
def test_encrypt_for_openssl_and_ourselves(desk: Desk, options: list[str]) -> None:
    plain, output = desk.file("plain.eml", message(ENTITY).replace(b"\r\n", b"\n")), str(desk.path("secret.eml"))
    to = ["--to", desk.anne[0], "--to", desk.paul[0]]
    assert run("encrypt", plain, *to, *options, "--output", output).exit_code == 0
    for name in ("anne", "paul"):
        assert run("decrypt", output, *desk.keys(name)).stdout_bytes == ENTITY
        certificate, key = getattr(desk, name)
        assert openssl("cms", "-decrypt", "-in", output, "-recip", certificate, "-inkey", key).stdout == ENTITY


def test_encrypt_with_header_protection_and_bound_key(desk: Desk) -> None:
    plain, output = desk.file("plain.eml", message(ENTITY)), str(desk.path("secret.eml"))
    result = run(
        "encrypt", plain, "--to", desk.paul[0], "--header-protection", "--cek-hkdf", "--output", output, "--json"
    )
    assert result.exit_code == 0
    assert json.loads(result.stdout)["layers"][0]["encryption"]["bound_key"] is True
    assert b"Subject: [...]" in Path(output).read_bytes()
    told = run("inspect", output, *desk.keys("paul"))
    assert told.exit_code == 0 and "hidden outside: subject" in told.output
    signed = desk.file("signed.eml", message(sign(ENTITY, anne())))
    assert run("encrypt", signed, "--to", desk.paul[0], "--header-protection").exit_code == 1


def test_authorities_are_nobody_to_encrypt_to(desk: Desk) -> None:
    plain = desk.file("plain.eml", message(ENTITY))
    assert run("encrypt", plain, "--to", desk.anchors).exit_code == 1
    both = desk.file("both.pem", Path(desk.paul[0]).read_bytes() + Path(desk.anchors).read_bytes())
    result = run("encrypt", plain, "--to", both, "--output", str(desk.path("out")), "--json")
    assert len(json.loads(result.stdout)["layers"][0]["encryption"]["recipients"]) == 1
    assert run("encrypt", plain).exit_code == 2
    assert run("encrypt", plain, "--to", desk.paul[0], "--cipher", "des").exit_code == 2
    assert run("encrypt", plain, "--to", str(desk.path("absent"))).exit_code == 2
    ed25519 = desk.file("e.pem", person("e@lab.example", kind="ed25519").certificate.public_bytes(Encoding.PEM))
    assert run("encrypt", plain, "--to", ed25519).exit_code == 1


def test_sign_needs_a_key_that_signs(desk: Desk) -> None:
    plain = desk.file("plain.eml", message(ENTITY))
    assert run("sign", plain).exit_code == 2
    certificate, key = person("x@lab.example", kind="x25519").save(desk.folder, "x")
    result = run("sign", plain, "--key", key, "--certificate", certificate)
    assert result.exit_code == 1 and len(result.output.splitlines()) == 1
    assert run("sign", desk.file("r", os.urandom(100)), *desk.keys("anne")).exit_code == 1
    assert run("sign", plain, *desk.keys("anne"), "--output", str(desk.path("no/such/folder"))).exit_code == 1


# --- Files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["inspect", "verify", "decrypt", "sign", "encrypt"])
def test_files_that_are_none(desk: Desk, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--to", desk.paul[0]] if command == "encrypt" else desk.keys("anne")
    for data in (b"", b"\n\n", b"\x00\x01\x02", os.urandom(5000).replace(b":", b""), b"\x30\x82\xff\xff", b"M" * 99):
        result = run(command, desk.file("none", data), *options)
        assert result.exit_code == 1, (data[:10], result.output)
    huge = desk.file("huge", b"")
    os.truncate(huge, 1 << 40)
    for file, code in ((huge, 1), (str(desk.folder), 2), (str(desk.path("absent")), 2), ("a\0b", 2)):
        result = run(command, file, *options)
        assert result.exit_code == code, result.output
        assert len(result.output.splitlines()) == 1 and result.output.strip().endswith(".")
    assert run(command).exit_code == 2
    assert run(command, "-", *options, data=b"").exit_code == 1


def test_an_unreadable_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    mail = desk.file("mail.eml", secret_mail())
    monkeypatch.setattr(Path, "open", denied)
    result = run("inspect", mail)
    assert result.exit_code == 2 and result.output.strip().endswith("cannot be read: Permission denied.")
