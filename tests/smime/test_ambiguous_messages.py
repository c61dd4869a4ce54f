"""What readers take in more ways than one: parts nobody signed, fields that end elsewhere, what is lost on the way.

How real readers (Dovecot, Python's parser) see the same bytes stands in the comment.
"""

from __future__ import annotations

import base64
import struct
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from directory.partners import PartnerBook
from directory.records import MailboxKind, Partner, Recipient
from mta.agreements import Agreements
from mta.message import Message, Origin, Phase
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.smtp.content import with_crlf
from smime import SignatureResult, encrypt, oids, open_message, public_record, sign, verify_dkim
from smime.canonical import robust
from smime.header_protection import HeaderPolicy, protect_header
from smime.mime import parse_entity
from smime.refusals import DECRYPTION_PAUSED
from smime.suites import DEFAULT_SUITE, KeyTransportScheme
from tests.smime.craft import multipart_signed, pkcs7_mime, signed_data
from tests.smime.people import ENTITY, NOW, message, person, validator
from tests.smime.test_messages import compressed, mixed
from trust.refusals import Refused

ANNE = person("anne@lab.example")
BOB = person("bob@lab.example")
PAUL = person("paul@clinic.example")
VALID = SignatureResult.VALID
SIGNED = sign(ENTITY, ANNE, NOW)
OPAQUE = pkcs7_mime(signed_data(ENTITY, ANNE, attached=ENTITY), "signed-data")
EVIL = b"Content-Type: text/html\r\n\r\n<b>Nobody signed this</b>\r\n"


def opened(wire: bytes):
    return open_message(wire, [PAUL], validator(), NOW)


def clear_signed(parameters: bytes, boundary: bytes, before: bytes = b"", behind: bytes = b"") -> bytes:
    """Anne's genuine signature in a multipart/signed of the attacker's making."""
    signature = base64.encodebytes(signed_data(ENTITY, ANNE)).replace(b"\n", b"\r\n")
    return b"".join(
        (
            b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"' + parameters + b"\r\n\r\n",
            before,
            b"--" + boundary + b"\r\n" + ENTITY + b"\r\n--" + boundary + b"\r\n",
            b"Content-Type: application/pkcs7-signature\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            signature + b"\r\n--" + boundary + b"--\r\n",
            behind,
        )
    )


# --- Parts that readers see and the verdict does not ------------------------------------------------------------------

# RFC 2046 §5.1.2: "it is sufficient that the boundary appear in its entirety following the CRLF". Dovecot does so, and
# shows the parts named "Nobody signed this" to every client that asks for BODYSTRUCTURE.
PREFIXED = {
    "a sibling behind the signed part": b"Content-Type: multipart/mixed; boundary=abc\r\n\r\n--abc\r\n"
    + SIGNED
    + b"\r\n--abcd\r\n"
    + EVIL
    + b"--abc--\r\n",
    "a part behind the signature": clear_signed(b"; boundary=zz", b"zz").replace(
        b"\r\n--zz--", b"\r\n--zzz\r\n" + EVIL + b"\r\n--zz--"
    ),
}
# The value of an unquoted boundary ends at the first special character (RFC 2045 §5.1): Dovecot, Go and JavaMail see
# `zz` where the other parts of it hide; with other crooked parameters they see another boundary, or none.
MISREAD = {
    "special characters, part before": clear_signed(b"; boundary=zz@b", b"zz@b", before=b"--zz\r\n" + EVIL),
    "special characters, part behind": clear_signed(b"; boundary=zz@b", b"zz@b", behind=b"--zz\r\n" + EVIL),
    "special characters in a wrapper": b"Content-Type: multipart/mixed; boundary=zz@b\r\n\r\n--zz\r\n"
    + EVIL
    + b"--zz@b\r\n"
    + SIGNED
    + b"\r\n--zz@b--\r\n",
    "equals sign": clear_signed(b"; boundary=zz=b", b"zz=b", before=b"--zz\r\n" + EVIL),
    "slash": clear_signed(b"; boundary=zz/b", b"zz/b", before=b"--zz\r\n" + EVIL),
    "quote inside a word": clear_signed(
        b'; foo"bar; boundary=a"; boundary=zz', b"zz", before=b"--a\r\n" + EVIL + b"--a--\r\n"
    ),
    "empty parameter": clear_signed(b";; boundary=zz", b"zz", before=b"Nobody signed this\r\n"),
    "parameter without a value": clear_signed(b"; foo; boundary=zz", b"zz", before=b"Nobody signed this\r\n"),
}


