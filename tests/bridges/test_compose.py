"""The composed mail, read back as an ordinary client reads it."""

from __future__ import annotations

import email
import email.policy
import io
import re
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.compose import ComposeOptions, compose, pdf_names
from bridges.report import Action, Audience, Flags, Report
from bridges.xdm import XdmContent, read_xdm
from tests.bridges.fictitious import CDA, PATIENT, document, report, result

AT = datetime(2026, 11, 21, 9, 30, tzinfo=timezone(timedelta(hours=1)))
OPTIONS = ComposeOptions(software_reference="NIL-1234.5", environment="production", host_name="relais.example")
OWN_PDF = b"%PDF-1.4 the author's own \x00\xff"
QUIET = report(document(pdf=OWN_PDF))
"""A report whose twin needs no rendering, for the tests that look at headers."""


def composed(one: Report = QUIET, audience: Audience = Audience.PROFESSIONAL, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "sender_address": "labo@labo.mssante.example",
        "sender_name": "Laboratoire Témoin",
        "recipient_address": "jean.test@praticien.mssante.example",
        "recipient_name": "Jean TEST",
        "message_id": "<abc.1@relais.example>",
        "at": AT,
        "options": OPTIONS,
    }
    return compose(one, audience=audience, **(arguments | changes))  # type: ignore[arg-type]


def read(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, policy=email.policy.default)  # type: ignore[return-value]


def assert_on_the_wire(data: bytes) -> None:
    """7-bit, CRLF only, lines within RFC 5322 §2.1.1."""
    assert data.isascii()
    assert b"\0" not in data
    assert data.endswith(b"--\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", data)
    assert max(map(len, data.split(b"\r\n"))) <= 78


def test_every_header_is_the_one_the_profile_asks() -> None:
    data = composed()
    assert_on_the_wire(data)
    mail = read(data)
    assert not mail.defects
    assert mail.keys() == [
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "MIME-Version",
        "X-MSS-NIL",
        "X-MSS-CODECDA",
        "X-MSS-INS",
        "Disposition-Notification-To",
        "Content-Type",
    ]
    assert mail["From"].addresses[0].display_name == "Laboratoire Témoin"
    assert mail["From"].addresses[0].addr_spec == "labo@labo.mssante.example"
    assert mail["To"].addresses[0].addr_spec == "jean.test@praticien.mssante.example"
    assert mail["Subject"] == "XDM/1.0/DDM+CR d'examens biologiques FICTIF-ELAN Zoe 28/03/1979"
    assert mail["Date"].datetime == AT
    assert mail["Message-ID"] == "<abc.1@relais.example>"
    assert mail["X-MSS-NIL"] == "NIL-1234.5"
    assert mail["X-MSS-CODECDA"] == "11502-2"
    assert mail["X-MSS-INS"] == "O"
    assert mail["Disposition-Notification-To"] == "labo@labo.mssante.example"


def test_the_parts_are_summary_twin_and_archive() -> None:
    text, twin, archive = read(composed()).iter_parts()
    assert text.get_content_type() == "text/plain"
    assert text.get_content_charset() == "utf-8"
    assert "Patient : FICTIF-ÉLAN" in text.get_content()
    assert text.get_content_disposition() is None
    assert twin.get_content_type() == "application/pdf"
    assert twin.get_filename() == "20261120_CR-d-examens-biologiques_FICTIF-ELAN_Zoe.pdf"
    assert twin.get_content() == OWN_PDF
    assert archive.get_content_type() == "application/zip"
    assert archive.get_filename() == "IHE_XDM.zip"
    content = read_xdm(archive.get_content())
    assert isinstance(content, XdmContent)
    assert content.documents[0].content == CDA
    assert content.documents[0].hash_ok
    assert not content.findings


def test_twins_of_one_document_travel_in_one_archive_each_with_its_pdf() -> None:
    both = report(
        document(level=1, pdf=OWN_PDF), document(unique_id="1.2.3.4.101", results=(result(interpretation="HH"),))
    )
    mail = read(composed(both))
    _, first, second, archive = mail.iter_parts()
    assert first.get_content() == OWN_PDF
    assert second.get_content().startswith(b"%PDF-1.4")
    assert second.get_filename().endswith("_Zoe_2.pdf")
    with zipfile.ZipFile(io.BytesIO(archive.get_content())) as opened:
        assert "IHE_XDM/SUBSET01/DOC00002.XML" in opened.namelist()
    assert mail["Subject"].startswith("XDM/1.0/DDM+CR d'examens biologiques ")
    assert mail["X-MSS-CODECDA"] == "11502-2"


