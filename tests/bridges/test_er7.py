"""The ER7 reader: spans, separators, character sets, escapes, and bytes that are no message."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.hl7 import er7
from tests.support import reports

HEAD = "MSH|^~\\&|A|B|C|D|20261119||ORU^R01|1|P|2.5"


def parse(data: bytes) -> er7.Er7Message:
    message = er7.parse(data, max_bytes=1_000_000)
    assert isinstance(message, er7.Er7Message), message
    return message


def message(*lines: str, end: str = "\r", charset: str = "UNICODE UTF-8", codec: str = "utf-8") -> bytes:
    return (end.join([f"{HEAD}|||||FRA|{charset}", *lines]) + end).encode(codec)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", b"\r\n"])
def test_fields_components_and_repetitions(end: str, prefix: bytes) -> None:
    data = prefix + message("PID|||1^^^A&1.2&ISO~2||NOM^PRÉNOM", "ZZZ|kept", end=end)
    read = parse(data)
    assert [s.name for s in read.segments()] == ["MSH", "PID", "ZZZ"]
    pid = read.segments("PID")[0]
    assert [r.component(1).text for r in pid.field(3).repetitions()] == ["1", "2"]
    assert pid.field(3).component(4).subcomponent(2).text == "1.2"
    assert pid.field(5).component(2).text == "PRÉNOM"
    assert pid.field(99).text == "" and not pid.field(99) and pid.field(99).repetitions() == []
    assert read.header.field(1).text == "|" and read.header.field(9).component(2).text == "R01"
    assert read.header.field(10).text == "1"
    assert read.serialise() == data


def test_null_is_not_empty() -> None:
    pid = parse(message('PID|""||x')).segments("PID")[0]
    assert pid.field(1).is_null and pid.field(1).text == "" and not pid.field(2).is_null


def test_five_encoding_characters_and_small_tilde() -> None:
    assert parse(message("PID|||1~2").replace(b"^~\\&|", b"^~\\&#|")).separators == er7.STANDARD_SEPARATORS
    for tilde in ("˜".encode(), b"\x98"):
        read = parse(message("PID|||1~2").replace(b"^~\\&|", b"^" + tilde + b"\\&|"))
        assert len(read.segments("PID")[0].field(3).repetitions()) == 2
        assert [f.code for f in read.findings] == ["separator-small-tilde"]


@pytest.mark.parametrize(
    ("charset", "codec", "codes"),
    [
        ("UNICODE UTF-8", "utf-8", []),
        ("8859/15", "iso8859-15", []),
        ("8859/1", "latin-1", []),
        ("UTF-8~UNICODE", "utf-8", []),
        ("", "utf-8", ["charset-undeclared"]),
        ("", "cp1252", ["charset-undeclared"]),
        ("UNICODE UTF-8", "cp1252", ["charset-fallback"]),
        ("ASCII", "cp1252", ["charset-fallback"]),
        ("8859/1", "cp1252", []),
    ],
)
def test_character_sets(charset: str, codec: str, codes: list[str]) -> None:
    read = parse(
        message("PID|||é€è" if codec in ("utf-8", "cp1252", "iso8859-15") else "PID|||éè", charset=charset, codec=codec)
    )
    wanted = "éè" if codec == "latin-1" else "é€è"
    assert read.segments("PID")[0].field(3).text == wanted
    found = [f.code for f in read.findings]
    # A cp1252 euro in a message that says 8859/1 is a control character there: read as meant, and said.
    assert found == (["charset-fallback"] if (charset, codec) == ("8859/1", "cp1252") else codes)


def test_fallback_keeps_valid_text_beside_it() -> None:
    data = message("PID|||Á x") + b"NTE|1||caf\xe9 \xc3\x81\r"
    read = parse(data)
    assert read.segments("PID")[0].field(3).text == "Á x"
    assert read.segments("NTE")[0].field(3).text == "café Á"
    assert [f.location for f in read.findings] == ["NTE-1"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "no-header"),
        (b"MSH", "no-header"),
        (b"PID|1\r", "no-header"),
        (b"MSH|^~\\&\r", "bad-separators"),
        (b"MSH|^^\\&|A\r", "bad-separators"),
        (b"MSH\r|^~\\&|A\r", "bad-separators"),
        (message("PID|1") + message("PID|1"), "several-messages"),
        (message("PID|\x00", charset="KLINGON"), "charset-unknown"),
        (message("PID|") + b"NTE|\x81\r", "charset-broken"),
        (message(*["NTE|1"] * 12_000), "too-many-segments"),
        (message("PID|" + "x" * 1_000_001), "too-large"),
    ],
)
def test_errors_are_values(data: bytes, kind: str) -> None:
    error = er7.parse(data, max_bytes=1_000_000)
    assert isinstance(error, er7.Er7Error) and error.kind == kind


def test_line_breaks_inside_a_field() -> None:
    read = parse(message("OBX|1|ED|||^TEXT^XML^Base64^QUJD\r\nREVG\r\nR0g=||||||F", "NTE|1"))
    obx = read.segments("OBX")[0]
    assert obx.field(5).component(5).raw == b"QUJD\r\nREVG\r\nR0g=" and obx.field(11).text == "F"
    assert [(f.code, f.location) for f in read.findings] == [("broken-segment", "OBX-1")]
    assert read.segments("NTE")[0].sequence == 1


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        ("a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f", "a|b^c&d~e\\f"),
        ("a\\.br\\b\\.sp2\\c", "a\nb\n\nc"),
        ("\\H\\bold\\N\\ \\.in+4\\x", "bold x"),
        ("caf\\XC3A9\\", "café"),
        ("\\XZZ\\ \\Zlocal\\ \\C2842\\", "\\XZZ\\ \\Zlocal\\ \\C2842\\"),
        ("\\XFF\\", "\\XFF\\"),
        ("lonely \\ backslash", "lonely \\ backslash"),
    ],
)
def test_unescape(escaped: str, plain: str) -> None:
    assert er7.unescape(escaped) == plain


@given(st.text(alphabet=st.characters(blacklist_categories=("Cc", "Cs"))))
def test_escape_round_trip(text: str) -> None:
    escaped = er7.escape(text)
    assert not set("|^~&") & set(escaped)
    assert er7.unescape(escaped) == text


@settings(max_examples=200)
@given(st.data())
def test_never_raises_and_stays_identical(data: st.DataObject) -> None:
    good = reports.message(documents=[b"<x/>"])
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    spoilt = good[:start] + data.draw(st.binary(max_size=40)) + good[stop:]
    read = er7.parse(spoilt, max_bytes=100_000)
    if isinstance(read, er7.Er7Message):
        assert read.serialise() == spoilt
        for segment in read.segments():
            for number in range(1, 25):
                for part in segment.field(number).repetitions():
                    assert isinstance(part.component(1).subcomponent(1).text, str)


def test_large_fields_are_not_copied() -> None:
    data = message("OBX|1|ED|||^TEXT^XML^Base64^" + "A" * 500_000)
    read = parse(data)
    part = read.segments("OBX")[0].field(5).component(5)
    assert len(part) == 500_000 and part.view.obj is read.data


def test_a_message_of_separators_costs_no_more_than_its_bytes() -> None:
    read = parse(message("OBX|" + "|" * 500_000, "PID|||" + "~" * 100_000))
    assert read.segments("OBX")[0].field(400_000).text == ""
    assert len(read.segments("PID")[0].field(3).repetitions()) == er7.MAX_REPETITIONS
    wrong = er7.parse(message("NTE|" + "\u00e9a" * 20_000, codec="latin-1"), max_bytes=1_000_000)
    assert wrong == er7.Er7Error("charset-broken", "MSH^1^18")
