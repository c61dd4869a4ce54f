"""Slicing MIME byte for byte, canonical form before signing, and From fields read strictly."""

from __future__ import annotations

import contextlib
import email
import email.policy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smime import MimeError, join_message, sign, split_message
from smime.addresses import AddressError, parse_mailboxes
from smime.canonical import is_seven_bit, robust
from smime.mime import parse_content_type, parse_entity, split_multipart
from tests.smime.people import NOW, person


def parts(body: bytes, boundary: str = "b") -> list[bytes]:
    source = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + body
    return [source[start:stop] for start, stop in split_multipart(parse_entity(source), boundary)]


def test_header_and_body_are_split_and_unfolded() -> None:
    entity = parse_entity(b"A: 1\r\nSubject: two\r\n\tlines \r\nb : x\r\n\r\nbody\r\n\r\nmore")
    assert [field.name for field in entity.fields] == ["a", "subject", "b"]
    assert entity.values("subject") == ["two\tlines"]
    assert entity.fields[1].raw == b"Subject: two\r\n\tlines \r\n"
    assert bytes(entity.body) == b"body\r\n\r\nmore"


def test_no_header_no_body_and_lone_line_feeds() -> None:
    assert bytes(parse_entity(b"\r\nbody").body) == b"body"
    assert bytes(parse_entity(b"A: 1\r\n").body) == b""
    assert bytes(parse_entity(b"A: 1\nB: 2\n\nbody\r\n\r\n").body) == b"body\r\n\r\n"
    assert parse_entity(b"").fields == ()


@pytest.mark.parametrize(
    "header", [b" folded first\r\n", b"no colon\r\n", b": empty\r\n", b"A\x00: x\r\n", b"\xc3\xa9: x\r\n"]
)
def test_lines_that_are_no_fields_are_refused(header: bytes) -> None:
    with pytest.raises(MimeError):
        parse_entity(header + b"\r\nbody")


def test_header_limits() -> None:
    for header in (b"A: " + b"x" * (1 << 20) + b"\r\n", b"A: x\r\n" * 1001):
        with pytest.raises(MimeError):
            parse_entity(header + b"\r\nbody")


@pytest.mark.parametrize(
    ("value", "media_type", "parameters"),
    [
        ("Text/Plain", "text/plain", {}),
        ('multipart/signed; boundary="a b;c"; Protocol=x', "multipart/signed", {"boundary": "a b;c", "protocol": None}),
        ('a/b (comment; name=no) ; name="q\\"x"', "a/b", {"name": 'q"x'}),
        ("a/b; name*0=one; name*1=two", "a/b", {"name": "onetwo"}),
        ("a/b; boundary=----=_Part_1 ; x=y", "a/b", {"boundary": "----=_Part_1", "x": "y"}),
        ("a/b; boundary = x", "a/b", {"boundary": "x"}),
        ("a/b; boundary=x; boundary=y", "a/b", {}),
        ("a/b; boundary=x; Boundary*=utf-8''y", "a/b", {}),
        ("a/b; boundary*0=x; boundary*1=y", "a/b", {}),
        ("a/b; boundary; boundary=y", "a/b", {}),
        ("a/b; boundary=x y", "a/b", {}),
        ('a/b; boundary=x"y"', "a/b", {}),
        ('a/b; boundary="x"y', "a/b", {}),
        ('a/b; boundary="x\\\\y"', "a/b", {}),
        ("a/b; boundary=(z)x", "a/b", {}),
        ('a/b; boundary="x "', "a/b", {}),
        ('a/b; boundary="\\x"', "a/b", {}),
        ("a/b (; boundary=x); boundary=y", "a/b", {}),
        ("a/b; name*=utf-8'fr'%C3%A9t%C3%A9.p7m", "a/b", {"name": "été.p7m"}),
        ("a/b; name*0*=utf-8''%C3%A9; name*1=.p7m", "a/b", {"name": "é.p7m"}),
        ("a/b; x=1; x=2;; =3; y", "a/b", {"x": "1"}),
        ("a/b; name*=nonsense''x", "a/b", {}),
        ("a/b; name*=idna''x", "a/b", {}),
        ("a/b; name*=undefined''x", "a/b", {}),
        ("a/b; name*=punycode''x", "a/b", {}),
        ("a/b; name*=a\0b''x", "a/b", {}),
        ("a/b; name*=ISO-8859-1''%e9", "a/b", {"name": "é"}),
    ],
)
def test_content_type(value: str, media_type: str, parameters: dict[str, str | None]) -> None:
    parsed = parse_content_type(value)
    assert parsed.media_type == media_type
    expected = {name: "x" if text is None else text for name, text in parameters.items()}
    assert parsed.parameters == expected


