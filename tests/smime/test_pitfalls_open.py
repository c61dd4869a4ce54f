"""Known ways to fool what decrypts mail (EFAIL, Bleichenbacher, short tags), each refused."""

from __future__ import annotations

import dataclasses
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import DecryptionResult, Finding, SignatureResult, Suite, encrypt, oids, open_message, sign
from smime.canonical import robust
from smime.encrypting import encrypt_content
from smime.policy import GcmVariant, ReadPolicy
from tests.smime.craft import enveloped, indefinite, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, message, person, validator
from trust import der

ANNE = "anne@lab.example"
PAUL = person("paul@clinic.example")
CANNOT_OPEN = (Finding("cannot-open"),)


def opened(wire: bytes, *decryptors, **options):
    return open_message(wire, decryptors or (PAUL,), validator(), NOW, **options)


def refused(cms: bytes) -> None:
    """The one and only way to fail."""
    wire = message(pkcs7_mime(cms))
    result = opened(wire)
    assert result.entity == wire
    assert result.verdict.decryption is DecryptionResult.FAILED
    assert result.verdict.findings == CANNOT_OPEN
    assert (result.verdict.content_algorithm, result.verdict.authenticated_encryption) == ("", False)


def test_well_made_messages_open() -> None:
    for cipher, outer in ((oids.AES256_GCM, oids.AUTH_ENVELOPED_DATA), (oids.AES256_CBC, oids.ENVELOPED_DATA)):
        result = opened(message(pkcs7_mime(enveloped(ENTITY, PAUL, cipher=cipher, outer=outer))))
        assert result.entity == message(ENTITY)
        assert result.verdict.decryption is DecryptionResult.DECRYPTED


def test_pitfall_01_encrypted_part_beside_others_is_never_decrypted() -> None:
    part = encrypt(ENTITY, [PAUL.certificate])
    wire = message(
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: text/html\r\n\r\n"
        b'<img src="http://attacker.example/\r\n--x\r\n' + part + b"\r\n--x--\r\n"
    )
    result = opened(wire)
    assert result.entity == wire
    assert result.verdict.decryption is DecryptionResult.NOT_ENCRYPTED


def test_pitfall_02_cbc_is_flagged_as_unauthenticated() -> None:
    wire = message(pkcs7_mime(enveloped(ENTITY, PAUL, cipher=oids.AES256_CBC, outer=oids.ENVELOPED_DATA)))
    verdict = opened(wire).verdict
    assert verdict.content_algorithm == "aes256-cbc"
    assert not verdict.authenticated_encryption
    assert Finding("unauthenticated-encryption", "aes256-cbc") in verdict.findings


def test_pitfall_02_gadget_traces_in_the_decrypted_header_are_flagged_and_kept_out() -> None:
    broken = b"Content-Type: text/plain\r\nContent-Description: a\x01b\x00\r\nContent-Language: fr\xff\r\n\r\nx\r\n"
    result = opened(message(pkcs7_mime(enveloped(broken, PAUL, cipher=oids.AES256_CBC, outer=oids.ENVELOPED_DATA))))
    assert Finding("illegal-header-characters") in result.verdict.findings
    assert b"Content-Description" not in result.entity
    assert b"Content-Type: text/plain\r\nContent-Language" in result.entity


def test_pitfall_17_decrypted_header_cannot_replace_outer_fields() -> None:
    inner = b"From: somebody@else.example\r\nSubject: other\r\n" + ENTITY
    result = opened(message(encrypt(inner, [PAUL.certificate])))
    assert result.entity == message(ENTITY)


@pytest.mark.parametrize("octets", [12, 13, 14, 15, 16])
def test_pitfall_03_tags_of_12_to_16_octets_are_accepted(octets: int) -> None:
    cms = enveloped(ENTITY, PAUL, tag_octets=octets, icv=octets)
    assert opened(message(pkcs7_mime(cms))).entity == message(ENTITY)


@pytest.mark.parametrize(("octets", "icv"), [(4, 4), (8, 8), (11, 11), (12, 16), (16, 12), (8, None), (0, 0)])
def test_pitfall_03_short_or_mismatching_tags_are_refused(octets: int, icv: int | None) -> None:
    refused(enveloped(ENTITY, PAUL, tag_octets=octets, icv=icv))


