"""The drop folder over a real spool: taken whole, answered, once; also when killed between two steps."""

from __future__ import annotations

import asyncio
import functools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from bridges import dropfolder
from bridges.cda import read_cda
from bridges.dropfolder import DropFolder
from bridges.hl7 import reader
from bridges.intake import Intake, IntakeOptions, SendingSystem
from bridges.letters import LetterResult, Letters
from bridges.routing import RoutingOptions
from directory.records import MailboxKind, Recipient
from mta import refusals as mta_refusals
from mta.mailboxes.refusals import MAILBOX_SUSPENDED
from mta.message import DeliveryState
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.support import reports
from tests.support.reports import PATIENT
from trust.refusals import Refused
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

SERVICE = "sortie@hopital.example"
DOCTOR = "medecin@test-ci-sis.mssante.fr"
ON_PAPER = "Dr X. SANSBOITE|12 rue des Essais|75000 PARIS"
LIST = f"\ufeff# destinataires\r\n{DOCTOR}\r\n\r\n{ON_PAPER}\r\n"


class Everybody:
    def is_trusted(self, domain: str) -> bool:
        return True

    def resolve(self, address: str) -> Recipient:
        return Recipient(address, MailboxKind.PER, "", (object(),), ())  # type: ignore[arg-type]


@dataclass
class House:
    """A gateway's state on disk, opened."""

    spool: Spool
    letters: Letters


def open_house(state: Path, stack: ExitStack, **more: Any) -> House:
    database = Database(f"sqlite:///{state / 'relais.db'}")
    stack.callback(database.close)
    metadata.create_all(database.engine)
    vault = KeyVault.open(state / "vault") if (state / "vault").exists() else KeyVault.create(state / "vault")
    spool = Spool(database, BlobStore(state / "blobs", vault), vault, node="n1", schedule=RetrySchedule())
    options = IntakeOptions(RoutingOptions(frozenset({"hopital.example"}), frozenset({"patient.mssante.fr"}), True))
    intake = Intake(
        spool,
        Everybody(),  # type: ignore[arg-type]
        Everybody(),
        functools.partial(reader.parse, environment="test"),
        options,
        **more,
    )
    stack.callback(intake.close)
    return House(spool, Letters(intake, read_cda, {SERVICE: SendingSystem("hopital", SERVICE, "Médecine")}))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    (tmp_path / "state").mkdir()
    with ExitStack() as stack:
        yield open_house(tmp_path / "state", stack)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "drop").mkdir()
    return tmp_path / "drop"


def drop(folder: Path, name: str = "lettre", document: bytes | None = None, recipients: str = LIST) -> None:
    (folder / f"{name}.xml").write_bytes(reports.cda() if document is None else document)
    (folder / f"{name}.to").write_text(recipients, encoding="utf-8", newline="")


def looked(folder: Path, letters: Letters, times: int = 2) -> int:
    watch = DropFolder(folder, letters, SERVICE, 0.01)
    return sum(watch.look() for _ in range(times))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def result_of(folder: Path, name: str = "lettre", where: str = "done") -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / where / f"{name}.result.json").read_text())
    return found


def test_a_pair_is_sent_and_answered(folder: Path, house: House) -> None:
    drop(folder)
    assert looked(folder, house.letters) == 1
    assert names(folder) == ["done", "rejected"]
    assert names(folder / "done") == [
        "lettre.courrier-1.pdf",
        "lettre.result.json",
        "lettre.to",
        "lettre.xml",
    ]
    told = result_of(folder)
    assert (told["accepted"], told["duplicate"], told["reached"], told["refused"]) == (True, False, [DOCTOR], None)
    (unreached,) = told["unreached"]  # type: ignore[misc]
    assert (unreached["code"], unreached["printed"]) == ("bridges.no-mailbox", "lettre.courrier-1.pdf")
    assert (folder / "done" / "lettre.courrier-1.pdf").read_bytes().startswith(b"%PDF-")
    assert {(path.stat().st_mode & 0o777) for path in (folder / "done", folder / "rejected")} == {0o700}
    assert [d.recipient for d in house.spool.deliveries(str(told["spool_id"]))] == [DOCTOR]


