"""Known ways to make a signature say what its signer did not, each refused."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding

from smime import SignatureResult, encrypt, oids, open_message, sign
from smime.mime import parse_entity, split_multipart
from tests.smime.craft import (
    SHA256,
    attribute,
    content_type,
    message_digest,
    multipart_signed,
    pkcs7_mime,
    signed_data,
)
from tests.smime.people import ENTITY, NOW, authority, message, person, validator
from trust import der
from trust.der import context

ANNE = person("anne@lab.example")
VALID, INVALID, MISMATCH = SignatureResult.VALID, SignatureResult.INVALID, SignatureResult.MISMATCH
UNTRUSTED, NOT_SIGNED = SignatureResult.UNTRUSTED, SignatureResult.NOT_SIGNED


def verdict(wire: bytes, **options):
    result = open_message(wire, (), validator(), NOW, **options)
    assert result.entity == wire
    return result.verdict


def judged(cms: bytes) -> tuple[SignatureResult, str]:
    """Result and first finding for a detached signature over ENTITY."""
    found = verdict(message(multipart_signed(ENTITY, cms)))
    findings = [finding.code for signer in found.signers for finding in signer.findings]
    return found.signature, next(iter(findings), "")


def test_a_well_made_signature_is_valid() -> None:
    assert judged(signed_data(ENTITY, ANNE)) == (VALID, "")


def test_pitfall_08_zero_signer_infos_is_not_signed() -> None:
    found = verdict(message(multipart_signed(ENTITY, signed_data(ENTITY, ANNE, signers=0))))
    assert found.signature is NOT_SIGNED
    opaque = verdict(message(pkcs7_mime(signed_data(ENTITY, ANNE, signers=0, attached=ENTITY))))
    assert opaque.signature is NOT_SIGNED


def test_pitfall_09_detached_signature_with_content_fails() -> None:
    found = verdict(message(multipart_signed(ENTITY, signed_data(ENTITY, ANNE, attached=ENTITY))))
    assert found.signature is INVALID
    assert found.findings[0].code == "content-in-detached-signature"


def test_pitfall_09_opaque_signature_without_content_fails() -> None:
    assert verdict(message(pkcs7_mime(signed_data(ENTITY, ANNE), "signed-data"))).signature is INVALID


def test_altered_content_is_seen() -> None:
    wire = message(multipart_signed(ENTITY, signed_data(ENTITY, ANNE)))
    assert verdict(wire.replace(b"Nothing", b"nothing")).signature is INVALID


@pytest.mark.parametrize(
    "attributes",
    [
        (content_type(),),
        (message_digest(ENTITY),),
        (content_type(), message_digest(ENTITY), message_digest(b"other")),
        (content_type(), content_type(), message_digest(ENTITY)),
        (content_type(oids.SIGNED_DATA), message_digest(ENTITY)),
        (content_type(), attribute(oids.MESSAGE_DIGEST)),
        (
            content_type(),
            attribute(
                oids.MESSAGE_DIGEST,
                der.octet_string(hashlib.sha256(ENTITY).digest()),
                der.octet_string(hashlib.sha256(b"other").digest()),
            ),
        ),
        (content_type(), message_digest(ENTITY), attribute(oids.SIGNING_TIME, der.null())),
    ],
)
def test_pitfall_10_message_digest_and_content_type_exactly_once_and_right(attributes) -> None:
    assert judged(signed_data(ENTITY, ANNE, attributes=attributes))[0] is INVALID


def test_pitfall_10_signed_attributes_are_required() -> None:
    assert judged(signed_data(ENTITY, ANNE, attributes=())) == (INVALID, "no-signed-attributes")


def test_pitfall_10_attributes_passed_off_as_content() -> None:
    """The signed attributes of one message, presented as another's content without attributes."""
    attributes = der.set_of((content_type(), message_digest(ENTITY)))
    cms = signed_data(attributes, ANNE, attributes=(), signature=ANNE.sign(attributes, hashes.SHA256()))
    assert verdict(message(multipart_signed(attributes, cms))).signature is INVALID


def test_pitfall_11_attributes_out_of_der_order_are_verified_as_sent() -> None:
    pieces = sorted((content_type(), message_digest(ENTITY)), reverse=True)
    unsorted = der.tlv(der.SET, *pieces)
    cms = signed_data(ENTITY, ANNE)
    cms = signed_data(ENTITY, ANNE, signature=ANNE.sign(unsorted, hashes.SHA256())).replace(
        der.set_of(pieces)[1:], unsorted[1:]
    )
    assert judged(cms) == (VALID, "")


