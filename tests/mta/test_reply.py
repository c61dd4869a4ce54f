"""Replies, addresses and content checks: pure functions, with the inputs an attacker would choose."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.smtp.address import is_address, parse_path, valid_envid, valid_notify, valid_orcpt
from mta.smtp.content import crlf_only, lines_fit, with_crlf
from mta.smtp.reply import Reply, ReplyError, ReplyReader, capabilities, scrub
from mta.smtp.target import xtext


def test_replies_are_cut_wherever_the_network_cut_them() -> None:
    wire = b"220 hello\r\n250-first\r\n250-SIZE 100\r\n250 8BITMIME\r\n354\r\n"
    whole = ReplyReader().feed(wire)
    assert whole == [Reply(220, ("hello",)), Reply(250, ("first", "SIZE 100", "8BITMIME")), Reply(354, ("",))]
    reader, cut = ReplyReader(), []
    for octet in wire:
        cut += reader.feed(bytes([octet]))
    assert cut == whole
    assert reader.empty
    assert capabilities(whole[1]) == {"SIZE": "100", "8BITMIME": ""}


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"\r\n",
        b"99 low\r\n",
        b"250-a\r\n251 b\r\n",
        b"250" + b"x" * 10 + b"\r\n",
        b"250 " + b"x" * 3000,
        b"250 " + b"x" * 3000 + b"\r\n",
        b"250-x\r\n" * 200,
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_what_is_no_reply_ends_the_conversation(wire: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyReader().feed(wire)


@given(st.binary(max_size=300))
def test_any_octets_give_replies_or_an_error(wire: bytes) -> None:
    try:
        for reply in ReplyReader().feed(wire):
            assert reply.words.isprintable()
    except ReplyError:
        pass


def test_kept_words_name_nobody() -> None:
    reply = Reply(550, ("5.1.1 <279035121518989@patient.example>: user", "279 035 121 518 989 unknown \x1b[31m"))
    assert reply.words == "550 5.1.1 <<address>>: user <number> unknown ?[31m"
    assert reply.enhanced == "5.1.1"
    assert scrub("queued as 4XyZ1234 250") == "queued as 4XyZ1234 250"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b", True),
        ("2A0357279035121@patient.example", True),
        ("a.b+c=d@x-y.example", True),
        ("a" * 64 + "@b.example", True),
        ("a" * 65 + "@b.example", False),
        ("a@" + "b" * 64 + ".example", False),
        ("a@b..example", False),
        ("a..b@b.example", False),
        (".a@b.example", False),
        ("a@-b.example", False),
        ("a@b.example.", False),
        ("a b@c.example", False),
        ("é@b.example", False),
        ("a@b.example\r\nRCPT TO:<x@y>", False),
        ("a@b>@c.example", False),
        ("a@", False),
        ("", False),
    ],
)
def test_addresses(text: str, expected: bool) -> None:
    assert is_address(text) is expected


def test_paths_and_parameters() -> None:
    path = parse_path("FROM:<A@B.Example> SIZE=1 ENVID=aB+3D ret=HDRS", "FROM")
    assert path is not None
    assert (path.address, path.parameters) == ("A@b.example", {"SIZE": "1", "ENVID": "aB+3D", "RET": "HDRS"})
    assert parse_path("from: <>", "FROM") is not None
    assert parse_path("TO:<>", "TO") is None
    assert parse_path("TO:<postmaster>", "TO") is None
    postmaster = parse_path("TO:<PostMaster>", "TO", postmaster_domain="g.example")
    assert postmaster is not None
    assert postmaster.address == "PostMaster@g.example"
    assert [valid_notify(v) for v in ("NEVER", "success,DELAY", "NEVER,SUCCESS", "", "SUCCESS,SUCCESS")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert [valid_envid(v) for v in ("a+2B", "a+2b", "a=b", "", "x" * 101)] == [True, False, False, False, False]
    assert [valid_orcpt(v) for v in ("rfc822;a@b", "a@b", "rfc822;", "rfc822;a b")] == [True, False, False, False]


@given(st.text(max_size=60))
def test_xtext_is_always_valid(text: str) -> None:
    encoded = xtext(text)
    assert not encoded or valid_envid(encoded) or len(encoded) > 100


@given(st.binary(max_size=200))
def test_line_ends_after_normalising(content: bytes) -> None:
    assert crlf_only(with_crlf(content))


@given(st.lists(st.integers(0, 30), max_size=30), st.booleans())
def test_long_lines_are_found_wherever_they_are(lengths: list[int], ended: bool) -> None:
    content = b"\r\n".join(b"x" * length for length in lengths) + (b"\r\n" if ended else b"")
    assert lines_fit(content, limit=20) is (max(lengths, default=0) <= 20)


def test_addresses_are_removed_in_no_time() -> None:
    started = time.monotonic()
    assert "@" not in scrub("<dr.gris@op1.example>:a@b,c@@d=e@f (x@y)")
    assert len(Reply(550, ("a" * 2040,) * 128).words) == 300
    assert time.monotonic() - started < 0.5