def test_a_document_waits_for_its_list_and_hidden_names_are_nobodys(folder: Path, house: House) -> None:
    (folder / "seul.xml").write_bytes(reports.cda())
    (folder / "orphelin.to").write_text(DOCTOR)
    for name in (".lettre", "lettre.tmp", "lettre~", "lettre.part", "#lettre"):
        drop(folder, name)
    (folder / "autre.xml").write_bytes(reports.cda())
    (folder / "autre.to.part").write_text(DOCTOR)
    before = names(folder)
    assert looked(folder, house.letters, 4) == 0
    assert [name for name in names(folder) if name not in ("done", "rejected")] == before


def test_what_still_grows_is_left(folder: Path, house: House) -> None:
    drop(folder, document=reports.cda()[:100])
    watch = DropFolder(folder, house.letters, SERVICE, 0.01)
    for size in (100, 2000, 5000):
        (folder / "lettre.xml").write_bytes(reports.cda()[:size])
        assert watch.look() == 0
    (folder / "lettre.xml").write_bytes(reports.cda())
    assert (watch.look(), watch.look()) == (0, 1)
    assert result_of(folder)["accepted"] is True


def test_a_change_after_the_look_is_left_for_the_next(
    folder: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender replaces the document while the first one is being sent: the new one stays for its own list."""
    drop(folder)
    watch = DropFolder(folder, house.letters, SERVICE, 0.01)
    watch.look()
    submit = house.letters.submit

    def meanwhile(*args: object, **options: object) -> LetterResult:
        (folder / "next").write_bytes(reports.cda(unique_id="1.2.250.1.999.1.77"))
        (folder / "next").rename(folder / "lettre.xml")
        return submit(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(house.letters, "submit", meanwhile)
    assert watch.look() == 1
    assert b"1.2.250.1.999.1.77" in (folder / "lettre.xml").read_bytes()
    assert not (folder / "lettre.to").exists()


@pytest.mark.parametrize(
    ("document", "recipients", "code"),
    [
        (b"<html/>", LIST, "bridges.document-not-cda"),
        (None, "# personne\n", "bridges.no-recipient"),
        (None, "x" * 70_000, "bridges.document-too-large"),
    ],
)
def test_what_the_sender_must_correct_is_rejected_with_a_sentence(
    folder: Path, house: House, document: bytes | None, recipients: str, code: str
) -> None:
    drop(folder, document=document, recipients=recipients)
    assert looked(folder, house.letters) == 1
    assert names(folder / "rejected") == ["lettre.reason.txt", "lettre.result.json", "lettre.to", "lettre.xml"]
    assert len((folder / "rejected" / "lettre.reason.txt").read_text()) > 20
    assert result_of(folder, where="rejected")["refused"]["code"] == code  # type: ignore[index]
    assert sum(house.spool.counts().values()) == 0


def test_nobody_reached_is_no_error_of_the_sender(folder: Path, house: House) -> None:
    drop(folder, recipients=f"{ON_PAPER}\nDr Y|1 place|69000 LYON")
    assert looked(folder, house.letters) == 1
    assert result_of(folder)["accepted"] is False
    assert {"lettre.courrier-1.pdf", "lettre.courrier-2.pdf"} <= set(names(folder / "done"))


def test_a_group_that_may_write_may_read_the_answers(folder: Path, house: House) -> None:
    folder.chmod(0o2770)
    drop(folder)
    assert looked(folder, house.letters) == 1
    assert (folder / "done").stat().st_mode & 0o777 == 0o750
    for name in ("lettre.courrier-1.pdf", "lettre.result.json"):
        assert (folder / "done" / name).stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_a_list_in_any_encoding_of_the_desk(folder: Path, house: House, encoding: str) -> None:
    drop(folder)
    (folder / "lettre.to").write_bytes(f"{DOCTOR}\r\nDr Zoé|1 rue|75000 PARIS\r\n".encode(encoding))
    assert looked(folder, house.letters) == 1
    told = result_of(folder)
    assert told["reached"] == [DOCTOR]
    assert [one["recipient"] for one in told["unreached"]] == ["Dr Zoé"]  # type: ignore[attr-defined]


def test_a_full_disk_after_sending_sends_once(folder: Path, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder)
    troubles = iter([OSError(28, "No space left on device")])
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if trouble := next(troubles, None):
            raise trouble
        fsync(descriptor)

    submit = house.letters.submit

    def then_full(*args: object, **options: object) -> LetterResult:
        result = submit(*args, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(os, "fsync", full)
        return result

    monkeypatch.setattr(house.letters, "submit", then_full)
    watch = DropFolder(folder, house.letters, SERVICE, 0.0)
    with structlog.testing.capture_logs():
        assert [watch.look() for _ in range(3)] == [0, 0, 1]
    assert house.spool.counts()[DeliveryState.READY] == 1
    assert not [name for name in names(folder / "done") if name.endswith(".part")]
    assert result_of(folder)["duplicate"] is True


async def test_nothing_in_the_folder_ends_the_gateway(folder: Path, house: House) -> None:
    """An answer of ours that somebody replaced by one no parser returns from, beside a letter to send."""
    (folder / "done").mkdir()
    (folder / "done" / "x.to").write_text(DOCTOR)
    (folder / "done" / "x.result.json").write_text("[" * 200_000)
    drop(folder)
    watch = DropFolder(folder, house.letters, SERVICE, 0.005)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(20):
        while not (folder / "done" / "lettre.xml").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await watch.stop()
        await running


def test_links_pipes_and_folders_are_never_followed(folder: Path, house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret.xml"
    secret.write_bytes(reports.cda())
    (folder / "lien.xml").symlink_to(secret)
    os.mkfifo(folder / "tube.xml")
    (folder / "dossier.xml").mkdir()
    for name in ("lien", "tube", "dossier"):
        (folder / f"{name}.to").write_text(DOCTOR)
    drop(folder, "liste")
    (folder / "liste.to").unlink()
    (folder / "liste.to").symlink_to(tmp_path / "recipients")
    (tmp_path / "recipients").write_text(DOCTOR)
    assert looked(folder, house.letters) == 4
    assert {"lien.reason.txt", "tube.reason.txt", "dossier.reason.txt", "liste.reason.txt"} <= set(
        names(folder / "rejected")
    )
    assert secret.read_bytes() == reports.cda()
    assert sum(house.spool.counts().values()) == 0


def test_a_done_folder_that_leads_away_is_not_used(folder: Path, house: House, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "done").symlink_to(tmp_path / "elsewhere")
    drop(folder)
    with pytest.raises(OSError):
        looked(folder, house.letters)
    assert names(tmp_path / "elsewhere") == []


def test_a_name_used_again_keeps_both_and_odd_names_work(folder: Path, house: House) -> None:
    drop(folder)
    assert looked(folder, house.letters) == 1
    drop(folder, document=reports.cda(unique_id="1.2.250.1.999.1.78"))
    assert looked(folder, house.letters) == 1
    assert {"lettre.xml", "lettre-2.xml"} <= set(names(folder / "done"))
    for name in ("x" * 240, "été à la ligne\n", os.fsdecode(b"latin-\xe9")):
        drop(folder, name)
    assert looked(folder, house.letters) == 3
    assert names(folder) == ["done", "rejected"]
    assert sum(house.spool.counts().values()) == 2


def test_what_cannot_be_decided_now_stays_and_stops_no_other(
    folder: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(folder, "a")
    drop(folder, "b", reports.cda(unique_id="1.2.250.1.999.1.79"))
    submit, troubles = house.letters.submit, iter([OSError(28, "full"), None])

    def failing(document: bytes, **options: object) -> LetterResult:
        if b"1.2.250.1.999.1.79" in document:
            return submit(document, **options)  # type: ignore[arg-type]
        trouble = next(troubles, "over")
        if isinstance(trouble, Exception):
            raise trouble
        if trouble is None:
            return LetterResult(False, "", False, (), (), Refused(mta_refusals.INTERNAL_ERROR))
        return submit(document, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(house.letters, "submit", failing)
    watch = DropFolder(folder, house.letters, SERVICE, 0.0)
    with structlog.testing.capture_logs() as captured:
        taken = [watch.look() for _ in range(4)]
    assert taken == [0, 1, 0, 1]
    assert [entry["event"] for entry in captured].count("dropfolder.not-taken") == 2
    assert {"a.xml", "b.xml"} <= set(names(folder / "done"))


def die_at(state: Path, folder: Path, step: str, call: int) -> None:
    """In a child: work the folder and be killed at the `call`-th `step`, before it happens."""
    real, calls = getattr(dropfolder, step), iter(range(1, 100))

    def killed(*args: object) -> object:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(dropfolder, step, killed)
    with ExitStack() as stack:
        looked(folder, open_house(state, stack).letters)


@pytest.mark.parametrize(("step", "call"), [("write_into", 2), ("_move", 1), ("_move", 2)], ids=str)
def test_killed_after_sending_it_is_sent_once(folder: Path, tmp_path: Path, step: str, call: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    drop(folder)
    child = multiprocessing.get_context("spawn").Process(target=die_at, args=(state, folder, step, call))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    with ExitStack() as stack:
        house = open_house(state, stack)
        assert house.spool.counts()[DeliveryState.READY] == 1
        assert looked(folder, house.letters) == (0 if call == 2 and step == "_move" else 1)
        assert house.spool.counts()[DeliveryState.READY] == 1
    assert names(folder) == ["done", "rejected"]
    visible = [name for name in names(folder / "done") if not name.startswith(".")]
    assert visible == ["lettre.courrier-1.pdf", "lettre.result.json", "lettre.to", "lettre.xml"]
    assert result_of(folder)["reached"] == [DOCTOR]


async def test_it_runs_beside_the_loop_and_stops(folder: Path, house: House) -> None:
    watch = DropFolder(folder, house.letters, SERVICE, 0.01)
    running = asyncio.create_task(watch.run())
    drop(folder)
    async with asyncio.timeout(20):
        while not (folder / "done" / "lettre.xml").exists():  # noqa: ASYNC110 - a file system gives no event here
            await asyncio.sleep(0.01)
        await watch.stop()
        await running


async def test_a_missing_folder_is_told_once_and_waited_for(tmp_path: Path, house: House) -> None:
    folder = tmp_path / "late"
    watch = DropFolder(folder, house.letters, SERVICE, 0.005)
    with structlog.testing.capture_logs() as captured:
        running = asyncio.create_task(watch.run())
        await asyncio.sleep(0.05)
        await asyncio.to_thread(folder.mkdir)
        drop(folder)
        async with asyncio.timeout(20):
            while not (folder / "done" / "lettre.xml").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await watch.stop()
            await running
    assert [entry["event"] for entry in captured].count("dropfolder.unusable") == 1
    for secret in (PATIENT.matricule, PATIENT.family, DOCTOR, "lettre"):
        assert secret not in str(captured)


def test_a_mailbox_that_is_shut_sends_no_letter(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "state").mkdir()
    with ExitStack() as stack:
        house = open_house(tmp_path / "state", stack, sends=lambda _: Refused(MAILBOX_SUSPENDED))
        drop(folder)
        looked(folder, house.letters)
        assert house.spool.claim(10, 60) == []
    (where,) = {path.parent.name for path in folder.rglob("lettre.result.json")}
    assert "mailbox-suspended" in (folder / where / "lettre.result.json").read_text()