def test_several_documents_are_counted_in_the_subject() -> None:
    letter = document(type_code="11490-0", type_label="", unique_id="1.2.9", pdf=OWN_PDF)
    mail = read(composed(report(document(pdf=OWN_PDF), letter)))
    assert mail["Subject"].startswith("XDM/1.0/DDM+2 documents FICTIF-ELAN Zoe")
    assert mail["X-MSS-CODECDA"] == "11502-2,11490-0"


def test_a_label_with_accents_is_cut_and_encoded() -> None:
    label = "Lettre de liaison à la sortie d'un établissement de soins"
    data = composed(report(document(type_code="11490-0", type_label=label, pdf=OWN_PDF)))
    assert b"Subject: XDM/1.0/DDM+Lettre de liaison\r\n =?utf-8?B?" in data
    assert_on_the_wire(data)
    subject = read(data)["Subject"]
    assert subject == "XDM/1.0/DDM+Lettre de liaison à la sortie d'un établ FICTIF-ELAN Zoe 28/03/1979"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "O"),
        ({"matricule_oid": "1.2.250.1.213.1.4.9"}, "O"),
        ({"matricule_oid": "1.2.250.1.213.1.4.10"}, "N"),
        ({"matricule_oid": "1.2.250.1.213.1.4.11"}, "N"),
        ({"matricule_oid": ""}, "N"),
        ({"matricule": " "}, "N"),
        ({"birth_name": ""}, "N"),
        ({"first_names": ()}, "N"),
        ({"first_names": ("",)}, "N"),
        ({"birth_date": ""}, "N"),
        ({"sex": ""}, "N"),
        ({"reliability": "PROV"}, "N"),
        ({"reliability": ""}, "O"),
    ],
)
def test_only_a_complete_real_identity_is_announced_as_ins(changes, expected) -> None:
    mail = read(composed(replace(QUIET, patient=replace(PATIENT, **changes))))
    assert mail["X-MSS-INS"] == expected


@pytest.mark.parametrize(
    ("reply_to", "expected"),
    [
        ("secretariat@labo.mssante.example", "secretariat@labo.mssante.example"),
        ("Jean.Test@Praticien.mssante.example", None),
        ("", None),
        ("pas une adresse", None),
        ("a@b.example\r\nBcc: c@d.example", None),
        ("a@b", None),
        ('"a b"@c.example', None),
    ],
)
def test_a_reply_goes_where_the_sender_wants_when_that_makes_sense(reply_to, expected) -> None:
    assert read(composed(replace(QUIET, reply_to=reply_to)))["Reply-To"] == expected


def test_the_last_message_is_marked_for_the_patient_alone() -> None:
    last = replace(QUIET, flags=Flags(last_of_exchange=True))
    assert read(composed(last, Audience.PATIENT))["X-MSS-MES"] == "FIN"
    assert read(composed(last))["X-MSS-MES"] is None
    assert read(composed(QUIET, Audience.PATIENT))["X-MSS-MES"] is None


def test_no_receipt_is_asked_when_the_sender_wants_none() -> None:
    assert read(composed(replace(QUIET, flags=Flags(ack_reading=False))))["Disposition-Notification-To"] is None


def test_replace_and_delete_are_said_and_asked() -> None:
    for action, code in ((Action.REPLACE, b">C<"), (Action.DELETE, b">D<")):
        text, _, archive = read(composed(replace(QUIET, action=action))).iter_parts()
        assert "Bonjour" in text.get_content()
        with zipfile.ZipFile(io.BytesIO(archive.get_content())) as opened:
            assert code in opened.read("IHE_XDM/SUBSET01/METADATA.XML")


def test_a_second_run_gives_the_same_bytes_and_another_message_does_not() -> None:
    rendered = report(document(results=(result(),)))
    assert composed(rendered) == composed(rendered)
    assert composed(rendered, at=AT.astimezone(UTC)) == composed(rendered)
    assert composed(rendered) != composed(rendered, message_id="<abc.2@relais.example>")


def test_the_text_says_when_it_is_a_test() -> None:
    data = composed(options=replace(OPTIONS, environment="test"))
    assert next(iter(read(data).iter_parts())).get_content().startswith("*** MESSAGE D'ESSAI")


def test_a_text_survives_mbox_and_dots() -> None:
    body = "From here\n.\n..\nFrom there   \n" + "é" * 300
    data = composed(replace(QUIET, body_professional=body))
    assert_on_the_wire(data)
    assert not re.search(rb"\r\n(From |\.)", data)
    text = next(iter(read(data).iter_parts())).get_content().replace("\r\n", "\n")
    assert text.startswith("From here\n.\n..\nFrom there\n" + "é" * 300)


