"""Whole messages, layer by layer: wrapped, nested, decorated by lists, named oddly, and made to look like another's."""

from __future__ import annotations

import base64
import time
import tracemalloc
import zlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import DecryptionResult, Finding, SignatureResult, encrypt, oids, open_message, sign
from smime.addresses import parse_mailboxes
from smime.mime import Budget, MimeError, parse_content_type, parse_entity, split_multipart
from smime.policy import ReadPolicy
from smime.preview import MAX_CHARACTERS, plain_preview
from smime.verdict import LayerKind
from tests.smime.craft import content_info, enveloped, multipart_signed, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, message, person, validator
from trust import der
from trust.certificates import mail_addresses

ANNE = person("anne@lab.example")
BOB = person("bob@lab.example")
PAUL = person("paul@clinic.example")
VALID, INVALID = SignatureResult.VALID, SignatureResult.INVALID
MISMATCH, NOT_SIGNED = SignatureResult.MISMATCH, SignatureResult.NOT_SIGNED
SIGNED = sign(ENTITY, ANNE, NOW)


def opened(wire: bytes, **options):
    return open_message(wire, [PAUL], validator(), NOW, **options)


def verdict(wire: bytes, **options):
    return opened(wire, **options).verdict


def codes(wire: bytes, **options) -> list[str]:
    return [finding.code for finding in verdict(wire, **options).findings]


def mixed(*parts: bytes, boundary: bytes = b"m0", subtype: bytes = b"mixed") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    head = b"Content-Type: multipart/" + subtype + b"; boundary=" + boundary + b"\r\n\r\n"
    return head + body + b"--" + boundary + b"--\r\n"


def compressed(content: bytes) -> bytes:
    """CompressedData (RFC 3274)."""
    inside = der.sequence(der.oid(oids.DATA), der.tlv(0xA0, der.octet_string(zlib.compress(content))))
    algorithm = der.sequence(der.oid("1.2.840.113549.1.9.16.3.8"))
    data = der.sequence(der.integer(0), algorithm, inside)
    return pkcs7_mime(content_info(oids.COMPRESSED_DATA, data), "compressed-data")


def opaque(content: bytes, signer=ANNE) -> bytes:
    return pkcs7_mime(signed_data(content, signer, attached=content), "signed-data")


# --- Layers ----------------------------------------------------------------------------------------------------------


def test_every_layer_has_its_verdict_from_outside_in() -> None:
    wire = message(sign(encrypt(compressed(sign(ENTITY, ANNE, NOW)), [PAUL.certificate]), ANNE, NOW))
    found = opened(wire)
    assert [layer.kind for layer in found.verdict.layers] == [
        LayerKind.CLEAR_SIGNED,
        LayerKind.AUTH_ENCRYPTED,
        LayerKind.COMPRESSED,
        LayerKind.CLEAR_SIGNED,
    ]
    assert [layer.signature for layer in found.verdict.layers] == [VALID, NOT_SIGNED, NOT_SIGNED, VALID]
    assert found.verdict.layers[1].content_algorithm == "aes256-gcm"
    assert found.verdict.layers[1].authenticated
    assert found.verdict.layers[0].signers[0].certificate == ANNE.certificate
    assert found.verdict.layers[1].findings == (Finding("signed-outside-encryption"),)
    assert bytes(found.content) == ENTITY


def test_pitfall_16_triple_wrap_outer_signer_is_a_relay() -> None:
    relay = person("gateway@op.example")
    wire = message(sign(encrypt(SIGNED, [PAUL.certificate]), relay, NOW))
    found = verdict(wire)
    assert (found.signature, found.signers[0].certificate) == (VALID, ANNE.certificate)
    assert [layer.signature for layer in found.layers] == [MISMATCH, NOT_SIGNED, VALID]
    assert Finding("outer-signature", "mismatch") in found.findings


def test_opaque_and_certs_only() -> None:
    wire = message(opaque(ENTITY))
    found = opened(wire)
    assert found.verdict.layers[0].kind is LayerKind.OPAQUE_SIGNED
    assert found.verdict.signature is VALID
    assert found.entity == wire
    certs = der.sequence(der.integer(1), der.set_of(()), der.sequence(der.oid(oids.DATA)), der.tlv(0x31))
    found = opened(message(pkcs7_mime(content_info(oids.SIGNED_DATA, certs), "certs-only")))
    assert found.verdict.layers[0].kind is LayerKind.CERTIFICATES
    assert found.verdict.signature is NOT_SIGNED


