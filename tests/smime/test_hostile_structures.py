"""Structures of anybody's making under the cryptography: what they may cost, what they may mean, and to whom."""

from __future__ import annotations

import gc
import hashlib
import os
import time
import tracemalloc
from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from smime import oids
from smime.capabilities import Capabilities, read_capabilities, suite_for
from smime.cms_read import read_cms
from smime.decrypting import CannotOpenError, CannotOpenYetError, decrypt_content
from smime.encrypting import can_encrypt_to, encrypt_content
from smime.identity import identity
from smime.opening import open_message
from smime.signing import UnfitSignerError, sign_content
from smime.suites import DEFAULT_SUITE
from smime.verdict import DecryptionResult, SignatureResult, SignerVerdict
from smime.verifying import Expectation, verify_signed
from tests.smime.craft import (
    RSA_SHA256,
    SHA256,
    attribute,
    content_info,
    content_type,
    message_digest,
    pkcs7_mime,
    signed_data,
)
from tests.smime.people import ENTITY, NOW, Person, authority, message, new_key, person, validator
from trust import der
from trust.der import DerError, context
from trust.keys import KeyUnavailableError

ANNE = "anne@lab.example"
PAUL = "paul@clinic.example"
SHA512 = der.sequence(der.oid(oids.SHA512))
ED25519 = der.sequence(der.oid(oids.ED25519))
ECDSA_SHA256 = der.sequence(der.oid(oids.ECDSA_WITH_SHA256))
RSA = der.sequence(der.oid(oids.RSA_ENCRYPTION), der.null())


def judged(cms: bytes, content: bytes = ENTITY) -> tuple[SignerVerdict, ...]:
    expected = Expectation(validator(), NOW, (ANNE,), lambda certificate: ())
    return verify_signed(read_cms(cms), [content], expected)


def name(*values: bytes) -> bytes:
    return der.sequence(*(der.tlv(der.SET, der.sequence(der.oid("2.5.4.3"), der.tlv(0x0C, value))) for value in values))


def crowded_name(seed: bytes, rdns: int, attributes: int) -> bytes:
    one = der.sequence(der.oid("2.5.4.3"), der.tlv(0x0C, b"a"))
    return der.sequence(
        *([der.tlv(der.SET, *[one] * attributes)] * rdns),
        der.tlv(der.SET, der.sequence(der.oid("2.5.4.3"), der.tlv(0x0C, seed))),
    )


def key_info(key: object) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(
    spki: bytes, *, serial: int = 1, issuer: bytes | None = None, subject: bytes | None = None, trusted: bool = False
) -> bytes:
    """DER of a certificate with any octets for a key; signed by the demonstration authority where `trusted`."""
    san = der.sequence(der.tlv(context(1, constructed=False), ANNE.encode()))
    issued = authority().certificate.subject.public_bytes() if trusted else issuer or name(b"nobody")
    body = der.sequence(
        der.tlv(context(0), der.integer(2)),
        der.integer(serial),
        ECDSA_SHA256,
        issued,
        der.sequence(der.time(NOW - timedelta(days=10)), der.time(NOW + timedelta(days=100))),
        subject or name(b"somebody"),
        spki,
        der.tlv(context(3), der.sequence(der.sequence(der.oid("2.5.29.17"), der.octet_string(san)))),
    )
    signature = authority().key.sign(body, ec.ECDSA(hashes.SHA256())) if trusted else bytes(8)
    return der.sequence(body, ECDSA_SHA256, der.tlv(der.BIT_STRING, b"\0", signature))


def signer_info(
    named: bytes, attributes: bytes, signature: bytes, algorithm: bytes, digest: bytes = SHA256, version: int = 1
) -> bytes:
    signed = b"\xa0" + attributes[1:]
    return der.sequence(der.integer(version), named, digest, signed, algorithm, der.octet_string(signature))


def bundle(
    infos: Sequence[bytes],
    certificates: Sequence[bytes],
    *,
    version: int = 1,
    digest: bytes = SHA256,
    revocation: bytes = b"",
) -> bytes:
    data = der.sequence(
        der.integer(version),
        der.tlv(der.SET, digest),
        der.sequence(der.oid(oids.DATA)),
        der.tlv(context(0), *certificates),
        revocation,
        der.tlv(der.SET, *infos),
    )
    return content_info(oids.SIGNED_DATA, data)


