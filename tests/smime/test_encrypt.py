"""Encrypting: every kind of key, any mix in one message, blind copies, and nothing used twice."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from asn1crypto.cms import ContentInfo, EnvelopedData
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from smime import (
    ContentCipher,
    DecryptionResult,
    KeyTransportScheme,
    RecipientNaming,
    Suite,
    UnfitCertificateError,
    can_encrypt_to,
    encrypt,
    encrypt_copies,
    oids,
    open_message,
    sign,
)
from smime.agreement import bound_content_key
from smime.cms_read import read_cms
from smime.encrypting import encrypt_content
from smime.identity import identity
from smime.mime import parse_entity
from tests.smime.people import ENTITY, NOW, Person, authority, message, openssl, person, validator
from trust import der

PAUL = "paul@clinic.example"
CURVES = ["p256", "p384", "p521", "brainpool256", "brainpool384", "brainpool512"]
BY_KEY_ID = Suite(naming=RecipientNaming.SUBJECT_KEY_ID)


def paul(kind: str) -> Person:
    return person(PAUL, kind=kind, which=f"paul {kind}")


def opened(wire: bytes, *decryptors: Person):
    return open_message(message(wire), decryptors, validator(), NOW)


def readable(wire: bytes, holder: Person) -> bool:
    result = opened(wire, holder)
    return result.verdict.decryption is DecryptionResult.DECRYPTED and result.entity == message(ENTITY)


def cms(wire: bytes) -> bytes:
    return bytes(parse_entity(wire).decoded())


@pytest.mark.parametrize("naming", RecipientNaming)
@pytest.mark.parametrize("kind", ["rsa2048", *CURVES])
def test_openssl_and_we_open_what_is_encrypted_to_any_key(tmp_path: Path, kind: str, naming: RecipientNaming) -> None:
    holder = paul(kind)
    certificate, key = holder.save(tmp_path, "paul")
    for cipher in ContentCipher:
        wire = encrypt(ENTITY, [holder.certificate], Suite(cipher, naming=naming))
        assert openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=wire).stdout == ENTITY
        assert readable(wire, holder)


@pytest.mark.parametrize("cipher", ContentCipher)
def test_x25519(cipher: ContentCipher) -> None:
    holder = paul("x25519")
    wire = encrypt(ENTITY, [holder.certificate], Suite(cipher))
    assert readable(wire, holder)
    assert not readable(wire, person(PAUL, kind="x25519", which="another"))
    assert der.oid(oids.ECDH_HKDF_SHA256) in cms(wire)
    assert der.sequence(der.oid(oids.X25519)) in cms(wire)


@pytest.mark.parametrize(
    ("kind", "scheme", "wrap"),
    [
        ("p256", oids.ECDH_SHA256_KDF, oids.AES128_WRAP),
        ("brainpool256", oids.ECDH_SHA256_KDF, oids.AES128_WRAP),
        ("p384", oids.ECDH_SHA384_KDF, oids.AES256_WRAP),
        ("brainpool384", oids.ECDH_SHA384_KDF, oids.AES256_WRAP),
        ("p521", oids.ECDH_SHA512_KDF, oids.AES256_WRAP),
        ("brainpool512", oids.ECDH_SHA512_KDF, oids.AES256_WRAP),
        ("x25519", oids.ECDH_HKDF_SHA256, oids.AES128_WRAP),
    ],
)
def test_key_derivation_and_wrap_are_as_strong_as_curve_and_content_key(kind: str, scheme: str, wrap: str) -> None:
    certificate = paul(kind).certificate
    for cipher, expected in ((ContentCipher.AES128_GCM, wrap), (ContentCipher.AES256_GCM, oids.AES256_WRAP)):
        algorithm = der.sequence(der.oid(scheme), der.sequence(der.oid(expected)))
        assert algorithm in encrypt_content(ENTITY, [certificate], Suite(cipher))


@pytest.mark.parametrize(
    "suite", [Suite(), Suite(ContentCipher.AES128_CBC, KeyTransportScheme.RSA_PKCS1V15), BY_KEY_ID]
)
def test_all_kinds_in_one_message(tmp_path: Path, suite: Suite) -> None:
    holders = [paul(kind) for kind in ("rsa2048", "rsa3072", *CURVES, "x25519")]
    wire = encrypt(ENTITY, [holder.certificate for holder in holders], suite)
    for holder in holders:
        assert readable(wire, holder)
    for holder in holders[:-1]:
        certificate, key = holder.save(tmp_path, "holder")
        assert openssl("cms", "-decrypt", "-recip", certificate, "-inkey", key, data=wire).stdout == ENTITY


def test_an_independent_parser_reads_the_structure() -> None:
    holders = [paul("rsa2048").certificate, paul("p384").certificate]
    for suite, versions, version in (
        (Suite(ContentCipher.AES256_CBC), {"v0", "v3"}, "v2"),
        (Suite(ContentCipher.AES256_CBC, naming=RecipientNaming.SUBJECT_KEY_ID), {"v2", "v3"}, "v2"),
    ):
        enveloped = ContentInfo.load(bytes(encrypt_content(ENTITY, holders, suite)), strict=True)["content"]
        assert isinstance(enveloped, EnvelopedData)
        assert enveloped["version"].native == version
        assert {info.chosen["version"].native for info in enveloped["recipient_infos"]} == versions
    alone = ContentInfo.load(bytes(encrypt_content(ENTITY, holders[:1], Suite(ContentCipher.AES256_CBC))), strict=True)
    assert alone["content"]["version"].native == "v0"


def without_key_id(kind: str) -> Person:
    holder = paul(kind)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Synthetic")])
    builder = x509.CertificateBuilder(name, name, holder.key.public_key(), 7, NOW, NOW + timedelta(days=1))
    return Person(builder.sign(authority().key, SHA256()), holder.key)


@pytest.mark.parametrize("kind", ["rsa2048", "p256", "x25519"])
def test_recipients_are_named_by_key_id_where_they_have_one(kind: str) -> None:
    for holder, by_key_id in ((paul(kind), True), (without_key_id(kind), False)):
        own = identity(holder.certificate)
        wire = encrypt(ENTITY, [holder.certificate], BY_KEY_ID)
        assert (own.issuer_and_serial in cms(wire)) is not by_key_id
        assert (bool(own.key_id) and own.key_id in cms(wire)) is by_key_id
        assert readable(wire, holder)


@pytest.mark.parametrize("cipher", ContentCipher)
def test_the_bound_content_key(cipher: ContentCipher) -> None:
    for kind in ("rsa2048", "p256", "x25519"):
        wire = encrypt(ENTITY, [paul(kind).certificate], Suite(cipher, cek_hkdf=True))
        assert der.oid(oids.CEK_HKDF_SHA256) in cms(wire)
        assert readable(wire, paul(kind))


def test_the_bound_content_key_is_that_of_rfc_9709_appendix_a() -> None:
    key = bytes.fromhex("c702e7d0a9e064b09ba55245fb733cf3")
    algorithm = bytes.fromhex("301b0609608648016503040106300e040c5c79058ba2f43447639d29e2")
    assert bound_content_key(key, algorithm).hex() == "2124ffb29fac4e0fbbc7d5d87492bff3"


def test_pitfall_04_a_bound_message_passed_off_as_another_algorithm_does_not_open() -> None:
    holder = paul("rsa2048")
    bound = bytes(encrypt_content(ENTITY, [holder.certificate], Suite(ContentCipher.AES256_CBC, cek_hkdf=True)))
    plain = bytes(encrypt_content(ENTITY, [holder.certificate], Suite(ContentCipher.AES256_CBC)))
    start = bound.index(der.oid(oids.CEK_HKDF_SHA256))
    assert bound[start - 2] == der.SEQUENCE
    assert bound[start + 13] == der.SEQUENCE
    assert der.oid(oids.CEK_HKDF_SHA256) not in plain
    stripped = bound.replace(der.oid(oids.AES256_CBC), der.oid(oids.AES128_CBC))
    wire = b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: binary\r\n\r\n" + stripped
    assert opened(wire, holder).verdict.decryption is DecryptionResult.FAILED


def test_pitfall_40_key_and_nonce_are_new_each_time() -> None:
    certificate = paul("p256").certificate
    made = [read_cms(encrypt_content(ENTITY, [certificate], Suite())) for _ in range(50)]
    assert len({bytes(one.algorithm.parameters.encoded) for one in made}) == 50
    assert len({one.recipients[0].originator for one in made}) == 50
    assert len({one.recipients[0].encrypted_key for one in made}) == 50
    assert len({bytes(one.content) for one in made}) == 50


def test_pitfall_07_each_blind_copy_is_a_message_of_its_own() -> None:
    to, cc = paul("rsa2048"), paul("p256")
    hidden, two_keys = paul("p384"), (paul("p521"), paul("x25519"))
    groups = [[hidden.certificate], [holder.certificate for holder in two_keys]]
    shown, first, second = encrypt_copies(ENTITY, [to.certificate, cc.certificate], groups)
    for copy, holders in ((shown, (to, cc)), (first, (hidden,)), (second, two_keys)):
        for holder in (to, cc, hidden, *two_keys):
            assert readable(copy, holder) is (holder in holders)
            named = identity(holder.certificate).issuer_and_serial in cms(copy)
            assert named is (holder in holders)
    contents = {bytes(read_cms(cms(copy)).content) for copy in (shown, first, second)}
    assert len(contents) == 3


def test_pitfall_07_without_visible_recipients() -> None:
    (only,) = encrypt_copies(ENTITY, [], [[paul("p256").certificate]])
    assert readable(only, paul("p256"))
    with pytest.raises(ValueError):
        encrypt_copies(ENTITY, [], [])
    with pytest.raises(ValueError):
        encrypt_copies(ENTITY, [paul("p256").certificate], [[]])


def test_pitfall_34_what_cannot_be_encrypted_never_goes_in_clear() -> None:
    unfit = [
        person(PAUL, kind="p192", which="weak").certificate,
        person(PAUL, kind="ed25519", which="edwards").certificate,
    ]
    for certificate in unfit:
        assert not can_encrypt_to(certificate)
        with pytest.raises(UnfitCertificateError):
            encrypt(ENTITY, [paul("rsa2048").certificate, certificate])
    with pytest.raises(ValueError):
        encrypt(ENTITY, [])


@pytest.mark.parametrize("kind", ["rsa2048", *CURVES, "x25519"])
def test_kinds_that_can_be_encrypted_to(kind: str) -> None:
    assert can_encrypt_to(paul(kind).certificate)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 127, 128, 255, 256, 65535, 65536, 100_000])
def test_sizes(size: int) -> None:
    holder = paul("p256")
    content = b"\r\n" + b"x" * size
    for cipher in ContentCipher:
        result = opened(encrypt(content, [holder.certificate], Suite(cipher)), holder)
        assert bytes(result.content) == content


def test_the_same_certificate_twice_is_one_recipient() -> None:
    certificate = paul("p256").certificate
    assert len(read_cms(encrypt_content(ENTITY, [certificate, certificate], Suite())).recipients) == 1


def test_a_thousand_recipients_take_a_thousand_times_as_long() -> None:
    certificates = [person(PAUL, kind="p256", which=f"one of many {number}").certificate for number in range(300)]
    encrypt_content(ENTITY, certificates, Suite())

    def seconds(count: int) -> float:
        best = 9.9
        for _ in range(3):
            started = time.process_time()
            made = encrypt_content(ENTITY, certificates[:count], Suite())
            best = min(best, time.process_time() - started)
            assert len(read_cms(made).recipients) == count
        return best

    assert seconds(300) < seconds(30) * 10 * 3


def test_triple_wrap() -> None:
    anne, gateway, holder = (
        person("anne@lab.example"),
        person("anne@lab.example", kind="p384", which="outer"),
        paul("p256"),
    )
    encrypted = encrypt(sign(ENTITY, anne, NOW), [holder.certificate])
    wrapped = sign(encrypted, gateway, NOW)
    assert encrypted in wrapped
    result = opened(wrapped, holder)
    assert bytes(result.content) == ENTITY
    assert result.verdict.decryption is DecryptionResult.DECRYPTED
    assert result.verdict.signature.value == "valid"
    assert result.verdict.signers[0].certificate == anne.certificate
