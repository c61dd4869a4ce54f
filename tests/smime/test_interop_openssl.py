"""Conversations with OpenSSL: what Relais writes it reads, what it writes Relais opens."""

from __future__ import annotations

from pathlib import Path

import pytest

from smime import (
    ContentCipher,
    DecryptionResult,
    KeyTransportScheme,
    SignatureResult,
    Suite,
    encrypt,
    open_message,
    sign,
)
from smime.canonical import crlf
from smime.policy import ReadPolicy
from smime.suites import RecipientNaming, RsaSignatureScheme
from tests.smime.people import ENTITY, NOW, authority, message, openssl, person, validator

ANNE = "anne@lab.example"
PAUL = "paul@clinic.example"


def opened(wire: bytes, *decryptors):
    return open_message(wire, decryptors, validator(), NOW)


CURVES = ("p256", "p384", "p521", "brainpool256", "brainpool384", "brainpool512")


def supported(tmp_path: Path, kind: str) -> None:
    """Skip where the OpenSSL installed cannot sign CMS with, or encrypt CMS to, such a key (RFC 8418, RFC 8419)."""
    certificate, key = person(ANNE, kind=kind).save(tmp_path, "probe")
    if kind == "x25519":
        probe = openssl("cms", "-encrypt", "-aes256", "-recip", certificate, data=ENTITY, check=False)
    else:
        probe = openssl("cms", "-sign", "-signer", certificate, "-inkey", key, data=ENTITY, check=False)
    if probe.returncode:
        pytest.skip(f"{openssl('version').stdout.decode().strip()} has no CMS with {kind}")


@pytest.mark.parametrize("opaque", [False, True], ids=["detached", "opaque"])
@pytest.mark.parametrize("kind", ["rsa2048", "rsa3072", "rsa-pss", *CURVES, "ed25519"])
def test_openssl_verifies_what_we_sign(tmp_path: Path, kind: str, opaque: bool) -> None:
    anchor, _ = authority().save(tmp_path, "ca")
    scheme = RsaSignatureScheme.PSS if kind == "rsa-pss" else RsaSignatureScheme.PKCS1V15
    kind = "rsa2048" if kind == "rsa-pss" else kind
    if kind == "ed25519":
        supported(tmp_path, kind)
    signed = sign(ENTITY, person(ANNE, kind=kind), NOW, Suite(opaque=opaque, rsa_signature=scheme))
    result = openssl(
        "cms",
        "-verify",
        "-CAfile",
        anchor,
        "-purpose",
        "smimesign",
        "-attime",
        int(NOW.timestamp()).__str__(),
        data=signed,
    )
    assert result.stdout == ENTITY


@pytest.mark.parametrize(
    "suite",
    [
        Suite(),
        Suite(ContentCipher.AES128_GCM),
        Suite(ContentCipher.AES256_CBC),
        Suite(ContentCipher.AES128_CBC),
        Suite(ContentCipher.AES256_CBC, KeyTransportScheme.RSA_PKCS1V15),
        Suite(ContentCipher.AES256_GCM, KeyTransportScheme.RSA_PKCS1V15),
        Suite(naming=RecipientNaming.SUBJECT_KEY_ID),
    ],
)
def test_openssl_opens_what_we_encrypt(tmp_path: Path, suite: Suite) -> None:
    paul, lea = person(PAUL), person("lea@clinic.example", kind="rsa3072")
    protected = encrypt(ENTITY, [lea.certificate, paul.certificate], suite)
    certificate, key = paul.save(tmp_path, "paul")
    result = openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=protected)
    assert result.stdout == ENTITY
    assert opened(message(protected), paul).entity == message(ENTITY)
    assert opened(message(protected), lea).entity == message(ENTITY)


ENCRYPTING = {
    "cbc-256": ["-aes256"],
    "cbc-192": ["-aes192"],
    "cbc-128": ["-aes128"],
    "stream": ["-aes256", "-stream"],
    "gcm-256": ["-aes-256-gcm"],
    "gcm-192": ["-aes-192-gcm"],
    "gcm-stream": ["-aes-128-gcm", "-stream"],
    "key-id": ["-aes256", "-keyid"],
    "gcm-key-id": ["-aes-256-gcm", "-keyid", "-stream"],
}
OAEP = {
    "oaep-sha1": ["-keyopt", "rsa_padding_mode:oaep"],
    "oaep-sha256": ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256"],
    "oaep-mgf": ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha512", "-keyopt", "rsa_mgf1_md:sha384"],
    "oaep-label": ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_label:0102"],
}