def test_pitfall_14_and_38_empty_digest_algorithms_are_refused() -> None:
    assert judged(signed_data(ENTITY, ANNE, digests=())) == (INVALID, "digest-algorithm")


def test_pitfall_14_digest_and_signature_algorithm_must_agree() -> None:
    sha512 = der.sequence(der.oid(oids.SHA512_WITH_RSA), der.null())
    assert judged(signed_data(ENTITY, ANNE, algorithm=sha512)) == (INVALID, "signature-algorithm")


def test_pitfall_14_sha1_is_refused() -> None:
    sha1 = der.sequence(der.oid(oids.SHA1))
    cms = signed_data(ENTITY, ANNE, digest=sha1, digests=(sha1,))
    assert judged(cms) == (INVALID, "digest-algorithm")


def test_pitfall_14_short_rsa_keys_are_refused() -> None:
    weak = person("anne@lab.example", kind="rsa1024", which="weak")
    assert judged(signed_data(ENTITY, weak)) == (INVALID, "weak-key")


def test_pitfall_14_unlisted_curves_are_refused() -> None:
    odd = person("anne@lab.example", kind="p192", which="odd")
    ecdsa = der.sequence(der.oid(oids.ECDSA_WITH_SHA256))
    assert judged(signed_data(ENTITY, odd, algorithm=ecdsa)) == (INVALID, "weak-key")


def _pss(digest: str, mask: str, salt: int, trailer: int = 1) -> bytes:
    def algorithm(oid: str, *parameters: bytes) -> bytes:
        return der.sequence(der.oid(oid), *parameters)

    return algorithm(
        oids.RSASSA_PSS,
        der.sequence(
            der.tlv(context(0), algorithm(digest)),
            der.tlv(context(1), algorithm(oids.MGF1, algorithm(mask))),
            der.tlv(context(2), der.integer(salt)),
            der.tlv(context(3), der.integer(trailer)) if trailer != 1 else b"",
        ),
    )


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (_pss(oids.SHA256, oids.SHA256, 32), VALID),
        (_pss(oids.SHA256, oids.SHA512, 32), INVALID),
        (_pss(oids.SHA512, oids.SHA512, 32), INVALID),
        (_pss(oids.SHA256, oids.SHA256, 20), INVALID),
        (_pss(oids.SHA256, oids.SHA256, 1 << 40), INVALID),
        (_pss(oids.SHA256, oids.SHA256, 32, trailer=2), INVALID),
        (der.sequence(der.oid(oids.RSASSA_PSS)), INVALID),
    ],
)
def test_pitfall_14_pss_parameters_are_checked(algorithm: bytes, expected: SignatureResult) -> None:
    attributes = (content_type(), message_digest(ENTITY))
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    signature = ANNE.key.sign(der.set_of(attributes), pss, hashes.SHA256())
    cms = signed_data(ENTITY, ANNE, attributes=attributes, algorithm=algorithm, signature=signature)
    assert judged(cms)[0] is expected


def test_ed25519_signatures_verify() -> None:
    """RFC 8419. The path is another matter: a validator may not accept the key."""
    edward = person("anne@lab.example", kind="ed25519", which="ed")
    sha512 = der.sequence(der.oid(oids.SHA512))
    attributes = (
        content_type(),
        attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.sha512(ENTITY).digest())),
    )
    for signature, sound in ((edward.key.sign(der.set_of(attributes)), True), (b"\0" * 64, False)):
        cms = signed_data(
            ENTITY,
            edward,
            attributes=attributes,
            digests=(sha512,),
            digest=sha512,
            algorithm=der.sequence(der.oid(oids.ED25519)),
            signature=signature,
        )
        assert (judged(cms)[0] is not INVALID) is sound


