"""Header protection (RFC 9788), written and read; and everything by which an outer field might pass as protected."""

from __future__ import annotations

import email
import email.policy

import pytest

from smime import MimeError, SignatureResult, encrypt, join_message, open_message, sign, split_message
from smime.header_protection import HeaderPolicy, protect_header
from smime.mime import parse_entity
from smime.verdict import HeaderProtectionScheme
from tests.smime.craft import enveloped, oids, pkcs7_mime
from tests.smime.people import ENTITY, NOW, message, person, validator

ANNE = person("anne@lab.example")
PAUL = person("paul@clinic.example")
VALID, MISMATCH, NOT_SIGNED = SignatureResult.VALID, SignatureResult.MISMATCH, SignatureResult.NOT_SIGNED
EXTRA = b"Keywords: secret\r\nReceived: from x\r\nBcc: zoe@clinic.example\r\n"
BASELINE, CLEAR = HeaderPolicy.BASELINE, HeaderPolicy.CLEAR


def protected(policy: HeaderPolicy, entity: bytes = ENTITY, *, signed: bool = True, legacy: bool = False) -> bytes:
    header, entity = split_message(message(entity, extra=EXTRA))
    entity, header = protect_header(header, entity, policy, legacy_display=legacy)
    if signed:
        entity = sign(entity, ANNE, NOW)
    if policy is not CLEAR:
        entity = encrypt(entity, [PAUL.certificate])
    return join_message(header, entity)


def opened(wire: bytes):
    return open_message(wire, [PAUL], validator(), NOW)


def head(wire: bytes) -> bytes:
    return wire.partition(b"\r\n\r\n")[0] + b"\r\n"


def subjects(wire: bytes) -> list[str]:
    return parse_entity(wire).values("subject")


def test_baseline_hides_outside_and_shows_inside() -> None:
    wire = protected(BASELINE)
    assert subjects(wire) == ["[...]"]
    assert b"secret" not in wire
    assert b"zoe" not in head(wire)
    found = opened(wire)
    protection = found.verdict.header_protection
    assert found.verdict.signature is VALID
    assert protection.scheme is HeaderProtectionScheme.CIPHER
    assert protection.protected == ("from", "to", "subject", "message-id", "keywords")
    assert protection.confidential == ("subject", "keywords")
    assert protection.altered == ()
    assert subjects(found.entity) == ["Synthetic"]
    assert b"HP-Outer: Subject: [...]\r\n" in bytes(found.content)
    assert b"HP-Outer" not in head(found.entity)
    assert b"Received: from x" in head(found.entity)
    assert b"Keywords: secret\r\n" in head(found.entity)


def test_open_policy_and_clear_tell_everything() -> None:
    for policy, scheme in ((HeaderPolicy.OPEN, HeaderProtectionScheme.CIPHER), (CLEAR, HeaderProtectionScheme.CLEAR)):
        wire = protected(policy)
        found = opened(wire)
        assert subjects(wire) == ["Synthetic"]
        assert found.verdict.header_protection.scheme is scheme
        assert (found.verdict.header_protection.confidential, found.verdict.header_protection.altered) == ((), ())
        assert found.verdict.signature is VALID
    assert found.entity == wire  # signed only and as the sender wrote it: not a byte changes


def test_the_payload_reads_as_mime() -> None:
    found = opened(protected(BASELINE))
    payload = email.message_from_bytes(bytes(found.content), policy=email.policy.default)
    assert payload.get_content_type() == "text/plain"
    assert payload["Content-Type"].params["hp"] == "cipher"
    assert payload.get_all("HP-Outer")[0] == "From: Synthetic Sender <anne@lab.example>"
    assert payload["MIME-Version"] is None
    assert payload["Received"] is None


