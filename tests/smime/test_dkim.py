"""DKIM both ways with dkimpy as the other side, and the ways to abuse a signature."""

from __future__ import annotations

from datetime import timedelta

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import DkimKey, MimeError, public_record, sign_dkim, verify_dkim
from smime.dkim import _without_empty_lines
from smime.mime import parse_entity
from tests.smime.people import NOW, new_key

KEY = DkimKey("lab.example", "relais", new_key("rsa2048", "dkim"))
RECORD = public_record(KEY.key)
PEM = KEY.key.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
MESSAGE = (
    b"From: Anne <anne@lab.example>\r\nTo: paul@clinic.example\r\nSubject:  two   words\r\n\t folded \r\n"
    b"Date: Mon, 1 Jun 2026 12:00:00 +0000\r\nMessage-ID: <1@lab.example>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain\r\n\r\nA  line \t\r\n\r\n .dot\t tab\r\n\r\n\r\n"
)


def published(domain: str, selector: str) -> str | None:
    return {("lab.example", "relais"): RECORD}.get((domain, selector))


def dns(name: bytes, timeout: int = 5) -> bytes:
    assert name == b"relais._domainkey.lab.example."
    return f"v=DKIM1; k=rsa; p={RECORD}".encode()


def outcome(message: bytes, **options) -> list[tuple[str, str]]:
    return [(one.result, one.detail) for one in verify_dkim(message, options.pop("key", published), **options)]


def test_dkimpy_verifies_what_we_sign() -> None:
    field = sign_dkim(MESSAGE, KEY, NOW)
    assert field.endswith(b"\r\n")
    assert max(map(len, field.split(b"\r\n"))) <= 78
    assert dkim.verify(field + MESSAGE, dnsfunc=dns)
    assert outcome(field + MESSAGE) == [("pass", "")]


@pytest.mark.parametrize("header_form", [b"simple", b"relaxed"])
@pytest.mark.parametrize("body_form", [b"simple", b"relaxed"])
@pytest.mark.parametrize("body", [MESSAGE.partition(b"\r\n\r\n")[2], b"", b"\r\n\r\n", b"no end", b" \r\n"])
def test_we_verify_what_dkimpy_signs(header_form: bytes, body_form: bytes, body: bytes) -> None:
    message = MESSAGE.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    field = dkim.sign(message, b"relais", b"lab.example", PEM, canonicalize=(header_form, body_form))
    assert outcome(field + message) == [("pass", "")]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b"a", b"b  ", b"."]), max_size=30))
def test_dkimpy_agrees_on_any_body(pieces: list[bytes]) -> None:
    message = b"From: a@lab.example\r\nSubject: x\r\n\r\n" + b"".join(pieces) + b"\r\n"
    field = sign_dkim(message, KEY, NOW)
    assert dkim.verify(field + message, dnsfunc=dns)
    assert outcome(field + message) == [("pass", "")]


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        (b"A  line", b"B  line", "body hash"),
        (b"two   words", b"three words", "signature"),
        (b"From: Anne", b"From: Eve", "signature"),
        (b"Content-Type: text/plain", b"Content-Type: text/html", "signature"),
    ],
)
def test_alterations_are_seen(old: bytes, new: bytes, detail: str) -> None:
    signed = sign_dkim(MESSAGE, KEY, NOW) + MESSAGE
    assert outcome(signed.replace(old, new)) == [("fail", detail)]


def test_relaxed_forms_survive_refolding() -> None:
    signed = sign_dkim(MESSAGE, KEY, NOW) + MESSAGE
    assert outcome(signed.replace(b"two   words\r\n\t folded", b"two words folded")) == [("pass", "")]


@pytest.mark.parametrize(
    "added", [b"From: eve@evil.example", b"Subject: other", b"Content-Type: text/html", b"Reply-To: e@e.example"]
)
def test_oversigned_fields_cannot_be_added(added: bytes) -> None:
    field = sign_dkim(MESSAGE, KEY, NOW)
    assert outcome(field + added + b"\r\n" + MESSAGE) == [("fail", "signature")]


def test_l_is_never_written_and_content_behind_it_fails() -> None:
    assert b" l=" not in sign_dkim(MESSAGE, KEY, NOW)
    field = dkim.sign(MESSAGE, b"relais", b"lab.example", PEM, length=True)
    assert outcome(field + MESSAGE) == [("pass", "")]
    assert outcome(field + MESSAGE + b"appended\r\n") == [("fail", "l= is not the length of the body")]


def test_signing_needs_a_from_field() -> None:
    with pytest.raises(MimeError):
        sign_dkim(b"To: paul@clinic.example\r\n\r\n", KEY)


def test_a_body_that_is_not_joined_yet_is_signed_all_the_same() -> None:
    header, body = MESSAGE.split(b"\r\n\r\n", 1)
    apart = parse_entity(b"Content-Type: text/plain\r\n\r\n" + body)
    assert sign_dkim(header + b"\r\n\r\n", KEY, NOW, body=apart) == sign_dkim(MESSAGE, KEY, NOW)


