"""The daily sweep over the real road and record: what they keep survives it, what they leave behind does not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from bridges.dossier.entries import Deposited
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import load_matrix
from bridges.report import Action
from config.answers import off_loop
from config.cli import relais
from config.control import ControlSocket
from config.housekeeping import BLOB_REFERENCES, Housekeeping
from config.migrations import metadata, upgrade
from mta.delivery import Accepted, Lease, NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.bridges.fictitious import document, report
from tests.support.private import service_directory
from trust.journal import Journal
from trust.store import orphans
from trust.store.blobs import BlobStore
from trust.store.database import Database, StoreUnavailableError
from trust.store.orphans import OrphanCollector
from trust.vault import KeyVault

NEVER = threading.Event()


class Gateway:
    """Spool and record on one database and one blob store, as `config.wiring` joins them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vault = KeyVault.create(root / "vault")
        self.database = Database(f"sqlite:///{root / 'relais.db'}")
        upgrade(self.database)
        self.blobs = BlobStore(root / "blobs", self.vault)
        self.spool = Spool(self.database, self.blobs, self.vault, node="n1", schedule=RetrySchedule())
        self.dossier = Dossier(self.database, self.blobs, self.vault, Journal(self.vault, "test"), load_matrix())

    def accept(self, key: str, content: bytes = b"From: a@labo.example\r\n\r\nhello\r\n", **more: Any) -> Accepted:
        kept = self.spool.accept(
            Submission(
                origin=Origin.SUBMISSION,
                sender="a@labo.example",
                peer="account",
                content=content,
                content_type="message/rfc822",
                deliveries=(NewDelivery("b@op2.example", TargetKind.SMTP),),
                dedup_key=key,
                message_id_domain="labo.example",
            ),
            **more,
        )
        assert isinstance(kept, Accepted)
        return kept

    def lease(self) -> Lease:
        (lease,) = self.spool.claim(1, 60)
        return lease

    def deposit(self, number: int, **changes: Any) -> Any:
        one = document(unique_id=f"1.2.3.{number}", set_id=f"1.2.3.{number}", **changes)
        return self.dossier.deposit(report(one), delivery_id=f"d{number}", depositor="labo")

    def age(self) -> None:
        """Everything on disk is old."""
        for blob, _ in self.blobs.ids():
            os.utime(self.blobs._path(blob), (1, 1))

    def here(self) -> set[str]:
        return {blob for blob, _ in self.blobs.ids()}

    def swept(self) -> int:
        self.age()
        return OrphanCollector(self.database, self.blobs, BLOB_REFERENCES).sweep(NEVER, however_many=True).deleted


@pytest.fixture(autouse=True)
def out_of_breath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_BREATH_SECONDS", 0)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    made.database.close()


def test_every_column_that_holds_a_blob_is_known() -> None:
    """A table to come whose blobs nobody declared here would lose them all."""
    columns = {column for table in metadata.tables.values() for column in table.columns if "blob" in column.name}
    assert columns == set(BLOB_REFERENCES)


def test_what_road_and_record_keep_survives_any_age(gateway: Gateway) -> None:
    gateway.accept("1", b"accepted")
    lease = gateway.lease()
    assert gateway.spool.keep_prepared(lease, b"prepared", {})
    assert isinstance(gateway.deposit(1), Deposited)
    assert isinstance(gateway.deposit(2, content=b"<ClinicalDocument/>"), Deposited)
    assert len(gateway.here()) == 4
    assert gateway.swept() == 0
    assert gateway.spool.content(lease) == b"accepted"
    gateway.spool.release([lease])
    assert gateway.spool.prepared(gateway.lease()) == b"prepared"
    assert len(gateway.here()) == 4