def test_compressed_mail_is_handed_on_unpacked_unless_its_signature_would_be_lost() -> None:
    assert opened(message(compressed(SIGNED))).entity == message(SIGNED)
    wire = message(sign(compressed(ENTITY), ANNE, NOW))
    found = opened(wire)
    assert found.entity == wire
    assert bytes(found.content) == ENTITY
    found = opened(message(encrypt(compressed(SIGNED), [PAUL.certificate])))
    assert (found.entity, found.verdict.signature) == (message(SIGNED), VALID)


def test_pitfall_28_compression_bombs_and_nests_are_refused() -> None:
    wire = message(compressed(b"\r\n" + b"0" * 1_000_000))
    assert opened(wire).entity == wire
    assert "compression-limit" in codes(wire)
    assert "compressed-twice" in codes(message(compressed(compressed(ENTITY))))
    assert "compression-limit" in codes(message(compressed(ENTITY)), policy=ReadPolicy(max_decompressed_octets=10))


def test_at_is_now_when_absent() -> None:
    assert open_message(message(SIGNED), [], validator()).verdict.signature is VALID


# --- Recognition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Type: application/octet-stream; name=smime.p7m",
        b'Content-Type: application/octet-stream\r\nContent-Disposition: attachment;\r\n\tfilename="SMIME.P7M"',
        b"CONTENT-TYPE:application/X-PKCS7-MIME",
        b"Content-Type: application/pkcs7-mime;\r\n name=smime.p7m;\r\n\tsmime-type=enveloped-data;",
        b"Content-Type : application/pkcs7-mime (folded\r\n  comment) ; smime-type=signed-data",
        b"Content-Type: application/pkcs7-mime; smime-type*=us-ascii''enveloped-data; name*0=smime; name*1=.p7m",
        b"Content-Type:\r\n application/pkcs7-mime",
        b"Content-Type: application/pkcs7-mime; charset=;; =x; smime-type",
    ],
)
def test_pitfall_19_encrypted_entities_under_odd_headers(header: bytes) -> None:
    cms = pkcs7_mime(enveloped(ENTITY, PAUL))
    wire = message(header + cms[cms.index(b"\r\nContent-Transfer") :])
    assert opened(wire).entity == message(ENTITY)


@pytest.mark.parametrize("kind", ["application/x-pkcs7-signature", "application/octet-stream; name=smime.p7s"])
def test_pitfall_19_signature_parts_under_odd_names(kind: str) -> None:
    wire = message(SIGNED).replace(b'application/pkcs7-signature; name="smime.p7s"', kind.encode())
    assert verdict(wire).signature is VALID
    assert verdict(wire.replace(b"micalg=sha-256", b"micalg=nonsense")).signature is VALID


def test_pitfall_19_base64_on_one_line_with_junk_and_without_line_ends() -> None:
    entity = ENTITY + b"x" * 1_000_000 + b"\r\n"
    head, _, body = pkcs7_mime(enveloped(entity, PAUL)).partition(b"\r\n\r\n")
    line = body.replace(b"\r\n", b"")
    for form in (line, line + b"\r\n", b"\xa0!" + line + b"\0", body.replace(b"\r\n", b"\n"), body.rstrip()):
        assert opened(message(head + b"\r\n\r\n" + form)).entity == message(entity)


def test_pitfall_19_lone_line_feeds_throughout() -> None:
    """A file that lost its CRs; and one whose body did. What was signed is the canonical form (RFC 8551 §3.1.1)."""
    for wire in (message(SIGNED), message(sign(mixed(ENTITY, ENTITY), ANNE, NOW))):
        head, _, body = wire.partition(b"\r\n\r\n")
        for altered in (
            wire.replace(b"\r\n", b"\n"),
            head + b"\r\n\r\n" + body.replace(b"\r\n", b"\n"),
            wire.replace(b"\r\n", b"\n").rstrip(b"\n"),
        ):
            found = opened(altered)
            assert found.verdict.signature is VALID
            assert found.entity == altered
    unix = ENTITY.replace(b"\r\n", b"\n")
    raw = multipart_signed(ENTITY, signed_data(unix, ANNE)).replace(b"\r\n", b"\n")
    assert verdict(message(encrypt(raw, [PAUL.certificate]))).signature is VALID  # signed as it was
    assert verdict(message(SIGNED).replace(b"\r\n", b"\n").replace(b"report", b"repert")).signature is INVALID
    boundary = b"--" + parse_entity(SIGNED).content_type().parameters["boundary"].encode()
    head, content, tail = message(SIGNED).split(boundary, 2)
    mixed_up = boundary.join(
        (head.replace(b"\r\n", b"\n"), b"\n" + content[2:-2] + b"\n", tail.replace(b"\r\n", b"\n"))
    )
    assert verdict(mixed_up).signature is VALID  # as `openssl` writes it to a file
    assert verdict(mixed_up.replace(b"From", b"X-A: b\r\nFrom", 1)).signature is INVALID
    half = message(SIGNED).replace(b"\r\n", b"\n", 12)
    assert verdict(half).signature in (VALID, INVALID, NOT_SIGNED)


