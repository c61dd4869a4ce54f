"""Signatures as the world makes them: algorithms, names, attributes; what is weak only where the policy admits it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding
from cryptography.hazmat.primitives.serialization import Encoding

from smime import SignatureResult, oids
from smime.cms_read import Signed, read_cms
from smime.identity import identity
from smime.policy import ReadPolicy
from smime.verdict import Finding, SignerVerdict
from smime.verifying import Expectation, verify_signed
from tests.smime.craft import attribute, content_info, content_type, message_digest, signed_data
from tests.smime.people import ENTITY, NOW, Person, openssl, person, validator
from trust import der
from trust.der import DerError, context

ADDRESS = "anne@lab.example"
ANNE = person(ADDRESS)
VALID, INVALID, UNTRUSTED = SignatureResult.VALID, SignatureResult.INVALID, SignatureResult.UNTRUSTED
LENIENT = ReadPolicy(sha1=True)


def judged(cms: bytes, content: bytes = ENTITY, policy: ReadPolicy | None = None) -> tuple[SignerVerdict, ...]:
    read = read_cms(cms)
    assert isinstance(read, Signed)
    expected = Expectation(validator(), NOW, (ADDRESS,), lambda certificate: (), policy or ReadPolicy())
    return verify_signed(read, [content[:10], memoryview(content)[10:]], expected)


def found(cms: bytes, **options) -> tuple[SignatureResult, str]:
    [verdict] = judged(cms, **options)
    return verdict.result, next((finding.code for finding in verdict.findings), "")


def algorithm(oid: str, *parameters: bytes) -> bytes:
    return der.sequence(der.oid(oid), *parameters)


HASHES = {
    "sha1": (oids.SHA1, hashes.SHA1()),
    "sha256": (oids.SHA256, hashes.SHA256()),
    "sha384": (oids.SHA384, hashes.SHA384()),
    "sha512": (oids.SHA512, hashes.SHA512()),
}


def pkcs1(data: bytes, used: hashes.HashAlgorithm) -> bytes:
    return ANNE.key.sign(data, padding.PKCS1v15(), used)


def made(signer: Person, digest: str, scheme: bytes, signature_of, **options) -> bytes:
    """A signature with that digest; `signature_of` gets the signed attributes and the hash."""
    oid, used = HASHES[digest]
    attributes = (
        content_type(),
        attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.new(digest, ENTITY).digest())),
        *options.pop("extra", ()),
    )
    return signed_data(
        ENTITY,
        signer,
        attributes=attributes,
        digest=algorithm(oid),
        digests=(algorithm(oid),),
        algorithm=scheme,
        signature=signature_of(der.set_of(attributes), used),
        **options,
    )


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("p256", "p256"),
        ("p384", "p384"),
        ("p521", "p521"),
        ("brainpool256", "brainpoolp256r1"),
        ("brainpool384", "brainpoolp384r1"),
        ("brainpool512", "brainpoolp512r1"),
    ],
)
def test_curves(kind: str, name: str, digest: str) -> None:
    signer = person(ADDRESS, kind=kind, which=f"signing {kind}")
    scheme = algorithm(
        {"sha256": "1.2.840.10045.4.3.2", "sha384": "1.2.840.10045.4.3.3"}.get(digest, "1.2.840.10045.4.3.4")
    )
    [verdict] = judged(made(signer, digest, scheme, lambda data, used: signer.key.sign(data, ec.ECDSA(used))))
    assert verdict.result in (VALID, UNTRUSTED)  # which curves may certify is the path's business
    assert verdict.algorithm == f"ecdsa-{name}-{digest}"


@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("scheme", [oids.RSA_ENCRYPTION, "matching"])
def test_rsa(digest: str, scheme: str) -> None:
    matching = {"sha256": oids.SHA256_WITH_RSA, "sha384": oids.SHA384_WITH_RSA, "sha512": oids.SHA512_WITH_RSA}
    oid = matching[digest] if scheme == "matching" else scheme
    for parameters in ((), (der.null(),)):
        cms = made(ANNE, digest, algorithm(oid, *parameters), pkcs1)
        [verdict] = judged(cms)
        assert (verdict.result, verdict.algorithm, verdict.findings) == (VALID, f"rsa-pkcs1v15-{digest}", ())


def pss(digest: str, mask: str, salt: int) -> bytes:
    return algorithm(
        oids.RSASSA_PSS,
        der.sequence(
            der.tlv(context(0), algorithm(digest)),
            der.tlv(context(1), algorithm(oids.MGF1, algorithm(mask))),
            der.tlv(context(2), der.integer(salt)),
        ),
    )


@pytest.mark.parametrize("salt", [0, 1, 20, 32, 48, 64, 190])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_pitfall_14_pss_with_any_salt(digest: str, salt: int) -> None:
    oid, used = HASHES[digest]
    if salt > 256 - used.digest_size - 2:
        pytest.skip("longer than the key has room for")
    cms = made(
        ANNE,
        digest,
        pss(oid, oid, salt),
        lambda data, used: ANNE.key.sign(data, padding.PSS(padding.MGF1(used), salt), used),
    )
    [verdict] = judged(cms)
    assert (verdict.result, verdict.algorithm) == (VALID, f"rsa-pss-{digest}")


def test_pitfall_14_pss_defaults_are_those_of_sha1() -> None:
    def signature(data: bytes, used: hashes.HashAlgorithm) -> bytes:
        return ANNE.key.sign(data, padding.PSS(padding.MGF1(used), 20), used)

    for parameters in ((), (der.sequence(),), (der.null(),)):
        assert found(made(ANNE, "sha256", algorithm(oids.RSASSA_PSS, *parameters), signature))[1] == "pss-parameters"
        cms = made(ANNE, "sha1", algorithm(oids.RSASSA_PSS, *parameters), signature)
        assert found(cms) == (INVALID, "digest-algorithm")
        [verdict] = judged(cms, policy=LENIENT)
        assert (verdict.result, verdict.findings) == (VALID, (Finding("weak-digest", "sha1"),))


@pytest.mark.parametrize(
    "parameters",
    [
        der.octet_string(b"x"),
        der.sequence(der.integer(1)),
        der.sequence(der.tlv(context(4), der.integer(1))),
        der.sequence(der.tlv(context(2), der.integer(32)), der.tlv(context(2), der.integer(32))),
        der.sequence(der.tlv(context(0), algorithm(oids.SHA256)), der.tlv(context(1), algorithm(oids.SHA256))),
        der.sequence(der.tlv(context(0), algorithm(oids.SHA256)), der.tlv(context(1), algorithm(oids.MGF1))),
        der.sequence(der.tlv(context(2), der.integer(-1))),
        der.sequence(*[der.tlv(context(2), der.integer(32))] * 5),
    ],
)
def test_pitfall_14_odd_pss_parameters(parameters: bytes) -> None:
    cms = made(
        ANNE,
        "sha256",
        algorithm(oids.RSASSA_PSS, parameters),
        lambda data, used: ANNE.key.sign(data, padding.PSS(padding.MGF1(used), 32), used),
    )
    assert found(cms)[0] is INVALID


@pytest.mark.parametrize("scheme", [oids.RSA_ENCRYPTION, oids.SHA1_WITH_RSA])
def test_pitfall_14_sha1_only_where_the_policy_admits_it(scheme: str) -> None:
    cms = made(ANNE, "sha1", algorithm(scheme), pkcs1)
    assert found(cms) == (INVALID, "digest-algorithm")
    [verdict] = judged(cms, policy=LENIENT)
    assert (verdict.result, verdict.findings) == (VALID, (Finding("weak-digest", "sha1"),))
    # a strong digest with a weak signature is neither
    mixed = made(
        ANNE,
        "sha256",
        algorithm(oids.SHA1_WITH_RSA),
        lambda data, _: pkcs1(data, hashes.SHA1()),
    )
    assert found(mixed, policy=LENIENT) == (INVALID, "signature-algorithm")


def test_pitfall_14_md5_never() -> None:
    md5 = algorithm("1.2.840.113549.2.5")
    assert found(signed_data(ENTITY, ANNE, digest=md5, digests=(md5,)), policy=LENIENT) == (INVALID, "digest-algorithm")


def test_ed25519_and_ed448() -> None:
    edward = person(ADDRESS, kind="ed25519", which="signing ed")
    [verdict] = judged(made(edward, "sha512", algorithm(oids.ED25519), lambda data, _: edward.key.sign(data)))
    assert (verdict.result is not INVALID, verdict.algorithm) == (True, "ed25519")
    key = ed448.Ed448PrivateKey.generate()
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(ANNE.certificate.issuer)
    builder = builder.not_valid_before(NOW.replace(year=2025)).not_valid_after(NOW.replace(year=2030))
    certificate = builder.public_key(key.public_key()).serial_number(448).sign(key, None)
    goldilocks = Person(certificate, key)
    for shake in (algorithm(oids.SHAKE256), algorithm(oids.SHAKE256_LEN, der.integer(512))):
        attributes = (
            content_type(),
            attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.shake_256(ENTITY).digest(64))),
        )
        for signature, sound in ((key.sign(der.set_of(attributes)), True), (bytes(114), False)):
            cms = signed_data(
                ENTITY,
                goldilocks,
                attributes=attributes,
                digests=(shake,),
                digest=shake,
                algorithm=algorithm(oids.ED448),
                signature=signature,
            )
            [verdict] = judged(cms)
            assert ((verdict.result is not INVALID), verdict.algorithm) == (sound, "ed448")


def test_pitfall_14_explicit_curves_are_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-param_enc", "explicit", "-out", key)
    openssl("req", "-x509", "-new", "-key", key, "-subj", "/CN=explicit", "-days", "9", "-out", certificate)
    cms = openssl(
        "cms",
        "-sign",
        "-signer",
        certificate,
        "-inkey",
        key,
        "-md",
        "sha256",
        "-binary",
        "-outform",
        "DER",
        data=ENTITY,
    ).stdout
    assert found(cms)[0] is INVALID
    assert not identity(person(ADDRESS, kind="p256", which="named curve").certificate).explicit_curve


# --- Attributes ------------------------------------------------------------------------------------------------------


def test_capabilities_in_their_order() -> None:
    listed = (oids.AES256_GCM, oids.AES128_CBC, oids.DES_EDE3_CBC)
    value = der.sequence(*(algorithm(each) for each in listed), algorithm("1.2.840.113549.3.2", der.integer(128)))
    [verdict] = judged(signed_data(ENTITY, ANNE, extra=(attribute(oids.SMIME_CAPABILITIES, value),)))
    assert (verdict.result, verdict.capabilities) == (VALID, (*listed, "1.2.840.113549.3.2"))
    for odd in (der.null(), der.sequence(der.null()), der.sequence(*[algorithm(oids.AES256_GCM)] * 100)):
        [verdict] = judged(signed_data(ENTITY, ANNE, extra=(attribute(oids.SMIME_CAPABILITIES, odd),)))
        assert (verdict.result, verdict.capabilities) == (VALID, ())
    forged = signed_data(ENTITY, ANNE, extra=(attribute(oids.SMIME_CAPABILITIES, value),), signature=bytes(256))
    assert judged(forged)[0].capabilities == ()


def test_pitfall_11_signed_as_der_but_sent_in_another_order() -> None:
    """What RFC 5652 §5.4 has senders do that keep no order."""
    cms = signed_data(ENTITY, ANNE, extra=(attribute(oids.SIGNING_TIME, der.time(NOW)),))
    pieces = sorted((content_type(), message_digest(ENTITY), attribute(oids.SIGNING_TIME, der.time(NOW))))
    reordered = cms.replace(b"".join(pieces), b"".join(reversed(pieces)))
    assert reordered != cms
    assert found(reordered) == (VALID, "")
    assert found(reordered.replace(der.time(NOW)[2:], der.time(NOW.replace(year=2027))[2:])) == (
        INVALID,
        "signature-wrong",
    )


def test_pitfall_12_unsigned_attributes_are_ignored() -> None:
    fields = der.read(signed_data(ENTITY, ANNE)).sequence()[1].explicit().sequence()
    info = bytes(fields[4].set()[0].content)
    for extra in (attribute(oids.SIGNING_TIME, der.time(NOW)), b"\x05\x00", content_type(oids.SIGNED_DATA) * 200):
        changed = der.tlv(der.SET, der.sequence(info, der.tlv(context(1), extra)))
        cms = content_info(oids.SIGNED_DATA, der.sequence(*(bytes(f.encoded) for f in fields[:4]), changed))
        [verdict] = judged(cms)
        assert (verdict.result, verdict.signing_time, verdict.findings) == (VALID, None, ())


@pytest.mark.parametrize(
    "name",
    [
        oids.CONTENT_TYPE,
        oids.MESSAGE_DIGEST,
        oids.SIGNING_TIME,
        oids.SMIME_CAPABILITIES,
        oids.ALGORITHM_PROTECTION,
        oids.SIGNING_CERTIFICATE,
        oids.SIGNING_CERTIFICATE_V2,
    ],
)
def test_pitfall_10_attributes_repeated_empty_or_with_two_values(name: str) -> None:
    for extra in (
        (attribute(name),),
        (attribute(name, der.null(), der.integer(1)),),
        (attribute(name, der.null()),) * 2,
    ):
        assert found(signed_data(ENTITY, ANNE, extra=extra)) == (INVALID, "repeated-attribute")


def test_pitfall_13_references_with_issuer_and_serial() -> None:
    own = identity(ANNE.certificate)

    def reference(issuer: bytes, serial: int, digest: str = "sha256", oid: str = oids.SIGNING_CERTIFICATE_V2) -> bytes:
        names = der.sequence(der.tlv(context(4), issuer))
        hashed = der.octet_string(hashlib.new(digest, own.encoded).digest())
        return attribute(
            oid, der.sequence(der.sequence(der.sequence(hashed, der.sequence(names, der.integer(serial)))))
        )

    first, second = (
        reference(own.issuer, own.serial, "sha1", oids.SIGNING_CERTIFICATE),
        reference(own.issuer, own.serial),
    )
    assert found(signed_data(ENTITY, ANNE, extra=(first,))) == (VALID, "")
    assert found(signed_data(ENTITY, ANNE, extra=(first, second))) == (VALID, "")
    for wrong in (
        reference(own.issuer, own.serial + 1),
        reference(own.issuer.replace(b"CA", b"CB"), own.serial),
        reference(own.issuer, own.serial, "sha384"),
    ):
        assert found(signed_data(ENTITY, ANNE, extra=(first, wrong))) == (INVALID, "signing-certificate-attribute")


def test_algorithm_protection_takes_null_for_absent() -> None:
    value = der.sequence(algorithm(oids.SHA256, der.null()), b"\xa1" + algorithm(oids.SHA256_WITH_RSA)[1:])
    assert found(signed_data(ENTITY, ANNE, extra=(attribute(oids.ALGORITHM_PROTECTION, value),))) == (VALID, "")
    mac = der.sequence(algorithm(oids.SHA256), b"\xa2" + algorithm(oids.SHA256_WITH_RSA, der.null())[1:])
    assert found(signed_data(ENTITY, ANNE, extra=(attribute(oids.ALGORITHM_PROTECTION, mac),))) == (
        INVALID,
        "algorithm-protection",
    )


# --- Signers and certificates ----------------------------------------------------------------------------------------


def by_key_id(cms: bytes, signer: Person) -> bytes:
    own = identity(signer.certificate)
    fields = der.read(cms).sequence()[1].explicit().sequence()
    info = fields[4].set()[0].sequence()
    named = der.sequence(
        der.integer(3),
        der.tlv(context(0, constructed=False), own.key_id),
        *(bytes(field.encoded) for field in info[2:]),
    )
    return content_info(
        oids.SIGNED_DATA,
        der.sequence(der.integer(3), *(bytes(f.encoded) for f in fields[1:4]), der.tlv(der.SET, named)),
    )


def test_a_signer_named_by_key_id() -> None:
    assert found(by_key_id(signed_data(ENTITY, ANNE), ANNE)) == (VALID, "")
    other = person("other@lab.example", which="somebody else")
    assert found(by_key_id(signed_data(ENTITY, ANNE), other)) == (INVALID, "no-certificate")


def test_pitfall_08_every_signer_is_judged() -> None:
    assert judged(signed_data(ENTITY, ANNE, signers=0)) == ()
    assert [verdict.result for verdict in judged(signed_data(ENTITY, ANNE, signers=3))] == [VALID] * 3
    with pytest.raises(DerError):
        read_cms(signed_data(ENTITY, ANNE, signers=17))


def test_unreadable_certificates_and_other_choices_are_as_good_as_absent() -> None:
    fields = der.read(signed_data(ENTITY, ANNE)).sequence()[1].explicit().sequence()
    own = ANNE.certificate.public_bytes(Encoding.DER)
    junk = b"\x30\x00" + der.tlv(context(2), b"\x30\x00") + der.sequence(der.null()) + own[:4] + bytes(len(own) - 4)
    for certificates in (junk + own, own + junk, own * 3):
        cms = content_info(
            oids.SIGNED_DATA,
            der.sequence(
                *(bytes(f.encoded) for f in fields[:3]),
                der.tlv(context(0), certificates),
                der.tlv(context(1), b"\x30\x00" * 5),  # CRLs come from elsewhere
                bytes(fields[4].encoded),
            ),
        )
        assert found(cms) == (VALID, "")


def test_content_is_gone_through_once() -> None:
    read = read_cms(signed_data(ENTITY, ANNE, signers=4))
    assert isinstance(read, Signed)
    expected = Expectation(validator(), NOW, (ADDRESS,), lambda certificate: ())
    assert {verdict.result for verdict in verify_signed(read, iter([ENTITY]), expected)} == {VALID}


@pytest.mark.parametrize("kind", ["rsa2048", "p256"])
def test_every_flipped_octet(kind: str) -> None:
    """Whatever is altered in a signed structure, nothing raises and no other content is ever vouched for."""
    signer = person(ADDRESS, kind=kind, which=f"signing {kind}")
    scheme = algorithm(oids.SHA256_WITH_RSA, der.null()) if kind == "rsa2048" else algorithm(oids.ECDSA_WITH_SHA256)
    cms = signed_data(ENTITY, signer, algorithm=scheme, attached=ENTITY)
    start = cms.index(ENTITY)
    for position in range(0, len(cms), 1 if kind == "p256" else 2):
        altered = cms[:position] + bytes([cms[position] ^ (1 + position % 255)]) + cms[position + 1 :]
        try:
            read = read_cms(altered)
        except DerError:
            continue
        if not isinstance(read, Signed) or read.content is None:
            continue
        expected = Expectation(validator(), NOW, (ADDRESS,), lambda certificate: ())
        for verdict in verify_signed(read, read.content, expected):
            if verdict.result is VALID:
                assert bytes(read.content) == ENTITY
                assert verdict.certificate == signer.certificate
                assert not start <= position < start + len(ENTITY)