def test_no_road_leaves_a_blob_expected_for_ever(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays expected is never collected before the next start."""

    def fails(connection: Connection) -> None:
        raise LookupError

    gateway.accept("1")
    lease = gateway.lease()
    assert gateway.spool.keep_prepared(lease, b"prepared", {})
    assert not gateway.spool.keep_prepared(lease, b"again", {})
    with pytest.raises(LookupError):
        gateway.accept("2", also=fails)
    transact, submit_together = gateway.database.transact, gateway.database.submit_together
    for error in (StoreUnavailableError("full"), IntegrityError("x", {}, Exception()), OSError(28, "full")):

        def breaks(work: Any, error: Exception = error) -> Any:
            raise error

        def fails_later(work: Any, item: Any, error: Exception = error) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

        monkeypatch.setattr(gateway.database, "transact", breaks)
        monkeypatch.setattr(gateway.database, "submit_together", fails_later)
        with pytest.raises(type(error)):
            gateway.accept("3")
        with pytest.raises(type(error)):
            gateway.spool.keep_prepared(lease, b"again", {})
        with pytest.raises(type(error)):
            gateway.deposit(3)
    monkeypatch.setattr(gateway.database, "transact", transact)
    monkeypatch.setattr(gateway.database, "submit_together", submit_together)
    for change in ({}, {"patient": document().patient}, {"content": b"<other/>"}):
        gateway.deposit(4, **change)
    put = gateway.blobs.put

    def full_at_the_second(kind: str, content: bytes, seen: list[bytes] = []) -> str:  # noqa: B006
        seen.append(content)
        if len(seen) == 2:
            raise OSError(28, "full")
        return put(kind, content)

    monkeypatch.setattr(gateway.blobs, "put", full_at_the_second)
    twins = report(document(unique_id="1.2.9.1", set_id="1.2.9.1"), document(unique_id="1.2.9.2", set_id="1.2.9.2"))
    with pytest.raises(OSError, match="full"):
        gateway.dossier.deposit(twins, delivery_id="twins", depositor="labo")
    monkeypatch.undo()
    gateway.dossier.deposit(report(document(), action=Action.DELETE), delivery_id="gone", depositor="labo")
    assert gateway.blobs.expected() == frozenset()
    assert gateway.swept() > 0
    gateway.spool.release([lease])
    assert gateway.spool.prepared(gateway.lease()) == b"prepared"
    assert gateway.swept() == 0


def test_a_commit_that_waits_behind_a_stuck_database_keeps_its_blob(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed clocks, a suspended machine: between the blob and its row any time may pass."""
    stuck, go_on, laid_down = threading.Event(), threading.Event(), threading.Semaphore(0)
    put = gateway.blobs.put

    def putting(kind: str, content: bytes) -> str:
        blob = put(kind, content)
        laid_down.release()
        return blob

    monkeypatch.setattr(gateway.blobs, "put", putting)

    def hold(connection: Connection) -> None:
        stuck.set()
        go_on.wait(20)

    with ThreadPoolExecutor(4) as threads:
        holding = threads.submit(gateway.database.transact, hold)
        assert stuck.wait(20)
        accepting = threads.submit(gateway.accept, "1", b"late")
        depositing = threads.submit(gateway.deposit, 1)
        assert laid_down.acquire(timeout=20) and laid_down.acquire(timeout=20)
        assert gateway.swept() == 0
        go_on.set()
        holding.result(20)
        accepting.result(20)
        assert isinstance(depositing.result(20), Deposited)
    assert gateway.swept() == 0
    assert gateway.spool.content(gateway.lease()) == b"late"


def test_everything_at_once_loses_nothing(gateway: Gateway) -> None:
    """Acceptance, preparation and deposit while one sweep follows another and every blob is old at once."""
    enough = threading.Event()
    collector = OrphanCollector(gateway.database, gateway.blobs, BLOB_REFERENCES, grace_seconds=-3600)

    def sweep() -> None:
        while not enough.is_set():
            collector.sweep(NEVER, however_many=True)

    def work(number: int) -> None:
        if number % 3 == 0:
            assert isinstance(gateway.deposit(number), Deposited)
            return
        gateway.accept(f"k{number}", b"%d" % number)
        for lease in gateway.spool.claim(1, 600):
            assert gateway.spool.keep_prepared(lease, b"prepared " + gateway.spool.content(lease), {})

    with ThreadPoolExecutor(7) as threads:
        sweeping = threads.submit(sweep)
        try:
            list(threads.map(work, range(150)))
        finally:
            enough.set()
        sweeping.result(30)
    assert gateway.swept() == 0
    found = gateway.here()
    named = {
        blob
        for column in BLOB_REFERENCES
        for blob in gateway.database.read(
            lambda connection, column=column: [
                row[0] for row in connection.execute(column.table.select().with_only_columns(column))
            ]
        )
        if blob
    }
    assert found == named
    assert len(named) >= 150


async def test_the_task_sweeps_by_itself_says_what_it_did_and_survives_what_breaks(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("1", "2", "3"):
        gateway.accept(key)
    gateway.blobs.release(gateway.blobs.put("mta-content", b"left"))
    gateway.age()
    turns: asyncio.Queue[float] = asyncio.Queue()
    housekeeping = Housekeeping(gateway.database, gateway.blobs, first_seconds=0.01)
    turn = housekeeping._turn

    async def counted() -> float:
        pause = await turn()
        await turns.put(pause)
        return pause

    monkeypatch.setattr(housekeeping, "_turn", counted)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(housekeeping.run())
        async with asyncio.timeout(20):
            assert await turns.get() == 0.01
            assert await turns.get() == 86_400
            assert len(gateway.here()) == 3
            gateway.blobs.release(gateway.blobs.put("mta-content", b"left"))
            monkeypatch.setattr(gateway.database, "read", lambda work: 1 / 0)
            gateway.age()
            housekeeping._bell.ring_here()
            assert await turns.get() == 3600
            assert not task.done()
            await housekeeping.stop()
            await task
    assert [entry["event"] for entry in logs] == ["housekeeping.swept", "housekeeping.failed"]
    assert logs[0]["deleted"] == 1 and logs[1]["error"] == "ZeroDivisionError"
    assert len(gateway.here()) == 4


async def test_stopping_breaks_a_sweep_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.accept("1")
    gateway.blobs.release(gateway.blobs.put("mta-content", b"left"))
    gateway.age()
    looking, loop = asyncio.Event(), asyncio.get_running_loop()
    ids = gateway.blobs.ids

    def looked(shards: range) -> Any:
        loop.call_soon_threadsafe(looking.set)
        monkeypatch.setattr(orphans, "_BREATH_SECONDS", 3600)
        return ids(shards)

    monkeypatch.setattr(gateway.blobs, "ids", looked)
    housekeeping = Housekeeping(gateway.database, gateway.blobs, first_seconds=0.01)
    task = asyncio.create_task(housekeeping.run())
    async with asyncio.timeout(20):
        await looking.wait()
        await housekeeping.stop()
        await task
    monkeypatch.undo()
    assert len(gateway.here()) == 2


async def test_an_operator_asks_is_warned_and_decides() -> None:
    with service_directory() as place:
        gateway = Gateway(place)
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setattr(orphans, "_BREATH_SECONDS", 0)
        with ThreadPoolExecutor(2) as threads:
            housekeeping = Housekeeping(gateway.database, gateway.blobs)
            control = ControlSocket(place / "control.sock", off_loop(housekeeping.calls(), threads))
            await control.start()

            async def asked(*options: str) -> Any:
                arguments = ["housekeeping", "--state", str(place), *options]
                return await asyncio.to_thread(CliRunner().invoke, relais, arguments)

            try:
                empty = await asked()
                assert (empty.exit_code, "0 that nothing refers to" in empty.output) == (0, True)
                for _ in range(3):
                    gateway.blobs.release(gateway.blobs.put("mta-content", b"left"))
                gateway.age()
                with structlog.testing.capture_logs() as logs:
                    warned = await asked()
                    assert len(gateway.here()) == 3
                    decided = await asked("--however-many", "--json")
                assert warned.exit_code == 1
                assert "right database" in warned.stderr and "Traceback" not in warned.output
                assert [entry["event"] for entry in logs] == ["housekeeping.held-back", "housekeeping.swept"]
                assert decided.exit_code == 0
                (found,) = json.loads(decided.stdout).values()
                assert (found["orphans"], found["deleted"]) == (3, 3)
                assert gateway.here() == set()
            finally:
                await control.stop()
                gateway.database.close()
                monkeypatch.undo()