def test_signed_content_without_final_line_end_or_header() -> None:
    for entity in (b"\r\n", b"\r\nx", b"Content-Type: text/plain\r\n\r\n"):
        wire = message(multipart_signed(entity, signed_data(entity, ANNE)))
        assert verdict(wire).signature is VALID


# --- Siblings --------------------------------------------------------------------------------------------------------


def test_pitfall_01_sole_child_of_a_multipart_is_the_message() -> None:
    part = encrypt(SIGNED, [PAUL.certificate])
    for wire in (message(mixed(part)), message(mixed(mixed(part), boundary=b"m1"))):
        found = opened(wire)
        assert found.entity == message(SIGNED)
        assert (found.verdict.decryption, found.verdict.signature) == (DecryptionResult.DECRYPTED, VALID)
    assert verdict(message(mixed(SIGNED))).signature is VALID


@pytest.mark.parametrize("subtype", [b"mixed", b"alternative", b"related"])
def test_pitfall_01_encrypted_part_with_siblings_is_left_and_told(subtype: bytes) -> None:
    wire = message(
        mixed(b"Content-Type: text/html\r\n\r\n<img src='", encrypt(ENTITY, [PAUL.certificate]), subtype=subtype)
    )
    found = opened(wire)
    assert found.entity == wire
    assert found.verdict.decryption is DecryptionResult.NOT_ENCRYPTED
    assert Finding("encrypted-part-beside-others", "2") in found.verdict.findings


def test_pitfall_01_a_sole_child_of_something_else_is_left() -> None:
    wire = message(mixed(encrypt(ENTITY, [PAUL.certificate]), subtype=b"related"))
    assert opened(wire).entity == wire


FOOTER = b"Content-Type: text/plain\r\n\r\nList footer\r\n"
HTML = b"Content-Type: text/html\r\n\r\n<p>above</p>\r\n"


def attached(entity: bytes) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" + message(entity)


@pytest.mark.parametrize(
    ("entity", "covered", "uncovered"),
    [
        (mixed(SIGNED, FOOTER), ["1"], ("2",)),
        (mixed(HTML, SIGNED), ["2"], ("1",)),
        (mixed(HTML, mixed(SIGNED, FOOTER, boundary=b"m1"), subtype=b"related"), ["2.1"], ("1", "2.2")),
        (mixed(HTML, attached(SIGNED)), ["2"], ("1",)),
        (mixed(HTML, attached(mixed(SIGNED, FOOTER, boundary=b"m1"))), ["2.1"], ("1", "2.2")),
        (mixed(opaque(ENTITY), SIGNED, FOOTER), ["1", "2"], ("3",)),
    ],
)  # fmt: skip
def test_pitfall_16_m1_to_m4_parts_signed_and_not(
    entity: bytes, covered: list[str], uncovered: tuple[str, ...]
) -> None:
    found = verdict(message(entity))
    assert found.signature is NOT_SIGNED
    assert found.signers == ()
    assert [part.part for part in found.covered] == covered
    assert all(part.signature is VALID for part in found.covered)
    assert found.uncovered == uncovered


def test_pitfall_16_an_encrypted_list_mail_numbers_what_is_handed_on() -> None:
    found = verdict(message(encrypt(mixed(SIGNED, FOOTER), [PAUL.certificate])))
    assert (found.signature, found.covered[0].part, found.uncovered) == (NOT_SIGNED, "1", ("2",))


def test_pitfall_16_altered_part_is_told_as_invalid() -> None:
    found = verdict(message(mixed(SIGNED.replace(b"Nothing", b"Nitrogen"), FOOTER)))
    assert [part.signature for part in found.covered] == [INVALID]


def test_plain_mail_has_neither_covered_nor_uncovered_parts() -> None:
    found = verdict(message(mixed(HTML, FOOTER)))
    assert (found.covered, found.uncovered, found.layers, found.findings) == ((), (), (), ())