def test_pitfall_13_signing_certificate_must_be_the_one_used() -> None:
    """Same key, another certificate: the attribute says which one was meant."""
    twin = person("boss@lab.example", which="anne@lab.example")
    hashed = hashlib.sha256(ANNE.certificate.public_bytes(Encoding.DER)).digest()
    reference = attribute(
        oids.SIGNING_CERTIFICATE_V2, der.sequence(der.sequence(der.sequence(der.octet_string(hashed))))
    )
    assert judged(signed_data(ENTITY, ANNE, extra=(reference,))) == (VALID, "")
    swapped = signed_data(ENTITY, ANNE, extra=(reference,), certificate=twin, certificates=(twin, ANNE))
    assert judged(swapped) == (INVALID, "signing-certificate-attribute")


def test_pitfall_14_algorithm_protection_must_agree() -> None:
    right = der.sequence(SHA256, b"\xa1" + der.sequence(der.oid(oids.SHA256_WITH_RSA), der.null())[1:])
    wrong = der.sequence(SHA256, b"\xa1" + der.sequence(der.oid(oids.RSA_ENCRYPTION), der.null())[1:])
    assert judged(signed_data(ENTITY, ANNE, extra=(attribute(oids.ALGORITHM_PROTECTION, right),))) == (VALID, "")
    altered = signed_data(ENTITY, ANNE, extra=(attribute(oids.ALGORITHM_PROTECTION, wrong),))
    assert judged(altered) == (INVALID, "algorithm-protection")


def test_missing_certificate() -> None:
    assert judged(signed_data(ENTITY, ANNE, certificates=())) == (INVALID, "no-certificate")


def test_unknown_authority_is_untrusted() -> None:
    stranger = person("anne@lab.example", ca="Unknown CA", which="stranger")
    found = verdict(message(multipart_signed(ENTITY, signed_data(ENTITY, stranger))))
    assert found.signature is UNTRUSTED
    assert found.signers[0].path is not None
    assert not found.signers[0].path.ok


def test_roots_from_the_mail_are_not_believed() -> None:
    stranger = person("anne@lab.example", ca="Unknown CA", which="stranger")
    cms = signed_data(ENTITY, stranger, certificates=(stranger, authority("Unknown CA")))
    assert judged(cms)[0] is UNTRUSTED


def test_pitfall_12_path_is_validated_at_receipt_not_at_the_claimed_time() -> None:
    wire = message(sign(ENTITY, ANNE, NOW))
    after = ANNE.certificate.not_valid_after_utc.replace(year=ANNE.certificate.not_valid_after_utc.year + 1)
    found = open_message(wire, (), validator(), after).verdict
    assert found.signature is UNTRUSTED
    assert found.signers[0].signing_time == NOW


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"From: anne@lab.example\r\n", VALID),
        (b"From: Anne <anne@LAB.example>\r\n", VALID),
        (b'From: "Anne, at the lab" (call me) <anne@lab.example>\r\n', VALID),
        (b"from: =?utf-8?q?An=C3=A8?=\r\n <anne@lab.example>\r\n", VALID),
        (b"From: eve@lab.example\r\n", MISMATCH),
        (b"From: Anne@lab.example\r\n", MISMATCH),
        (b'From: "anne@lab.example" <eve@evil.example>\r\n', MISMATCH),
        (b"From: anne@lab.example <eve@evil.example>\r\n", MISMATCH),
        (b"From: anne@lab.example, eve@evil.example\r\n", MISMATCH),
        (b"From: anne@lab.example\r\nFrom: eve@evil.example\r\n", MISMATCH),
        (b"From: eve@evil.example\r\nFrom: anne@lab.example\r\n", MISMATCH),
        (b"From: eve@evil.example\r\nSender: anne@lab.example\r\n", MISMATCH),
        (b"From: anne@lab.example\0@evil.example\r\n", MISMATCH),
        (b"From: <anne@lab.example\r\n", MISMATCH),
        (b"From: <@evil.example:anne@lab.example>\r\n", MISMATCH),
        (b"From: friends: anne@lab.example;\r\n", MISMATCH),
        (b"From: =?utf-8?q?anne=40lab.example?=\r\n", MISMATCH),
        (b"From:\r\n", MISMATCH),
        (b"", MISMATCH),
    ],
)
def test_pitfall_15_from_must_be_an_address_of_the_certificate(header: bytes, expected: SignatureResult) -> None:
    wire = header + b"MIME-Version: 1.0\r\n" + sign(ENTITY, ANNE, NOW)
    assert verdict(wire).signature is expected