@pytest.mark.parametrize("case", [*ENCRYPTING, *OAEP])
def test_we_open_what_openssl_encrypts(tmp_path: Path, case: str) -> None:
    paul = person(PAUL)
    certificate, _ = paul.save(tmp_path, "paul")
    options = [*ENCRYPTING.get(case, ["-aes256"]), "-recip", certificate, *OAEP.get(case, [])]
    content = ENTITY + b"A line of some length to make it long.\r\n" * 2000
    protected = crlf(openssl("cms", "-encrypt", *options, data=content).stdout)
    result = opened(message(protected[protected.index(b"Content-") :]), paul)
    assert result.entity == message(content)
    assert result.verdict.decryption is DecryptionResult.DECRYPTED
    assert result.verdict.content_algorithm.startswith("aes")
    assert result.verdict.authenticated_encryption is case.startswith("gcm")


@pytest.mark.parametrize("kind", CURVES)
@pytest.mark.parametrize("cipher", [ContentCipher.AES256_GCM, ContentCipher.AES128_GCM, ContentCipher.AES256_CBC])
def test_openssl_opens_what_we_encrypt_to_an_elliptic_curve(tmp_path: Path, kind: str, cipher: ContentCipher) -> None:
    paul, lea = person(PAUL, kind=kind, which=f"ec {kind}"), person("lea@clinic.example")
    protected = encrypt(ENTITY, [lea.certificate, paul.certificate], Suite(cipher))
    for recipient in (paul, lea):
        certificate, key = recipient.save(tmp_path, "recipient")
        assert openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=protected).stdout == ENTITY
        assert opened(message(protected), recipient).entity == message(ENTITY)


AGREEING = {
    "gcm": ["-aes-256-gcm"],
    "gcm-128": ["-aes-128-gcm"],
    "cbc-192": ["-aes192"],
    "stream": ["-aes256", "-stream"],
    "key-id": ["-aes256", "-keyid"],
    "sha384": ["-aes-256-gcm", "-keyopt", "ecdh_kdf_md:sha384"],
    "cbc-128": ["-aes128"],
    "sha256": ["-aes-256-gcm", "-keyopt", "ecdh_kdf_md:sha256"],
    "sha512": ["-aes-256-gcm", "-keyopt", "ecdh_kdf_md:sha512"],
    "wrap-128": ["-aes-256-gcm", "-aes128-wrap"],
}


@pytest.mark.parametrize(
    ("kind", "case"), [*((kind, "gcm") for kind in CURVES), *(("p384", case) for case in AGREEING)]
)
def test_we_open_what_openssl_encrypts_to_an_elliptic_curve(tmp_path: Path, kind: str, case: str) -> None:
    paul, lea = person(PAUL, kind=kind, which=f"ec {kind}"), person("lea@clinic.example")
    mine, theirs = paul.save(tmp_path, "paul")[0], lea.save(tmp_path, "lea")[0]
    before, after = AGREEING[case], []
    if "-keyopt" in before:
        before, after = before[:1], before[1:]
    protected = openssl("cms", "-encrypt", *before, "-recip", mine, *after, "-recip", theirs, data=ENTITY).stdout
    wire = message(crlf(protected).removeprefix(b"MIME-Version: 1.0\r\n"))
    assert opened(wire, paul).entity == message(ENTITY)
    assert opened(wire, lea).entity == message(ENTITY)
    assert opened(wire, person(PAUL, kind="p256", which="another")).verdict.decryption is DecryptionResult.FAILED


def test_an_ec_recipient_beside_us_does_not_disturb(tmp_path: Path) -> None:
    paul, other = person(PAUL), person("lea@clinic.example", kind="p256")
    mine, theirs = paul.save(tmp_path, "paul")[0], other.save(tmp_path, "lea")[0]
    protected = openssl("cms", "-encrypt", "-aes256", "-recip", theirs, "-recip", mine, data=ENTITY).stdout
    result = opened(message(crlf(protected).removeprefix(b"MIME-Version: 1.0\r\n")), paul)
    assert result.entity == message(ENTITY)