@pytest.mark.parametrize(
    "changes",
    [
        {"sender_address": "a@b.example\r\nBcc: x@y.example"},
        {"recipient_address": "a@b.example, c@d.example"},
        {"recipient_address": ""},
        {"message_id": "<a@b>\r\nX: y"},
        {"message_id": "a@b"},
    ],
)
def test_addresses_nobody_resolved_are_a_bug(changes) -> None:
    with pytest.raises(ValueError, match="must be"):
        composed(**changes)


HOSTILE = st.one_of(
    st.text(max_size=120),
    st.sampled_from(
        [
            "a\r\nBcc: x@y.example",
            "a\n\n<html>",
            'quote " and \\ back',
            "=?utf-8?B?QmNjOiB4?=",
            "👩🏽‍⚕️ " * 30,
            "\u202egnp.exe\u2066",
            "x" * 2000,
            "\ud800",
            "a\0b\x1b[2J",
            "../../etc/passwd",
            ", c@d.example",
            "a@b.example>, <c@d.example",
        ]
    ),
)


@settings(max_examples=150, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_nothing_a_sender_wrote_becomes_a_header_or_a_path(name: str, label: str, code: str, party: str) -> None:
    sick = replace(PATIENT, birth_name=name, first_names=(party,), birth_date=code, sex=label)
    one = report(
        document(type_label=label, type_code=code, title=name, pdf=OWN_PDF, service_start=code),
        patient=sick,
        reply_to=name,
        body_professional=label,
    )
    data = composed(one, sender_name=party, recipient_name=name, options=replace(OPTIONS, software_reference=label))
    assert data.isascii()
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", data)
    assert max(map(len, data.split(b"\r\n"))) <= 998
    mail = read(data)
    assert len(mail["To"].addresses) == 1
    assert mail["To"].addresses[0].addr_spec == "jean.test@praticien.mssante.example"
    assert len(mail["From"].addresses) == 1
    assert mail["From"].addresses[0].addr_spec == "labo@labo.mssante.example"
    assert mail["Bcc"] is None
    assert set(mail.keys()) <= set(read(composed()).keys()) | {"Reply-To"}
    assert len(mail.keys()) == len(set(mail.keys()))
    assert "\n" not in mail["Subject"]
    text, twin, archive = mail.iter_parts()
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.pdf", twin.get_filename())
    assert len(twin.get_filename()) < 150
    assert isinstance(read_xdm(archive.get_content()), XdmContent)
    text.get_content()


def test_names_are_unique_and_never_empty() -> None:
    bare = document(type_label="日本", type_code="", service_start="", created="")
    nobody = replace(PATIENT, birth_name="日本", used_name="", first_names=())
    assert pdf_names(report(bare, bare, patient=nobody)) == ["document.pdf", "document_2.pdf"]


SAMPLES = Path(__file__).parents[2].parent / "shared/samples/hl7v2"


@pytest.mark.samples
@pytest.mark.parametrize(
    "name",
    [
        "oru_lab_report_n3_initial.hl7",
        "oru_lab_report_n3_replace.hl7",
        "mdm_t02_imaging_n1_initial.er7",
        "mdm_t10_imaging_n1_replace.er7",
    ],
)
def test_official_examples_become_readable_mail(name: str) -> None:
    if not SAMPLES.is_dir():
        pytest.skip("official example messages are not present")
    from bridges.hl7.reader import parse

    one = parse((SAMPLES / name).read_bytes(), environment="test")
    assert isinstance(one, Report)
    for correspondent in one.correspondents:
        data = composed(one, correspondent.audience, recipient_address=correspondent.address)
        assert_on_the_wire(data)
        mail = read(data)
        assert not mail.defects
        assert mail["Subject"].startswith("XDM/1.0/DDM+CR d'")
        assert "PAT-TROIS DOMINIQUE 28/03/1979" in mail["Subject"]
        assert mail["X-MSS-INS"] == "N"
        assert mail["X-MSS-CODECDA"] == one.documents[0].type_code
        text, *twins, archive = mail.iter_parts()
        assert [twin.get_content()[:5] for twin in twins] == [b"%PDF-"] * len(one.documents)
        read_back = read_xdm(archive.get_content())
        assert isinstance(read_back, XdmContent)
        assert [d.content for d in read_back.documents] == [d.content for d in one.documents]
        assert {d.action for d in read_back.documents} == {"C" if one.action is Action.REPLACE else ""}
        assert "PAT-TROIS" in text.get_content() or correspondent.audience is Audience.PATIENT
