"""Acknowledgements: what is echoed, how refusals are told, and answers to frames nobody can read."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges import refusals
from bridges.hl7 import er7
from bridges.hl7.acknowledgement import AckHeader, accept, header_of, refuse
from bridges.hl7.mllp import encode
from bridges.report import Finding
from tests.support import reports
from trust.refusals import HL7Code, Refusal, Refused

AT = datetime(2026, 11, 19, 17, 15, 1, tzinfo=timezone(timedelta(hours=1)))
GOOD = reports.message(control_id="LAB-77")
BUSY = Refusal("test.busy", 451, "4.3.2", HL7Code.AR, "207", "451", "Try again later.", "Réessayez plus tard.")


def read(answer: bytes) -> er7.Er7Message:
    message = er7.parse(answer, max_bytes=100_000)
    assert isinstance(message, er7.Er7Message)
    return message


def test_accept() -> None:
    answer = accept(header_of(GOOD), "R1", AT)
    assert answer == (
        b"MSH|^~\\&|RELAIS|PFI-ESSAI|SIL-ESSAI|LABO-ESSAI|20261119171501+0100||ACK^R01^ACK|R1|P|2.5"
        b"|||||FRA|UNICODE UTF-8\r"
        b"MSA|AA|LAB-77\r"
    )


def test_accept_mdm_with_warnings() -> None:
    header = header_of(reports.message(kind="MDM", charset="8859/15"))
    warnings = [Finding("body-truncated", "OBX-12.5"), Refused(refusals.FLAG_VALUE, location="OBX^3^5")]
    message = read(accept(header, "R1", AT, warnings))
    assert message.header.field(9).component(2).text == "T02" and message.header.field(12).text == "2.6"
    assert message.header.field(18).text == "8859/15"
    assert [e.field(4).text for e in message.segments("ERR")] == ["W", "W"]
    assert message.segments("ERR")[0].field(7).text == "body-truncated OBX-12.5"


def test_refuse() -> None:
    message = read(refuse(header_of(GOOD), "R1", AT, Refused(refusals.INS_DIFFERS, "PID-3", "OBX^1^5")))
    msa, err = message.segments("MSA")[0], message.segments("ERR")[0]
    assert (msa.field(1).text, msa.field(2).text) == ("AE", "LAB-77")
    assert [err.field(2).component(n).text for n in (1, 2, 3)] == ["OBX", "1", "5"]
    assert err.field(3).raw == b"207^Application error^messageErrorCondition"
    assert err.field(4).text == "E"
    assert (err.field(5).component(1).text, err.field(5).component(3).text) == ("904", "applicationErrorCondition")
    assert err.field(7).text == "bridges.ins-differs PID-3"
    assert err.field(8).text == refusals.INS_DIFFERS.text_fr


def test_several_refusals_and_circumstances() -> None:
    one = Refused(BUSY)
    assert read(refuse(header_of(GOOD), "R1", AT, [one, one])).segments("MSA")[0].field(1).text == "AR"
    mixed = read(refuse(header_of(GOOD), "R1", AT, [one, Refused(refusals.HL7_CHARSET)]))
    assert mixed.segments("MSA")[0].field(1).text == "AE"
    assert [e.field(5).component(3).text for e in mixed.segments("ERR")] == [
        "SMTPERRORCODE",
        "applicationErrorCondition",
    ]


def test_texts_are_escaped_in_the_senders_separators() -> None:
    frame = b"MSH#$%!*#A#B#C$1.2$ISO#D#1##ORU$R01#ID$1#P#2.5\r"
    header = header_of(frame)
    assert (header.event, header.receiving_application, header.control_id) == ("R01", "C$1.2$ISO", "ID$1")
    answer = refuse(header, "R1", AT, Refused(refusals.HL7_TYPE_UNSUPPORTED, "a#b\r\nMSH|$c", "MSH^1^9"))
    assert answer.startswith(b"MSH#$%!*#C$1.2$ISO#D#A#B#") and answer.count(b"\r") == 3
    message = read(answer)
    assert message.segments("ERR")[0].field(2).raw == b"MSH$1$9"
    assert message.segments("ERR")[0].field(7).text.endswith("a#b\nMSH|$c")


def test_french_in_other_character_sets() -> None:
    latin = refuse(header_of(reports.message(charset="8859/15")), "R1", AT, Refused(refusals.DOCUMENT_ENCODING))
    assert "tronqué".encode("iso8859-15") in latin
    undeclared = refuse(AckHeader(), "R1", AT, Refused(refusals.DOCUMENT_ENCODING))
    assert undeclared.isascii() and b"tronque" in undeclared


@pytest.mark.parametrize("name", sorted(reports.spoilt()))
def test_spoilt_frames_get_an_answer(name: str) -> None:
    frame = reports.spoilt()[name]
    answer = read(refuse(header_of(frame), "R1", AT, Refused(refusals.HL7_UNREADABLE)))
    assert answer.segments("MSA")[0].field(1).text == "AE"
    has_id = name not in ("empty", "not-hl7", "no-header", "no-control-id")
    assert answer.segments("MSA")[0].field(2).text == ("RLS-000001" if has_id else "")


def test_small_tilde_and_truncated_headers() -> None:
    assert header_of(GOOD.replace(b"^~\\&", "^˜\\&".encode(), 1)).separators == er7.STANDARD_SEPARATORS
    assert header_of(GOOD[:40]).sending_application == "SIL-ESSAI"
    assert header_of(b"\xef\xbb\xbf" + GOOD).control_id == "LAB-77"


@given(st.binary(max_size=200))
def test_any_header_gives_an_answer_that_can_be_framed(tail: bytes) -> None:
    for frame in (tail, b"MSH" + tail, b"MSH|^~\\&|" + tail):
        header = header_of(frame)
        encode(accept(header, "R1", AT))
        encode(refuse(header, "R1", AT, Refused(refusals.HL7_UNREADABLE)))