@pytest.mark.parametrize("value", ["", ";", 'a/b; x="open', "a/b (open"])
def test_unreadable_content_types(value: str) -> None:
    with pytest.raises(MimeError):
        parse_content_type(value)


def test_multipart_parts_are_exact() -> None:
    assert parts(b"pre\r\n--b\r\none\r\n\r\n--b \t\r\n two \r\n--b--\r\nepilogue") == [b"one\r\n", b" two "]
    assert parts(b"--b\r\n\r\n--b\r\n--b\r\nx\r\n--b--") == [b"", b"", b"x"]


def test_longer_boundaries_and_delimiters_inside_lines_are_content() -> None:
    assert parts(b"--b\r\n--bc\r\nx --b\r\n--b x\r\n--b--x\r\n--b--") == [b"--bc\r\nx --b\r\n--b x\r\n--b--x"]


@pytest.mark.parametrize(
    "body",
    [
        b"\n--b\r\nx\r\n--b--",
        b"--b\nx\r\n--b\r\ny\r\n--b--",
        b"x\n--b\r\n\r\nevil\n--b\r\n--b\r\ny\r\n--b--",
        b"--b\r\nx\n--b\ny\r\n--b--",
        b"--b\r\nx\r--b\ry\r\n--b--",
        b"--b\r\nx\r\n--b \t\ny\r\n--b--",
        b"--b\r\nx\r\n--b" + b" " * 80 + b"\r\ny\r\n--b--",
        b"--bc\r\nx\r\n--b\r\ny\r\n--b--",
        b"--b\r\nx\r\n--b--\r\n--b\r\ny\r\n--b--",
        b"--b\r\nx\r\n--b--\n--b\ny",
    ],
)
def test_what_a_lenient_reader_would_split_elsewhere_is_refused(body: bytes) -> None:
    with pytest.raises(MimeError):
        parts(body)


@pytest.mark.parametrize("body", [b"", b"--b\r\nx\r\n", b"--b\r\nx\r\n--b", b"--b\r\n" * 1002 + b"--b--"])
def test_unclosed_or_endless_multiparts_are_refused(body: bytes) -> None:
    with pytest.raises(MimeError):
        parts(body)


def test_boundary_must_be_one() -> None:
    for boundary in ("", "x" * 71, "é"):
        with pytest.raises(MimeError):
            parts(b"--b--", boundary)


def test_splitting_is_linear() -> None:
    def seconds(lines: int) -> float:
        started = time.process_time()
        parts(b"--b\r\n" + b"--bx\r\n" * lines + b"--b--")
        return time.process_time() - started

    assert seconds(200_000) < max(seconds(20_000), 0.001) * 10 * 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=40).filter(lambda part: b"--b" not in part), min_size=1, max_size=5))
def test_multipart_round_trip(contents: list[bytes]) -> None:
    assert parts(b"".join(b"--b\r\n" + content + b"\r\n" for content in contents) + b"--b--\r\n") == contents


def test_message_and_entity_come_apart_and_together() -> None:
    message = b"From: a@b.example\r\nContent-Type: text/plain\r\nMIME-Version: 1.0\r\n\r\nbody\r\n"
    outer, entity = split_message(message)
    assert outer == b"From: a@b.example\r\nMIME-Version: 1.0\r\n"
    assert entity == b"Content-Type: text/plain\r\n\r\nbody\r\n"
    assert join_message(outer, entity) == outer + entity
    assert join_message(b"From: a@b.example\r\n", entity) == b"From: a@b.example\r\nMIME-Version: 1.0\r\n" + entity


# --- Canonical form --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"a\r\n", b"x" * 998, b"x" * 998 + b"\r\n" + b"y" * 998 + b"\r\n"])
def test_fit_bytes(data: bytes) -> None:
    assert is_seven_bit(data)


