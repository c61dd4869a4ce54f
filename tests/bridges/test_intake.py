"""What a sending system is answered, over a real spool: kept before acknowledged, once, whatever the directory does."""

from __future__ import annotations

import asyncio
import base64
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from bridges.hl7 import reader
from bridges.hl7.door import MllpDoor, MllpOptions
from bridges.hl7.mllp import FrameError, encode
from bridges.intake import Intake, IntakeOptions, SendingSystem
from bridges.routing import RoutingOptions
from directory.records import MailboxKind, Recipient
from directory.refusals import RECIPIENT_UNKNOWN
from directory.resolve import DirectoryUnavailableError
from mta.mailboxes.refusals import MAILBOX_SUSPENDED
from mta.message import DeliveryState, Failed, TargetKind
from mta.priority import Priority
from mta.refusals import REMOTE_REFUSED
from mta.schedule import RetrySchedule
from mta.spool import REPEATED_EXTERNAL_ID, Spool
from mta.tables import deliveries
from tests.support import reports
from tests.support.reports import DOCTOR, OTHER_PATIENT, PATIENT, Correspondent, to_patient
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

SYSTEM = SendingSystem("sil", "resultats@labo.example", "Laboratoire")
STRANGER = Correspondent("inconnu@test-ci-sis.mssante.fr")
ROUTING = RoutingOptions(frozenset({"labo.example"}), frozenset({"patient.mssante.fr"}), dossier=True)
parse = functools.partial(reader.parse, environment="test")


class Trusting:
    def is_trusted(self, domain: str) -> bool:
        return domain.endswith(".mssante.fr")


@dataclass
class FakeDirectory:
    """Knows everybody but `inconnu`; slow or broken as told."""

    down: Exception | None = None
    slow: threading.Event | None = None
    asked: list[str] = field(default_factory=list)

    def resolve(self, address: str) -> Recipient | None:
        self.asked.append(address)
        if self.slow is not None:
            self.slow.wait(20)
        if self.down is not None:
            raise self.down
        certificate: object = object()
        known = Recipient(address, MailboxKind.PER, "", (certificate,), ())  # type: ignore[arg-type]
        return None if address.startswith("inconnu") else known


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def spool(database: Database, tmp_path: Path) -> Spool:
    vault = KeyVault.create(tmp_path / "vault")
    return Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())


Make = Callable[..., Intake]


@pytest.fixture
def make(spool: Spool) -> Iterator[Make]:
    made: list[Intake] = []

    def intake(directory: FakeDirectory | None = None, read: Callable = parse, **more: Any) -> Intake:
        made.append(Intake(spool, directory or FakeDirectory(), Trusting(), read, IntakeOptions(ROUTING), **more))  # type: ignore[arg-type]
        return made[-1]

    yield intake
    for each in made:
        each.close()


def code(answer: bytes) -> str:
    return next(line for line in answer.split(b"\r") if line.startswith(b"MSA|")).split(b"|")[1].decode()


def test_acknowledged_is_kept(make: Make, spool: Spool) -> None:
    frame = reports.message(recipients=(DOCTOR, to_patient(PATIENT)))
    answer = make().receive(frame, SYSTEM)
    assert code(answer) == "AA"
    assert b"ERR" not in answer
    (spool_id,) = spool.find("RLS-000001")
    assert [d.recipient for d in spool.deliveries(spool_id)] == [
        DOCTOR.address,
        to_patient(PATIENT).address,
        "dossier",
    ]
    lease = spool.claim(1, 60)[0]
    assert spool.content(lease) == frame
    assert (lease.sender, lease.peer) == (SYSTEM.sender, SYSTEM.name)


def test_the_sender_is_warned_of_what_was_read_through(make: Make) -> None:
    whole = reports.message(body_professional="Cher confrère")
    encoded = base64.b64encode("Cher confrère".encode())
    frame = whole.replace(encoded, encoded[:-5])
    assert frame != whole
    with structlog.testing.capture_logs() as logged:
        answer = make().receive(frame, SYSTEM)
    assert code(answer) == "AA"
    (warning,) = [line for line in answer.split(b"\r") if line.startswith(b"ERR|")]
    assert warning.split(b"|")[4] == b"W" and b"body-truncated OBX-" in warning
    assert [entry["findings"] for entry in logged if entry["event"] == "intake.accepted"] == [["body-truncated"]]