@pytest.mark.parametrize("entity", [b"\r\nx\r\n", b"Content-Type: text/plain;\r\n\tcharset=utf-8 ;\r\n\r\nx\r\n"])
def test_types_missing_or_folded_take_the_parameter(entity: bytes) -> None:
    found = opened(protected(CLEAR, entity))
    assert found.verdict.header_protection.scheme is HeaderProtectionScheme.CLEAR
    assert found.verdict.signature is VALID


def test_what_is_protected_already_is_left() -> None:
    header = b"From: anne@lab.example\r\nSubject: x\r\n"
    for entity in (
        sign(ENTITY, ANNE, NOW),
        encrypt(ENTITY, [PAUL.certificate]),
        b'Content-Type: a/b; hp="clear"\r\n\r\n',
    ):
        assert protect_header(header, entity, BASELINE) == (entity, header)


def test_eight_bit_fields_are_refused() -> None:
    with pytest.raises(MimeError):
        protect_header("Subject: \u00e9t\u00e9\r\n".encode(), ENTITY, CLEAR)


# --- Legacy display --------------------------------------------------------------------------------------------------


def test_legacy_display_tells_hidden_fields_in_plain_text_and_html() -> None:
    html = b"Content-Type: text/html\r\n\r\n<html><BODY class=x><p>hello</p></body></html>\r\n"
    entity = (
        b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n"
        b"Content-Type: multipart/alternative; boundary=i\r\n\r\n--i\r\n"
        + ENTITY + b"\r\n--i\r\n" + html + b"\r\n--i--\r\n\r\n--o\r\n\r\nattached\r\n--o--\r\n"
    )  # fmt: skip
    found = opened(protected(BASELINE, entity, legacy=True))
    assert found.verdict.signature is VALID
    parts = [
        part
        for part in email.message_from_bytes(bytes(found.content), policy=email.policy.default).walk()
        if not part.is_multipart()
    ]
    text = parts[0].get_payload(decode=True)
    assert text.startswith(b"Subject: Synthetic\r\nKeywords: secret\r\n\r\nNothing to report.")
    assert parts[0]["Content-Type"].params["hp-legacy-display"] == "1"
    shown = parts[1].get_payload(decode=True)
    element = b'<BODY class=x><div class="header-protection-legacy-display"><pre>Subject: Synthetic\nKeywords'
    assert element in shown
    assert parts[2].get_payload() == "attached"


def test_legacy_display_decodes_encoded_words_and_escapes() -> None:
    header = b"Subject: =?utf-8?q?=3Cb=3E_=C3=A9t=C3=A9?=\r\n"
    html, _ = protect_header(header, b"Content-Type: text/html\r\n\r\n<p>x</p>", BASELINE)
    assert "&lt;b&gt; été" in bytes(parse_entity(html).decoded()).decode()


def test_no_legacy_display_where_nothing_is_hidden() -> None:
    for policy in (CLEAR, HeaderPolicy.OPEN):
        entity, _ = protect_header(b"Subject: x\r\n", ENTITY, policy)
        assert b"legacy" not in entity


# --- Reading ---------------------------------------------------------------------------------------------------------


def test_pitfall_17_outer_fields_never_pass_as_protected() -> None:
    """Whoever changes the outer header changes nothing that is shown."""
    for policy in (CLEAR, HeaderPolicy.OPEN, BASELINE):
        wire = protected(policy)
        outer = subjects(wire)[0].encode()
        altered = wire.replace(b"Subject: " + outer, b"Subject: forged\r\nReply-To: eve@evil.example", 1)
        found = opened(altered)
        assert found.verdict.signature is VALID
        assert found.verdict.header_protection.altered == ("reply-to", "subject")
        assert subjects(found.entity) == ["Synthetic"]
        assert b"evil" not in head(found.entity)
        assert bytes(opened(found.entity).content) == bytes(found.content)
        removed = opened(wire.replace(b"Subject: " + outer + b"\r\n", b"", 1))
        assert removed.verdict.header_protection.altered == ("subject",)
        assert subjects(removed.entity) == ["Synthetic"]