def test_pitfall_16_signed_parts_are_judged_up_to_a_number() -> None:
    found = verdict(message(mixed(*[SIGNED] * 12)))
    assert len(found.covered) == 8
    assert found.uncovered == ("9", "10", "11", "12")


# --- Wrapped messages ------------------------------------------------------------------------------------------------


def wrap(inner: bytes) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" + inner


@pytest.mark.parametrize(
    "protect",
    [
        lambda inner: sign(wrap(inner), ANNE, NOW),
        lambda inner: opaque(wrap(inner)),
        lambda inner: encrypt(sign(wrap(inner), ANNE, NOW), [PAUL.certificate]),
        lambda inner: sign(encrypt(opaque(wrap(inner)), [PAUL.certificate]), ANNE, NOW),
    ],
)
def test_pitfall_16_wrapped_mail_of_another_is_never_valid(protect) -> None:
    inner = message(ENTITY)
    found = verdict(message(protect(inner)))
    assert (found.signature, found.from_addresses) == (VALID, ("anne@lab.example",))
    assert LayerKind.MESSAGE in [layer.kind for layer in found.layers]
    for sender in ("bob@lab.example", "", "undisclosed:;"):
        found = verdict(message(protect(inner), sender=sender))
        assert found.signature is MISMATCH
        assert found.from_addresses == ("anne@lab.example",)
        assert "from-differs-inside" in [finding.code for finding in found.findings]
        assert all(signer.result is MISMATCH for signer in found.signers)
        assert VALID not in [layer.signature for layer in found.layers]


def test_pitfall_16_signer_is_compared_with_the_inner_from() -> None:
    """Bob signs, under his own name outside, a message that says inside that it is Anne's."""
    found = verdict(message(sign(wrap(message(ENTITY)), BOB, NOW), sender="bob@lab.example"))
    assert found.signature is MISMATCH
    found = verdict(message(encrypt(wrap(message(SIGNED)), [PAUL.certificate]), sender="bob@lab.example"))
    assert found.signature is MISMATCH
    found = verdict(message(encrypt(wrap(message(SIGNED)), [PAUL.certificate])))
    assert found.signature is VALID
    found = verdict(message(sign(wrap(message(ENTITY).replace(b"From", b"X-From")), ANNE, NOW)))
    assert found.signature is MISMATCH


def test_an_encrypted_wrapped_message_is_unwrapped() -> None:
    inner = message(ENTITY).replace(b"Subject: Synthetic", b"Subject: inside")
    found = opened(message(encrypt(wrap(inner), [PAUL.certificate])))
    assert b"Subject: inside" in found.entity
    assert b"Subject: Synthetic" not in found.entity
    assert found.entity.endswith(ENTITY.partition(b"\r\n\r\n")[2])
    other = opened(message(encrypt(wrap(inner), [PAUL.certificate]), sender="bob@lab.example"))
    assert b"Subject: inside" not in other.entity.partition(b"\r\n\r\n")[0]


def test_unprotected_rfc822_is_no_layer() -> None:
    found = verdict(message(wrap(message(ENTITY, sender="eve@evil.example"))))
    assert (found.layers, found.from_addresses) == ((), ("anne@lab.example",))


# --- Failures --------------------------------------------------------------------------------------------------------


def test_pitfall_05_failures_are_one_verdict() -> None:
    """Flipped content, another's key, no key, rubbish inside: nothing in the verdict tells them apart."""
    stranger = person("lea@clinic.example", which="lea")
    faces = {
        repr(verdict(message(pkcs7_mime(cms))))
        for cms in (
            enveloped(ENTITY, PAUL, flip=3),
            enveloped(ENTITY, stranger),
            enveloped(ENTITY, PAUL, encrypted_key=b"\1" * 256),
            enveloped(b"\0no mime", PAUL),
            enveloped(ENTITY, PAUL, nonce_octets=8),
        )
    }
    assert len(faces) == 1


def test_pitfall_02_cbc_without_signature_and_with_gadget_traces() -> None:
    def cbc(content: bytes) -> bytes:
        return message(pkcs7_mime(enveloped(content, PAUL, cipher=oids.AES256_CBC, outer=oids.ENVELOPED_DATA)))

    found = verdict(cbc(ENTITY))
    assert [finding.code for finding in found.findings] == ["unauthenticated-encryption"]
    assert not found.layers[0].authenticated
    assert "illegal-body-characters" in codes(cbc(ENTITY + b"\x00\x9a\x01"))
    assert "illegal-body-characters" not in codes(cbc(b"Content-Transfer-Encoding: 8bit\r\n\r\n\xc3\xa9"))
    assert "illegal-header-characters" in codes(cbc(b"X-A: \x01\r\n\r\nx"))
    assert verdict(cbc(SIGNED)).signature is VALID