def ed25519_bundle(certificates: Sequence[bytes], serials: Sequence[int], issuer: bytes = b"") -> bytes:
    key = new_key("ed25519", "stranger")
    issuer = issuer or name(b"nobody")
    digest = attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.sha512(ENTITY).digest()))
    attributes = der.set_of((content_type(), digest))
    signature = key.sign(attributes)
    infos = [
        signer_info(
            der.sequence(issuer or name(b"nobody"), der.integer(serial)), attributes, signature, ED25519, SHA512
        )
        for serial in serials
    ]
    return bundle(infos, certificates, digest=SHA512)


def big_certificates(many: int, first_serial: int, octets: int = 60_000) -> list[bytes]:
    spki = key_info(new_key("ed25519", "stranger"))
    return [
        certificate(spki, serial=first_serial + i, subject=crowded_name(b"%d" % (first_serial + i), octets // 14, 1))
        for i in range(many)
    ]


# --- What strangers' certificates may cost ---------------------------------------------------------------------------


def test_strangers_certificates_do_not_stay_in_memory() -> None:
    """1,000 of 60 KB, in 64 mails of 1 MB each, would keep 3 GB for good if what was parsed of them were remembered."""
    sent = [
        ed25519_bundle(big_certificates(8, 1000 * mail, octets), range(1000 * mail, 1000 * mail + 8))
        for mail, octets in ((1, 60_000), (2, 60_000), (3, 15_000), (4, 15_000), (5, 3_800), (6, 3_800))
    ]
    judged(ed25519_bundle(big_certificates(1, 1), [1]))
    gc.collect()
    tracemalloc.start()
    try:
        for cms in sent:
            judged(cms)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 * sum(map(len, sent)), f"{kept >> 20} MB kept of {sum(map(len, sent)) >> 20} MB sent"


def test_certificates_sent_along_are_not_read_again_for_each_signer() -> None:
    """Signers times certificates: 16 and 64 of 60 KB would take 40 s."""
    certificates = big_certificates(12, 50_000, 15_000)
    together = [ed25519_bundle(certificates, range(50_000, 50_012))]
    apart = [ed25519_bundle([each], [50_000 + i]) for i, each in enumerate(certificates)]
    durations = []
    for mails in (apart, together):
        tries = []
        for _ in range(3):
            began = time.process_time()
            assert {verdict.result for cms in mails for verdict in judged(cms)} == {SignatureResult.UNTRUSTED}
            tries.append(time.process_time() - began)
        durations.append(min(tries))
    assert durations[1] < 3 * durations[0], durations


@pytest.mark.parametrize(("rdns", "attributes"), [(60, 10), (15, 2)])
def test_signers_names_are_not_compared_with_each_certificate_anew(rdns: int, attributes: int) -> None:
    """One serial number for all: 16 names of 6 KB against 64 would take 3 s, and small ones are remembered."""
    spki = key_info(new_key("ed25519", "stranger"))
    certificates = [certificate(spki, serial=7, issuer=crowded_name(b"c%d" % i, rdns, attributes)) for i in range(64)]
    signed = der.set_of((content_type(), message_digest(ENTITY)))
    infos = [
        signer_info(der.sequence(crowded_name(b"s%d" % i, rdns, attributes), der.integer(7)), signed, b"x", RSA_SHA256)
        for i in range(16)
    ]
    cms = bundle(infos, certificates)
    began = time.process_time()
    assert {verdict.result for verdict in judged(cms)} == {SignatureResult.INVALID}
    assert time.process_time() - began < 0.5


def test_authorities_of_one_name_are_read_once_for_a_message() -> None:
    """Each of 64 certificates may be the issuer of each other and of 16 signers."""
    spki, ca = key_info(new_key("ed25519", "stranger")), crowded_name(b"ca", 30, 1)
    certificates = [certificate(spki, serial=serial, issuer=ca, subject=ca) for serial in range(1, 65)]
    began = time.process_time()
    verdicts = judged(ed25519_bundle(certificates, range(1, 17), issuer=ca))
    assert time.process_time() - began < 2
    assert {verdict.result for verdict in verdicts} == {SignatureResult.UNTRUSTED}


@pytest.mark.parametrize(("many", "octets"), [(1, 20_000), (30, 15_000)])
def test_certificates_beyond_any_real_size_are_as_good_as_absent(many: int, octets: int) -> None:
    """The signer's own is found before them; what was left out shows in the verdict."""
    signer = person(ANNE)
    crowd = big_certificates(many, 1, octets)
    attributes = der.set_of((content_type(), message_digest(ENTITY)))
    info = signer_info(
        identity(signer.certificate).issuer_and_serial,
        attributes,
        signer.sign(attributes, hashes.SHA256()),
        RSA_SHA256,
    )
    (verdict,) = judged(bundle([info], [identity(signer.certificate).encoded, *crowd]))
    assert verdict.result is SignatureResult.VALID
    (finding,) = verdict.findings
    assert finding.code == "certificates-ignored"


def test_recipients_names_are_not_compared_with_each_of_ours_anew() -> None:
    """1,000 with our serial number and 6 KB names, and five generations of ours, would take 7 s."""
    ours = person(PAUL)
    serial = der.integer(identity(ours.certificate).serial)
    infos = [
        der.sequence(der.integer(0), der.sequence(crowded_name(b"%d" % i, *shape), serial), RSA, der.octet_string(b"x"))
        for shape in ((60, 10), (15, 2))
        for i in range(400)
    ]
    cms = read_cms(_auth_enveloped(infos, os.urandom(32)))
    began = time.process_time()
    with pytest.raises(CannotOpenError):
        decrypt_content(cms, [ours] * 5)
    assert time.process_time() - began < 1


# --- Keys that are for one thing only --------------------------------------------------------------------------------


def _pss_only(parameters: bytes = b"") -> tuple[Person, bytes]:
    """An RSA key whose certificate says id-RSASSA-PSS (RFC 4055 §1.2): for PSS signatures and nothing else."""
    key = new_key("rsa2048", "pss-only")
    bits = der.read(key_info(key)).sequence()[1]
    spki = der.sequence(der.sequence(der.oid(oids.RSASSA_PSS), parameters), bytes(bits.encoded))
    encoded = certificate(spki, serial=4711, trusted=True)
    return Person(x509.load_der_x509_certificate(encoded), key), encoded


def _pss_parameters(digest: bytes, salt: int) -> bytes:
    mask = der.sequence(der.oid(oids.MGF1), digest)
    return der.sequence(der.tlv(context(0), digest), der.tlv(context(1), mask), der.tlv(context(2), der.integer(salt)))


def test_a_key_for_pss_alone_makes_no_pkcs1_signature() -> None:
    """OpenSSL: `rsa_cms_verify: illegal or unsupported padding mode`."""
    holder, _ = _pss_only()
    (verdict,) = judged(signed_data(ENTITY, holder))
    assert verdict.result is SignatureResult.INVALID


def test_a_key_for_pss_alone_is_not_encrypted_to() -> None:
    holder, _ = _pss_only()
    assert not can_encrypt_to(holder.certificate)


def test_a_key_for_pss_alone_signs_with_pss_or_not_at_all() -> None:
    holder, _ = _pss_only()
    cms = sign_content(ENTITY, holder, NOW)
    assert read_cms(cms).signers[0].algorithm.oid == oids.RSASSA_PSS
    assert judged(cms)[0].result is SignatureResult.VALID
    strict, _ = _pss_only(_pss_parameters(SHA512, 64))
    cms = sign_content(ENTITY, strict, NOW)
    (verdict,) = judged(cms)
    assert (verdict.result, verdict.algorithm) == (SignatureResult.VALID, "rsa-pss-sha512")
    impossible, _ = _pss_only(_pss_parameters(SHA256, 100))
    with pytest.raises(UnfitSignerError):
        sign_content(ENTITY, impossible, NOW)


def test_a_key_for_pss_with_one_hash_takes_no_other() -> None:
    """RFC 4055 §3.3: parameters in the key are a minimum. OpenSSL: `rsa_check_padding: digest not allowed`."""
    holder, _ = _pss_only(_pss_parameters(SHA512, 64))
    attributes = der.set_of((content_type(), message_digest(ENTITY)))
    signature = holder.key.sign(attributes, padding.PSS(padding.MGF1(hashes.SHA256()), 20), hashes.SHA256())
    algorithm = der.sequence(der.oid(oids.RSASSA_PSS), _pss_parameters(SHA256, 20))
    (verdict,) = judged(signed_data(ENTITY, holder, algorithm=algorithm, signature=signature))
    assert verdict.result is SignatureResult.INVALID


@pytest.mark.parametrize(
    "point",
    [
        b"\x01" + bytes(31),
        bytes(32),
        b"\xec" + b"\xff" * 30 + b"\x7f",
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ],
    ids=["order-1", "order-4", "order-2", "order-8"],
)
def test_ed25519_keys_of_small_order_are_weak(point: bytes) -> None:
    """With the neutral element as key one signature holds for every message."""
    spki = der.sequence(der.sequence(der.oid(oids.ED25519)), der.tlv(der.BIT_STRING, b"\0", point))
    encoded = certificate(spki, serial=9, trusted=True)
    digest = attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.sha512(ENTITY).digest()))
    attributes = der.set_of((content_type(), digest))
    issued = authority().certificate.subject.public_bytes()
    for signature in (b"\x01" + bytes(63), point + bytes(32)):
        info = signer_info(der.sequence(issued, der.integer(9)), attributes, signature, ED25519, SHA512)
        (verdict,) = judged(bundle([info], [encoded], digest=SHA512))
        assert [finding.code for finding in verdict.findings] == ["weak-key"]


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_x25519_keys_of_small_order_are_not_offered_for_encryption(point: bytes) -> None:
    spki = der.sequence(der.sequence(der.oid(oids.X25519)), der.tlv(der.BIT_STRING, b"\0", point))
    assert not can_encrypt_to(x509.load_der_x509_certificate(certificate(spki)))


