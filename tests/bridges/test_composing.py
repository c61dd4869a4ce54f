"""The ENRICH stage: one mail per correspondent, the same bytes each time, and never another's words."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from bridges import pdf
from bridges.compose import ComposeOptions
from bridges.composing import ComposeStage
from bridges.intake import HL7_CONTENT
from bridges.refusals import HL7_UNREADABLE
from bridges.report import Audience, Correspondent, Document, Flags, Party, Report
from bridges.routing import RoutingOptions
from mta.message import Message, Origin, Phase
from tests.bridges.fictitious import PATIENT, document, report, result
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


class Work:
    """Counts what is done of the costly things."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[object] = Counter()
        self._twin = pdf.twin
        monkeypatch.setattr(pdf, "twin", self.twin)

    def parse(self, frame: bytes) -> Report:
        self.done["parsed"] += 1
        return replace(
            REPORT,
            documents=(document(results=(result(interpretation="HH"),)), document(narrative="Autre document.")),
            correspondents=(*map(doctor, range(15)), TO_PATIENT),
        )

    def twin(self, report: Report, one: Document, audience: Audience) -> bytes:
        self.done[audience] += 1
        return self._twin(report, one, audience)

    def stage(self, threads: ThreadPoolExecutor) -> ComposeStage:
        made = stage(threads)
        made._parse = self.parse
        return made


def doctor(number: int) -> Correspondent:
    return replace(TO_DOCTOR, address=f"docteur{number}@praticien.mssante.example")


def mails() -> list[Message]:
    """One report to fifteen doctors and the patient."""
    addresses = [*(doctor(number).address for number in range(15)), PATIENT_ADDRESS]
    return [
        replace(MESSAGE, delivery_id=f"d{n}", message_id=f"<{n}@labo.example>", recipient=address)
        for n, address in enumerate(addresses)
    ]


async def test_what_fifteen_mails_have_in_common_is_made_once_and_then_forgotten(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    alone = [await work.stage(threads).apply(mail, Phase.ENRICH) for mail in mails()]
    assert work.done == {"parsed": 16, Audience.PROFESSIONAL: 30, Audience.PATIENT: 2}
    work.done.clear()
    shared = work.stage(threads)
    for turn in (1, 2):
        together = await asyncio.gather(*(shared.apply(mail, Phase.ENRICH) for mail in mails()))
        assert together == alone
        assert shared._common == {}  # nothing clinical waits in memory for a next time
        assert work.done == {"parsed": turn, Audience.PROFESSIONAL: 2 * turn, Audience.PATIENT: 2 * turn}


async def test_two_messages_have_nothing_in_common(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    shared = work.stage(threads)
    one, other = MESSAGE, replace(MESSAGE, spool_id="t")
    recipient = doctor(1).address
    await asyncio.gather(*(shared.apply(replace(each, recipient=recipient), Phase.ENRICH) for each in (one, other)))
    assert work.done == {"parsed": 2, Audience.PROFESSIONAL: 4}


async def test_one_that_fails_or_is_given_up_leaves_nothing_to_the_others(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    shared = work.stage(threads)
    rendering, go_on = threading.Event(), threading.Event()

    def broken(report: Report, one: Document, audience: Audience) -> bytes:
        rendering.set()
        go_on.wait(20)
        raise pdf.FontMissingError("no font")

    monkeypatch.setattr(pdf, "twin", broken)
    first, second, given_up = (asyncio.create_task(shared.apply(mail, Phase.ENRICH)) for mail in mails()[:3])
    await asyncio.to_thread(rendering.wait, 20)
    given_up.cancel()
    go_on.set()
    for task in (first, second):
        with pytest.raises(pdf.FontMissingError):
            await task
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert shared._common == {}
    monkeypatch.setattr(pdf, "twin", work.twin)
    assert isinstance(await shared.apply(mails()[0], Phase.ENRICH), Message)
