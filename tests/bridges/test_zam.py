"""Business acknowledgements as bytes, read back with our own reader."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bridges import receipts_codes
from bridges.hl7 import er7, zam
from bridges.hl7.acknowledgement import AckHeader, header_of
from bridges.hl7.zam import Acknowledgement, ErrorTable, ZamEvent, ZamFailure
from bridges.receipts_codes import dossier_failure, integration_failure, refusal_failure, status_failure
from directory import refusals as directory_refusals
from mta import refusals as mta_refusals
from smime import refusals as smime_refusals
from trust.refusals import join_catalogues

AT = datetime(2026, 11, 21, 9, 34, tzinfo=UTC)
HEADER = header_of(
    b"MSH|^~\\&|SIL|LABO\\T\\CIE|PFI|CABX|20261121093000||ORU^R01^ORU_R01|M1|P|2.5|||||FRA|UNICODE UTF-8\r"
)
CATALOGUE = join_catalogues(
    [
        mta_refusals.CATALOGUE,
        directory_refusals.CATALOGUE,
        (smime_refusals.NO_ENCRYPTION_CERTIFICATE, smime_refusals.CANNOT_OPEN),
    ]
)


def read(content: bytes) -> er7.Er7Message:
    message = er7.parse(content, max_bytes=10_000)
    assert isinstance(message, er7.Er7Message)
    assert not message.findings
    return message


def test_the_annexed_skeleton() -> None:
    failure = ZamFailure(ErrorTable.SMTP, "550", "Boîte aux lettres non disponible")
    content = zam.compose(
        HEADER, "Z1", Acknowledgement(ZamEvent.RECEPTION, AT, failure, "x.y@domaine.mssante.fr", "801234567897")
    )
    assert content.decode().split("\r") == [
        "MSH|^~\\&|PFI|CABX|SIL|LABO\\T\\CIE|20261121093400+0000||ZAM^Z02^ZAM_Z01|Z1|P|2.6|||||FRA|UNICODE UTF-8|||"
        "2.1^CISIS_CDA_HL7_V2",
        "EVN||20261121093400+0000",
        "OBX|1|CWE|ACK_RECEPTION_MSS^Accusé de réception MSSanté^AckMetierZAM|M1|N^^expandedYes-NoIndicator||||||F",
        "OBX|2|XTN|DESTINATAIRE_MSS^Destinataire MSSanté^AckMetierZAM|801234567897|^^X.400^x.y@domaine.mssante.fr"
        "||||||F",
        "ERR|||207^Application error^messageErrorCondition|E|550^Boîte aux lettres non disponible^SMTPERRORCODE",
        "",
    ]


@pytest.mark.parametrize(
    ("event", "status", "party"),
    [
        (ZamEvent.DOSSIER, "ACK_RECEPTION_DMP", None),
        (ZamEvent.RECEPTION, "ACK_RECEPTION_MSS", "DESTINATAIRE_MSS"),
        (ZamEvent.READING, "ACK_LECTURE_MSS", "LECTEUR_MSS"),
    ],
)
def test_a_yes_has_no_error(event: ZamEvent, status: str, party: str | None) -> None:
    message = read(zam.compose(HEADER, "Z1", Acknowledgement(event, AT, address="x@y.example")))
    observations = message.segments("OBX")
    assert observations[0].field(3).component(1).text == status
    assert observations[0].field(4).text == "M1"
    assert observations[0].field(5).component(1).text == "Y"
    assert [segment.field(11).text for segment in observations] == ["F"] * len(observations)
    assert [segment.field(3).component(1).text for segment in observations[1:]] == ([party] if party else [])
    assert not message.segments("ERR")
    assert message.header.field(9).component(2).text == event.value


@pytest.mark.parametrize(
    ("charset", "declared", "codec"),
    [
        ("8859/15", "8859/15", "iso8859-15"),
        ("UNICODE~UTF-8", "UNICODE~UTF-8", "utf-8"),
        ("", "UNICODE UTF-8", "utf-8"),
        ("KLINGON", "UNICODE UTF-8", "utf-8"),
        ("ASCII", "ASCII", "ascii"),
    ],
)
def test_the_character_set_is_echoed_and_true(charset: str, declared: str, codec: str) -> None:
    content = zam.compose(replace(HEADER, charset=charset), "Z1", Acknowledgement(ZamEvent.DOSSIER, AT))
    assert f"|{declared}|" in content.decode(codec)
    label = read(content).segments("OBX")[0].field(3).component(2).text
    assert label == ("Accuse de reception DMP" if codec == "ascii" else "Accusé de réception DMP")


def test_other_separators_and_hostile_values() -> None:
    header = header_of(b"MSH$*~!&$A*1$B$C$D$20261121$$ORU*R01$ID$T$2.5\r")
    failure = ZamFailure(ErrorTable.SMTP, "550", "a$b*c\rMSH|x", "\x0b\x1c", "é!$")
    message = read(zam.compose(header, "Z1", Acknowledgement(ZamEvent.READING, AT, failure, "x$*@y", "1$2")))
    assert [segment.name for segment in message.segments()] == ["MSH", "EVN", "OBX", "OBX", "ERR"]
    assert message.header.field(5).component(2).text == "1"
    assert message.segments("OBX")[1].field(5).component(4).text == "x$*@y"
    assert message.segments("ERR")[0].field(5).component(2).text == "a$b*c\nMSH|x"


def test_nothing_at_all_of_the_original_header() -> None:
    message = read(zam.compose(AckHeader(), "Z1", Acknowledgement(ZamEvent.DOSSIER, AT)))
    assert message.header.field(11).text == "P"


def test_the_identifier_is_stable_and_short() -> None:
    assert zam.control_id("zam:d1:Z02") == zam.control_id("zam:d1:Z02") != zam.control_id("zam:d2:Z02")
    assert len(zam.control_id("zam:d1:Z02")) == 20


@pytest.mark.parametrize(
    ("code", "detail", "expected"),
    [
        ("mta.mailbox-unknown", "", "550"),
        ("mta.remote-refused", "RCPT: 551 5.1.6 moved to 10.0.0.550", "551"),
        ("mta.remote-refused", "DATA: 571 5.7.1 no", "554"),
        ("mta.remote-refused", "DATA: 425 no", "554"),
        ("mta.remote-refused", "", "554"),
        ("mta.expired", "mta.unreachable", "554"),
        ("directory.recipient-unknown", "", "550"),
        ("smime.no-encryption-certificate", "", "550"),
        ("a-code-of-the-past", "", "554"),
    ],
)
def test_our_refusals_in_smtp_codes(code: str, detail: str, expected: str) -> None:
    failure = refusal_failure(code, detail, CATALOGUE)
    assert (failure.table, failure.code, failure.label) == (
        ErrorTable.SMTP,
        expected,
        receipts_codes.SMTP_LABELS[expected],
    )


@pytest.mark.parametrize(
    ("status", "diagnostic", "expected"),
    [
        ("5.1.1", "smtp; 550 5.1.1 <someone> unknown", "550"),
        ("5.2.2", "", "552"),
        ("5.2.2", "smtp; 452 4.2.2 full", "452"),
        ("5.3.4 (too big)", "x-other; 5.3.4", "523"),
        ("4.4.7", "", "441"),
        ("4.9.9", "", "451"),
        ("4.9.9", "smtp; 424 4.9.9 busy", "451"),
        ("", "", "554"),
        ("nonsense", "550x 250 ok", "554"),
    ],
)
def test_status_codes_in_smtp_codes(status: str, diagnostic: str, expected: str) -> None:
    assert status_failure(status, diagnostic).code == expected


def test_the_dossier_s_and_the_integrators_codes() -> None:
    assert dossier_failure("bridges.dossier-closed", CATALOGUE).code == "DMPClosed"
    assert dossier_failure("bridges.hl7-unreadable", CATALOGUE).code == "XDSRegistryError"
    assert integration_failure("902").label == "Identifiant patient inconnu"
    assert integration_failure("123").code == integration_failure("").code == "906"