SIGNING = {
    "rsa": ("rsa2048", ["-md", "sha256"]),
    "sha384": ("rsa2048", ["-md", "sha384"]),
    "sha512-key-id": ("rsa2048", ["-md", "sha512", "-keyid"]),
    "pss": ("rsa2048", ["-md", "sha256", "-keyopt", "rsa_padding_mode:pss"]),
    "pss-salt": ("rsa2048", ["-md", "sha256", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:20"]),
    "ecdsa": ("p256", ["-md", "sha256"]),
    "ecdsa-384": ("p384", ["-md", "sha384"]),
    "ecdsa-521": ("p521", ["-md", "sha512"]),
    "brainpool-256": ("brainpool256", ["-md", "sha256"]),
    "brainpool-384": ("brainpool384", ["-md", "sha384"]),
    "brainpool-512": ("brainpool512", ["-md", "sha512", "-keyid"]),
    "ed25519": ("ed25519", []),
    "pss-384": ("rsa3072", ["-md", "sha384", "-keyopt", "rsa_padding_mode:pss"]),
    "pss-digest": ("rsa2048", ["-md", "sha512", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:-1"]),
    "pss-opaque": ("rsa2048", ["-md", "sha256", "-nodetach", "-keyopt", "rsa_padding_mode:pss"]),
    "no-capabilities": ("rsa2048", ["-md", "sha256", "-nosmimecap"]),
    "cades": ("rsa2048", ["-md", "sha256", "-cades"]),
    "opaque": ("rsa2048", ["-md", "sha256", "-nodetach"]),
    "opaque-stream": ("p256", ["-md", "sha256", "-nodetach", "-stream"]),
    "detached-stream": ("p256", ["-md", "sha256", "-stream"]),
}


@pytest.mark.parametrize("case", SIGNING)
def test_we_verify_what_openssl_signs(tmp_path: Path, case: str) -> None:
    kind, options = SIGNING[case]
    if kind == "ed25519":
        supported(tmp_path, kind)
    certificate, key = person(ANNE, kind=kind).save(tmp_path, "anne")
    signed = openssl("cms", "-sign", "-signer", certificate, "-inkey", key, "-binary", *options, data=ENTITY).stdout
    wire = message(_as_received(signed))
    result = opened(wire)
    assert result.verdict.findings == ()
    assert [(s.result, s.findings) for s in result.verdict.signers] == [(SignatureResult.VALID, ())]
    assert result.verdict.signature is SignatureResult.VALID
    assert result.entity == wire
    assert bytes(result.content) == ENTITY


def _as_received(signed: bytes) -> bytes:
    """OpenSSL's output with CRLF lines; what was signed has them already."""
    return crlf(signed).removeprefix(b"MIME-Version: 1.0\r\n")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["-noattr"], "no-signed-attributes"),
        (["-noattr", "-nodetach"], "no-signed-attributes"),
        (["-nocerts"], "no-certificate"),
        (["-nocerts", "-keyid"], "no-certificate"),
    ],
)
def test_signatures_that_openssl_can_make_and_nobody_should_trust(
    tmp_path: Path, options: list[str], code: str
) -> None:
    """Without signed attributes what is signed is ambiguous; without the certificate nobody is named."""
    certificate, key = person(ANNE).save(tmp_path, "anne")
    command = ["cms", "-sign", "-signer", certificate, "-inkey", key, "-binary", "-md", "sha256", *options]
    verdict = opened(message(_as_received(openssl(*command, data=ENTITY).stdout))).verdict
    assert verdict.signature is SignatureResult.INVALID
    assert [finding.code for finding in verdict.signers[0].findings] == [code]


@pytest.mark.parametrize("digest", ["sha1", "md5", "sha224"])
def test_weak_digests_are_refused(tmp_path: Path, digest: str) -> None:
    certificate, key = person(ANNE).save(tmp_path, "anne")
    signed = openssl(
        "cms", "-sign", "-signer", certificate, "-inkey", key, "-binary", "-md", digest, data=ENTITY
    ).stdout
    verdict = opened(message(_as_received(signed))).verdict
    assert verdict.signature is SignatureResult.INVALID
    assert verdict.signers[0].findings[0].code == "digest-algorithm"


def test_openssl_opens_and_verifies_signed_then_encrypted(tmp_path: Path) -> None:
    anchor, _ = authority().save(tmp_path, "ca")
    paul = person(PAUL)
    certificate, key = paul.save(tmp_path, "paul")
    protected = encrypt(sign(ENTITY, person(ANNE), NOW), [paul.certificate])
    inner = openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=protected).stdout
    verified = openssl("cms", "-verify", "-CAfile", anchor, "-attime", str(int(NOW.timestamp())), data=inner)
    assert verified.stdout == ENTITY


