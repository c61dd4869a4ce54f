"""Any octet of a message changed: an authenticated or signed message is refused, wherever it happens.

Every bit of every octet is flipped, and every octet is changed by some masks of several bits more. What cipher and
signature do not cover must be what the standards prescribe, else it could be altered unseen.

Trying all 255 masks on all octets leaves two changes of several bits that go unnoticed, because they mean nothing:

- in an issuer's name, UTF8String (0x0c) for PrintableString (0x13): senders encode names again in the other kind;
- in the name of a key agreement scheme, cofactor ECDH (0x0e) for ECDH (0x0b): the cofactor of all curves read is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from smime import (
    DecryptionResult,
    RecipientNaming,
    RsaSignatureScheme,
    SignatureResult,
    Suite,
    encrypt,
    oids,
    open_message,
    sign,
)
from smime.cms_read import Enveloped, Signed, read_cms
from smime.decrypting import CannotOpenError, decrypt_content
from smime.encrypting import encrypt_content
from smime.mime import MimeError, parse_content_type, parse_entity, split_multipart
from smime.signing import sign_content
from smime.verdict import worst
from smime.verifying import Expectation, verify_signed
from tests.smime.people import ENTITY, NOW, Person, message, person, validator
from trust import der
from trust.der import DerError

MASKS = (*(1 << bit for bit in range(8)), 0x03, 0xFF)
SENDER = "anne@lab.example"
BY_KEY_ID = Suite(naming=RecipientNaming.SUBJECT_KEY_ID)
PAUL = {kind: person("paul@clinic.example", kind=kind, which=f"{kind} paul") for kind in ("rsa2048", "p256", "x25519")}
ANNE = {kind: person(SENDER, kind=kind, which=f"{kind} anne") for kind in ("rsa2048", "p256", "ed25519")}


def changed(original: bytes, positions: range | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Position, mask and the octets with that one changed."""
    octets = bytearray(original)
    for position in positions or range(len(octets)):
        for mask in MASKS:
            octets[position] ^= mask
            yield position, mask, bytes(octets)
            octets[position] ^= mask


def unnoticed(original: bytes, accepted: Callable[[bytes], bool]) -> list[tuple[int, int]]:
    assert accepted(original)
    return [(position, mask) for position, mask, octets in changed(original) if accepted(octets)]


def decrypted_by(reader: Person) -> Callable[[bytes], bool]:
    def decrypted(cms: bytes) -> bool:
        try:
            enveloped = read_cms(cms)
            return isinstance(enveloped, Enveloped) and decrypt_content(enveloped, [reader]).content is not None
        except (DerError, CannotOpenError):
            return False

    return decrypted


def valid_over(content: bytes | None) -> Callable[[bytes], bool]:
    """`content` is None for a signature that brings its own."""
    expected = Expectation(validator(), NOW, (SENDER,), lambda certificate: ())

    def valid(cms: bytes) -> bool:
        try:
            signed = read_cms(cms)
        except DerError:
            return False
        if not isinstance(signed, Signed) or (signed.content is None) is (content is None):
            return False
        pieces = [content] if content is not None else signed.content
        return worst(verify_signed(signed, pieces, expected)) is SignatureResult.VALID

    return valid


@pytest.mark.parametrize(
    ("kind", "suite"),
    [
        ("p256", Suite()),
        ("p256", Suite(cek_hkdf=True)),
        ("x25519", Suite()),
        ("rsa2048", Suite()),
        pytest.param("rsa2048", BY_KEY_ID, marks=pytest.mark.proof),
    ],
    ids=["p256", "p256-bound-key", "x25519", "rsa", "rsa-key-id"],
)
def test_pitfall_03_no_octet_of_an_authenticated_message_can_be_changed(kind: str, suite: Suite) -> None:
    cms = bytes(encrypt_content(ENTITY, [PAUL[kind].certificate], suite))
    assert unnoticed(cms, decrypted_by(PAUL[kind])) == []


@pytest.mark.parametrize(
    ("kind", "attached"),
    [
        ("p256", False),
        pytest.param("p256", True, marks=pytest.mark.proof),
        ("rsa2048", False),
        pytest.param("ed25519", True, marks=pytest.mark.proof),
    ],
)
def test_pitfall_11_no_octet_of_a_signature_can_be_changed(kind: str, attached: bool) -> None:
    cms = sign_content(ENTITY, ANNE[kind], NOW, attached=attached)
    assert unnoticed(cms, valid_over(None if attached else ENTITY)) == []


@pytest.mark.proof
def test_pitfall_14_no_octet_of_a_pss_signature_can_be_changed() -> None:
    suite = Suite(rsa_signature=RsaSignatureScheme.PSS)
    assert unnoticed(sign_content(ENTITY, ANNE["rsa2048"], NOW, suite), valid_over(ENTITY)) == []


def test_pitfall_18_no_octet_of_a_signed_part_can_be_changed() -> None:
    wire = message(sign(ENTITY, ANNE["p256"], NOW), SENDER)
    start, end = (
        wire.index(ENTITY) - 2,
        wire.index(ENTITY) + len(ENTITY) + 2,
    )  # and the line ends that belong to delimiters
    for position, mask, octets in changed(wire, range(start, end)):
        found = open_message(octets, (), validator(), NOW).verdict.signature
        assert found is not SignatureResult.VALID, (position, mask)


def _signature_of(wire: bytes) -> tuple[int, int]:
    """Where the base64 text of a multipart/signed begins and ends."""
    outer = parse_entity(wire)
    boundary = parse_content_type(outer.values("content-type")[0]).parameters["boundary"]
    inner = parse_entity(wire, *split_multipart(outer, boundary)[1])
    return inner.body_start, inner.stop


_KDF_SCHEME, _COFACTOR_SCHEME = der.oid(oids.ECDH_SHA256_KDF), der.oid(oids.COFACTOR_ECDH_SHA256_KDF)
"""On curves whose cofactor is 1 they are one and the same (RFC 5753 §7.1.4); their names differ in two bits."""


def _decoded(wire: bytes, start: int, stop: int) -> bytes:
    try:
        entity = parse_entity(b"Content-Transfer-Encoding: base64\r\n\r\n" + wire[start:stop])
        return bytes(entity.decoded()).replace(_COFACTOR_SCHEME, _KDF_SCHEME)
    except MimeError:
        return b""


@pytest.mark.proof
def test_pitfall_19_base64_changed_says_the_same_or_is_refused() -> None:
    """Octets outside the alphabet count for nothing (RFC 2045 §6.8), so a line end may become another such octet: then
    the CMS in it is the same, and only then."""
    signed = message(sign(ENTITY, ANNE["p256"], NOW), SENDER)
    sealed = message(encrypt(ENTITY, [PAUL["p256"].certificate]), SENDER)
    for wire, (start, stop) in (
        (signed, _signature_of(signed)),
        (sealed, (parse_entity(sealed).body_start, len(sealed))),
    ):
        same = _decoded(wire, start, stop)
        unseen = 0
        for position, mask, octets in changed(wire, range(start, stop)):
            verdict = open_message(octets, [PAUL["p256"]], validator(), NOW).verdict
            if SignatureResult.VALID is verdict.signature or DecryptionResult.DECRYPTED is verdict.decryption:
                assert _decoded(octets, start, stop) == same, (position, mask)
                unseen += 1
        assert unseen < len(MASKS) * 2 * wire.count(b"\r\n", start, stop) + 2 * len(MASKS)