# --- Which certificate, which recipient ------------------------------------------------------------------------------


def _renewed(key: object, since: int, until: int) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority().certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=since))
        .not_valid_after(NOW + timedelta(days=until))
        .add_extension(x509.SubjectKeyIdentifier(b"k" * 20), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(ANNE)]), critical=True)
    )
    return builder.sign(authority().key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("beside", ["expired", "stranger"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_certificates_with_one_key_id_means_nothing(beside: str, order: int) -> None:
    """A key certified again keeps its id, and anybody can add a certificate with the same: neither may spoil it."""
    key = new_key("p256", "renewed")
    good = _renewed(key, -300, 300)
    other = _renewed(key, -900, -300) if beside == "expired" else _renewed(new_key("p256", "stranger"), -300, 300)
    attributes = der.set_of((content_type(), message_digest(ENTITY)))
    named = der.tlv(context(0, constructed=False), b"k" * 20)
    signature = key.sign(attributes, ec.ECDSA(hashes.SHA256()))
    info = signer_info(named, attributes, signature, ECDSA_SHA256, version=3)
    (verdict,) = judged(bundle([info], [other, good][::order], version=3))
    assert verdict.result is SignatureResult.VALID


def _auth_enveloped(infos: Sequence[bytes], key: bytes) -> bytes:
    nonce = os.urandom(12)
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    ciphertext = encryptor.update(ENTITY) + encryptor.finalize()
    parameters = der.sequence(der.octet_string(nonce), der.integer(16))
    data = der.sequence(
        der.integer(0),
        der.tlv(der.SET, *infos),
        der.sequence(
            der.oid(oids.DATA),
            der.sequence(der.oid(oids.AES256_GCM), parameters),
            der.tlv(context(0, constructed=False), ciphertext),
        ),
        der.octet_string(encryptor.tag),
    )
    return content_info(oids.AUTH_ENVELOPED_DATA, data)


@pytest.mark.parametrize("first", ["same certificate", "another of ours"])
def test_a_recipient_in_an_unknown_scheme_does_not_hide_the_next(first: str) -> None:
    """What scheme a RecipientInfo is in is public: skipping those nobody here reads tries nothing."""
    ours, other = person(PAUL), person(PAUL, kind="p256", which="second")
    key = os.urandom(32)
    before = ours if first == "same certificate" else other
    unknown = der.sequence(der.oid("1.3.6.1.4.1.99999.1"))
    infos = [
        der.sequence(der.integer(0), identity(before.certificate).issuer_and_serial, unknown, der.octet_string(b"x")),
        der.sequence(
            der.integer(0),
            identity(ours.certificate).issuer_and_serial,
            RSA,
            der.octet_string(ours.certificate.public_key().encrypt(key, padding.PKCS1v15())),
        ),
    ]
    assert decrypt_content(read_cms(_auth_enveloped(infos, key)), [ours, other]).content == ENTITY


# --- What is said of others ------------------------------------------------------------------------------------------


def test_oaep_with_sha1_is_no_capability_of_oaep_with_sha256() -> None:
    """The list in the verdict, which is what is remembered, means what `read_capabilities` says."""
    value = der.sequence(
        *(der.sequence(der.oid(each)) for each in (oids.AES256_GCM, oids.RSAES_OAEP, oids.RSA_ENCRYPTION))
    )
    cms = signed_data(ENTITY, person(ANNE), extra=(attribute(oids.SMIME_CAPABILITIES, value),))
    (verdict,) = judged(cms)
    remembered = suite_for(DEFAULT_SUITE, Capabilities(verdict.capabilities))
    assert remembered == suite_for(DEFAULT_SUITE, read_capabilities(value))


def test_version_five_beside_ocsp_answers_is_right() -> None:
    """RFC 5652 §5.1: revocation information of another kind (RFC 5940), as CAdES-LT has it, makes the version 5."""
    signer = person(ANNE)
    attributes = der.set_of((content_type(), message_digest(ENTITY)))
    info = signer_info(
        identity(signer.certificate).issuer_and_serial,
        attributes,
        signer.sign(attributes, hashes.SHA256()),
        RSA_SHA256,
    )
    ocsp = der.tlv(context(1), der.oid("1.3.6.1.5.5.7.16.2"), der.sequence(der.tlv(0x0A, b"\x06")))
    cms = bundle([info], [identity(signer.certificate).encoded], version=5, revocation=der.tlv(context(1), ocsp))
    assert judged(cms)[0].result is SignatureResult.VALID


@pytest.mark.parametrize("octets", ["06 03 80 2a 03", "06 04 2a 80 80 03", "06 0a 80 2a 86 48 86 f7 0d 01 07 01"])
def test_padded_object_identifiers_are_none(octets: str) -> None:
    """X.690 §8.19.2, in BER too: OpenSSL and BouncyCastle refuse them, so they are to mean nothing here."""
    with pytest.raises(DerError):
        der.read(bytes.fromhex(octets)).oid()


class _Card:
    """A key whose owner fails: a card's library has errors of its own."""

    def __init__(self, holder: Person, failure: Exception) -> None:
        self.certificate = holder.certificate
        self.failure = failure
        self.asked = 0

    def _fail(self, *arguments: object) -> bytes:
        self.asked += 1
        raise self.failure

    decrypt_oaep = decrypt_pkcs1v15 = agree = _fail


@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (RuntimeError("CKR_ENCRYPTED_DATA_INVALID in slot 4"), CannotOpenError),
        (ValueError("decryption failed"), CannotOpenError),
        (KeyUnavailableError("the session has ended"), CannotOpenYetError),
        (ConnectionResetError("slot 4"), CannotOpenYetError),
    ],
)
def test_what_a_cards_library_raises_does_not_come_out_as_it_is(
    failure: Exception, raised: type[CannotOpenError], kind: str
) -> None:
    """A key that is not there is told from a mail that cannot be opened: the first mends itself, and is nobody's word
    about the ciphertext."""
    holder = person(PAUL, kind=kind)
    cms = bytes(encrypt_content(ENTITY, [holder.certificate], DEFAULT_SUITE))
    with pytest.raises(CannotOpenError) as caught:
        decrypt_content(read_cms(cms), [_Card(holder, failure)])
    assert type(caught.value) is raised
    assert not caught.value.args
    opened = open_message(message(pkcs7_mime(cms, "authenveloped-data")), [_Card(holder, failure)], validator(), NOW)
    assert opened.verdict.decryption is DecryptionResult.FAILED


def test_a_key_that_is_not_there_is_not_missed_by_mail_for_others() -> None:
    ours = _Card(person(PAUL), KeyUnavailableError())
    cms = read_cms(bytes(encrypt_content(ENTITY, [person(ANNE).certificate], DEFAULT_SUITE)))
    with pytest.raises(CannotOpenError) as caught:
        decrypt_content(cms, [ours])
    assert type(caught.value) is CannotOpenError
    assert ours.asked == 1  # in vain, as long as for mail that is for it


@pytest.mark.parametrize("scheme", [RSA, der.sequence(der.oid(oids.RSAES_OAEP), der.sequence())])
@pytest.mark.parametrize("encrypted", [b"\xff" * 256, b"x", b"\0" * 257, b""])
def test_what_is_no_ciphertext_of_the_key_takes_as_long_as_what_is(scheme: bytes, encrypted: bytes) -> None:
    asked: list[bytes] = []

    class Watched(Person):
        def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
            asked.append(encrypted)
            return super().decrypt_pkcs1v15(encrypted)

        def decrypt_oaep(self, encrypted: bytes, *rest: object) -> bytes:
            asked.append(encrypted)
            return super().decrypt_oaep(encrypted, *rest)

    ours = Watched(person(PAUL).certificate, person(PAUL).key)
    name = identity(ours.certificate).issuer_and_serial
    info = der.sequence(der.integer(0), name, scheme, der.octet_string(encrypted))
    with pytest.raises(CannotOpenError):
        decrypt_content(read_cms(_auth_enveloped([info], os.urandom(32))), [ours])
    (used,) = asked
    assert len(used) == 256
    assert int.from_bytes(used, "big") < ours.key.private_numbers().public_numbers.n