@pytest.mark.parametrize("cipher", ["-des3", "-aes-256-gcm", "-aes256"])
def test_recipients_of_every_kind_in_one_message(tmp_path: Path, cipher: str) -> None:
    """Triple DES is read where the policy admits it only, and flagged; not for curves, whose key wrap died with it."""
    kinds = ("rsa2048", "rsa3072") if cipher == "-des3" else ("rsa2048", "p256", "p521", "brainpool384")
    people = [person(f"r-{kind}@clinic.example", kind=kind) for kind in kinds]
    options = []
    for number, one in enumerate(people):
        options += ["-recip", one.save(tmp_path, f"r{number}")[0]]
        options += ["-keyopt", "rsa_padding_mode:oaep"] if number == 0 else []
    protected = openssl("cms", "-encrypt", cipher, *options, data=ENTITY).stdout
    wire = message(crlf(protected).removeprefix(b"MIME-Version: 1.0\r\n"))
    for one in people:
        if cipher == "-des3":
            assert opened(wire, one).verdict.decryption is DecryptionResult.FAILED
        policy = ReadPolicy(triple_des=True)
        result = open_message(wire, [one], validator(), NOW, policy=policy)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED
        assert bytes(result.content) == ENTITY
        assert result.verdict.authenticated_encryption is (cipher == "-aes-256-gcm")
        codes = {finding.code for finding in result.verdict.findings}
        assert ("unauthenticated-encryption" in codes) is (cipher != "-aes-256-gcm")


def test_we_and_openssl_write_to_all_kinds_at_once(tmp_path: Path) -> None:
    people = [person(f"r-{kind}@clinic.example", kind=kind) for kind in ("rsa3072", *CURVES)]
    protected = encrypt(ENTITY, [one.certificate for one in people])
    for one in people:
        certificate, key = one.save(tmp_path, "one")
        assert openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=protected).stdout == ENTITY
        assert bytes(opened(message(protected), one).content) == ENTITY


@pytest.mark.parametrize("cipher", ["-aes-256-gcm", "-aes256"])
def test_x25519_from_openssl(tmp_path: Path, cipher: str) -> None:
    supported(tmp_path, "x25519")
    paul = person(PAUL, kind="x25519")
    certificate, key = paul.save(tmp_path, "paul")
    protected = openssl("cms", "-encrypt", cipher, "-recip", certificate, data=ENTITY).stdout
    assert bytes(opened(message(_as_received(protected)), paul).content) == ENTITY
    ours = encrypt(ENTITY, [paul.certificate])
    assert openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=ours).stdout == ENTITY


def test_compressed_by_openssl(tmp_path: Path) -> None:
    compressed = openssl("cms", "-compress", data=ENTITY, check=False)
    if compressed.returncode:
        pytest.skip("this OpenSSL is built without zlib")
    assert bytes(opened(message(_as_received(compressed.stdout))).content) == ENTITY


def test_several_signers_all_count(tmp_path: Path) -> None:
    anne, stranger = person(ANNE).save(tmp_path, "anne"), person(ANNE, ca="Unknown CA").save(tmp_path, "stranger")
    signers = ["-signer", anne[0], "-inkey", anne[1], "-signer", stranger[0], "-inkey", stranger[1]]
    signed = openssl("cms", "-sign", *signers, "-binary", "-md", "sha256", data=ENTITY).stdout
    verdict = opened(message(_as_received(signed))).verdict
    assert {signer.result for signer in verdict.signers} == {SignatureResult.VALID, SignatureResult.UNTRUSTED}
    assert verdict.signature is SignatureResult.UNTRUSTED


def test_certs_only_is_not_signed(tmp_path: Path) -> None:
    certificate, _ = person(ANNE).save(tmp_path, "anne")
    encoded = openssl("crl2pkcs7", "-nocrl", "-certfile", certificate).stdout
    body = b"".join(encoded.splitlines(keepends=True)[1:-1])
    wire = message(
        b"Content-Type: application/pkcs7-mime; smime-type=certs-only\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + crlf(body)
    )
    result = opened(wire)
    assert result.verdict.signature is SignatureResult.NOT_SIGNED
    assert result.verdict.decryption is DecryptionResult.NOT_ENCRYPTED
    assert result.entity == wire
