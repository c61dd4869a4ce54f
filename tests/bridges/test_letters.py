"""One call, fifteen correspondents, over a real spool: who is reached, who gets paper, and nothing twice."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pypdfium2
import pytest
import structlog

from bridges.cda import read_cda
from bridges.hl7 import reader
from bridges.intake import Intake, IntakeOptions, SendingSystem
from bridges.letters import LetterResult, Letters
from bridges.report import Report
from bridges.routing import RoutingOptions
from directory.records import MailboxKind, Recipient
from directory.resolve import DirectoryUnavailableError
from mta.mailboxes.refusals import MAILBOX_SUSPENDED
from mta.message import DeliveryState, Failed, TargetKind
from mta.refusals import REMOTE_REFUSED
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.support import reports
from tests.support.reports import OTHER_PATIENT, PATIENT, to_patient
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

SERVICE = "sortie@hopital.example"
SYSTEM = SendingSystem("hopital", SERVICE, "Service de médecine interne")
ROUTING = RoutingOptions(frozenset({"hopital.example"}), frozenset({"patient.mssante.fr"}), dossier=True)
parse = functools.partial(reader.parse, environment="test")
REACHED = (
    "interne@hopital.example",
    *(f"medecin{n}@test-ci-sis.mssante.fr" for n in range(11)),
)
UNTRUSTED, UNKNOWN = "quelqu.un@gmail.example", "inconnu@test-ci-sis.mssante.fr"
ON_PAPER = "Dr X. SANSBOITE|12 rue des Essais|75000 PARIS"
FIFTEEN = (*REACHED[:5], ON_PAPER, *REACHED[5:9], UNTRUSTED, *REACHED[9:], f"{UNKNOWN}|Dr Inconnu|3 place|69000 LYON")
LETTER = Path(__file__).parents[2].parent / "shared/samples/cda/LDL-SES_2022.01.xml"


class Trusting:
    def is_trusted(self, domain: str) -> bool:
        return domain.endswith(".mssante.fr")


class FakeDirectory:
    def __init__(self, down: bool = False) -> None:
        self.down = down

    def resolve(self, address: str) -> Recipient | None:
        if self.down:
            raise DirectoryUnavailableError("no answer")
        known = Recipient(address, MailboxKind.PER, "", (object(),), ())  # type: ignore[arg-type]
        return None if address.startswith("inconnu") else known


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    vault = KeyVault.create(tmp_path / "vault")
    yield Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())
    database.close()


Make = Callable[..., Letters]


@pytest.fixture
def make(spool: Spool) -> Iterator[Make]:
    made: list[Intake] = []

    def letters(down: bool = False, environment: str = "test", dossier: bool = True, **more: Any) -> Letters:
        read = functools.partial(reader.parse, environment=environment)  # type: ignore[arg-type]
        options = IntakeOptions(replace(ROUTING, dossier=dossier), resolve_seconds=5)
        made.append(Intake(spool, FakeDirectory(down), Trusting(), read, options, **more))  # type: ignore[arg-type]
        return Letters(made[-1], read_cda, {SERVICE: SYSTEM})

    yield letters
    for each in made:
        each.close()


def submit(letters: Letters, *recipients: str, document: bytes = b"", **wishes: bool) -> LetterResult:
    return letters.submit(document or reports.cda(), sender=SERVICE, recipients=recipients, **wishes)


def text_of(data: bytes) -> str:
    opened = pypdfium2.PdfDocument(data)
    text = ""
    for page in opened:
        text_page = page.get_textpage()
        text += text_page.get_text_bounded() + "\n"
        text_page.close()
        page.close()
    opened.close()
    return text


def test_fifteen_correspondents_and_none_stops_another(make: Make, spool: Spool) -> None:
    result = submit(make(), *FIFTEEN, to_dossier=True)
    assert len(FIFTEEN) == 15
    assert (result.accepted, result.duplicate, result.refused) == (True, False, None)
    assert result.reached == (*REACHED, "dossier")
    assert [(one.recipient, one.code) for one in result.unreached] == [
        ("Dr X. SANSBOITE", "bridges.no-mailbox"),
        (UNTRUSTED, "directory.domain-untrusted"),
        (UNKNOWN, "directory.recipient-unknown"),
    ]
    for one, shown in zip(result.unreached, ("75000 PARIS", UNTRUSTED, "69000 LYON"), strict=True):
        assert one.sentence
        text = text_of(one.printed)
        assert shown in text
        assert SYSTEM.sender_name in text
        assert "Hémoglobine" in text or "LABORATOIRE" in text
    deliveries = spool.deliveries(result.spool_id)
    waiting = [d for d in deliveries if d.state is DeliveryState.READY]
    assert {d.recipient for d in waiting} == {*REACHED, "dossier"}
    assert {d.target for d in waiting} == {TargetKind.SMTP, TargetKind.MAILBOX, TargetKind.DOSSIER}
    # the impossible ones have their code in the trace; who was named only for the post is nobody's delivery
    assert {d.recipient for d in deliveries if d.state is DeliveryState.FAILED} == {UNTRUSTED, UNKNOWN}


def test_all_paper_of_one_call_shares_its_pages(make: Make) -> None:
    """Fifteen letters of many megabytes are one document in memory and on the control socket."""
    papers = submit(make(), *(f"Dr {n}|1 place|69000 LYON" for n in range(15))).unreached
    assert len(papers) == 15
    assert len({id(one.pages) for one in papers}) == 1
    assert len({one.cover for one in papers}) == 15


def test_a_repeated_address_keeps_where_it_is_posted_to(make: Make) -> None:
    result = submit(make(), UNKNOWN, f"{UNKNOWN.upper()}|Dr Inconnu|3 place|69000 LYON", UNKNOWN)
    (one,) = result.unreached
    assert "69000 LYON" in text_of(one.printed)


def test_a_malformed_address_is_told_as_it_was_written(make: Make) -> None:
    pasted = "Dr Alix ESSAI <Alix@test-ci-sis.mssante.fr>"
    result = submit(make(), pasted, REACHED[0], pasted)
    assert result.reached == (REACHED[0],)
    assert [(one.recipient, one.code) for one in result.unreached] == [(pasted, "bridges.address-invalid")]


@pytest.mark.parametrize("hidden", ["\udce9", "\u200b", "\x07", "\u202e"])
def test_an_address_is_never_repaired_into_another(make: Make, spool: Spool, hidden: str) -> None:
    """An undecodable accent left out of `andré.x@…` would be the mailbox of somebody else."""
    result = submit(make(), f"andr{hidden}.x@test-ci-sis.mssante.fr")
    assert [one.code for one in result.unreached] == ["bridges.address-invalid"]
    assert sum(spool.counts().values()) == 0
    both = submit(make(), "andr.x@test-ci-sis.mssante.fr", f"andr{hidden}.x@test-ci-sis.mssante.fr")
    assert (len(both.reached), len(both.unreached)) == (1, 1)


def test_what_is_kept_is_the_hospitals_own_message(make: Make, spool: Spool) -> None:
    result = submit(make(), *FIFTEEN)
    lease = spool.claim(1, 60)[0]
    assert (lease.sender, lease.peer) == (SERVICE, SYSTEM.name)
    report = parse(spool.content(lease))
    assert isinstance(report, Report)
    assert report.event == "MDM^T02"
    assert report.documents[0].content == reports.cda()
    assert spool.find(report.control_id) == [result.spool_id]
    assert (report.flags.to_professionals, report.flags.to_patient, report.flags.to_dossier) == (True, False, False)


def test_the_same_letter_again_is_a_duplicate_with_the_same_result(make: Make, spool: Spool) -> None:
    first = submit(make(), *FIFTEEN)
    again = submit(make(), *reversed(FIFTEEN), FIFTEEN[0].upper())
    assert again.duplicate
    assert set(again.reached) == set(first.reached)
    assert set(again.unreached) == set(first.unreached)
    assert again.spool_id == first.spool_id
    assert submit(make(), *FIFTEEN) == replace(first, duplicate=True)
    assert sum(spool.counts().values()) == 14
    assert not submit(make(), *FIFTEEN, document=reports.cda(unique_id="1.2.250.1.999.1.7")).duplicate


def test_a_failure_after_acceptance_does_not_change_the_answer(make: Make, spool: Spool) -> None:
    first = submit(make(), *REACHED[:1], UNKNOWN)
    for lease in spool.claim(10, 60):
        assert spool.settle(lease, Failed(Refused(REMOTE_REFUSED)))
    assert submit(make(), *REACHED[:1], UNKNOWN) == replace(first, duplicate=True)


@pytest.mark.parametrize("nobody", [(UNKNOWN, UNTRUSTED), (ON_PAPER,), ("pas une adresse@", "a@b@c|Dr A|1 rue|TOWN")])
def test_a_letter_nobody_can_get_by_mail_is_all_paper(make: Make, spool: Spool, nobody: tuple[str, ...]) -> None:
    result = submit(make(), *nobody)
    assert (result.accepted, result.spool_id, result.refused, result.reached) == (False, "", None, ())
    assert [bool(one.printed) for one in result.unreached] == [True] * len(nobody)
    assert sum(spool.counts().values()) == 0
    assert submit(make(), *nobody) == result


def test_a_directory_that_is_down_stops_no_letter(make: Make, spool: Spool) -> None:
    result = submit(make(down=True), *FIFTEEN)
    assert UNKNOWN in result.reached
    assert spool.counts()[DeliveryState.READY] == 13


def test_the_patient_receives_only_when_asked_for(make: Make) -> None:
    own, other = to_patient(PATIENT).address, to_patient(OTHER_PATIENT).address
    asked = submit(make(), REACHED[0], own, to_patient=True)
    assert asked.reached == (REACHED[0], own)
    for wishes, code in (
        ({}, "bridges.not-requested"),
        ({"to_patient": True, "hidden_from_patient": True}, "bridges.hidden-from-patient"),
    ):
        result = submit(make(), REACHED[0], own, **wishes)
        assert [(one.recipient, one.code, one.printed) for one in result.unreached] == [(own, code, b"")]
        assert result.reached == (REACHED[0],)
    wrong = submit(make(), REACHED[0], other, to_patient=True)
    assert [(one.code, one.printed) for one in wrong.unreached] == [("bridges.patient-address-mismatch", b"")]


def test_a_patients_mail_alone_asks_for_no_professional(make: Make, spool: Spool) -> None:
    assert submit(make(), to_patient(PATIENT).address, to_patient=True).accepted
    report = parse(spool.content(spool.claim(1, 60)[0]))
    assert isinstance(report, Report)
    assert (report.flags.to_professionals, report.flags.to_patient) == (False, True)


def test_a_correction_goes_as_a_replacement(make: Make, spool: Spool) -> None:
    corrected = reports.cda(unique_id="1.2.250.1.999.1.1002", version=2, parent_id="1.2.250.1.999.1.1001")
    assert submit(make(), REACHED[0], document=corrected).accepted
    report = parse(spool.content(spool.claim(1, 60)[0]))
    assert isinstance(report, Report)
    assert (report.event, report.documents[0].parent_id) == ("MDM^T10", "1.2.250.1.999.1.1001")


def test_what_the_caller_must_correct_is_refused_whole(make: Make, spool: Spool) -> None:
    letters = make()
    stranger = letters.submit(reports.cda(), sender="autre@hopital.example", recipients=FIFTEEN)
    cases = {
        "mta.sender-not-allowed": stranger,
        "bridges.document-not-cda": submit(letters, *FIFTEEN, document=b"<html/>"),
        "bridges.no-recipient": submit(letters, "", " | "),
        "bridges.ins-test-in-production": submit(make(environment="production"), *FIFTEEN),
    }
    for code, result in cases.items():
        assert result.refused is not None
        assert (result.refused.refusal.code, result.accepted, result.unreached) == (code, False, ())
    assert sum(spool.counts().values()) == 0


def test_a_record_that_cannot_be_fed_is_told(make: Make) -> None:
    result = submit(make(dossier=False), REACHED[0], to_dossier=True)
    assert [(one.recipient, one.code) for one in result.unreached] == [("dossier", "bridges.no-dossier")]
    assert submit(make(), to_dossier=True).reached == ("dossier",)


def test_logs_name_nobody(make: Make) -> None:
    with structlog.testing.capture_logs() as captured:
        submit(make(), *FIFTEEN)
    for secret in (PATIENT.matricule, PATIENT.family, "@", "SANSBOITE"):
        assert secret not in str(captured)


@pytest.mark.samples
def test_the_official_discharge_letter(make: Make, spool: Spool) -> None:
    if not LETTER.exists():
        pytest.skip(f"no official sample at {LETTER}")
    result = submit(make(), *FIFTEEN, document=LETTER.read_bytes(), to_dossier=True)
    assert result.reached == (*REACHED, "dossier")
    report = parse(spool.content(spool.claim(1, 60)[0]))
    assert isinstance(report, Report)
    assert report.documents[0].content == LETTER.read_bytes()
    assert "Lettre de liaison à la sortie" in " ".join(text_of(result.unreached[0].printed).split())


def test_a_mailbox_that_is_shut_sends_no_letter(make: Make, spool: Spool) -> None:
    letters = make(sends=lambda sender: Refused(MAILBOX_SUSPENDED) if sender == SERVICE else None)
    result = submit(letters, REACHED[0])
    assert not result.accepted
    assert result.refused is not None
    assert result.refused.refusal is MAILBOX_SUSPENDED
    assert spool.claim(10, 60) == []
