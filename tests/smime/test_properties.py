"""What holds for any mail: protecting and opening gives back the same octets, and no flipped bit goes unseen."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smime import DecryptionResult, SignatureResult, encrypt, open_message, sign
from smime.canonical import crlf
from smime.encrypting import encrypt_content
from smime.suites import ContentCipher, KeyTransportScheme, RecipientNaming, RsaSignatureScheme, Suite
from tests.smime.craft import pkcs7_mime
from tests.smime.people import ENTITY, NOW, message, person, validator

ANNE = person("anne@lab.example", kind="p256", which="property anne")
ANNE_RSA = person("anne@lab.example")
PAUL = person("paul@clinic.example")
PAUL_EC = person("paul@clinic.example", kind="p256", which="property paul")
SUITES = (
    Suite(),
    Suite(ContentCipher.AES128_GCM, cek_hkdf=True),
    Suite(ContentCipher.AES256_CBC, KeyTransportScheme.RSA_PKCS1V15),
    Suite(naming=RecipientNaming.SUBJECT_KEY_ID, rsa_signature=RsaSignatureScheme.PSS),
)

# --- Arbitrary MIME --------------------------------------------------------------------------------------------------

PRINTABLE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)
LINES = st.lists(PRINTABLE, max_size=8).map(lambda lines: "".join(f"{line}\r\n" for line in lines).encode("ascii"))


def _leaf(body: bytes) -> bytes:
    return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + body


def _multipart(parts: list[bytes]) -> bytes:
    boundary = b"=_relais_%d" % len(b"".join(parts))
    while boundary in b"".join(parts):
        boundary += b"x"
    inside = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return (
        b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n\r\n' + inside + b"--" + boundary + b"--\r\n"
    )


CANONICAL = st.recursive(
    LINES.map(_leaf), lambda inner: st.lists(inner, min_size=1, max_size=3).map(_multipart), max_leaves=5
)
"""Entities of 7-bit lines that end in CRLF: nothing about them needs to change before they are signed."""

EIGHT_BIT = st.text(max_size=200).map(
    lambda text: (
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        + text.replace("\0", "").encode("utf-8", "replace")
    )
)
BINARY = st.binary(max_size=300).map(
    lambda octets: b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n" + octets
)


def opened(entity: bytes, recipient=PAUL):
    return open_message(message(entity), [recipient], validator(), NOW)


@settings(max_examples=60, deadline=None)
@given(CANONICAL, st.sampled_from(SUITES), st.sampled_from([ANNE, ANNE_RSA]), st.sampled_from([PAUL, PAUL_EC]))
def test_protected_and_opened_is_the_same_octet_for_octet(entity, suite, sender, recipient) -> None:
    protected = encrypt(sign(entity, sender, NOW, suite), [PAUL.certificate, PAUL_EC.certificate], suite)
    result = opened(protected, recipient)
    assert result.verdict.decryption is DecryptionResult.DECRYPTED
    assert result.verdict.signature is SignatureResult.VALID, result.verdict
    assert bytes(result.content) == _as_signed(entity, sign(entity, sender, NOW, suite))


def _as_signed(entity: bytes, signed: bytes) -> bytes:
    """`entity` itself, unless signing had to armour a line against the road (trailing blanks, `From `, a lone dot)."""
    if entity in signed:
        return entity
    once = bytes(open_message(message(signed), (), validator(), NOW).content)
    assert _leaves(once) == _leaves(entity)
    again = sign(once, ANNE, NOW)
    assert once in again, "what signing makes of an entity is fit to be signed as it is"
    return once


def _leaves(entity: bytes) -> list[bytes]:
    parsed = email.message_from_bytes(entity, policy=email.policy.compat32)
    return [part.get_payload(decode=True) or b"" for part in parsed.walk() if not part.is_multipart()]


@settings(max_examples=60, deadline=None)
@given(CANONICAL, st.sampled_from([ANNE, ANNE_RSA]))
def test_opaque_is_the_same_octet_for_octet(entity, sender) -> None:
    suite = Suite(opaque=True)
    result = opened(encrypt(sign(entity, sender, NOW, suite), [PAUL.certificate]))
    assert result.verdict.signature is SignatureResult.VALID
    assert bytes(result.content) == entity


@settings(max_examples=80, deadline=None)
@given(st.one_of(BINARY, EIGHT_BIT, CANONICAL), st.sampled_from(SUITES))
def test_encrypting_alone_changes_nothing_whatever_it_is(entity, suite) -> None:
    result = opened(encrypt(entity, [PAUL.certificate], suite))
    assert result.verdict.decryption is DecryptionResult.DECRYPTED
    assert bytes(result.content) == entity


@settings(max_examples=80, deadline=None)
@given(st.one_of(EIGHT_BIT, BINARY))
@example(b"Content-Type: text/plain\r\n\r\nbare\nlines\rhere")
@example(b"Content-Type: text/plain\r\n\r\nFrom me\r\n.\r\ntrailing \r\n")
def test_signing_what_must_be_re_encoded_keeps_what_it_says(entity) -> None:
    result = opened(encrypt(sign(entity, ANNE, NOW), [PAUL.certificate]))
    assert result.verdict.signature is SignatureResult.VALID
    said, meant = _leaves(bytes(result.content)), _leaves(entity)
    if entity.startswith(b"Content-Type: text"):
        said, meant = [crlf(part) for part in said], [crlf(part) for part in meant]
    assert said == meant


# --- Altered on the road ---------------------------------------------------------------------------------------------

GCM = bytes(encrypt_content(ENTITY, [PAUL.certificate], Suite()))
CLEAR = message(sign(ENTITY, ANNE, NOW))
OPAQUE = message(sign(ENTITY, ANNE, NOW, Suite(opaque=True)))
START = CLEAR.index(ENTITY)


@settings(max_examples=250, deadline=None)
@given(st.integers(0, len(GCM) - 1), st.integers(1, 255))
def test_any_octet_changed_in_a_gcm_message_is_refused(position: int, change: int) -> None:
    altered = bytearray(GCM)
    altered[position] ^= change
    result = opened(pkcs7_mime(bytes(altered), "authEnveloped-data"))
    if result.verdict.decryption is DecryptionResult.DECRYPTED:
        # the envelope's version and parameters that say the same otherwise are not authenticated, the content is
        assert bytes(result.content) == ENTITY
    else:
        assert bytes(result.content) != ENTITY


@pytest.mark.parametrize("position", range(len(ENTITY)))
def test_any_octet_changed_in_signed_content_is_refused(position: int) -> None:
    altered = bytearray(CLEAR)
    altered[START + position] ^= 1
    assert open_message(bytes(altered), (), validator(), NOW).verdict.signature is SignatureResult.INVALID


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([CLEAR, OPAQUE]), st.integers(0, len(CLEAR)), st.integers(1, 255))
def test_no_change_anywhere_in_a_signed_message_makes_another_content_valid(
    wire: bytes, position: int, change: int
) -> None:
    altered = bytearray(wire)
    altered[position % len(wire)] ^= change
    result = open_message(bytes(altered), (), validator(), NOW)
    if result.verdict.signature is SignatureResult.VALID:
        assert bytes(result.content) == ENTITY
