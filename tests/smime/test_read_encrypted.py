"""Encrypted content as the world writes it: algorithms, recipients, variants; and failures that tell nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.agreement import bound_content_key, wrapping_key
from smime.cms_read import MAX_RECIPIENTS, Enveloped, read_cms
from smime.decrypting import CannotOpenError, Decrypted, decrypt_content
from smime.identity import identity, same_name
from smime.policy import GcmVariant, ReadPolicy
from smime.verdict import Finding
from tests.smime.craft import attribute, content_info
from tests.smime.people import ENTITY, Person, openssl, person
from trust import der
from trust.der import DerError, context

PAUL, LEA = person("paul@clinic.example"), person("lea@clinic.example", kind="rsa3072")
KEY = bytes(range(32))
NONCE = b"nonce of 12."
ATTRIBUTES = der.tlv(context(1), attribute(oids.SIGNING_TIME, der.integer(1)))


def algorithm(oid: str, *parameters: bytes) -> bytes:
    return der.sequence(der.oid(oid), *parameters)


def gcm_parameters(icv: int | None = 16) -> bytes:
    return der.sequence(der.octet_string(NONCE), der.integer(icv) if icv is not None else b"")


def transported(recipient: Person, key: bytes, name: bytes | None = None) -> bytes:
    encrypted = recipient.certificate.public_key().encrypt(key, padding.PKCS1v15())
    name = name or identity(recipient.certificate).issuer_and_serial
    version = der.integer(0 if name[0] == der.SEQUENCE else 2)
    return der.sequence(version, name, algorithm(oids.RSA_ENCRYPTION, der.null()), der.octet_string(encrypted))


def structure(
    recipients: bytes | Sequence[bytes], cipher: bytes, ciphertext: bytes, mac: bytes | None, attributes: bytes = b""
) -> bytes:
    """AuthEnvelopedData with a `mac`, EnvelopedData without."""
    data = der.sequence(
        der.integer(0),
        der.tlv(der.SET, *([recipients] if isinstance(recipients, bytes) else recipients)),
        der.sequence(der.oid(oids.DATA), cipher, der.tlv(context(0, constructed=False), ciphertext)),
        attributes,
        der.octet_string(mac) if mac is not None else b"",
    )
    return content_info(oids.ENVELOPED_DATA if mac is None else oids.AUTH_ENVELOPED_DATA, data)


def sealed(additional: bytes = b"", key: bytes = KEY) -> tuple[bytes, bytes]:
    """Ciphertext and tag of ENTITY."""
    both = AESGCM(key).encrypt(NONCE, ENTITY, additional)
    return both[:-16], both[-16:]


def opened(cms: bytes, *decryptors: object, policy: ReadPolicy | None = None) -> Decrypted:
    read = read_cms(cms)
    assert isinstance(read, Enveloped)
    return decrypt_content(read, decryptors or (PAUL,), policy or ReadPolicy())


def refused(cms: bytes, *decryptors: object, policy: ReadPolicy | None = None) -> None:
    with pytest.raises(CannotOpenError) as caught:
        opened(cms, *decryptors, policy=policy)
    assert not caught.value.args
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


# --- GCM and its variants --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", range(12, 17))
def test_pitfall_03_tags_as_long_as_they_say(octets: int) -> None:
    ciphertext, tag = sealed()
    for icv in (octets, None) if octets == 12 else (octets,):
        cms = structure(
            transported(PAUL, KEY), algorithm(oids.AES256_GCM, gcm_parameters(icv)), ciphertext, tag[:octets]
        )
        found = opened(cms)
        assert (found.content, found.algorithm, found.authenticated, found.findings) == (ENTITY, "aes256-gcm", True, ())


@pytest.mark.parametrize(
    ("icv", "octets"),
    [
        (16, 12),
        (12, 16),
        (4, 4),
        (8, 8),
        (11, 11),
        (0, 0),
        (0, 16),
        (17, 16),
        (-1, 16),
        (1 << 40, 16),
        (16, 0),
        (None, 13),
    ],
)
def test_pitfall_03_other_tags_are_refused(icv: int | None, octets: int) -> None:
    ciphertext, tag = sealed()
    name, cipher = transported(PAUL, KEY), algorithm(oids.AES256_GCM, gcm_parameters(icv))
    refused(structure(name, cipher, ciphertext, tag[:octets]))
    if icv is not None and icv not in range(12, 17):
        every = ReadPolicy(gcm_variants=frozenset(GcmVariant))
        refused(structure(name, cipher, ciphertext, tag[:octets]), policy=every)
        refused(structure(name, cipher, ciphertext + tag, None), policy=every)


@pytest.mark.parametrize("octets", [0, 8, 11, 13, 16, 100])
def test_pitfall_03_nonces_of_other_sizes_are_refused(octets: int) -> None:
    ciphertext, tag = sealed()
    parameters = der.sequence(der.octet_string(bytes(octets)), der.integer(16))
    refused(structure(transported(PAUL, KEY), algorithm(oids.AES256_GCM, parameters), ciphertext, tag))


def test_pitfall_03_attributes_are_authenticated() -> None:
    additional = b"\x31" + ATTRIBUTES[1:]
    ciphertext, tag = sealed(additional)
    cipher = algorithm(oids.AES256_GCM, gcm_parameters())
    assert opened(structure(transported(PAUL, KEY), cipher, ciphertext, tag, ATTRIBUTES)).findings == ()
    refused(structure(transported(PAUL, KEY), cipher, ciphertext, tag))
    refused(
        structure(transported(PAUL, KEY), cipher, ciphertext, tag, ATTRIBUTES.replace(b"\x02\x01\x01", b"\x02\x01\x02"))
    )


def _variants() -> dict[str, tuple[bytes, set[GcmVariant]]]:
    ciphertext, tag = sealed()
    name, right = transported(PAUL, KEY), algorithm(oids.AES256_GCM, gcm_parameters())
    bare, omitted = (
        algorithm(oids.AES256_GCM, der.octet_string(NONCE)),
        algorithm(oids.AES256_GCM, gcm_parameters(None)),
    )
    return {
        "enveloped": (structure(name, right, ciphertext + tag, None), {GcmVariant.IN_ENVELOPED_DATA}),
        "bare": (structure(name, bare, ciphertext, tag), {GcmVariant.BARE_NONCE}),
        "bare, enveloped": (
            structure(name, bare, ciphertext + tag, None),
            {GcmVariant.BARE_NONCE, GcmVariant.IN_ENVELOPED_DATA},
        ),
        "twice": (structure(name, right, ciphertext + tag, tag), {GcmVariant.TAG_IN_CONTENT}),
        "omitted": (structure(name, omitted, ciphertext, tag), {GcmVariant.ICV_LENGTH_OMITTED}),
        "omitted, enveloped": (
            structure(name, omitted, ciphertext + tag, None),
            {GcmVariant.ICV_LENGTH_OMITTED, GcmVariant.IN_ENVELOPED_DATA},
        ),
        "attributes": (structure(name, right, ciphertext, tag, ATTRIBUTES), {GcmVariant.ATTRIBUTES_NOT_AUTHENTICATED}),
    }


@pytest.mark.parametrize("case", _variants())
def test_pitfall_03_each_variant_behind_its_own_switch(case: str) -> None:
    cms, needed = _variants()[case]
    refused(cms)
    for missing in needed:
        refused(cms, policy=ReadPolicy(gcm_variants=frozenset(GcmVariant) - {missing}))
    for admitted in (frozenset(needed), frozenset(GcmVariant)):
        found = opened(cms, policy=ReadPolicy(gcm_variants=admitted))
        assert found.content == ENTITY
        assert found.authenticated
        assert {finding.detail for finding in found.findings} == {variant.value for variant in needed}
        assert {finding.code for finding in found.findings} == {"gcm-variant"}


@pytest.mark.parametrize("case", _variants())
def test_pitfall_03_variants_verify_the_tag_all_the_same(case: str) -> None:
    cms, _ = _variants()[case]
    ciphertext, tag = sealed()
    for found in (ciphertext[:8], tag[-4:]):
        refused(
            cms.replace(found, bytes([found[0] ^ 1]) + found[1:]), policy=ReadPolicy(gcm_variants=frozenset(GcmVariant))
        )


def test_pitfall_03_correct_messages_open_alike_with_every_switch_on() -> None:
    ciphertext, tag = sealed()
    cms = structure(transported(PAUL, KEY), algorithm(oids.AES256_GCM, gcm_parameters()), ciphertext, tag)
    assert opened(cms, policy=ReadPolicy(gcm_variants=frozenset(GcmVariant))).findings == ()


@pytest.mark.parametrize("case", ["ccm", "ccm-12", "chacha20"])
def test_other_authenticated_ciphers(case: str) -> None:
    attributes = b"\x31" + ATTRIBUTES[1:]
    if case == "chacha20":
        both = ChaCha20Poly1305(KEY).encrypt(NONCE, ENTITY, attributes)
        cipher, octets = algorithm(oids.CHACHA20_POLY1305, der.octet_string(NONCE)), 16
    else:
        octets = 16 if case == "ccm" else 12
        both = AESCCM(KEY, octets).encrypt(NONCE, ENTITY, attributes)
        cipher = algorithm(oids.AES256_CCM, gcm_parameters(16 if octets == 16 else None))
    cms = structure(transported(PAUL, KEY), cipher, both[:-octets], both[-octets:], ATTRIBUTES)
    found = opened(cms)
    assert (found.content, found.authenticated) == (ENTITY, True)
    refused(structure(transported(PAUL, KEY), cipher, b"x" + both[1:-octets], both[-octets:], ATTRIBUTES))
    refused(structure(transported(PAUL, KEY), cipher, both, None))


# --- CBC, 3DES, downgrades -------------------------------------------------------------------------------------------


def cbc(key: bytes = KEY, content: bytes = ENTITY, *, padded: bytes | None = None) -> tuple[bytes, bytes]:
    """AlgorithmIdentifier and ciphertext; 3DES for keys of 24 octets."""
    block = 8 if len(key) == 24 else 16
    iv = bytes(block)
    padding_octets = block - len(content) % block
    padded = padded if padded is not None else content + bytes([padding_octets]) * padding_octets
    encryptor = Cipher(TripleDES(key) if block == 8 else algorithms.AES(key), modes.CBC(iv)).encryptor()
    oid = oids.DES_EDE3_CBC if block == 8 else oids.AES256_CBC
    return algorithm(oid, der.octet_string(iv)), encryptor.update(padded) + encryptor.finalize()


def test_cbc_is_read_marked_and_can_be_refused() -> None:
    cms = structure(transported(PAUL, KEY), *cbc(), None)
    found = opened(cms)
    assert (found.content, found.algorithm, found.authenticated) == (ENTITY, "aes256-cbc", False)
    refused(cms, policy=ReadPolicy(cbc=False))


def test_triple_des_only_where_the_policy_admits_it(tmp_path: Path) -> None:
    key = os.urandom(24)
    cms = structure(transported(PAUL, key), *cbc(key), None)
    refused(cms)
    found = opened(cms, policy=ReadPolicy(triple_des=True))
    assert (found.content, found.algorithm) == (ENTITY, "des-ede3-cbc")
    assert found.findings == (Finding("weak-algorithm", "des-ede3-cbc"),)
    options = ("-des3", "-outform", "DER", "-binary", "-recip", PAUL.save(tmp_path, "paul")[0])
    made = openssl("cms", "-encrypt", *options, data=ENTITY).stdout
    assert opened(made, policy=ReadPolicy(triple_des=True)).content == ENTITY


def test_pitfall_04_gcm_passed_off_as_cbc_is_refused() -> None:
    ciphertext, tag = sealed()
    right = algorithm(oids.AES256_GCM, gcm_parameters())
    refused(structure(transported(PAUL, KEY), right, ciphertext, None))
    cipher, octets = cbc()
    refused(structure(transported(PAUL, KEY), cipher, octets, b""))
    refused(structure(transported(PAUL, KEY), cipher, octets, tag))


def test_pitfall_04_keys_bound_to_their_algorithm() -> None:
    inner = algorithm(oids.AES256_GCM, gcm_parameters())
    bound = algorithm(oids.CEK_HKDF_SHA256, inner)
    ciphertext, tag = sealed(key=bound_content_key(KEY, inner))
    found = opened(structure(transported(PAUL, KEY), bound, ciphertext, tag))
    assert (found.content, found.algorithm, found.authenticated) == (ENTITY, "aes256-gcm", True)
    refused(structure(transported(PAUL, KEY), inner, ciphertext, tag))  # the binding taken off
    # the algorithm changed underneath, as an attacker would for decryption by CBC
    cipher, octets = cbc(bound_content_key(KEY, inner))
    refused(structure(transported(PAUL, KEY), algorithm(oids.CEK_HKDF_SHA256, cipher), octets, None))
    for wrong in (algorithm(oids.CEK_HKDF_SHA256), algorithm(oids.CEK_HKDF_SHA256, bound), der.sequence(inner[2:])):
        refused(structure(transported(PAUL, KEY), wrong, ciphertext, tag))
    cipher, octets = cbc(bound_content_key(KEY, cbc()[0]))
    assert opened(structure(transported(PAUL, KEY), algorithm(oids.CEK_HKDF_SHA256, cipher), octets, None)).content


def test_bound_keys_are_those_of_the_standard() -> None:
    """RFC 9709 Appendix, first example."""
    info = bytes.fromhex("301b0609608648016503040106300e040c5c79058ba2f43447639d29e2")
    key = bytes.fromhex("c702e7d0a9e064b09ba55245fb733cf3")
    assert bound_content_key(key, info).hex() == "2124ffb29fac4e0fbbc7d5d87492bff3"


# --- Key transport and agreement -------------------------------------------------------------------------------------

HASHES = {
    oids.SHA1: hashes.SHA1(),
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}


@pytest.mark.parametrize("label", [b"", b"label"])
@pytest.mark.parametrize("mask", HASHES)
@pytest.mark.parametrize("digest", HASHES)
def test_oaep_with_any_hash_mask_and_label(digest: str, mask: str, label: bytes) -> None:
    encrypted = PAUL.certificate.public_key().encrypt(
        KEY, padding.OAEP(padding.MGF1(HASHES[mask]), HASHES[digest], label or None)
    )
    fields = [
        der.tlv(context(0), algorithm(digest, der.null())) if digest != oids.SHA1 else b"",
        der.tlv(context(1), algorithm(oids.MGF1, algorithm(mask))) if mask != oids.SHA1 else b"",
        der.tlv(context(2), algorithm(oids.P_SPECIFIED, der.octet_string(label))) if label else b"",
    ]
    parameters = (der.sequence(*fields),) if any(fields) else ()
    info = der.sequence(
        der.integer(0),
        identity(PAUL.certificate).issuer_and_serial,
        algorithm(oids.RSAES_OAEP, *parameters),
        der.octet_string(encrypted),
    )
    assert opened(structure(info, algorithm(oids.AES256_GCM, gcm_parameters()), *sealed())).content == ENTITY


def agreed(
    recipient: Person,
    scheme: str,
    digest: hashes.HashAlgorithm,
    *,
    hkdf: bool = False,
    material: bytes | None = None,
    wrap: bytes = algorithm(oids.AES256_WRAP),
    name: bytes | None = None,
    originator: bytes | None = None,
) -> bytes:
    public = recipient.certificate.public_key()
    if isinstance(public, x25519.X25519PublicKey):
        ephemeral = x25519.X25519PrivateKey.generate()
        secret, kind, point = ephemeral.exchange(public), oids.X25519, ephemeral.public_key().public_bytes_raw()
    else:
        ephemeral = ec.generate_private_key(public.curve)
        secret, kind = ephemeral.exchange(ec.ECDH(), public), oids.EC_PUBLIC_KEY
        point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    wrapping = wrapping_key(secret, digest, 32, wrap, material, hkdf=hkdf)
    own = originator or der.tlv(context(1), algorithm(kind), der.tlv(der.BIT_STRING, b"\0", point))
    return der.tlv(
        context(1),
        der.integer(3),
        der.tlv(context(0), own),
        der.tlv(context(1), der.octet_string(material)) if material is not None else b"",
        algorithm(scheme, wrap),
        der.sequence(
            der.sequence(
                name or identity(recipient.certificate).issuer_and_serial, der.octet_string(aes_key_wrap(wrapping, KEY))
            )
        ),
    )


SCHEMES = {
    oids.ECDH_SHA1_KDF: (hashes.SHA1(), False),
    oids.ECDH_SHA256_KDF: (hashes.SHA256(), False),
    oids.ECDH_SHA384_KDF: (hashes.SHA384(), False),
    oids.ECDH_SHA512_KDF: (hashes.SHA512(), False),
    oids.COFACTOR_ECDH_SHA256_KDF: (hashes.SHA256(), False),
    oids.ECDH_HKDF_SHA256: (hashes.SHA256(), True),
    oids.ECDH_HKDF_SHA384: (hashes.SHA384(), True),
    oids.ECDH_HKDF_SHA512: (hashes.SHA512(), True),
}
CIPHER = algorithm(oids.AES256_GCM, gcm_parameters())


@pytest.mark.parametrize("material", [None, b"user keying material"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "brainpool256", "brainpool384", "brainpool512", "x25519"])
def test_key_agreement(kind: str, scheme: str, material: bytes | None) -> None:
    recipient = person("paul@clinic.example", kind=kind, which=f"agreeing {kind}")
    digest, hkdf = SCHEMES[scheme]
    info = agreed(recipient, scheme, digest, hkdf=hkdf, material=material)
    assert opened(structure(info, CIPHER, *sealed()), PAUL, recipient).content == ENTITY
    refused(structure(info, CIPHER, *sealed()), person("paul@clinic.example", kind=kind, which="another"))


EC_PAUL = person("paul@clinic.example", kind="p256", which="agreeing p256")
POINT = EC_PAUL.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.mark.parametrize(
    "originator",
    [
        identity(PAUL.certificate).issuer_and_serial,
        der.tlv(context(0, constructed=False), b"key id"),
        der.tlv(context(1), algorithm(oids.EC_PUBLIC_KEY), der.tlv(der.BIT_STRING, b"\0")),
        der.tlv(context(1), algorithm(oids.EC_PUBLIC_KEY), der.tlv(der.BIT_STRING, b"\3", POINT)),
        der.tlv(context(1), algorithm(oids.EC_PUBLIC_KEY), der.tlv(der.BIT_STRING, b"\0", POINT[:-1] + b"\0")),
        der.tlv(context(1), algorithm(oids.EC_PUBLIC_KEY), der.tlv(der.BIT_STRING, b"\0\0")),
        der.tlv(context(1), algorithm(oids.X25519), der.tlv(der.BIT_STRING, b"\0", bytes(32))),
        der.tlv(context(1), algorithm(oids.RSA_ENCRYPTION), der.tlv(der.BIT_STRING, b"\0", POINT)),
    ],
    ids=["number", "key-id", "no-bits", "unused-bits", "off-the-curve", "infinity", "zero", "rsa"],
)
def test_other_originators_are_refused_calmly(originator: bytes) -> None:
    info = agreed(EC_PAUL, oids.ECDH_SHA256_KDF, hashes.SHA256(), originator=originator)
    refused(structure(info, CIPHER, *sealed()), EC_PAUL)


def test_compressed_points_and_null_wrap_parameters() -> None:
    wrap = algorithm(oids.AES256_WRAP, der.null())
    info = agreed(EC_PAUL, oids.ECDH_SHA256_KDF, hashes.SHA256(), wrap=wrap)
    assert opened(structure(info, CIPHER, *sealed()), EC_PAUL).content == ENTITY


def test_pitfall_38_shapes_that_broke_openssl() -> None:
    """An IV larger than any buffer (CVE-2025-15467), key agreement without its parameters (CVE-2026-28389)."""
    ciphertext, tag = sealed()
    for octets in (17, 64, 1024, 100_000):
        parameters = der.sequence(der.octet_string(bytes(octets)), der.integer(16))
        cms = structure(transported(PAUL, KEY), algorithm(oids.AES256_GCM, parameters), ciphertext, tag)
        for policy in (ReadPolicy(), ReadPolicy(gcm_variants=frozenset(GcmVariant))):
            refused(cms, policy=policy)
        refused(
            structure(
                transported(PAUL, KEY), algorithm(oids.AES256_CBC, der.octet_string(bytes(octets))), ciphertext, None
            )
        )
    wrap = algorithm(oids.AES256_WRAP)
    for bare in (b"", der.null(), der.sequence(), der.sequence(der.oid(oids.SHA256)), der.octet_string(b"x")):
        info = agreed(EC_PAUL, oids.ECDH_SHA256_KDF, hashes.SHA256())
        changed = info.replace(algorithm(oids.ECDH_SHA256_KDF, wrap), algorithm(oids.ECDH_SHA256_KDF, bare))
        fields = [bytes(field.encoded) for field in der.read(info).children()]
        fields[2] = algorithm(oids.ECDH_SHA256_KDF, bare)
        assert changed != info
        refused(structure(der.tlv(context(1), *fields), CIPHER, *sealed()), EC_PAUL)
    for cipher in (oids.AES256_GCM, oids.AES256_CBC, oids.DES_EDE3_CBC, oids.AES128_CCM, oids.CHACHA20_POLY1305):
        for parameters in (
            b"",
            der.null(),
            der.sequence(),
            der.sequence(der.null()),
            der.integer(1),
            der.octet_string(b""),
        ):
            for mac in (None, tag):
                policy = ReadPolicy(triple_des=True, gcm_variants=frozenset(GcmVariant))
                refused(
                    structure(transported(PAUL, KEY), algorithm(cipher, parameters), ciphertext, mac), policy=policy
                )


def test_pitfall_38_nothing_is_given_to_another_program() -> None:
    root = Path(__file__).parents[2]
    # These two speak to the C library about memory and to a PKCS #11 module about threads: no message reaches either
    foreign = {"trust/memory.py", "trust/pkcs11_library.py"}
    for module in (*root.glob("smime/*.py"), *root.glob("trust/**/*.py")):
        source = module.read_text()
        assert not any(word in source for word in ("import subprocess", "os.system", "os.popen", "os.exec"))
        assert "ctypes" not in source or module.relative_to(root).as_posix() in foreign


# --- Naming ----------------------------------------------------------------------------------------------------------


def test_pitfall_06_recipients_are_found_by_name_in_any_form() -> None:
    own = identity(PAUL.certificate)
    serial = der.integer(own.serial)
    padded = der.sequence(own.issuer, der.tlv(der.INTEGER, b"\0" * 3, serial[2:]))
    for name in (own.issuer_and_serial, padded, der.tlv(context(0, constructed=False), own.key_id)):
        assert opened(structure(transported(PAUL, KEY, name), CIPHER, *sealed()), LEA, PAUL).content == ENTITY
    chunked = der.tlv(context(0), der.octet_string(own.key_id[:5]), der.octet_string(own.key_id[5:]))
    assert opened(structure(transported(PAUL, KEY, chunked), CIPHER, *sealed())).content == ENTITY
    date = der.tlv(der.GENERALIZED_TIME, b"20260101000000Z")
    ec_id = der.octet_string(identity(EC_PAUL.certificate).key_id)
    for extra in (b"", date, date + der.sequence(der.oid(oids.DATA), der.null())):
        info = agreed(EC_PAUL, oids.ECDH_SHA256_KDF, hashes.SHA256(), name=der.tlv(context(0), ec_id, extra))
        assert opened(structure(info, CIPHER, *sealed()), PAUL, EC_PAUL).content == ENTITY


def test_pitfall_06_an_issuer_encoded_again_is_the_same_issuer() -> None:
    own = identity(PAUL.certificate)
    text = b"Demonstration CA"
    for tag, value in ((0x13, text), (0x0C, text), (0x1E, text.decode().encode("utf-16-be"))):
        again = der.sequence(der.set_of([der.sequence(der.oid("2.5.4.3"), der.tlv(tag, value))]))
        assert same_name(again, own.issuer)
        name = der.sequence(again, der.integer(own.serial))
        assert opened(structure(transported(PAUL, KEY, name), CIPHER, *sealed())).content == ENTITY
    for other in (b"", b"\x30\x00", b"\x30\x03\x02\x01\x01", own.issuer[:-1], own.issuer.replace(b"CA", b"Ca")):
        assert not same_name(other, own.issuer)
    name = der.sequence(own.issuer.replace(b"CA", b"CB"), der.integer(own.serial))
    refused(structure(transported(PAUL, KEY, name), CIPHER, *sealed()))


def test_pitfall_07_expired_certificates_of_ours_still_open() -> None:
    """Old mail is written to old keys; which generation is meant the message says."""
    key = PAUL.key.public_key()
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(PAUL.certificate.issuer)
    builder = (
        builder.not_valid_before(datetime(2001, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2004, 1, 1, tzinfo=UTC))
        .serial_number(7)
    )
    expired = Person(builder.public_key(key).sign(PAUL.key, hashes.SHA256()), PAUL.key)
    assert opened(structure(transported(expired, KEY), CIPHER, *sealed()), LEA, expired).content == ENTITY
    refused(structure(transported(expired, KEY), CIPHER, *sealed()), LEA, PAUL)


def test_pitfall_06_never_by_trial() -> None:
    """A key that would open the message is not tried when the message names another certificate."""
    stranger = identity(LEA.certificate).issuer_and_serial
    refused(structure(transported(PAUL, KEY, stranger), CIPHER, *sealed()), PAUL)
    negative = der.sequence(identity(PAUL.certificate).issuer, der.integer(-identity(PAUL.certificate).serial))
    refused(structure(transported(PAUL, KEY, negative), CIPHER, *sealed()), PAUL)
    empty = der.tlv(context(0, constructed=False))
    with pytest.raises(DerError):
        read_cms(structure(transported(PAUL, KEY, empty), CIPHER, *sealed()))


def test_pitfall_06_recipients_of_other_kinds_are_skipped_and_all_are_counted() -> None:
    others = [der.tlv(context(number), der.integer(4), der.sequence(), der.octet_string(b"x")) for number in (2, 3, 4)]
    assert opened(structure([*others, transported(PAUL, KEY)], CIPHER, *sealed())).content == ENTITY
    many = [transported(LEA, KEY)] * (MAX_RECIPIENTS - 1)
    assert opened(structure([*many, transported(PAUL, KEY)], CIPHER, *sealed())).content == ENTITY
    with pytest.raises(DerError):
        read_cms(structure([*many, *many], CIPHER, *sealed()))
    with pytest.raises(DerError):
        read_cms(structure([], CIPHER, *sealed()))


# --- Failures that tell nothing --------------------------------------------------------------------------------------


class Counting:
    """A decryptor that counts what is asked of it."""

    def __init__(self, owner: Person) -> None:
        self.owner = owner
        self.certificate = owner.certificate
        self.asked = 0

    def decrypt_oaep(self, *given: object) -> bytes:
        self.asked += 1
        return self.owner.decrypt_oaep(*given)

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        self.asked += 1
        return self.owner.decrypt_pkcs1v15(encrypted)

    def agree(self, peer: bytes) -> bytes:
        self.asked += 1
        return self.owner.agree(peer)


def _failures() -> dict[str, bytes]:
    ciphertext, tag = sealed()
    own = identity(PAUL.certificate).issuer_and_serial

    def transport(scheme: bytes, encrypted: bytes) -> bytes:
        return der.sequence(der.integer(0), own, scheme, der.octet_string(encrypted))

    pkcs, oaep = algorithm(oids.RSA_ENCRYPTION, der.null()), algorithm(oids.RSAES_OAEP)
    noise = b"\0" + os.urandom(255)
    return {
        "unknown recipient": structure(transported(LEA, KEY), CIPHER, ciphertext, tag),
        "agreement with a stranger": structure(
            agreed(EC_PAUL, oids.ECDH_SHA256_KDF, hashes.SHA256()), CIPHER, ciphertext, tag
        ),
        "wrong key": structure(transported(PAUL, bytes(32)), CIPHER, ciphertext, tag),
        "short key": structure(transported(PAUL, bytes(16)), CIPHER, ciphertext, tag),
        "wrong tag": structure(transported(PAUL, KEY), CIPHER, ciphertext, bytes(16)),
        "wrong content": structure(transported(PAUL, KEY), CIPHER, b"x" + ciphertext[1:], tag),
        "wrong PKCS #1 padding": structure(transport(pkcs, noise), CIPHER, ciphertext, tag),
        "wrong OAEP": structure(transport(oaep, noise), CIPHER, ciphertext, tag),
        "PKCS #1 passed off as OAEP": structure(
            transport(oaep, PAUL.certificate.public_key().encrypt(KEY, padding.PKCS1v15())), CIPHER, ciphertext, tag
        ),
        "unknown transport": structure(transport(algorithm(oids.SHA256), noise), CIPHER, ciphertext, tag),
        "unknown OAEP hash": structure(
            transport(algorithm(oids.RSAES_OAEP, der.sequence(der.tlv(context(0), algorithm(oids.DATA)))), noise),
            CIPHER,
            ciphertext,
            tag,
        ),
        "wrong CBC padding": structure(transported(PAUL, KEY), *cbc(padded=bytes(64)), None),
        "CBC padding too long": structure(transported(PAUL, KEY), *cbc(padded=b"\x11" * 32), None),
        "wrong CBC key": structure(transported(PAUL, bytes(32)), *cbc(), None),
    }


@pytest.mark.parametrize("case", _failures())
def test_pitfall_05_failures_are_alike(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation with one private key and one pass of the cipher over the content, and nothing said."""
    from smime import content_ciphers

    passes = []

    class Watched(Cipher):  # type: ignore[type-arg]
        def decryptor(self):
            passes.append(self.mode)
            return super().decryptor()

    class WatchedAtOnce:
        def __init__(self, key: bytes) -> None:
            self.cipher = AESGCM(key)

        def decrypt_into(self, *arguments):
            passes.append(arguments)
            return self.cipher.decrypt_into(*arguments)

    monkeypatch.setattr(content_ciphers, "Cipher", Watched)
    monkeypatch.setattr(content_ciphers, "AESGCM", WatchedAtOnce)
    paul, other = Counting(PAUL), Counting(EC_PAUL)
    decryptors = (paul,) if case == "agreement with a stranger" else (paul, other)
    refused(_failures()[case], *decryptors)
    assert (paul.asked, other.asked, len(passes)) == (1, 0, 1)