@pytest.mark.parametrize("name", PREFIXED)
def test_a_line_that_begins_like_a_delimiter_makes_no_hidden_sibling(name: str) -> None:
    assert opened(message(PREFIXED[name])).verdict.signature is not VALID


@pytest.mark.parametrize("name", MISREAD)
def test_a_boundary_that_readers_read_differently_is_none(name: str) -> None:
    assert opened(message(MISREAD[name])).verdict.signature is not VALID


def test_ordinary_parameters_are_still_read() -> None:
    for parameters in (b"; boundary=zz", b'; boundary="zz"', b"; boundary=zz;", b";\r\n\tboundary=zz; micalg=sha-256"):
        assert opened(message(clear_signed(parameters, b"zz"))).verdict.signature is VALID
    assert opened(message(clear_signed(b'; boundary="z=_z/z@z z"', b"z=_z/z@z z"))).verdict.signature is VALID


def tnef(cms: bytes) -> bytes:
    """winmail.dat with a body of its own beside an smime.p7m, as Outlook would show it."""

    def attribute(level: int, identifier: int, kind: int, data: bytes) -> bytes:
        return struct.pack("<BHHI", level, identifier, kind, len(data)) + data + struct.pack("<H", sum(data) & 0xFFFF)

    stream = b"".join(
        (
            struct.pack("<IH", 0x223E9F78, 1),
            attribute(1, 0x8008, 7, b"IPM.Microsoft Mail.Note\0"),
            attribute(1, 0x8004, 1, b"Nobody signed this\0"),
            attribute(1, 0x800C, 2, b"Nobody signed this\0"),
            attribute(2, 0x9002, 6, bytes(14)),
            attribute(2, 0x8010, 1, b"smime.p7m\0"),
            attribute(2, 0x800F, 6, cms),
        )
    )
    header = b"Content-Type: application/ms-tnef; name=winmail.dat\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return header + base64.encodebytes(stream).replace(b"\n", b"\r\n")


def test_what_tnef_says_beside_the_signed_file_is_not_handed_on_as_signed() -> None:
    found = opened(message(tnef(signed_data(ENTITY, ANNE, attached=ENTITY))))
    told = parse_entity(found.entity)
    assert found.verdict.signature is not VALID or told.content_type().media_type != "application/ms-tnef"


# --- Header fields that readers end elsewhere -------------------------------------------------------------------------

# Python's parser takes `Notice :` for the first line of the body; clear-signed mail with it is refused already.
OBSOLETE = {
    "opaque": message(b"Notice : nobody signed this\r\n" + OPAQUE),
    "opaque in a wrapper": message(mixed(b"Notice : nobody signed this\r\n" + OPAQUE)),
    "encrypted": message(b"Notice : nobody signed this\r\n" + encrypt(OPAQUE, [PAUL.certificate])),
}


@pytest.mark.parametrize("name", OBSOLETE)
def test_white_space_before_a_colon_voids_opaque_signatures_too(name: str) -> None:
    assert opened(OBSOLETE[name]).verdict.signature is not VALID


# Dovecot and Python end lines at a bare CR. On the road every CR becomes CRLF after the verdict (`OpenStage`): what was
# one field is then an empty line and a text.
BARE = {
    "another Content-Type": message(b"X: a\rContent-Type: text/html\r\n" + SIGNED),
    "another From": b"Subject: x\rFrom: boss@h.example\r\n" + message(SIGNED),
    "an end of the header": message(b"X: a\r\r\n" + SIGNED),
    "inside encryption": message(encrypt(mixed(b"X: a\r\rNobody signed this\r\n" + SIGNED), [PAUL.certificate])),
    "inside compression": message(compressed(mixed(b"X: a\r\rNobody signed this\r\n" + SIGNED))),
}


@pytest.mark.parametrize("name", BARE)
def test_control_characters_in_a_header_void_a_signature(name: str) -> None:
    assert opened(BARE[name]).verdict.signature is not VALID


# --- What is handed on is what was judged -----------------------------------------------------------------------------


def binary(media_type: bytes, content: bytes) -> bytes:
    return b"Content-Type: " + media_type + b"\r\nContent-Transfer-Encoding: binary\r\n\r\n" + content


def delivered(entity: bytes) -> bytes:
    """What reaches the mailbox (`mta.opening.OpenStage._open`)."""
    return with_crlf(opened(message(encrypt(entity, [PAUL.certificate]))).entity)


def test_binary_opaque_signature_inside_encryption_survives_the_road() -> None:
    # RFC 8551 §3.1.2 allows it, Outlook sends it
    entity = binary(b"application/pkcs7-mime; smime-type=signed-data", signed_data(ENTITY, ANNE, attached=ENTITY))
    assert opened(message(encrypt(entity, [PAUL.certificate]))).verdict.signature is VALID
    assert opened(delivered(entity)).verdict.signature is VALID


