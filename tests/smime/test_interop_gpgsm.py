"""Conversations with GnuPG's `gpgsm`: RSA both ways, ECDSA and PSS from us to it, AES-CBC with PKCS #1 v1.5.

Version 2.2 reads no AuthEnvelopedData, no OAEP and keeps no keys on elliptic curves.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, pkcs12

from smime import (
    ContentCipher,
    DecryptionResult,
    KeyTransportScheme,
    SignatureResult,
    Suite,
    open_message,
)
from smime.encrypting import encrypt_content
from smime.signing import sign_content
from smime.suites import RsaSignatureScheme
from tests.smime.craft import multipart_signed, pkcs7_mime
from tests.smime.people import ENTITY, NOW, Person, authority, message, person, validator

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("gpgsm", "gpgconf", "gpg-agent"))), reason="gpgsm and gpg-agent are not installed"
)
Gpgsm = Callable[..., bytes]
RSA = ("rsa2048", "rsa3072")


def lea(kind: str) -> Person:
    return person(f"lea-{kind}@clinic.example", kind=kind, which=f"gpgsm {kind}")


@pytest.fixture(scope="module")
def gpgsm() -> Iterator[Gpgsm]:
    """Runs gpgsm in a home of its own that trusts our authority and holds the RSA keys."""
    with tempfile.TemporaryDirectory(prefix="relais-gpgsm-") as name:  # short: it holds the agent's socket
        home = Path(name)
        (home / "gpgsm.conf").write_text("disable-crl-checks\nbatch\nno-tty\npinentry-mode loopback\n")
        (home / "gpg-agent.conf").write_text("allow-loopback-pinentry\n")
        fingerprint = authority().certificate.fingerprint(hashes.SHA1()).hex()  # how trustlist.txt names roots
        (home / "trustlist.txt").write_text(f"{fingerprint} S relax\n")

        def attempt(*arguments: str, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
            """Input goes through a file: standard input holds the passphrase."""
            words = ["gpgsm", "--homedir", name, "--passphrase-fd", "0", *arguments]
            if data is not None:
                (home / "input").write_bytes(data)
                words.append(str(home / "input"))
            return subprocess.run(words, input=b"pw\n", capture_output=True, check=False, timeout=30)

        def run(*arguments: str, data: bytes | None = None, failing: bool = False) -> bytes:
            done = attempt(*arguments, data=data)
            assert (done.returncode != 0) is failing, done.stderr
            return done.stdout

        try:
            run("--import", data=authority().certificate.public_bytes(Encoding.PEM))
            for kind in RSA:
                old = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(1000)
                old = old.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC).hmac_hash(hashes.SHA1())
                holder = lea(kind)
                for _ in range(4):  # with some salts gpgsm takes its own right decryption for a wrong one
                    bag = pkcs12.serialize_key_and_certificates(
                        b"lea", holder.key, holder.certificate, None, old.build(b"pw")
                    )
                    imported = attempt("--import", data=bag)
                    if imported.returncode == 0:
                        break
                assert imported.returncode == 0, imported.stderr
            yield run
        finally:
            subprocess.run(
                ["gpgconf", "--homedir", name, "--kill", "all"], capture_output=True, check=False, timeout=30
            )


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("rsa2048", RsaSignatureScheme.PKCS1V15),
        ("rsa3072", RsaSignatureScheme.PKCS1V15),
        ("rsa3072", RsaSignatureScheme.PSS),
        ("p256", RsaSignatureScheme.PKCS1V15),
        ("p384", RsaSignatureScheme.PKCS1V15),
        ("brainpool256", RsaSignatureScheme.PKCS1V15),
    ],
)
def test_gpgsm_verifies_what_we_sign(gpgsm: Gpgsm, tmp_path: Path, kind: str, scheme: RsaSignatureScheme) -> None:
    signature = tmp_path / "signature"
    signature.write_bytes(sign_content(ENTITY, lea(kind), NOW, suite=Suite(rsa_signature=scheme)))
    said = gpgsm("--status-fd", "1", "--verify", str(signature), data=ENTITY)
    assert b"[GNUPG:] GOODSIG" in said
    assert b"[GNUPG:] VALIDSIG" in said
    altered = gpgsm("--status-fd", "1", "--verify", str(signature), data=ENTITY + b" ", failing=True)
    assert b"[GNUPG:] BADSIG" in altered


@pytest.mark.parametrize("kind", RSA)
@pytest.mark.parametrize("digest", ["SHA256", "SHA384", "SHA512"])
def test_we_verify_what_gpgsm_signs(gpgsm: Gpgsm, kind: str, digest: str) -> None:
    sender = f"lea-{kind}@clinic.example"
    user = ["--local-user", f"<{sender}>", "--digest-algo", digest]
    opaque = gpgsm(*user, "--sign", data=ENTITY)
    detached = gpgsm(*user, "--sign", "--detach", data=ENTITY)
    for entity in (pkcs7_mime(opaque, "signed-data"), multipart_signed(ENTITY, detached)):
        result = open_message(message(entity, sender), (), validator(), NOW)
        assert result.verdict.signature is SignatureResult.VALID, result.verdict
        assert bytes(result.content) == ENTITY
    altered = multipart_signed(ENTITY.replace(b"Nothing", b"Nothang"), detached)
    assert open_message(message(altered, sender), (), validator(), NOW).verdict.signature is SignatureResult.INVALID


@pytest.mark.parametrize("kinds", [RSA[:1], RSA[1:], RSA], ids="-".join)
@pytest.mark.parametrize("cipher", [ContentCipher.AES256_CBC, ContentCipher.AES128_CBC])
def test_gpgsm_opens_what_we_encrypt(gpgsm: Gpgsm, kinds: tuple[str, ...], cipher: ContentCipher) -> None:
    suite = Suite(cipher, KeyTransportScheme.RSA_PKCS1V15)
    protected = encrypt_content(ENTITY, [lea(kind).certificate for kind in kinds], suite)
    assert gpgsm("--decrypt", data=bytes(protected)) == ENTITY


@pytest.mark.parametrize("cipher", ["AES128", "AES192", "AES256"])
def test_we_open_what_gpgsm_encrypts(gpgsm: Gpgsm, cipher: str) -> None:
    content = ENTITY + bytes(70_000)
    both = [word for kind in RSA for word in ("--recipient", f"<lea-{kind}@clinic.example>")]
    wire = message(pkcs7_mime(gpgsm("--cipher-algo", cipher, *both, "--encrypt", data=content), "enveloped-data"))
    for kind in RSA:
        result = open_message(wire, [lea(kind)], validator(), NOW)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED
        assert result.verdict.content_algorithm == f"aes{cipher[3:]}-cbc"
        assert bytes(result.content) == content