def test_decrypted_entity_is_well_formed_whatever_is_inside() -> None:
    inner = b"Content-Type : text/plain\nX-Evil: 1\nContent-Description: a\n b\n\nbody\n"
    found = opened(message(encrypt(inner, [PAUL.certificate])))
    head = found.entity.partition(b"\r\n\r\n")[0]
    assert b"X-Evil" not in head
    assert head.count(b"\n") == head.count(b"\r\n")
    assert found.entity.endswith(b"\r\n\r\nbody\r\n")


# --- Senders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "expected", "result"),
    [
        (b"From: anne@lab.example", ("anne@lab.example",), VALID),
        (b"From: anne@lab.example\r\nFrom: eve@evil.example", ("anne@lab.example", "eve@evil.example"), MISMATCH),
        (b"From: anne@lab.example, eve@evil.example", ("anne@lab.example", "eve@evil.example"), MISMATCH),
        (b"From: eve@evil.example (anne@lab.example)", ("eve@evil.example",), MISMATCH),
        (b'From: "anne@lab.example" <eve@evil.example>', ("eve@evil.example",), MISMATCH),
        (b"From: anne@lab.example <eve@evil.example>", (), MISMATCH),
        (b"From:", (), MISMATCH),
        (b"From: <>", (), MISMATCH),
        (b"X-From: anne@lab.example", (), MISMATCH),
        (b"From: anne@lab.example\0@evil.example", (), MISMATCH),
        (b"From: =?utf-8?q?anne=40lab.example?= <eve@evil.example>", ("eve@evil.example",), MISMATCH),
        (b"From: =?utf-8?q?anne=40lab.example=00?=@evil.example", (), MISMATCH),
        (b"From: \xe2\x80\x8banne@lab.example", (), MISMATCH),
        (b"From: anne\xff@lab.example", (), MISMATCH),
        ("From: anne@l\uff41b.example".encode(), (), MISMATCH),
        (b"From: Anne@lab.example", ("Anne@lab.example",), MISMATCH),
        (b"From: anne@LAB.Example", ("anne@lab.example",), VALID),
    ],
)
def test_pitfall_15_from_forms(field: bytes, expected: tuple[str, ...], result: SignatureResult) -> None:
    found = verdict(field + b"\r\nMIME-Version: 1.0\r\n" + SIGNED)
    assert (found.from_addresses, found.signature) == (expected, result)


def test_pitfall_15_addresses_in_display_names_are_told() -> None:
    told = [
        b'"anne@lab.example" <eve@evil.example>',
        b"=?utf-8?q?anne=40lab.example?= <eve@evil.example>",
        '"anne\uff20lab.example" <eve@evil.example>'.encode(),
    ]
    for value in told:
        assert "address-in-display-name" in codes(b"From: " + value + b"\r\n" + SIGNED)
    for value in (b'"anne@lab.example" <anne@lab.example>', b"Anne <anne@lab.example>"):
        assert codes(b"From: " + value + b"\r\n" + SIGNED) == []


def test_pitfall_15_idna_must_lead_back() -> None:
    """Sharp s is not ss: a certificate for one is none for the other."""
    assert verdict("From: x@fa\u00df.example\r\n".encode() + SIGNED).from_addresses == ()
    assert verdict("From: x@\u00c9t\u00e9.example\r\n".encode() + SIGNED).from_addresses == ("x@xn--t-9fab.example",)


def test_pitfall_15_sender_is_reported_not_accepted() -> None:
    wire = message(SIGNED, sender="assistant@lab.example", extra=b"Sender: anne@lab.example\r\n")
    found = verdict(wire)
    assert (found.signature, found.sender_addresses) == (MISMATCH, ("anne@lab.example",))
    assert Finding("signer-is-sender") in found.findings


# --- Limits ----------------------------------------------------------------------------------------------------------


def seconds(action) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


