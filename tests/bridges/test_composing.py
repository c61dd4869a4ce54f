"""The ENRICH stage: one mail per correspondent, the same bytes each time, and never another's words."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bridges.compose import ComposeOptions
from bridges.composing import ComposeStage
from bridges.intake import HL7_CONTENT
from bridges.refusals import HL7_UNREADABLE
from bridges.report import Audience, Correspondent, Flags, Party, Report
from bridges.routing import RoutingOptions
from mta.message import Message, Origin, Phase
from tests.bridges.fictitious import PATIENT, document, report
from trust.refusals import Refused

PATIENT_ADDRESS = f"{PATIENT.matricule}@patient.mssante.fr"
DOCTOR_ADDRESS = "jean.test@praticien.mssante.example"
TO_DOCTOR = Correspondent(Party(family="TEST", given="Jean"), DOCTOR_ADDRESS, Audience.PROFESSIONAL, "PRT-1")
TO_PATIENT = Correspondent(Party(), PATIENT_ADDRESS, Audience.PATIENT, "PRT-2")
REPORT = report(
    document(pdf=b"%PDF-1.4 own"),
    correspondents=(
        replace(TO_PATIENT, audience=Audience.PROFESSIONAL, address=f" {PATIENT_ADDRESS}"),
        replace(TO_DOCTOR, audience=Audience.PATIENT),
        TO_DOCTOR,
        TO_PATIENT,
    ),
    flags=Flags(to_patient=True),
    body_professional="RESERVED-FOR-THE-DOCTOR",
    body_patient="FOR-THE-PATIENT",
)
MESSAGE = Message(
    message_id="<1@labo.example>",
    spool_id="s",
    delivery_id="d",
    origin=Origin.MLLP,
    sender="resultats@labo.example",
    recipient=DOCTOR_ADDRESS,
    content=b"MSH|",
    content_type=HL7_CONTENT,
    accepted_at=1_800_000_000.0,
)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def stage(threads: ThreadPoolExecutor, read: Report | Refused = REPORT) -> ComposeStage:
    return ComposeStage(
        lambda frame: read,
        {"resultats@labo.example": "Laboratoire"},
        ComposeOptions(software_reference="NIL-1", environment="test", host_name="relais.example"),
        RoutingOptions(frozenset(), frozenset({"patient.mssante.fr"}), dossier=False),
        threads,
    )


async def test_each_reads_what_was_written_for_them(threads: ThreadPoolExecutor) -> None:
    for recipient, own, other in (
        (DOCTOR_ADDRESS, b"RESERVED-FOR-THE-DOCTOR", b"FOR-THE-PATIENT"),
        (PATIENT_ADDRESS, b"FOR-THE-PATIENT", b"RESERVED-FOR-THE-DOCTOR"),
    ):
        composed = await stage(threads).apply(replace(MESSAGE, recipient=recipient), Phase.ENRICH)
        assert isinstance(composed, Message)
        assert composed.content_type == "message/rfc822"
        assert own in composed.content
        assert other not in composed.content
        assert composed == await stage(threads).apply(replace(MESSAGE, recipient=recipient), Phase.ENRICH)


@pytest.mark.parametrize(
    "change",
    [
        {"flags": Flags(to_patient=False)},
        {"flags": Flags(to_patient=True, hidden_from_patient=True)},
        {"patient": replace(PATIENT, matricule="299999999900155")},
        {"correspondents": (TO_DOCTOR,)},
    ],
)
async def test_what_routing_would_not_allow_is_not_composed_either(
    threads: ThreadPoolExecutor, change: dict[str, object]
) -> None:
    answer = await stage(threads, replace(REPORT, **change)).apply(
        replace(MESSAGE, recipient=PATIENT_ADDRESS), Phase.ENRICH
    )
    assert isinstance(answer, Refused)


async def test_other_phases_and_contents_pass_and_the_unreadable_is_refused(threads: ThreadPoolExecutor) -> None:
    assert await stage(threads).apply(MESSAGE, Phase.PROTECT) is MESSAGE
    mail = replace(MESSAGE, content_type="message/rfc822")
    assert await stage(threads).apply(mail, Phase.ENRICH) is mail
    refused = Refused(HL7_UNREADABLE)
    assert await stage(threads, refused).apply(MESSAGE, Phase.ENRICH) is refused