def test_pitfall_15_from_mismatch_says_when_the_signer_is_sender_or_only_case_differs() -> None:
    signed = b"MIME-Version: 1.0\r\n" + sign(ENTITY, ANNE, NOW)
    found = verdict(b"From: eve@evil.example\r\nSender: anne@lab.example\r\n" + signed)
    assert "signer-is-sender" in [finding.code for finding in found.findings]
    found = verdict(b"From: ANNE@lab.example\r\n" + signed)
    assert found.signers[0].findings[0].code == "from-differs-by-case"


def test_pitfall_15_certificate_without_address_needs_the_directory() -> None:
    organisation = person(which="organisation")
    wire = message(sign(ENTITY, organisation, NOW))
    found = verdict(wire)
    assert found.signature is MISMATCH
    assert found.signers[0].findings[0].code == "certificate-without-address"
    published = {organisation.certificate: ("anne@lab.example",)}
    assert verdict(wire, published_addresses=lambda cert: published.get(cert, ())).signature is VALID


def test_pitfall_15_outer_from_given_by_the_caller_decides() -> None:
    wire = message(sign(ENTITY, ANNE, NOW))
    assert verdict(wire, outer_from=["eve@evil.example"]).signature is MISMATCH
    assert verdict(wire, outer_from=["anne@LAB.example"]).signature is VALID


def test_pitfall_16_signed_part_beside_others_is_not_a_signed_message() -> None:
    """A mailing list's footer, or an attacker's text, around a signed part."""
    signed = sign(ENTITY, ANNE, NOW)
    wire = message(
        b"Content-Type: multipart/mixed; boundary=outer\r\n\r\n--outer\r\n"
        + signed
        + b"\r\n--outer\r\n\r\nfooter\r\n--outer--\r\n"
    )
    assert verdict(wire).signature is NOT_SIGNED


def test_pitfall_18_multipart_signed_must_have_two_parts() -> None:
    cms = signed_data(ENTITY, ANNE)
    assert verdict(message(multipart_signed(ENTITY, cms, b"\r\nmore"))).signature is INVALID
    assert verdict(message(multipart_signed(ENTITY, cms).replace(b"--b1--", b"--bx--"))).signature is INVALID


def test_pitfall_18_preamble_and_epilogue_are_not_signed_content() -> None:
    wire = message(multipart_signed(ENTITY, signed_data(ENTITY, ANNE), prefix=b"pre\r\n", suffix=b"epilogue\r\n"))
    found = open_message(wire, (), validator(), NOW)
    assert found.verdict.signature is VALID
    assert bytes(found.content) == ENTITY


EVIL = b"\r\n--evil\r\n\r\nEvil text.\r\n--evil--\r\n"


@pytest.mark.parametrize(
    ("header", "preamble"),
    [
        (b"boundary=b1; boundary=evil", EVIL),
        (b"boundary=b1; boundary*=us-ascii''evil", EVIL),
        (b"boundary*=us-ascii''b1", b"Evil text.\r\n"),
        (b"boundary=b 1", b"--b\r\n\r\nEvil text.\r\n--b--\r\n"),
        (b"boundary=(x)b1", b"--(x)b1\r\n\r\nEvil text.\r\n--(x)b1--\r\n"),
        (b"boundary=b1", b"\n--b1\n\nEvil text.\n"),
        (b"boundary=b1; x=\x01", b"Evil text.\r\n"),
        (b'boundary="b\\1"', b"--b\\1\r\n\r\nEvil text.\r\n--b\\1--\r\n"),
        (b"boundary=b1\r\nContent-Language : fr", b"Evil text.\r\n"),
        (b"boundary=b1\r\nContent-Transfer-Encoding: base64", b""),
    ],
)
def test_pitfall_18_two_readings_of_one_multipart_are_no_signature(header: bytes, preamble: bytes) -> None:
    """What lies beside the signed part must not be what another reader shows. In an encrypted message nothing but this
    looks at line ends."""
    signed = multipart_signed(ENTITY, signed_data(ENTITY, ANNE), prefix=preamble)
    signed = signed.replace(b"boundary=b1", header)
    paul = person("paul@clinic.example")
    for wire in (message(signed), message(encrypt(signed, [paul.certificate]))):
        found = open_message(wire, [paul], validator(), NOW).verdict
        assert found.signature in (INVALID, NOT_SIGNED)


