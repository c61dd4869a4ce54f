"""What the MDM composer writes, the reader understands: the same report comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges.cda import read_cda
from bridges.hl7 import er7, mdm, reader
from bridges.report import Action, Audience, Correspondent, Document, Flags, Party, Report
from tests.bridges import fictitious
from tests.support import reports

LETTER = Path(__file__).parents[2].parent / "shared/samples/cda/LDL-SES_2022.01.xml"
FLAGS = Flags(
    masked_to_professionals=False,
    hidden_from_patient=True,
    hidden_from_representatives=False,
    secret_connection=False,
    confidentiality_modified=False,
    to_dossier=True,
    to_professionals=True,
    to_patient=False,
    ack_reception=True,
    ack_reading=True,
)
RECIPIENTS = (
    Correspondent(
        Party("801234567897", "Hoda|Riche", "Adam"),
        "adam.hoda@test-ci-sis.mssante.fr",
        Audience.PROFESSIONAL,
        "PRT^2^15",
    ),
    Correspondent(
        Party(organisation="Unité d'essai", organisation_id="1990000002"),
        "unite@test-ci-sis.mssante.fr",
        Audience.PROFESSIONAL,
        "PRT^3^15",
    ),
)


def read(content: bytes) -> Document:
    document = read_cda(content)
    assert isinstance(document, Document)
    return document


def letter(content: bytes, **changes: object) -> Report:
    document = read(content)
    plain = fictitious.report(
        document,
        event="MDM^T02",
        patient=replace(document.patient, reliability="VALI"),
        sender=document.author,
        correspondents=RECIPIENTS,
        flags=FLAGS,
        content_type_code="97",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def parsed(report: Report) -> Report:
    again = reader.parse(mdm.compose(report), environment="test")
    assert isinstance(again, Report), again
    return again


@pytest.mark.parametrize("level", [1, 3])
def test_a_report_comes_back_as_it_was_written(level: int) -> None:
    report = letter(reports.cda(level=level))
    again = parsed(report)
    assert replace(again, findings=()) == report
    assert again.findings == ()


def test_everything_optional_comes_back_too() -> None:
    report = letter(
        reports.cda(),
        reply_to="service@hopital.example",
        flags=replace(FLAGS, to_patient=True, hidden_from_patient=False, last_of_exchange=True),
        body_professional="Cher confrère,\nci-joint la lettre.",
        body_patient="Madame, ci-joint la lettre.",
        content_type_code="03",
    )
    own = Correspondent(
        Party(report.patient.matricule, report.patient.birth_name, report.patient.first_names[0]),
        f"{report.patient.matricule}@patient.mssante.fr",
        Audience.PATIENT,
        "PRT^4^15",
    )
    report = replace(report, correspondents=(*RECIPIENTS, own))
    assert replace(parsed(report), findings=()) == report


@pytest.mark.parametrize(("action", "event"), [(Action.REPLACE, "T10"), (Action.DELETE, "T04")])
def test_the_event_follows_the_action(action: Action, event: str) -> None:
    parent = "1.2.250.1.999.1.1001^7" if action is Action.REPLACE else ""
    report = letter(reports.cda(parent_id=parent), action=action, event=f"MDM^{event}")
    again = parsed(report)
    assert (again.action, again.event, again.documents[0].parent_id) == (action, report.event, parent)
    assert again.findings == ()


def test_one_document_exactly() -> None:
    with pytest.raises(ValueError, match="one document"):
        mdm.compose(fictitious.report(fictitious.document(), fictitious.document()))


def test_observations_are_numbered_and_the_bytes_are_repeatable() -> None:
    report = letter(reports.cda(), body_professional="a", body_patient="b")
    frame = mdm.compose(report)
    assert frame == mdm.compose(report)
    message = er7.parse(frame, max_bytes=10_000_000)
    assert isinstance(message, er7.Er7Message)
    assert [s.field(1).text for s in message.segments("OBX")] == [str(n) for n in range(1, 14)]
    assert [s.name for s in message.segments()][:8] == ["MSH", "EVN", "PID", "PV1", "ORC", "OBR", "TXA", "OBX"]


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_name_breaks_the_message(family: str, title: str) -> None:
    report = letter(reports.cda(with_pdf=False))
    document = replace(report.documents[0], type_label=title, created=title)
    party = Party(family=family, given=title, organisation=title, organisation_id=family)
    report = replace(
        report,
        documents=(document,),
        sender=party,
        correspondents=tuple(replace(each, party=party) for each in RECIPIENTS),
        patient=replace(report.patient, birth_name=family, used_name=title),
    )
    again = parsed(report)
    assert [each.address for each in again.correspondents] == [each.address for each in RECIPIENTS]
    assert again.flags == FLAGS
    assert again.patient.matricule == report.patient.matricule


@pytest.mark.samples
def test_the_official_discharge_letter() -> None:
    if not LETTER.exists():
        pytest.skip(f"no official sample at {LETTER}")
    again = parsed(letter(LETTER.read_bytes()))
    assert again.documents[0].content == LETTER.read_bytes()
    assert again.documents[0].type_code == "11490-0"
    assert again.sender.id_nat == "801234567897"
    assert again.findings == ()