def test_binary_attachment_inside_encryption_survives_the_road() -> None:
    content = b"%PDF-1.7\n\r\0\xff\r\n\n"
    assert bytes(parse_entity(delivered(binary(b"application/pdf", content))).decoded()) == content


def test_a_signature_that_is_lost_on_the_road_is_not_told_as_valid() -> None:
    first = binary(b"application/octet-stream", b"a\nb\rc\r\n")
    entity = multipart_signed(first, signed_data(first, ANNE))
    told = opened(message(encrypt(entity, [PAUL.certificate]))).verdict.signature
    assert told is opened(delivered(entity)).verdict.signature


def test_a_signature_around_encryption_alone_says_nothing_of_the_content() -> None:
    # Bob need not have known what Anne wrote to Paul when he put his name on her ciphertext; the mailbox's header says
    # `signature=valid; signer=bob@...` over her words all the same
    wire = message(sign(encrypt(ENTITY, [PAUL.certificate]), BOB, NOW), sender="bob@lab.example")
    assert opened(wire).verdict.signature is not VALID


# --- Encoded words that raise -----------------------------------------------------------------------------------------

# `email.errors.HeaderParseError` and `CharsetError` are no ValueErrors. At the gate: the message is taken with 250,
# tried for hours, parked, and neither sender nor recipient hears of it.
BROKEN = (b"=?utf-8?b?A?=", b"=?utf-8?b?AAAAA?=", b"=?\x80?q?a?=")


@pytest.mark.parametrize("word", BROKEN)
def test_broken_encoded_words_in_from_do_not_raise(word: bytes) -> None:
    wire = b"From: " + word + b" <anne@lab.example>\r\nMIME-Version: 1.0\r\n" + SIGNED
    assert opened(wire).verdict.signature is VALID


@pytest.mark.parametrize(
    "word", [b"=?utf-8?b?A?=", b"=?utf-8?b?AAAAA?=", b"=?unicode_escape?q?=5Cud800?=", b"=?utf-7?q?+2AA-?="]
)
def test_broken_encoded_words_in_a_subject_can_be_protected(word: bytes) -> None:
    entity, outer = protect_header(b"From: a@b.example\r\nSubject: " + word + b"\r\n", ENTITY, HeaderPolicy.BASELINE)
    assert word not in outer
    assert b"Subject: " + word in entity


# --- Header protection ------------------------------------------------------------------------------------------------


def protected(header: bytes, entity: bytes = ENTITY) -> tuple[bytes, bytes]:
    return protect_header(b"From: a@b.example\r\n" + header, entity, HeaderPolicy.BASELINE)


@pytest.mark.parametrize(
    ("charset", "text"),
    [(b"", b"caf\xe9 5\xb5g"), (b"; charset=utf-8", b"caf\xe9"), (b"; charset=windows-1252", b"a\x81b")],
)
def test_the_display_of_hidden_fields_loses_no_octet_of_the_text(charset: bytes, text: bytes) -> None:
    header = b"Content-Type: text/plain" + charset + b"\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    entity, _ = protected(b"Subject: hidden\r\n", header + text + b"\r\n")
    assert b"\xef\xbf\xbd" not in bytes(parse_entity(entity).decoded())


def test_thread_topic_does_not_tell_the_hidden_subject() -> None:
    # Outlook writes the subject there again
    assert b"serology" not in protected(b"Subject: Re: serology\r\nThread-Topic: serology\r\n")[1]


def test_a_long_field_can_be_protected() -> None:
    # 998 octets are allowed; `HP-Outer: ` makes them 1008
    line = b"References: " + b"<1@lab.example> " * 60 + b"<123456789@lab.example>"
    entity, outer = protected(b"Subject: hidden\r\n" + line + b"\r\n")
    assert b"hidden" not in outer
    assert max(map(len, entity.split(b"\r\n"))) <= 998


def test_only_a_real_hp_parameter_stops_protection() -> None:
    assert b"hidden" not in protected(b"Subject: hidden\r\n", ENTITY.replace(b"charset=utf-8", b"hp=no", 1))[1]


def test_an_address_in_the_display_name_inside_is_told() -> None:
    entity = protect_header(
        b'From: "boss@hospital.example" <anne@lab.example>\r\nSubject: x\r\n', ENTITY, HeaderPolicy.BASELINE
    )[0]
    found = opened(message(encrypt(sign(entity, ANNE, NOW), [PAUL.certificate])))
    assert b"boss@hospital.example" in found.entity
    assert "address-in-display-name" in [finding.code for finding in found.verdict.findings]