def nested(depth: int, filler: bytes) -> bytes:
    """Multiparts in multiparts whose boundaries all begin alike."""
    head = b"".join(
        b"Content-Type: multipart/mixed; boundary=b" + b"x" * level + b"\r\n\r\n--b" + b"x" * level + b"\r\n"
        for level in range(depth)
    )
    tail = b"".join(b"\r\n--b" + b"x" * level + b"--" for level in reversed(range(depth)))
    return head + b"\r\n" + filler + tail


MEGABYTES = 10 << 20
ADVERSARIAL = {
    "delimiters": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n" * (MEGABYTES // 5),
    "longer delimiters": b"Content-Type: multipart/signed; boundary=b\r\n\r\n" + b"--bx\r\n" * (MEGABYTES // 6),
    "delimiters inside lines": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"x--b" * (MEGABYTES // 4),
    "nested": nested(50, b"\r\n--bx" * (MEGABYTES // 10)),
    "nested deep": nested(1000, b"x"),
    "many parts": mixed(*[b"Content-Type: text/plain\r\n\r\n" + b"x" * 10_000] * 999),
    "many parts with endless types": mixed(*[b"Content-Type: a/b" + b";" * 10_000 + b"\r\n\r\n"] * 300),
    "line of a header": b"X: " + b"x" * MEGABYTES,
    "folds": b"X: " + b"x\r\n " * (MEGABYTES // 4),
    "fields": b"X: x\r\n" * (MEGABYTES // 6),
    "comments": b"Content-Type: " + b"(" * 1_000_000 + b"\r\n\r\n",
    "closed comments": b"From: " + b"()" * 500_000 + b"\r\n\r\n",
    "quotes": b'Content-Type: a/b; x="' + b"\\" * 1_000_000 + b"\r\n\r\n",
    "words": b"Content-Type: a/b" + b"; a=b" * 200_000 + b"\r\n\r\n",
    "sections": b"Content-Type: a/b" + b"".join(b"; n*%d=x" % n for n in range(60_000)) + b"\r\n\r\n",
    "addresses": b"From: " + b"a@b.example," * 80_000 + b"\r\n\r\n",
    "idna": "From: x@{}\r\n\r\n".format("\u00e9" * 400_000).encode(),
    "encoded words": b"From: " + b"=?utf-8?q?a?= " * 60_000 + b"<a@b.example>\r\n\r\n",
    "messages": b"Content-Type: message/rfc822\r\n\r\n" * (MEGABYTES // 32),
    "base64": b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    + b"MI" * (MEGABYTES // 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_pitfall_29_adversarial_megabytes_are_linear(name: str) -> None:
    wire = ADVERSARIAL[name]
    assert seconds(lambda: opened(wire)) < 3
    assert opened(wire).verdict.signature is not VALID


def test_pitfall_29_limits() -> None:
    def parts(count: int) -> bytes:
        return message(mixed(SIGNED, *[FOOTER] * (count - 1)))

    assert len(verdict(parts(1000)).uncovered) == 999
    assert Finding("malformed-part", "1") in verdict(parts(1001)).findings
    assert "malformed-header" in codes(b"X: y\r\n" * 1001 + b"\r\n")
    assert "malformed-header" in codes(b"X: " + b"y" * (1 << 20) + b"\r\n\r\n")
    long = message(SIGNED)
    boundary = parse_entity(long).content_type().parameters["boundary"].encode()
    assert verdict(long.replace(boundary, b"b" * 70)).signature is VALID
    assert verdict(long.replace(boundary, b"b" * 71)).signature is INVALID
    with pytest.raises(MimeError):
        parse_content_type("a/b" + "".join(f"; n*{n}=x" for n in range(120)))


def test_pitfall_29_budget_is_the_messages() -> None:
    entity = parse_entity(mixed(FOOTER, FOOTER))
    budget = Budget(parts=3)
    split_multipart(entity, "m0", budget)
    with pytest.raises(MimeError):
        split_multipart(entity, "m0", budget)


def test_a_large_message_is_opened_within_a_few_times_its_size() -> None:
    content = ENTITY + (b"x" * 76 + b"\r\n") * 130_000
    wire = message(encrypt(sign(content, ANNE, NOW), [PAUL.certificate]))
    tracemalloc.start()
    try:
        found = opened(wire)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.verdict.signature is VALID
    assert peak < 3 * len(wire)  # and once for the message itself


_pieces = st.sampled_from(
    [b"\r\n", b"\n", b"--b", b"--b--", b"Content-Type: ", b"multipart/mixed; boundary=b", b"message/rfc822", b"x", b":",
     b"multipart/signed; boundary=b", b"application/pkcs7-mime", b"\r\n\r\n", b" ", b"\0", b"From: a@b.c", SIGNED]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_pieces, max_size=25).map(b"".join))
def test_no_message_raises(wire: bytes) -> None:
    found = opened(wire)
    assert found.entity == wire
    assert isinstance(plain_preview(found), str)


# --- Preview ---------------------------------------------------------------------------------------------------------


def test_pitfall_39_preview_is_plain_text_only() -> None:
    def preview(entity: bytes) -> str:
        return plain_preview(opened(message(entity)))

    assert preview(ENTITY) == "Nothing to report.\nSecond line.\n"
    assert preview(encrypt(SIGNED, [PAUL.certificate])).startswith("Nothing")
    assert preview(HTML) == ""
    assert preview(mixed(HTML, ENTITY)).startswith("Nothing")
    assert preview(b"Content-Disposition: attachment\r\n" + ENTITY) == ""
    assert preview(b"Content-Type: text/plain; charset=utf-7\r\n\r\n+ADw-script+AD4-") == ""
    hidden = "\u202eevil\u202c \u200b\x1b[2J\x00ok\r\u2028"
    shown = preview(b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + hidden.encode())
    assert not {"\u202e", "\u200b", "\x1b", "\0", "\u2028", "\r"} & set(shown)
    assert "evil" in shown
    for encoding, body in ((b"base64", b"eHh4\r\n" * 200_000), (b"quoted-printable", b"=C3=A9" * 200_000)):
        text = preview(b"Content-Transfer-Encoding: " + encoding + b"\r\n\r\n" + body)
        assert MAX_CHARACTERS <= len(text) <= MAX_CHARACTERS + 10
    assert len(preview(b"\r\n" + b"\r\n" * 100_000)) < 5000


def test_pitfall_39_nothing_is_shown_of_what_did_not_open() -> None:
    wire = message(pkcs7_mime(enveloped(ENTITY, PAUL, flip=1)))
    assert plain_preview(opened(wire)) == ""


def test_published_addresses_still_count() -> None:
    nameless = person("other@lab.example", which="other")

    def published(certificate: x509.Certificate) -> list[str]:
        return ["anne@lab.example"]

    assert verdict(message(sign(ENTITY, nameless, NOW)), published_addresses=published).signature is VALID


def test_pitfall_15_smtp_utf8_mailbox() -> None:
    """An internationalised mailbox in the certificate (RFC 9598) is compared with one in From."""

    def named(value: bytes) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(x509.Name([]))
            .public_key(ANNE.certificate.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW)
        )
        other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.9"), value)
        builder = builder.add_extension(x509.SubjectAlternativeName([other]), critical=False)
        return builder.sign(ANNE.key, hashes.SHA256())

    def utf8(text: str) -> bytes:
        return der.tlv(0x0C, text.encode())

    assert mail_addresses(named(utf8("zoé@XN--t-9fab.example"))) == ("zoé@xn--t-9fab.example",)
    assert parse_mailboxes("Zoé <zoé@été.example>") == ["zoé@xn--t-9fab.example"]
    for value in (
        utf8("zoe@lab.example"),
        utf8("zoé@été.example"),
        utf8("zo\u202eé@lab.example"),
        utf8("zoé\0@lab.example"),
        utf8("<zoé@lab.example>"),
        der.octet_string("zoé@lab.example".encode()),
        b"\x0c\x03\xff\xff\xff",
    ):
        assert mail_addresses(named(value)) == ()


# --- What a signature says of the mail -------------------------------------------------------------------------------


def told(found) -> list[str]:
    return [finding.code for finding in found.findings]


def test_a_signed_file_is_no_signed_mail() -> None:
    file = b"%PDF-1.7\nnot MIME"
    found = verdict(message(pkcs7_mime(signed_data(file, ANNE, attached=file), "signed-data")))
    assert found.signature is MISMATCH
    assert found.layers[0].signature is VALID  # as a file it is
    assert "signed-content-is-no-entity" in told(found)


def test_pitfall_16_a_signature_around_a_ciphertext_is_nobodys_word_for_what_is_inside() -> None:
    for inner in (ENTITY, wrap(message(ENTITY)), mixed(ENTITY, SIGNED)):
        found = verdict(message(sign(encrypt(inner, [PAUL.certificate]), ANNE, NOW)))
        assert found.signature is MISMATCH
        assert VALID not in [layer.signature for layer in found.layers]
        assert "signed-outside-encryption" in told(found)
    triple = message(sign(encrypt(SIGNED, [PAUL.certificate]), ANNE, NOW))
    assert verdict(triple).signature is VALID


def test_an_attached_message_is_forwarded_and_no_wrapper() -> None:
    forwarded = b"Content-Disposition: attachment\r\n" + wrap(message(ENTITY, sender="bob@lab.example"))
    for protect in (lambda entity: sign(entity, ANNE, NOW), opaque):
        found = verdict(message(protect(forwarded)))
        assert (found.signature, found.from_addresses) == (VALID, ("anne@lab.example",))
        assert found.header_protection.protected == ()
    outright = forwarded.replace(b"rfc822", b"rfc822; forwarded=no", 1)
    assert verdict(message(sign(outright, ANNE, NOW))).signature is MISMATCH


def test_lines_signed_with_lf_have_one_verdict_before_and_behind_the_road() -> None:
    unix = ENTITY.replace(b"\r\n", b"\n")
    raw = multipart_signed(ENTITY, signed_data(unix, ANNE)).replace(b"\r\n", b"\n")
    found = opened(message(encrypt(raw, [PAUL.certificate])))
    assert b"\n" not in found.entity.replace(b"\r\n", b"")
    assert found.verdict.signature is opened(found.entity).verdict.signature is VALID


def test_a_binary_signed_inside_a_signature_is_judged_as_it_is() -> None:
    """What a signature around it keeps together is not handed on by itself, so it needs not be fit for the road."""
    first = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\na\nb\rc"
    wire = message(opaque(compressed(multipart_signed(first, signed_data(first, ANNE)))))
    assert verdict(wire).signature is VALID
    assert opened(wire).entity == wire


# --- Files named smime.p7m -------------------------------------------------------------------------------------------


FILE = b'Content-Type: application/octet-stream; name="smime.p7m"\r\n'


@pytest.mark.parametrize("label", [b"PKCS7", b"CMS"])
def test_cms_in_pem_opens(label: bytes) -> None:
    cms = base64.encodebytes(bytes(parse_entity(encrypt(SIGNED, [PAUL.certificate])).decoded()))
    pem = b"-----BEGIN %s-----\n" % label + cms + b"-----END %s-----\n" % label
    encoded = b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(pem).replace(b"\n", b"\r\n")
    for header in (FILE, b"Content-Type: application/pkcs7-mime\r\n"):
        assert opened(message(header + b"\r\n" + pem.replace(b"\n", b"\r\n"))).entity == message(SIGNED)
        assert opened(message(header + encoded)).entity == message(SIGNED)


def test_what_is_called_p7m_and_is_no_cms_is_a_file() -> None:
    wire = message(FILE + b"\r\nsomething else altogether\r\n")
    found = opened(wire)
    assert (found.entity, found.verdict.decryption) == (wire, DecryptionResult.NOT_ENCRYPTED)
    assert "malformed-cms" in told(found.verdict)
    for claim in (b"application/pkcs7-mime", b"application/pkcs7-mime; smime-type=enveloped-data"):
        wire = message(b"Content-Type: " + claim + b"\r\n\r\nsomething else altogether\r\n")
        assert verdict(wire).decryption is DecryptionResult.FAILED
    lone = message(FILE.replace(b"p7m", b"p7s") + b"\r\nsomething else altogether\r\n")
    assert verdict(lone).signature is INVALID
    damaged = FILE + b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(b"\x30\x82\xff\xff\1") + b"\r\n"
    assert verdict(message(damaged)).decryption is DecryptionResult.FAILED


def test_pem_is_looked_for_in_linear_time() -> None:
    for junk in (
        b" " * 3_000_000,
        b"-----BEGIN CMS-----" + b"\n" * 3_000_000,
        b"-----BEGIN CMS-----\n" + b"A" * 3_000_000,
    ):
        started = time.process_time()
        verdict(message(FILE + b"\r\n" + junk + b"-"))
        assert time.process_time() - started < 2


@pytest.mark.parametrize("content", [b"a\0b", b"a\nb\rc", b"\0" * 5000])
def test_what_is_handed_on_can_travel_and_content_is_what_was_inside(content: bytes) -> None:
    entity = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: binary\r\n\r\n" + content
    found = opened(message(encrypt(entity, [PAUL.certificate])))
    assert bytes(found.content) == entity
    assert found.entity.isascii()
    assert b"\0" not in found.entity
    assert bytes(parse_entity(found.entity).decoded()) == content