async def test_a_mailbox_that_is_shut_sends_no_report(make: Make, spool: Spool) -> None:
    shut: dict[str, Refused] = {}
    intake = make(sends=shut.get)
    threads = ThreadPoolExecutor(2)
    door = MllpDoor(
        MllpOptions(),
        functools.partial(intake.receive, system=SYSTEM),
        functools.partial(intake.refuse, system=SYSTEM),
        threads,
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", await door.start("127.0.0.1", 0))

    async def answer(frame: bytes) -> bytes:
        writer.write(encode(frame))
        async with asyncio.timeout(10):
            return (await reader.readuntil(b"\x1c\r"))[1:-2]

    try:
        first, second = reports.message(), reports.message(control_id="RLS-000002")
        taken = await answer(first)
        shut[SYSTEM.sender] = Refused(MAILBOX_SUSPENDED)
        refused = await answer(second)
        assert code(refused) == "AE"
        assert b"mta.mailbox-suspended" in refused
        assert await answer(first) == taken, "what was taken before is not unsaid"
        assert not spool.find("RLS-000002")
        shut.clear()
        assert code(await answer(second)) == "AA"
    finally:
        writer.transport.abort()
        await door.stop()
        threads.shutdown()


def test_an_impossible_recipient_is_located_by_segment_field(make: Make) -> None:
    answer = make().receive(reports.message(recipients=(DOCTOR, STRANGER)), SYSTEM)
    (warning,) = [line for line in answer.split(b"\r") if line.startswith(b"ERR|")]
    assert warning.split(b"|")[2] == b"PRT^3^15"


def test_the_same_message_again_gets_the_same_answer_and_no_second_mail(make: Make, spool: Spool) -> None:
    frame, intake = reports.message(), make()
    first = intake.receive(frame, SYSTEM)
    count = spool.counts()[DeliveryState.READY]
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: intake.receive(frame, SYSTEM), range(8))) == {first}
    assert spool.counts()[DeliveryState.READY] == count


def test_the_same_message_at_the_same_time_is_kept_once(make: Make, spool: Spool) -> None:
    frame, intake = reports.message(), make()
    with ThreadPoolExecutor(8) as threads:
        answers = set(threads.map(lambda _: intake.receive(frame, SYSTEM), range(8)))
    assert len(answers) == 1
    assert len(spool.find("RLS-000001")) == 1


def test_another_partner_or_another_content_is_another_message(make: Make, spool: Spool) -> None:
    intake = make()
    frame = reports.message()
    assert code(intake.receive(frame, SYSTEM)) == "AA"
    assert code(intake.receive(frame, SendingSystem("other", "resultats@labo.example", ""))) == "AA"
    assert code(intake.receive(reports.message(patient_class="I"), SYSTEM)) == "AA"
    newest, other, first = spool.find("RLS-000001")
    assert [spool.steps(each)[0].detail for each in (first, other, newest)] == ["", "", REPEATED_EXTERNAL_ID]


def test_refusal_is_per_recipient(make: Make, spool: Spool) -> None:
    flags = reports.Flags(to_dossier=False)
    answer = make().receive(reports.message(recipients=(STRANGER, DOCTOR), flags=flags), SYSTEM)
    assert code(answer) == "AA"
    warnings = [line for line in answer.split(b"\r") if line.startswith(b"ERR")]
    assert len(warnings) == 1
    assert b"directory.recipient-unknown" in warnings[0]
    assert warnings[0].split(b"|")[4] == b"W"
    (spool_id,) = spool.find("RLS-000001")
    assert [d.state for d in spool.deliveries(spool_id)] == [DeliveryState.FAILED, DeliveryState.READY]


def test_refused_when_nobody_remains_and_nothing_is_kept(make: Make, spool: Spool) -> None:
    flags, intake = reports.Flags(to_dossier=False), make()
    wrong_patient = to_patient(OTHER_PATIENT)
    answer = intake.receive(reports.message(recipients=(STRANGER, wrong_patient), flags=flags), SYSTEM)
    assert code(answer) == "AE"
    assert answer.count(b"\rERR") == 2
    assert code(intake.receive(reports.message(recipients=(), flags=flags), SYSTEM)) == "AE"
    assert sum(spool.counts().values()) == 0


@pytest.mark.parametrize("name", reports.spoilt())
def test_a_bad_message_is_answered_and_not_kept(make: Make, spool: Spool, name: str) -> None:
    assert code(make().receive(reports.spoilt()[name], SYSTEM)) in ("AE", "AR")
    assert sum(spool.counts().values()) == 0


@pytest.mark.parametrize("error", [DirectoryUnavailableError("no answer"), RuntimeError("a bug")])
def test_a_directory_that_is_down_stops_no_laboratory(make: Make, spool: Spool, error: Exception) -> None:
    answer = make(FakeDirectory(down=error)).receive(reports.message(recipients=(STRANGER, DOCTOR)), SYSTEM)
    assert code(answer) == "AA"
    assert spool.counts()[DeliveryState.READY] == 3


def test_a_slow_directory_is_not_waited_for(make: Make, spool: Spool) -> None:
    directory = FakeDirectory(slow=threading.Event())
    try:
        answer = make(directory).receive(reports.message(recipients=(STRANGER, DOCTOR)), SYSTEM)
    finally:
        directory.slow.set()
    assert code(answer) == "AA"
    assert spool.counts()[DeliveryState.READY] == 3