@pytest.mark.parametrize(
    "data", [b"\xe9", b"\0", b"a\nb", b"a\rb", b"\n\r\n\r", b"x" * 999, b"a\r\n" + b"x" * 999 + b"\r\n"]
)
def test_unfit_bytes(data: bytes) -> None:
    assert not is_seven_bit(data)


def test_fit_entities_are_signed_as_they_are() -> None:
    entity = b"Content-Type: text/plain\r\n\r\n leading\r\n\r\n"
    assert robust(entity) is entity


MIXED = (
    b"Content-Type: multipart/mixed; boundary=x\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"--x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xc3\xa9t\xc3\xa9 \r\n"
    b"--x\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: binary\r\n\r\n%PDF\x00\xff\n\r\n"
    b"--x\r\nContent-Type: message/rfc822\r\n\r\nContent-Type: text/html\r\n\r\n<p>\xe9\r\n--x--\r\n"
)


def test_unfit_entities_are_converted_before_signing() -> None:
    converted = robust(MIXED)
    assert is_seven_bit(converted)
    before, after = (email.message_from_bytes(data, policy=email.policy.default) for data in (MIXED, converted))
    texts = [part.get_payload(decode=True) for part in after.walk() if not part.is_multipart()]
    assert texts == [b"\xc3\xa9t\xc3\xa9 ", b"%PDF\x00\xff\n", b"<p>\xe9"]
    assert [part.get_content_type() for part in after.walk()] == [part.get_content_type() for part in before.walk()]
    assert b"charset=utf-8" in converted


@pytest.mark.parametrize(
    ("entity", "body"),
    [
        (b"Content-Type: text/plain\n\na\nb\n", b"a\r\nb\r\n"),
        (b"\r\nx" + b"y" * 2000, b"x" + b"y" * 2000),
        (b"Content-Type: image/png\r\n\r\na\nb", b"a\nb"),
        (b"Content-Transfer-Encoding: base64\r\n\r\nQUI=\n", b"AB"),
        (b"Content-Type: text/plain\r\n\r\n\xe9" * 1, b"\xe9"),
    ],
)
def test_conversion_keeps_the_content(entity: bytes, body: bytes) -> None:
    converted = robust(entity)
    assert is_seven_bit(converted)
    assert bytes(parse_entity(converted).decoded()).removesuffix(b"\n") in (body, body.removesuffix(b"\n"))


@pytest.mark.parametrize(
    "entity",
    [
        b"To: z\xe9@lab.example\r\n\r\nx",
        b"Content-Type: multipart/signed; boundary=x\r\n\r\n--x\r\n\r\n\xe9\r\n--x--\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\n\xe9\r\n",
    ],
)
def test_what_cannot_be_converted_is_refused(entity: bytes) -> None:
    with pytest.raises(ValueError):
        sign(entity, person("anne@lab.example"), NOW)


def test_signature_boundary_is_absent_from_the_content_and_new_each_time() -> None:
    entity = b"\r\nx\r\n"
    boundaries = {
        parse_entity(sign(entity, person("anne@lab.example"), NOW)).content_type().parameters["boundary"]
        for _ in range(5)
    }
    assert len(boundaries) == 5


# --- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a@b.example", ["a@b.example"]),
        ("A.B@C.Example", ["A.B@c.example"]),
        ("Doe, John <j@b.example>", None),
        ('"Doe, John" <j@b.example>, k@b.example', ["j@b.example", "k@b.example"]),
        ("(c (nested) \\) ) a@b.example (d)", ["a@b.example"]),
        ("Zoé <z@été.example>", ["z@xn--t-9fab.example"]),
        ("a@b@c.example", None),
        ("a@b.example x", None),
        ("<a@b.example> <c@d.example>", None),
        ("x y", None),
        ("a..b@c.example", None),
        ("a@.example", None),
        ('"a b"@c.example', None),
        ("a@b.example,", None),
        ("", None),
        ("a\u00a0b <c@d.example>", ["c@d.example"]),
        ("undisclosed:;", None),
        ('"open <a@b.example>', None),
        ("a@[192.0.2.1]", None),
    ],
)
def test_mailboxes(value: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(AddressError):
            parse_mailboxes(value)
    else:
        assert parse_mailboxes(value) == expected


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='ab@.<>,"\\() :;é\0', max_size=30))
def test_mailboxes_raise_nothing_else(value: str) -> None:
    with contextlib.suppress(AddressError):
        parse_mailboxes(value)