def test_pitfall_03_tag_length_defaults_to_12_and_longer_needs_a_switch() -> None:
    assert opened(message(pkcs7_mime(enveloped(ENTITY, PAUL, tag_octets=12, icv=None)))).entity == message(ENTITY)
    longer = enveloped(ENTITY, PAUL, tag_octets=16, icv=None)
    refused(longer)
    policy = ReadPolicy(gcm_variants=frozenset((GcmVariant.ICV_LENGTH_OMITTED,)))
    result = opened(message(pkcs7_mime(longer)), policy=policy)
    assert result.entity == message(ENTITY)
    assert "gcm-icv-length-omitted" in str(result.verdict.findings)


def test_pitfall_03_nonce_must_be_12_octets() -> None:
    refused(enveloped(ENTITY, PAUL, nonce_octets=16))


def test_pitfall_03_nothing_is_released_when_the_tag_is_wrong() -> None:
    for position in (0, len(ENTITY) // 2, len(ENTITY) - 1):
        refused(enveloped(ENTITY, PAUL, flip=position))


def test_pitfall_03_authenticated_attributes_are_additional_data() -> None:
    attributes = b"\xa1" + der.set_of([der.sequence(der.oid(oids.CONTENT_TYPE), der.set_of([der.oid(oids.DATA)]))])[1:]
    cms = enveloped(ENTITY, PAUL, auth_attributes=attributes)
    assert opened(message(pkcs7_mime(cms))).entity == message(ENTITY)
    refused(cms.replace(der.oid(oids.CONTENT_TYPE), der.oid(oids.MESSAGE_DIGEST)))


def test_pitfall_03_gcm_inside_enveloped_data_is_refused() -> None:
    refused(enveloped(ENTITY, PAUL, outer=oids.ENVELOPED_DATA))


def test_pitfall_04_cbc_inside_auth_enveloped_data_is_refused() -> None:
    refused(enveloped(ENTITY, PAUL, cipher=oids.AES256_CBC, outer=oids.AUTH_ENVELOPED_DATA))


def test_pitfall_05_key_agreement_every_wrong_message_fails_alike() -> None:
    """A point off the curve or of another one, a wrapped key altered, unknown algorithms, no ephemeral key at all."""
    paul = person("paul@clinic.example", kind="p256", which="ec paul")
    cms = bytes(encrypt_content(ENTITY, [paul.certificate], Suite()))
    point = cms.index(b"\x03\x42\x00\x04") + 4
    wrapped = cms.index(b"\x04\x28") + 2
    other = person("x@clinic.example", kind="p384", which="other").certificate.public_key()
    longer = other.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    variants = [cms[:at] + bytes([cms[at] ^ 1]) + cms[at + 1 :] for at in (point - 1, point, point + 63, wrapped)]
    variants += [
        cms[:point] + bytes(64) + cms[point + 64 :],
        cms[: point - 1] + longer[:65] + cms[point + 64 :],
        cms.replace(der.oid(oids.ECDH_SHA256_KDF), der.oid(oids.ECDH_SHA512_KDF)),
        cms.replace(der.oid(oids.ECDH_SHA256_KDF), der.oid("1.3.132.1.11.9")),
        cms.replace(der.oid(oids.AES256_WRAP), der.oid(oids.AES128_WRAP)),
        cms.replace(der.oid(oids.AES256_WRAP), der.oid(oids.AES256_CBC)),
        cms.replace(der.oid(oids.EC_PUBLIC_KEY), der.oid("1.2.840.10045.2.9")),
    ]
    assert opened(message(pkcs7_mime(cms)), paul).entity == message(ENTITY)
    for variant in variants:
        assert variant != cms
        result = opened(message(pkcs7_mime(variant)), paul, PAUL)
        assert (result.verdict.decryption, result.verdict.findings) == (DecryptionResult.FAILED, CANNOT_OPEN)


def test_pitfall_05_a_recipient_of_the_wrong_kind_fails_alike() -> None:
    """Our certificate named, with a way of giving the key that is not our key's."""
    paul = person("paul@clinic.example", kind="p256", which="ec paul")
    wrong = dataclasses.replace(PAUL, certificate=paul.certificate)
    cms = bytes(encrypt_content(ENTITY, [paul.certificate], Suite()))
    assert opened(message(pkcs7_mime(cms)), wrong).verdict.findings == CANNOT_OPEN
    wrong = dataclasses.replace(paul, certificate=PAUL.certificate)
    assert opened(message(pkcs7_mime(enveloped(ENTITY, PAUL))), wrong).verdict.findings == CANNOT_OPEN


def test_pitfall_05_bleichenbacher_every_wrong_key_fails_alike() -> None:
    """Bad padding, wrong length, another's key, junk: neither text nor findings differ."""
    public_key = PAUL.certificate.public_key()
    for encrypted_key in (
        os.urandom(256),
        b"\0" * 256,
        b"short",
        public_key.encrypt(b"k" * 16, padding.PKCS1v15()),
        public_key.encrypt(b"k" * 32, padding.PKCS1v15()),
    ):
        for cipher, outer in ((oids.AES256_GCM, oids.AUTH_ENVELOPED_DATA), (oids.AES256_CBC, oids.ENVELOPED_DATA)):
            refused(enveloped(ENTITY, PAUL, encrypted_key=encrypted_key, cipher=cipher, outer=outer))


def test_pitfall_05_failures_have_one_face() -> None:
    """No key of ours, no CMS, unknown cipher, content that is no MIME entity."""
    refused(enveloped(ENTITY, person("lea@clinic.example", which="lea")))
    refused(b"\x30\x03\x02\x01\x00")
    refused(b"")
    refused(enveloped(ENTITY, PAUL, cipher="1.2.840.113549.3.7"))
    refused(enveloped(b"no header here at all \x00\xff\r\n", PAUL))
    refused(enveloped(b"\x00\x01\x02", PAUL, cipher=oids.AES256_CBC, outer=oids.ENVELOPED_DATA))


def test_pitfall_06_key_is_chosen_by_recipient_name_never_by_trial() -> None:
    class Counting:
        certificate = person("lea@clinic.example", which="lea").certificate

        def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
            raise AssertionError("tried a key that the message does not name")

    result = opened(message(pkcs7_mime(enveloped(ENTITY, PAUL))), Counting(), PAUL)
    assert result.entity == message(ENTITY)


def test_pitfall_06_recipients_are_capped_at_1000_and_one_private_operation_is_spent() -> None:
    calls = []

    class Counting:
        certificate = PAUL.certificate

        def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
            calls.append(1)
            return os.urandom(32)

    wire = message(pkcs7_mime(enveloped(ENTITY, PAUL, recipients=1000)))
    assert opened(wire, Counting()).verdict.decryption is DecryptionResult.FAILED
    assert len(calls) == 1
    refused(enveloped(ENTITY, PAUL, recipients=1001))


def test_pitfall_07_retired_keys_still_open() -> None:
    """Several decryptors of one address: the one named opens, wherever it stands."""
    old = person("paul@clinic.example", which="old")
    wire = message(encrypt(ENTITY, [old.certificate]))
    assert opened(wire, PAUL, old).entity == message(ENTITY)


def test_pitfall_19_application_x_pkcs7_mime_missing_smime_type_and_octet_stream_p7m() -> None:
    cms = enveloped(ENTITY, PAUL)
    assert opened(message(pkcs7_mime(cms, media_type="application/x-pkcs7-mime"))).entity == message(ENTITY)
    assert opened(message(pkcs7_mime(cms, "signed-data"))).entity == message(ENTITY)  # the CMS says what it is
    for media_type in ('application/octet-stream; name="smime.p7m"', "APPLICATION/OCTET-STREAM; NAME=SMIME.P7M"):
        assert opened(message(pkcs7_mime(cms, media_type=media_type))).entity == message(ENTITY)


def test_pitfall_19_base64_with_junk_between_lines() -> None:
    wire = message(pkcs7_mime(enveloped(ENTITY, PAUL)).replace(b"\r\n\r\nM", b"\r\n\r\n \t!M"))
    assert opened(wire).entity == message(ENTITY)


@pytest.mark.parametrize("chunk", [16, 100, 4096])
def test_pitfall_27_ber_chunks(chunk: int) -> None:
    content = ENTITY + (os.urandom(32).hex().encode() + b"\r\n") * 300
    cms = indefinite(enveloped(content, PAUL), chunk)
    assert opened(message(pkcs7_mime(cms))).entity == message(content)


def test_pitfall_27_ber_one_octet_chunks_are_refused() -> None:
    refused(indefinite(enveloped(ENTITY + b"x" * 50_000, PAUL), 1))


def test_pitfall_16_nested_layers_are_capped_at_8() -> None:
    entity = ENTITY
    for _ in range(8):
        entity = pkcs7_mime(enveloped(entity, PAUL))
    assert opened(message(entity)).entity == message(ENTITY)
    wire = message(pkcs7_mime(enveloped(entity, PAUL)))
    result = opened(wire)
    assert result.entity == wire
    assert result.verdict.decryption is DecryptionResult.FAILED
    assert result.verdict.signature is SignatureResult.INVALID


def test_pitfall_05_inner_failure_hands_on_the_message_unchanged() -> None:
    wire = message(encrypt(pkcs7_mime(enveloped(ENTITY, person("l@x.example", which="lea"))), [PAUL.certificate]))
    result = opened(wire)
    assert result.entity == wire
    assert result.verdict.decryption is DecryptionResult.FAILED


def test_pitfall_16_signed_around_encrypted_is_noted() -> None:
    anne = person(ANNE)
    wire = message(sign(encrypt(sign(ENTITY, anne, NOW), [PAUL.certificate]), anne, NOW))
    result = opened(wire)
    assert result.verdict.signature is SignatureResult.VALID
    assert {finding.code for finding in result.verdict.findings} == {"signed-outside-encryption", "outer-signature"}
    assert bytes(result.content) == ENTITY


def test_pitfall_18_opaque_signature_inside_encryption_is_handed_on_as_it_is() -> None:
    inner = pkcs7_mime(signed_data(ENTITY, person(ANNE), attached=ENTITY), "signed-data")
    result = opened(message(encrypt(inner, [PAUL.certificate])))
    assert result.entity == message(inner)
    assert result.verdict.signature is SignatureResult.VALID
    assert bytes(result.content) == ENTITY


def test_pitfall_28_broken_compressed_content_is_left_alone() -> None:
    cms = der.sequence(der.oid(oids.COMPRESSED_DATA), der.tlv(0xA0, der.sequence()))
    wire = message(pkcs7_mime(cms, "compressed-data"))
    result = opened(wire)
    assert result.entity == wire
    assert result.verdict.findings[0].code == "malformed-compressed-data"


_text = st.text(st.characters(codec="ascii", exclude_characters="\r\n\0"), max_size=60)


@settings(max_examples=25, deadline=None)
@given(st.lists(_text, max_size=30), st.booleans())
def test_open_is_the_inverse_of_encrypt_and_sign(lines: list[str], signed: bool) -> None:
    entity = b"Content-Type: text/plain\r\n\r\n" + "".join(f"{line}\r\n" for line in lines).encode()
    protected = sign(entity, person(ANNE, kind="p256"), NOW) if signed else entity
    result = opened(message(encrypt(protected, [PAUL.certificate])))
    assert result.entity == message(protected)
    assert bytes(result.content) == (robust(entity) if signed else entity)
    expected = SignatureResult.VALID if signed else SignatureResult.NOT_SIGNED
    assert (result.verdict.decryption, result.verdict.signature) == (DecryptionResult.DECRYPTED, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_octet_never_passes_unseen(position: int, mask: int) -> None:
    """Anywhere in the CMS: either the content is the very same, or the message is not opened."""
    cms = bytearray(enveloped(ENTITY, PAUL, key=b"k" * 32))
    cms[position % len(cms)] ^= mask
    result = opened(message(pkcs7_mime(bytes(cms))))
    if result.verdict.decryption is DecryptionResult.DECRYPTED:
        assert result.entity == message(ENTITY)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["", "application/pkcs7-mime", "multipart/signed; boundary=b"]))
def test_open_never_raises(junk: bytes, media_type: str) -> None:
    wire = (f"Content-Type: {media_type}\r\n\r\n".encode() if media_type else b"") + junk
    assert opened(wire).entity == wire