def test_a_store_that_fails_gives_no_answer(make: Make, database: Database) -> None:
    intake = make()
    database.close()
    with pytest.raises(Exception):  # noqa: B017 - whatever it is, it must not become an acknowledgement
        intake.receive(reports.message(), SYSTEM)


def test_a_bug_in_the_reader_is_later_not_silence(make: Make) -> None:
    def broken(frame: bytes) -> None:
        raise RecursionError("patient ESSAI-UN")

    with structlog.testing.capture_logs():
        assert code(make(read=broken).receive(reports.message(), SYSTEM)) == "AR"


def test_a_frame_the_door_could_not_take_is_answered(make: Make) -> None:
    head = reports.message()[:4096]
    answer = make().refuse(FrameError("oversized", 60_000_000, head), SYSTEM)
    assert code(answer) == "AE"
    assert b"RLS-000001" in answer
    assert code(make().refuse(FrameError("interrupted", 3, b"abc"), SYSTEM)) == "AE"


def test_logs_name_nobody(make: Make) -> None:
    with structlog.testing.capture_logs() as captured:
        intake = make()
        intake.receive(reports.message(recipients=(STRANGER, DOCTOR, to_patient(PATIENT))), SYSTEM)
        intake.receive(reports.message(recipients=(STRANGER, DOCTOR, to_patient(PATIENT))), SYSTEM)
        intake.receive(reports.spoilt()["other-patient"], SYSTEM)
    said = str(captured)
    assert "intake.accepted" in said
    for secret in (PATIENT.matricule, PATIENT.family, DOCTOR.address, DOCTOR.family, STRANGER.address, "@"):
        assert secret not in said


def test_what_was_decided_is_told_and_told_again(make: Make, spool: Spool) -> None:
    frame, intake = reports.message(recipients=(STRANGER, DOCTOR), flags=reports.Flags(to_dossier=False)), make()
    first = intake.take(frame, SYSTEM)
    assert (first.duplicate, first.refused, first.spool_id) == (False, None, spool.find("RLS-000001")[0])
    (lease,) = spool.claim(10, 60)
    assert spool.settle(lease, Failed(Refused(REMOTE_REFUSED)))
    again = intake.take(frame, SYSTEM)
    assert (again.duplicate, again.spool_id, again.reply) == (True, first.spool_id, first.reply)
    for taken in (first, again):
        said = [(d.recipient, d.target, d.refused and d.refused.refusal) for d in taken.deliveries]
        assert said == [
            (STRANGER.address, TargetKind.SMTP, RECIPIENT_UNKNOWN),
            (DOCTOR.address, TargetKind.SMTP, None),
        ]


def test_a_refusal_is_told_with_its_recipients(make: Make) -> None:
    nobody = make().take(reports.message(recipients=(STRANGER,), flags=reports.Flags(to_dossier=False)), SYSTEM)
    assert [d.recipient for d in nobody.deliveries] == [STRANGER.address]
    assert nobody.refused is not None
    assert nobody.refused.refusal is RECIPIENT_UNKNOWN
    spoilt = make().take(reports.spoilt()["not-hl7"], SYSTEM)
    assert (spoilt.deliveries, spoilt.spool_id) == ((), "")
    assert spoilt.refused is not None


@pytest.mark.parametrize(
    ("segment", "field", "value", "urgent"),
    [
        ("ORC", 7, "^^^^^S", True),
        ("ORC", 7, "1^^^^^A", True),
        ("ORC", 7, "^^^^^R", False),
        ("ORC", 7, "S", False),
        ("OBR", 27, "^^^^^s", True),
        ("OBR", 5, "S", True),
        ("OBR", 5, "R", False),
        ("TQ1", 9, "A^ASAP^HL70485", True),
        ("TQ1", 9, "R^Routine^HL70485", False),
    ],
)
def test_what_was_ordered_as_urgent_goes_first(
    make: Make, spool: Spool, segment: str, field: int, value: str, urgent: bool
) -> None:
    lines = reports.message().split(b"\r")
    if not any(line.startswith(segment.encode()) for line in lines):
        lines.insert(next(n for n, line in enumerate(lines) if line.startswith(b"OBX")), segment.encode())
    for place, line in enumerate(lines):
        if line.startswith(segment.encode()):
            fields = line.split(b"|")
            fields += [b""] * (field + 1 - len(fields))
            fields[field] = value.encode()
            lines[place] = b"|".join(fields)
    assert b"|AA|" in make().receive(b"\r".join(lines), SYSTEM)
    (wanted,) = {lease_priority(spool, lease.delivery_id) for lease in spool.claim(10, 60)}
    assert wanted == (Priority.URGENT if urgent else Priority.NORMAL)


def lease_priority(spool: Spool, delivery_id: str) -> int:
    query = select(deliveries.c.priority).where(deliveries.c.id == delivery_id)
    return int(spool._database.read(lambda connection: connection.scalar(query)) or 0)
