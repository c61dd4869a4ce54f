"""Whatever is wrong with keys is a finding: one sentence, never a crash."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12

from tests.trust.certificate_authority import NOW, Authority
from trust.certificates import CertificateValidator
from trust.generations import KeyFile, KeyUse
from trust.keycheck import Level, check_file, check_vault
from trust.softkeys import KeyKind
from trust.vault import KeyVault, VaultError

ADDRESS = "medecin@cabinet.example"
AUTHORITY = Authority()
VALIDATOR = CertificateValidator([AUTHORITY.root], [AUTHORITY.intermediate])
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def vault(tmp_path):
    return KeyVault.create(tmp_path / "vault")


def install(vault, address=ADDRESS, use=KeyUse.SIGNING, key=None, **validity):
    key = key or ec.generate_private_key(ec.SECP256R1())
    certificate = AUTHORITY.issue(key, address, signing=use is KeyUse.SIGNING, **validity)
    vault.install(address, use, key, certificate, [AUTHORITY.intermediate])
    return certificate


def put(vault, address, key, certificate) -> None:
    """What an earlier version kept and this one refuses."""
    pkcs8 = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    vault.keep(KeyFile(address, KeyUse.SIGNING, pkcs8, (certificate.public_bytes(Encoding.DER),)), certificate)


def codes(vault, at=NOW, validator=VALIDATOR) -> set[str]:
    found = check_vault(vault, at, validator)
    for each in found:
        assert each.text
        assert "\n" not in each.text
    return {each.code for each in found}


def test_nothing_is_wrong(vault) -> None:
    assert codes(vault) == set()
    for use in KeyUse:
        install(vault, use=use)
        install(vault, use=use, since=-200, until=-10)
    assert codes(vault) == set()


def test_times(vault) -> None:
    install(vault, use=KeyUse.ENCRYPTION)
    install(vault, until=20)
    assert codes(vault) == {"expires-soon"}
    assert codes(vault, NOW - timedelta(days=15)) >= {"not-yet-valid"}
    assert codes(vault, NOW + timedelta(days=21)) == {"expired"}
    request = vault.rotate(ADDRESS, KeyUse.SIGNING)
    (told,) = check_vault(vault, NOW, VALIDATOR)
    assert "requested: install it" in told.text
    vault.install_certificates([AUTHORITY.answer(request.request)])
    assert codes(vault) == set()
    for each in vault.generations():
        vault.retire(each.id)
    assert codes(vault) == {"expired"}


def test_chains_and_addresses(vault) -> None:
    install(vault, use=KeyUse.ENCRYPTION)
    stranger = Authority()
    vault.install(ADDRESS, KeyUse.SIGNING, KEY, stranger.issue(KEY, ADDRESS), [stranger.intermediate])
    assert codes(vault) == {"not-believed"}
    assert codes(vault, validator=None) == set()
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(VaultError, match="another address"):
        vault.install("b@cabinet.example", KeyUse.SIGNING, other, AUTHORITY.issue(other, ADDRESS), [])
    put(vault, "b@cabinet.example", other, AUTHORITY.issue(other, ADDRESS))
    assert "other-address" in codes(vault)
    nobody = ec.generate_private_key(ec.SECP256R1())
    vault.install("c@cabinet.example", KeyUse.SIGNING, nobody, AUTHORITY.issue(nobody), [])
    assert codes(vault) == {"not-believed", "other-address", "no-address", "one-use"}


def test_keys_used_twice(vault) -> None:
    install(vault, key=KEY, since=-5)
    install(vault, key=KEY)
    install(vault, use=KeyUse.ENCRYPTION)
    assert codes(vault) == {"duplicate-key"}
    install(vault, use=KeyUse.ENCRYPTION, key=KEY)
    assert codes(vault) == {"one-key-two-uses"}
    for use in KeyUse:
        install(vault, address="b@cabinet.example", use=use, key=KEY if use is KeyUse.SIGNING else None)
    assert codes(vault) == {"shared-key"}


def test_what_does_not_fit(vault) -> None:
    """Put there by an earlier version, or by hand."""
    weak = rsa.generate_private_key(65537, 1024)
    certificate = AUTHORITY.issue(weak, ADDRESS, signing=False)
    put(vault, ADDRESS, weak, certificate)
    assert codes(vault) >= {"unfit", "weak-key", "not-believed"}


def test_an_old_request_is_an_orphan(vault) -> None:
    vault.request(ADDRESS, KeyUse.SIGNING, KeyKind.P256)
    assert codes(vault) == set()
    assert codes(vault, NOW + timedelta(days=31)) == {"orphan-key"}


def test_files(vault, tmp_path) -> None:
    for use in KeyUse:
        install(vault, use=use)
    (directory,) = (tmp_path / "vault/keys").iterdir()
    stray = directory / "mailbox.der"
    stray.touch(mode=0o600)
    stray.write_bytes(KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    (told,) = check_vault(vault, NOW, VALIDATOR)
    assert told.code == "damaged"
    assert "is a private key" in told.text
    stray.unlink()
    (directory / ".a.tmp").touch(mode=0o600)
    assert codes(vault) == {"unfinished"}
    (directory / ".a.tmp").unlink()
    file = next(iter(directory.iterdir()))
    file.chmod(0o644)
    (tmp_path / "vault/link").symlink_to("/etc/hostname")
    assert codes(vault) == {"permissions"}
    file.chmod(0o600)
    (tmp_path / "vault/link").unlink()
    file.write_bytes(file.read_bytes()[:-1])
    found = check_vault(vault, NOW, VALIDATOR)
    assert {each.code for each in found} == {"damaged", "one-use"}


@pytest.mark.parametrize(
    ("name", "content", "code", "level"),
    [
        ("mailbox.der", KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), "private-key", "problem"),
        ("x.key", KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "private-key", "problem"),
        ("x.cer", AUTHORITY.root.public_bytes(Encoding.DER)[:-5], "unreadable-file", "problem"),
        ("x.cer", AUTHORITY.root.public_bytes(Encoding.DER), "no-key", "notice"),
        ("x.p12", pkcs12.serialize_key_and_certificates(b"", KEY, None, None, NoEncryption()), "p12", "notice"),
        ("x", b"", "unreadable-file", "problem"),
        ("x", b"\0" * 100, "unreadable-file", "problem"),
        ("x", b"x" * (1 << 20) + b"x", "unknown-file", "notice"),
    ],
    ids=["private.der", "private.key", "cut", "stranger", "p12", "empty", "zeros", "large"],
)
def test_a_file_somebody_brings(vault, name, content, code, level) -> None:
    (told,) = check_file(Path(name), content, vault)
    assert (told.code, told.level) == (code, Level(level))
    assert "\n" not in told.text


def test_files_of_nobody_knows_what(vault) -> None:
    for octets in range(200):
        for content in (os.urandom(octets), b"\x30" + os.urandom(octets), b"\x30\x82" + os.urandom(octets)):
            assert check_file(Path("x"), content, vault)
    mine = install(vault)
    assert check_file(Path("x"), mine.public_bytes(Encoding.PEM), vault) == []
