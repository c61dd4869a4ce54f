"""Encoded words and parameters: read like mail clients do, written so that they read the same."""

from __future__ import annotations

import contextlib
import email
import email.policy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smime.canonical import is_robust, robust
from smime.mime import Field, MimeError, parse_entity
from smime.words import decoded_words, encoded_field


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?caf=C3=A9_noir?= ok", "café noir ok"),
        ("=?utf-8?B?Y2Fmw6k=?=", "café"),
        ("=?utf-8?b?Y2Fmw6k?=", "café"),
        ("=?iso-8859-15?q?=A4?= \t =?utf-8*fr?q?=C3=A9?=", "€é"),
        ("=?utf-8?b?A?=", ""),
        ("=?x-none?q?a?=", "=?x-none?q?a?="),
        ("=?utf-8?q?=FF?=", "\ufffd"),
    ],
)
def test_words_are_read(text: str, shown: str) -> None:
    assert decoded_words(text) == shown


def test_what_is_guessed_shows_ascii_in_any_charset() -> None:
    assert decoded_words("=?shift_jis?q?boss=40h.example?=", guess=True) == "boss@h.example"
    assert decoded_words("=?utf-7?q?boss+AEA-h.example?=", guess=True) == "boss@h.example"
    assert decoded_words("=?utf-7?q?+2AA-?=", guess=True).encode() is not None


@settings(max_examples=200, deadline=None)
@given(st.text(), st.booleans())
def test_reading_words_never_raises(text: str, guess: bool) -> None:
    decoded_words(f"=?utf-8?b?{text}?= =?{text}?q?x?=", guess=guess)


def test_reading_words_is_linear() -> None:
    for text in ("=?utf-8?q?" * 50_000, "=?" * 300_000, "=?a?q?" + "x" * 500_000, "?= " * 100_000 + " " * 300_000):
        started = time.process_time()
        decoded_words(text)
        assert time.process_time() - started < 2


HEADER = "".join(
    (
        'From: "Jérôme é" <a@b.example>, Zoé Éx Y <c@d.example>\r\n',
        "Subject: Résultat très  très " + "long " * 12 + "éé " * 40 + "ok\r\n",
    )
)


def test_raw_fields_of_attached_mail_are_made_fit_without_loss() -> None:
    raw = "Content-Type: message/rfc822\r\n\r\n" + HEADER + "Content-Type: text/plain; charset=utf-8\r\n\r\né\r\n"
    fit = robust(raw.encode())
    assert is_robust(fit)
    inner = email.message_from_bytes(fit, policy=email.policy.default).get_payload(0)
    assert inner["from"] == "Jérôme é <a@b.example>, Zoé Éx Y <c@d.example>"
    assert inner["subject"] == HEADER.split("Subject: ")[1].strip()
    assert inner.get_content().strip() == "é"


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_raw_file_names_are_made_fit_without_loss(charset: str) -> None:
    for name in ("café noir.pdf", "é" * 60 + "; x.pdf"):
        raw = f'Content-Type: application/pdf; name="{name}"\r\nContent-Disposition: attachment; filename="{name}"\r\n'
        fit = robust(raw.encode(charset) + b"\r\nx")
        assert is_robust(fit)
        assert email.message_from_bytes(fit, policy=email.policy.default).get_filename() == name
        assert parse_entity(fit).content_type().parameters["name"] == name


def test_an_address_that_is_not_ascii_cannot_be_made_so() -> None:
    for value in ("<zé@b.example>", "zé@b.example", "a@bé.example"):
        with pytest.raises(MimeError):
            encoded_field(Field("to", f"To: {value}\r\n".encode()))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["subject", "from", "content-type", "content-disposition", "x"]), st.binary(max_size=80))
def test_writing_fields_raises_nothing_else(name: str, value: bytes) -> None:
    with contextlib.suppress(MimeError):
        assert encoded_field(Field(name, name.encode() + b": " + value + b"\r\n")).isascii()