def test_pitfall_18_a_header_some_readers_end_early_is_no_signature() -> None:
    signed = multipart_signed(ENTITY, signed_data(ENTITY, ANNE), prefix=b"Evil text.\r\n")
    paul = person("paul@clinic.example")
    for entity in (signed, encrypt(signed, [paul.certificate])):
        found = open_message(message(entity, extra=b"Keywords : x\r\n"), [paul], validator(), NOW).verdict
        assert found.signature is INVALID


def test_a_spaced_out_type_is_no_signature() -> None:
    wire = message(sign(ENTITY, ANNE, NOW)).replace(b"multipart/signed", b"multipart (x) / signed")
    assert verdict(wire).signature is NOT_SIGNED


def test_pitfall_10_only_data_is_signed_as_mail() -> None:
    """A receipt or a time stamp by the same key is not a message."""
    cms = signed_data(ENTITY, ANNE, content_oid="1.2.840.113549.1.9.16.1.4", attached=ENTITY)
    found = verdict(message(pkcs7_mime(cms)))
    assert found.signature is INVALID
    assert found.signers[0].findings[0].code == "content-type"


@pytest.mark.parametrize(
    "value", [der.sequence(), der.sequence(der.sequence()), der.sequence(der.sequence(b"\x30\x00"))]
)
def test_pitfall_13_empty_certificate_references_are_refused(value: bytes) -> None:
    for oid in (oids.SIGNING_CERTIFICATE, oids.SIGNING_CERTIFICATE_V2):
        assert judged(signed_data(ENTITY, ANNE, extra=(attribute(oid, value),))) == (INVALID, "malformed-signature")


def test_enormous_certificates_are_as_good_as_absent() -> None:
    """They would be remembered."""
    addresses = [f"anne{number:05}@lab.example" for number in range(3000)]
    assert judged(signed_data(ENTITY, person("anne@lab.example", *addresses))) == (INVALID, "no-certificate")


def test_several_content_types_are_no_signature() -> None:
    wire = message(b"Content-Type: text/plain\r\n" + sign(ENTITY, ANNE, NOW))
    found = verdict(wire)
    assert found.signature is NOT_SIGNED
    assert found.findings[0].code == "malformed-content-type"


def test_pitfall_08_too_many_signers_are_refused() -> None:
    assert verdict(message(multipart_signed(ENTITY, signed_data(ENTITY, ANNE, signers=17)))).signature is INVALID


def test_pitfall_19_micalg_is_ignored_and_protocol_may_be_missing() -> None:
    wire = message(sign(ENTITY, ANNE, NOW))
    assert verdict(wire.replace(b"micalg=sha-256", b"micalg=md5")).signature is VALID
    assert verdict(wire.replace(b'protocol="application/pkcs7-signature"; ', b"")).signature is VALID
    other = wire.replace(b'protocol="application/pkcs7-signature"', b'protocol="application/pgp-signature"')
    assert verdict(other).signature is NOT_SIGNED


def test_pitfall_18_transparent_bytes_survive_encryption() -> None:
    """Odd but legal bytes inside a signed entity come out of an encrypted message as they went in."""
    entity = b"Content-Type: text/plain\r\nX-Folded: a\r\n\tb \r\n\r\n trailing \t \r\n\r\n.\r\n\r\n\r\n"
    signed = multipart_signed(entity, signed_data(entity, ANNE))
    paul = person("paul@clinic.example")
    opened = open_message(message(encrypt(signed, [paul.certificate])), [paul], validator(), NOW)
    assert opened.entity == message(signed)
    outer = parse_entity(opened.entity)
    start, stop = split_multipart(outer, outer.content_type().parameters["boundary"])[0]
    assert opened.entity[start:stop] == entity
    assert opened.verdict.signature is VALID


def test_pitfall_11_every_flipped_octet_of_a_signature_is_refused_or_harmless() -> None:
    cms = signed_data(ENTITY, ANNE)
    for position in range(0, len(cms), 7):  # version numbers and the like decide nothing
        altered = cms[:position] + bytes([cms[position] ^ 0x55]) + cms[position + 1 :]
        found = verdict(message(multipart_signed(ENTITY, altered)))
        if found.signature is VALID:
            assert found.signers[0].certificate == ANNE.certificate
    for position in range(len(cms) - 256, len(cms), 16):
        altered = cms[:position] + bytes([cms[position] ^ 0x55]) + cms[position + 1 :]
        assert judged(altered)[0] is INVALID