def test_pitfall_05_a_message_that_opens_takes_as_many_steps() -> None:
    paul = Counting(PAUL)
    assert opened(structure(transported(PAUL, KEY), CIPHER, *sealed()), paul).content == ENTITY
    assert paul.asked == 1


@pytest.mark.parametrize("kind", ["p256", "x25519"])
def test_pitfall_05_strangers_mail_to_keys_on_curves(kind: str) -> None:
    lone = Counting(person("paul@clinic.example", kind=kind, which=f"agreeing {kind}"))
    refused(structure(transported(LEA, KEY), CIPHER, *sealed()), lone)
    assert lone.asked == 1


def test_no_keys_at_all() -> None:
    read = read_cms(structure(transported(PAUL, KEY), CIPHER, *sealed()))
    with pytest.raises(CannotOpenError):
        decrypt_content(read, ())


@pytest.mark.parametrize("kind", ["gcm", "gcm with attributes", "cbc"])
def test_every_flipped_octet(kind: str) -> None:
    """Authenticated content opens as it was or not at all; nothing raises anything else."""
    if kind == "cbc":
        cms = structure(transported(PAUL, KEY), *cbc(), None)
    else:
        attributes = ATTRIBUTES if kind == "gcm with attributes" else b""
        cms = structure(
            transported(PAUL, KEY), CIPHER, *sealed(b"\x31" + attributes[1:] if attributes else b""), attributes
        )
    policies = (ReadPolicy(), ReadPolicy(gcm_variants=frozenset(GcmVariant), triple_des=True))
    for position in range(0, len(cms), 1 if kind != "cbc" else 3):
        altered = cms[:position] + bytes([cms[position] ^ (1 + position % 255)]) + cms[position + 1 :]
        for policy in policies[: 1 + position % 2]:
            try:
                read = read_cms(altered)
                content = decrypt_content(read, [PAUL], policy).content if isinstance(read, Enveloped) else ENTITY
            except (DerError, CannotOpenError):
                continue
            assert content == ENTITY or kind == "cbc"