def test_an_address_in_a_comment_is_told() -> None:
    # Thunderbird, Outlook and Python's parseaddr take it for the display name
    wire = b"From: anne@lab.example (boss@hospital.example)\r\nMIME-Version: 1.0\r\n" + SIGNED
    assert "address-in-display-name" in [finding.code for finding in opened(wire).verdict.findings]


# --- The stages -------------------------------------------------------------------------------------------------------


class Vault:
    """Paul's keys open, Anne's sign."""

    def decryptors(self, address: str) -> list[object]:
        return [PAUL]

    def signer(self, address: str, at: object, revoked: object = None) -> object:
        return ANNE


def arrived(content: bytes, sender: str) -> Message:
    return Message(
        message_id="<1@lab.example>",
        spool_id="s1",
        delivery_id="d1",
        origin=Origin.OPERATOR,
        sender=sender,
        recipient="paul@clinic.example",
        content=content,
        content_type="message/rfc822",
        accepted_at=1_780_000_000.0,
        peer="CN=other operator",
    )


FOREIGN = message(encrypt(ENTITY, [BOB.certificate]))


async def paused(stage: OpenStage, content: bytes, sender: str) -> bool:
    result = await stage.apply(arrived(content, sender), Phase.OPEN)
    return isinstance(result, Refused) and result.refusal is DECRYPTION_PAUSED


async def test_mail_that_needs_no_key_is_not_paused() -> None:
    # delivery reports have an empty sender: twenty forged ones would hold back everybody's
    stage = OpenStage(Vault(), validator(), PartnerBook([]), "gate.example", clock=lambda: NOW)
    for _ in range(20):
        await stage.apply(arrived(FOREIGN, ""), Phase.OPEN)
    assert await paused(stage, FOREIGN, "")
    assert not await paused(stage, message(ENTITY), "")


async def test_a_peer_that_changes_its_senders_is_paused_too() -> None:
    # the reverse-path is anybody's to choose, the peer is authenticated
    stage = OpenStage(Vault(), validator(), PartnerBook([]), "gate.example", clock=lambda: NOW)
    tried = [not await paused(stage, FOREIGN, f"x{number}@lab.example") for number in range(1000)]
    assert not all(tried)


async def test_resent_bcc_does_not_leave() -> None:
    class Directory:
        def resolve(self, address: str) -> Recipient:
            return Recipient(address, MailboxKind.PER, "", (PAUL.certificate,))

    class Agreed:
        def suite_of(self, address: str) -> object:
            return DEFAULT_SUITE

        def protects_header(self, address: str) -> bool:
            return False

    stage = ProtectStage(Vault(), Directory(), validator(), lambda domain: None, "g.example", Agreed(), lambda: NOW)
    content = b"Resent-Bcc: hidden@lab.example\r\n" + message(ENTITY)
    sent = await stage.apply(arrived(content, "anne@lab.example"), Phase.PROTECT)
    assert isinstance(sent, Message)
    assert b"hidden@" not in sent.content


# --- Agreements, DKIM, canonical form ---------------------------------------------------------------------------------


def test_capabilities_do_not_take_key_transport_below_the_agreement() -> None:
    class Known:
        def capabilities(self, address: str) -> tuple[str, ...]:
            return (oids.RSA_ENCRYPTION, oids.AES256_GCM)

    partners = PartnerBook([Partner("op2.example", key_transport="rsa-oaep-sha256")])
    suite = Agreements(partners, Known()).suite_of("x@op2.example")
    assert suite.key_transport is KeyTransportScheme.RSA_OAEP_SHA256


def test_ten_signatures_cost_no_more_than_one_look_at_the_body() -> None:
    record = public_record(rsa.generate_private_key(65537, 2048))
    field = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=a.example; s=s; h=from; bh=AAAA; b=AAAA\r\n"
    wire = field * 10 + b"From: a@a.example\r\n\r\n" + b"\r\n" * (12 << 20)
    started = time.process_time()
    assert {result.result for result in verify_dkim(wire, lambda domain, selector: record)} == {"fail"}
    assert time.process_time() - started < 2


def test_base64_in_padded_lines_is_not_made_into_something_else() -> None:
    header = b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    for body in (b"QUI=\r\nQ0Q= \r\n", b"QQ==\r\nQg== \r\n"):
        fit = parse_entity(robust(header + body))
        assert bytes(fit.body) == body or b"".join(map(base64.b64decode, body.split())) == bytes(fit.decoded())