def test_pitfall_17_refolded_fields_are_not_altered() -> None:
    wire = protected(CLEAR).replace(b"From: Synthetic Sender", b"From: Synthetic\r\n\t Sender", 1)
    assert opened(wire).verdict.header_protection.altered == ()


def test_pitfall_17_from_that_differs_makes_a_mismatch() -> None:
    for policy in (CLEAR, BASELINE):
        wire = protected(policy).replace(b"anne@lab.example", b"bob@lab.example", 1)
        found = opened(wire)
        assert found.verdict.signature is MISMATCH
        assert found.verdict.header_protection.protected == ()
        assert "from-differs-inside" in [finding.code for finding in found.verdict.findings]
        assert subjects(found.entity) == subjects(wire)


def test_pitfall_17_hp_without_protection_is_nothing() -> None:
    forged = b'Subject: forged\r\nFrom: anne@lab.example\r\nContent-Type: text/plain; hp="clear"\r\n\r\nx\r\n'
    found = opened(b"To: x@y.example\r\n" + forged)
    assert found.verdict.header_protection.scheme is HeaderProtectionScheme.NONE
    outer = b"From: anne@lab.example\r\nSubject: outer\r\n"
    cbc = pkcs7_mime(enveloped(forged, PAUL, cipher=oids.AES256_CBC, outer=oids.ENVELOPED_DATA))
    found = opened(outer + cbc)
    assert found.verdict.header_protection.protected == ()
    assert subjects(found.entity) == ["outer"]
    assert "header-protection-void" in [finding.code for finding in found.verdict.findings]
    stranger = person("eve@evil.example", which="eve")
    found = opened(outer + sign(forged, stranger, NOW))
    assert (found.verdict.signature, found.verdict.header_protection.protected) == (MISMATCH, ())
    assert subjects(found.entity) == ["outer"]
    broken = outer + sign(forged, ANNE, NOW).replace(b"\r\n\r\nx", b"\r\n\r\ny")
    assert opened(broken).verdict.header_protection.protected == ()
    assert opened(broken).entity == broken


def test_pitfall_17_hp_anywhere_but_on_the_payload_is_ignored() -> None:
    part = b'Subject: forged\r\nContent-Type: text/plain; hp="clear"\r\n\r\nx\r\n'
    entity = b"Content-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\n" + part + b"\r\n--m\r\n\r\nx\r\n--m--\r\n"
    wire = message(sign(entity, ANNE, NOW))
    assert opened(wire).verdict.header_protection.scheme is HeaderProtectionScheme.NONE
    relayed = message(b'Content-Type: multipart/signed; hp="clear"' + sign(ENTITY, ANNE, NOW)[30:])
    assert opened(relayed).verdict.header_protection.scheme is HeaderProtectionScheme.NONE


def test_encrypted_and_authenticated_but_unsigned_fields_are_shown() -> None:
    found = opened(protected(BASELINE, signed=False))
    assert found.verdict.signature is NOT_SIGNED
    assert subjects(found.entity) == ["Synthetic"]
    assert "subject" in found.verdict.header_protection.confidential


def test_relay_fields_inside_are_not_taken_out() -> None:
    inner = (
        b"From: anne@lab.example\r\nSubject: in\r\nAuthentication-Results: x; smime=pass\r\nReceived: forged\r\n"
        b'X-Relais-Verdict: signature=valid\r\nX-Ctl: a\x01b\r\nContent-Type: text/plain; hp="cipher"\r\n\r\nx\r\n'
    )
    found = opened(b"From: anne@lab.example\r\nSubject: [...]\r\n" + encrypt(inner, [PAUL.certificate]))
    assert subjects(found.entity) == ["in"]
    for octets in (b"smime=pass", b"forged", b"Verdict", b"\x01"):
        assert octets not in head(found.entity)


