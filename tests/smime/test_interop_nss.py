"""Conversations with NSS, the engine of Thunderbird, through its `cmsutil`: RSA and ECDSA, AES-CBC with PKCS #1 v1.5.

NSS reads neither AuthEnvelopedData nor OAEP, and encrypts to RSA keys only. What it writes is BER.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, pkcs12

from smime import ContentCipher, DecryptionResult, KeyTransportScheme, SignatureResult, Suite, encrypt, open_message
from smime.encrypting import encrypt_content
from smime.signing import sign_content
from tests.smime.craft import multipart_signed, pkcs7_mime
from tests.smime.people import ENTITY, NOW, Person, authority, message, person, validator

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("cmsutil", "certutil", "pk12util"))), reason="libnss3-tools is not installed"
)
KINDS = ("rsa2048", "rsa3072", "p256", "p384", "p521")
FOR_NSS = Suite(ContentCipher.AES256_CBC, KeyTransportScheme.RSA_PKCS1V15)
Nss = Callable[..., bytes]


def anne(kind: str) -> Person:
    return person(f"anne-{kind}@lab.example", kind=kind, which=f"nss {kind}")


@pytest.fixture(scope="module")
def nss(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nss]:
    """Runs one of NSS's programs over a database that trusts our authority and holds everybody's keys."""
    place = tmp_path_factory.mktemp("nss")

    def run(program: str, *arguments: str, data: bytes = b"") -> bytes:
        command = [program, "-d", f"sql:{place}", *arguments]
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("certutil", "-N", "--empty-password")
    (place / "ca.pem").write_bytes(authority().certificate.public_bytes(Encoding.PEM))
    run("certutil", "-A", "-n", "ca", "-t", "CT,CT,CT", "-a", "-i", str(place / "ca.pem"))
    for kind in KINDS:
        holder = anne(kind)
        old = PrivateFormat.PKCS12.encryption_builder().kdf_rounds(1000)
        old = old.key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC).hmac_hash(hashes.SHA1())
        bag = pkcs12.serialize_key_and_certificates(
            kind.encode(), holder.key, holder.certificate, None, old.build(b"pw")
        )
        (place / "key.p12").write_bytes(bag)
        run("pk12util", "-i", str(place / "key.p12"), "-W", "pw", "-K", "")
    yield run


def told(output: bytes) -> bool:
    """Whether `cmsutil -D -h` says that the only signature is good."""
    return b"nsigners=1" in output and b"signer0.status=GoodSignature" in output


@pytest.mark.parametrize("kind", KINDS)
def test_nss_verifies_what_we_sign(nss: Nss, tmp_path: Path, kind: str) -> None:
    content = tmp_path / "content"
    content.write_bytes(ENTITY)
    signature = sign_content(ENTITY, anne(kind), NOW)
    assert told(nss("cmsutil", "-D", "-n", "-h", "2", "-c", str(content), data=signature))
    content.write_bytes(ENTITY.replace(b"Nothing", b"Nothang"))
    assert not told(nss("cmsutil", "-D", "-n", "-h", "2", "-c", str(content), data=signature))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [["-H", "SHA256"], ["-H", "SHA384"], ["-P", "-H", "SHA512"]], ids="-".join)
def test_we_verify_what_nss_signs(nss: Nss, kind: str, options: list[str]) -> None:
    sender = f"anne-{kind}@lab.example"
    opaque = nss("cmsutil", "-S", "-N", kind, "-G", *options, data=ENTITY)
    detached = nss("cmsutil", "-S", "-T", "-N", kind, "-G", *options, data=ENTITY)
    for entity in (pkcs7_mime(opaque, "signed-data"), multipart_signed(ENTITY, detached)):
        result = open_message(message(entity, sender), (), validator(), NOW)
        assert result.verdict.signature is SignatureResult.VALID, result.verdict
        assert bytes(result.content) == ENTITY
    altered = multipart_signed(ENTITY.replace(b"Nothing", b"Nothang"), detached)
    verdict = open_message(message(altered, sender), (), validator(), NOW).verdict
    assert verdict.signature is SignatureResult.INVALID


@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072"])
@pytest.mark.parametrize("cipher", [ContentCipher.AES256_CBC, ContentCipher.AES128_CBC])
def test_nss_opens_what_we_encrypt(nss: Nss, kind: str, cipher: ContentCipher) -> None:
    suite = Suite(cipher, KeyTransportScheme.RSA_PKCS1V15)
    both = [anne("rsa2048").certificate, anne("rsa3072").certificate]
    alone = encrypt_content(ENTITY, [anne(kind).certificate], suite)
    assert nss("cmsutil", "-D", data=bytes(alone)) == ENTITY
    assert nss("cmsutil", "-D", data=bytes(encrypt_content(ENTITY, both, suite))) == ENTITY


@pytest.mark.parametrize("size", [1, 15, 16, 17, 100_000])
def test_we_open_what_nss_encrypts(nss: Nss, size: int) -> None:
    entity = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n" + bytes(size)
    two = [option for kind in ("rsa2048", "rsa3072") for option in ("-r", f"anne-{kind}@lab.example")]
    wire = message(pkcs7_mime(nss("cmsutil", "-E", *two, data=entity), "enveloped-data"))
    for kind in ("rsa2048", "rsa3072"):
        result = open_message(wire, [anne(kind)], validator(), NOW)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED
        assert bytes(result.content) == entity
        assert not result.verdict.authenticated_encryption
    assert open_message(wire, [anne("p256")], validator(), NOW).verdict.decryption is DecryptionResult.FAILED


def test_signed_then_encrypted_both_ways(nss: Nss) -> None:
    sender = "anne-rsa2048@lab.example"
    inner = pkcs7_mime(nss("cmsutil", "-S", "-G", "-N", "rsa2048", data=ENTITY), "signed-data")
    outer = pkcs7_mime(nss("cmsutil", "-E", "-r", "anne-rsa3072@lab.example", data=inner), "enveloped-data")
    result = open_message(message(outer, sender), [anne("rsa3072")], validator(), NOW)
    assert result.verdict.decryption is DecryptionResult.DECRYPTED
    assert result.verdict.signature is SignatureResult.VALID
    assert bytes(result.content) == ENTITY

    protected = encrypt(inner, [anne("rsa3072").certificate], FOR_NSS)
    opened = open_message(message(protected, sender), [anne("rsa3072")], validator(), NOW)
    assert opened.verdict.signature is SignatureResult.VALID