def test_dates() -> None:
    field = sign_dkim(MESSAGE, KEY, NOW)
    expiring = field.replace(b" t=", f" x={int(NOW.timestamp()) + 60}; t=".encode())
    assert outcome(expiring + MESSAGE, at=NOW + timedelta(minutes=2)) == [("fail", "expired")]
    assert outcome(expiring + MESSAGE, at=NOW)[0][1] == "signature"  # not expired: only altered


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"v=1", b"v=2"),
        (b"rsa-sha256", b"rsa-sha1"),
        (b"relaxed/relaxed", b"loose"),
        (b"h=from:", b"h=x:"),
        (b"s=relais", b"s=other"),
        (b"bh=", b"bh=!"),
        (b"d=lab.example", b"i=a@evil.example; d=lab.example"),
        (b"v=1;", b"v=1; v=1;"),
        (b"v=1;", b"v=1; l=-3;"),
        (b"v=1;", b"v=1; x=soon;"),
        (b" b=", b" c c="),
    ],
)
def test_unusable_signatures_are_permanent_errors(old: bytes, new: bytes) -> None:
    field = sign_dkim(MESSAGE, KEY, NOW)
    broken = field.replace(b"h=from:from:", b"h=x:x:") if old == b"h=from:" else field.replace(old, new)
    assert broken != field
    assert outcome(broken + MESSAGE)[0][0] == "permerror"


@pytest.mark.parametrize(
    ("old", "new", "detail"),
    [
        ("d=lab.example;", "d=lab.example.;", "domain or selector"),
        ("d=lab.example;", "d=lab..example;", "domain or selector"),
        ("d=lab.example;", "d=\N{KELVIN SIGN}ab.example;", "domain or selector"),
        ("s=relais;", "s=re lais;", "domain or selector"),
        ("s=relais;", "s=re/lais;", "domain or selector"),
        ("v=1;", "v=1; x=1000;", "x="),
        ("v=1;", "v=1; x=\N{ARABIC-INDIC DIGIT ONE};", "x="),
    ],
)
def test_tags_are_what_they_must_be(old: str, new: str, detail: str) -> None:
    """Not only no key is found: nothing is asked, for a name that is spelled otherwise may be somebody else's."""
    field = sign_dkim(MESSAGE, KEY, NOW).decode()
    asked: list[str] = []
    broken = field.replace(old, new).encode()
    assert broken != field.encode()
    (found,) = verify_dkim(broken + MESSAGE, lambda domain, _: asked.append(domain) or RECORD, NOW)  # type: ignore[func-returns-value]
    assert (found.result, found.detail, asked) == ("permerror", detail, [])


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("v=DKIM1; p=RECORD", "pass"),
        (" p = RECORD ; n=note", "pass"),
        ("v=DKIM1; h=sha1; p=RECORD", "permerror"),
        ("v=DKIM1; k=ed25519; p=RECORD", "permerror"),
        ("v=DKIM2; p=RECORD", "permerror"),
        ("v=DKIM1; p=", "permerror"),
        ("", "permerror"),
        ("p=AAAA", "permerror"),
        ("garbage é", "permerror"),
        (None, "permerror"),
    ],
)
def test_published_records(record: str | None, expected: str) -> None:
    if record is not None:
        record = record.replace("RECORD", RECORD)
    signed = sign_dkim(MESSAGE, KEY, NOW) + MESSAGE
    assert outcome(signed, key=lambda domain, selector: record)[0][0] == expected


def test_no_answer_is_a_temporary_error() -> None:
    def unreachable(domain: str, selector: str) -> str:
        raise OSError("timed out")

    assert outcome(sign_dkim(MESSAGE, KEY, NOW) + MESSAGE, key=unreachable)[0][0] == "temperror"


def test_weak_rsa_keys_are_refused() -> None:
    weak = DkimKey("lab.example", "relais", new_key("rsa1024", "weak-dkim"))
    record = public_record(weak.key)
    assert outcome(sign_dkim(MESSAGE, weak, NOW) + MESSAGE, key=lambda d, s: record) == [("pass", "")]


def test_ed25519_example_of_rfc_8463() -> None:
    """Appendix A of the RFC."""
    message = (
        b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
        b" d=football.example.com; i=@football.example.com;\r\n"
        b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
        b" subject : date : message-id : from : subject : date;\r\n"
        b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
        b" b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
        b" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
        b"From: Joe SixPack <joe@football.example.com>\r\n"
        b"To: Suzie Q <suzie@shopping.example.net>\r\n"
        b"Subject: Is dinner ready?\r\n"
        b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
        b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\r\n"
        b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
    )
    record = "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    assert outcome(message, key=lambda domain, selector: record) == [("pass", "")]
    assert outcome(message.replace(b"dinner", b"lunch"), key=lambda domain, selector: record) == [("fail", "signature")]


def test_every_signature_gets_its_result_up_to_ten() -> None:
    field = sign_dkim(MESSAGE, KEY, NOW)
    broken = field.replace(b"relaxed/relaxed", b"simple/simple")
    assert [one[0] for one in outcome(broken + field + MESSAGE)] == ["fail", "pass"]
    assert len(outcome(field * 11 + MESSAGE)) == 10


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='vabhdscil=;1/: \t"é@', max_size=60))
def test_verifying_never_raises(value: str) -> None:
    for one in verify_dkim(b"DKIM-Signature: " + value.encode() + b"\r\n" + MESSAGE, published):
        assert one.result in ("fail", "permerror")
    assert verify_dkim(value.encode(), published) is not None


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="\r\na ", max_size=14))
def test_empty_lines_at_the_end_do_not_count(text: str) -> None:
    data = text.encode()
    end = len(data)
    while data[:end].endswith(b"\r\n"):
        end -= 2
    assert _without_empty_lines(data) == _without_empty_lines(memoryview(data)) == end