def test_the_older_form_is_told_and_not_believed() -> None:
    inner = b'Subject: inside\r\nContent-Type: text/plain; protected-headers="v1"\r\n\r\nx\r\n'
    found = opened(message(encrypt(sign(inner, ANNE, NOW), [PAUL.certificate])))
    assert found.verdict.header_protection.scheme is HeaderProtectionScheme.NONE
    assert subjects(found.entity) == ["Synthetic"]
    assert "older-header-protection" in [finding.code for finding in found.verdict.findings]


def test_wrapped_message_protects_its_header() -> None:
    inner = b"Content-Type: message/rfc822\r\n\r\n" + message(ENTITY)
    wire = message(sign(inner, ANNE, NOW)).replace(b"Subject: Synthetic", b"Subject: forged", 1)
    found = opened(wire)
    assert found.verdict.signature is VALID
    assert found.verdict.header_protection.scheme is HeaderProtectionScheme.WRAPPED
    assert found.verdict.header_protection.altered == ("subject",)
    assert subjects(found.entity) == ["Synthetic"]


def test_pitfall_17_a_signed_mail_in_a_strangers_wrapper_protects_no_header() -> None:
    """Anybody can put an old mail of Anne's into a message of his own, give it a Subject, and encrypt that."""
    old = message(sign(ENTITY, ANNE, NOW)).replace(b"Subject: Synthetic", b"Subject: forged")
    wire = message(encrypt(b"Content-Type: message/rfc822\r\n\r\n" + old, [PAUL.certificate]))
    found = opened(wire)
    assert found.verdict.signature is VALID
    assert found.verdict.header_protection.scheme is HeaderProtectionScheme.NONE
    assert subjects(found.entity) == ["Synthetic"]
    signed = message(sign(b"Content-Type: message/rfc822\r\n\r\n" + old, ANNE, NOW))
    assert "subject" in opened(signed).verdict.header_protection.protected


@pytest.mark.parametrize(
    "field",
    [b"Resent-From: eve@evil.example", b"List-Post: <mailto:eve@evil.example>", b"Errors-To: eve@evil.example",
     b"Thread-Topic: evil", b"In-Reply-To: <evil@evil.example>", b"References: <evil@evil.example>"],
)  # fmt: skip
def test_pitfall_17_what_a_stranger_added_to_find_or_answer_a_mail_by_is_left_out(field: bytes) -> None:
    found = opened(field + b"\r\n" + protected(BASELINE))
    assert found.verdict.header_protection.altered == (field.partition(b":")[0].lower().decode(),)
    assert b"evil" not in head(found.entity)


@pytest.mark.parametrize("policy", [BASELINE, CLEAR])
def test_blind_copies_stay_blind_whatever_the_entity(policy: HeaderPolicy) -> None:
    header = b"From: a@b.example\r\nBcc: zoe@lab.example\r\nResent-Bcc: zoe@lab.example\r\n"
    for entity in (ENTITY, sign(ENTITY, ANNE, NOW)):
        inside, outside = protect_header(header, entity, policy)
        assert b"zoe" not in inside + outside
        assert b"From: a@b.example" in outside


def test_a_field_too_long_to_be_told_twice_reads_the_same_when_folded() -> None:
    line = b"References: " + b"<1@lab.example> " * 60 + b"<123456789@lab.example>"
    entity, _ = protect_header(b"Subject: x\r\n" + line + b"\r\n", ENTITY, BASELINE)
    values = parse_entity(entity).values("hp-outer")
    assert line.decode() in values
    with pytest.raises(MimeError):
        protect_header(b"X-A:" + b"x" * 994 + b"\r\n", ENTITY, BASELINE)


def test_a_stray_hp_parameter_gives_way() -> None:
    entity = ENTITY.replace(b"charset=utf-8", b'hp=no; charset=utf-8; format="flowed"')
    inside, _ = protect_header(b"Subject: x\r\n", entity, HeaderPolicy.OPEN)
    assert parse_entity(inside).content_type().parameters == {"charset": "utf-8", "format": "flowed", "hp": "cipher"}
