"""Conversations with BouncyCastle, the engine of most Java gateways: GCM, OAEP, ECDH, PSS and Ed25519, both ways."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from smime import ContentCipher, DecryptionResult, KeyTransportScheme, SignatureResult, Suite, open_message
from smime.encrypting import encrypt_content
from smime.signing import sign_content
from smime.suites import RecipientNaming, RsaSignatureScheme
from tests.smime.craft import multipart_signed, pkcs7_mime
from tests.smime.people import ENTITY, NOW, Person, message, person, validator

JARS = [Path("/usr/share/java") / f"{name}.jar" for name in ("bcprov", "bcutil", "bcpkix", "bcmail")]
MISSING = [jar.name for jar in JARS if not jar.exists()] + [
    name for name in ("java", "javac") if not shutil.which(name)
]
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(bool(MISSING), reason=f"run `make proof`, which installs {', '.join(MISSING)}"),
    pytest.mark.xdist_group("bouncycastle"),
]
KINDS = ("rsa2048", "rsa3072", "p256", "p384", "p521", "brainpool256")
CIPHERS = {"gcm256": "aes256-gcm", "gcm128": "aes128-gcm", "cbc256": "aes256-cbc"}
Peer = Callable[..., str]


def one(kind: str) -> Person:
    return person(f"one-{kind}@lab.example", kind=kind, which=f"bc {kind}")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Asks BouncyCastle; relative file names are those of `folder`, its current directory."""
    command = ["java", "-cp", ":".join(map(str, JARS)), str(Path(__file__).parent / "Peer.java")]
    folder = tmp_path_factory.mktemp("bc")
    for kind in (*KINDS, "ed25519"):
        holder = one(kind)
        (folder / f"{kind}.crt").write_bytes(holder.certificate.public_bytes(Encoding.DER))
        key = holder.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{kind}.key").write_bytes(key)
    (folder / "entity").write_bytes(ENTITY)
    (folder / "altered").write_bytes(ENTITY.replace(b"Nothing", b"Nothang"))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, text=True)

    def ask(*words: str, **files: bytes) -> str:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        process.stdin.write(" ".join(words) + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    ask.folder = folder
    try:
        yield ask
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("transport", ["oaep", "pkcs1"])
def test_we_open_what_bouncycastle_encrypts(peer: Peer, cipher: str, transport: str) -> None:
    assert peer("encrypt", "out", "entity", cipher, transport, *(f"{kind}.crt" for kind in KINDS)) == "OK"
    wire = message(pkcs7_mime((peer.folder / "out").read_bytes(), "authEnveloped-data"))
    for kind in KINDS:
        result = open_message(wire, [one(kind)], validator(), NOW)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED, kind
        assert result.verdict.content_algorithm == CIPHERS[cipher]
        assert bytes(result.content) == ENTITY


@pytest.mark.parametrize("naming", RecipientNaming)
@pytest.mark.parametrize("transport", KeyTransportScheme)
@pytest.mark.parametrize("cipher", ContentCipher)
def test_bouncycastle_opens_what_we_encrypt(
    peer: Peer, cipher: ContentCipher, transport: KeyTransportScheme, naming: RecipientNaming
) -> None:
    certificates = [one(kind).certificate for kind in KINDS]
    protected = bytes(encrypt_content(ENTITY, certificates, Suite(cipher, transport, naming=naming)))
    for kind in KINDS:
        assert peer("decrypt", "clear", "in", f"{kind}.key", f"{kind}.crt", **{"in": protected}) == "OK", kind
        assert (peer.folder / "clear").read_bytes() == ENTITY


SIGNING = {
    "SHA256WITHRSA": "rsa2048",
    "SHA512WITHRSA": "rsa3072",
    "SHA256WITHRSAANDMGF1": "rsa2048",
    "SHA384WITHRSAANDMGF1": "rsa3072",
    "SHA256WITHECDSA": "p256",
    "SHA384WITHECDSA": "p384",
    "SHA512WITHECDSA": "p521",
    "Ed25519": "ed25519",
}


@pytest.mark.parametrize("algorithm", SIGNING)
def test_we_verify_what_bouncycastle_signs(peer: Peer, algorithm: str) -> None:
    kind = SIGNING[algorithm]
    sender = f"one-{kind}@lab.example"
    for form in ("opaque", "detached"):
        assert peer("sign", "out", "entity", algorithm, f"{kind}.key", f"{kind}.crt", form) == "OK"
        cms = (peer.folder / "out").read_bytes()
        entity = pkcs7_mime(cms, "signed-data") if form == "opaque" else multipart_signed(ENTITY, cms)
        result = open_message(message(entity, sender), (), validator(), NOW)
        assert result.verdict.signature is SignatureResult.VALID, result.verdict
        assert bytes(result.content) == ENTITY


@pytest.mark.parametrize("scheme", RsaSignatureScheme)
@pytest.mark.parametrize("kind", [*KINDS, "ed25519"])
def test_bouncycastle_verifies_what_we_sign(peer: Peer, kind: str, scheme: RsaSignatureScheme) -> None:
    signature = sign_content(ENTITY, one(kind), NOW, Suite(rsa_signature=scheme))
    assert peer("verify", "signature", "entity", signature=signature) == "OK"
    assert peer("verify", "signature", "altered").startswith("FAIL")
