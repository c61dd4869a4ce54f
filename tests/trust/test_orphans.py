"""Blobs that no row names: which are deleted, and above all which never are."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, MetaData, String, Table, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from trust.store import orphans
from trust.store.blobs import BlobMissingError, BlobStore
from trust.store.database import Database
from trust.store.orphans import GRACE_SECONDS, OrphanCollector, Sweep, plausible
from trust.vault import KeyVault

TABLES = MetaData()
LETTERS = Table("letters", TABLES, Column("blob", String(32)), Column("twin", String(32)))
NEVER = threading.Event()
KIND = "letter"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    TABLES.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", KeyVault.create(tmp_path / "vault"))


class Store:
    """Keeps as the spool does: the blob, the row, then nobody holds it any more."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.database, self.blobs = database, blobs

    def keep(self, content: bytes = b"x", *, column: str = "blob") -> str:
        blob = self.blobs.put(KIND, content)
        self.database.transact(lambda connection: connection.execute(insert(LETTERS), {column: blob}) and None)
        self.blobs.release(blob)
        return blob

    def abandon(self, count: int = 1) -> set[str]:
        """As somebody who died before the row."""
        left = {self.blobs.put(KIND, b"left") for _ in range(count)}
        for blob in left:
            self.blobs.release(blob)
        return left

    def age(self, blob: str, seconds: float = 30 * 86_400) -> None:
        path = self.blobs._path(blob)
        os.utime(path, (time.time() - seconds,) * 2)

    def here(self) -> set[str]:
        return {blob for blob, _ in self.blobs.ids()}

    def collector(self, **options: object) -> OrphanCollector:
        return OrphanCollector(self.database, self.blobs, (LETTERS.c.blob, LETTERS.c.twin), **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def out_of_breath(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_BREATH_SECONDS", 0)


@pytest.fixture
def store(database: Database, blobs: BlobStore) -> Store:
    return Store(database, blobs)


def test_what_nothing_names_goes_and_everything_else_stays(store: Store) -> None:
    named = {store.keep() for _ in range(20)} | {store.keep(column="twin") for _ in range(20)}
    left, young = store.abandon(5), store.abandon(5)
    for blob in named | left:
        store.age(blob)
    octets = sum(map(store.blobs.size, left))
    assert store.collector().sweep(NEVER) == Sweep(45, 5, octets, 5)
    assert octets > 0
    assert store.here() == named | young
    assert store.collector().sweep(NEVER) == Sweep(40, 0, 0, 0)


@pytest.mark.parametrize("seconds", [GRACE_SECONDS - 60, 0, -30 * 86_400])  # the last: the clock was ahead then
def test_what_is_not_old_enough_stays(store: Store, seconds: float) -> None:
    store.keep()
    (left,) = store.abandon()
    store.age(left, seconds)
    assert store.collector().sweep(NEVER, however_many=True).looked_at == 0
    assert left in store.here()


def test_what_somebody_still_holds_stays_however_old_it_looks(store: Store) -> None:
    """The clock jumped by years, or the process was stopped, between the blob and its row."""
    for _ in range(3):
        store.age(store.keep())
    held = store.blobs.put(KIND, b"on its way")
    store.age(held)
    assert store.collector().sweep(NEVER, however_many=True).orphans == 0
    assert store.blobs.get(KIND, held) == b"on its way"
    store.blobs.release(held)  # and no row was written
    assert store.collector().sweep(NEVER).deleted == 1


@pytest.mark.parametrize("moment", ["before the holders are asked", "before the rows are read"])
def test_a_row_committed_in_the_midst_of_a_sweep_keeps_its_blob(
    store: Store, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    late = store.blobs.put(KIND, b"late")
    store.age(late)

    def commit() -> None:
        store.database.transact(lambda connection: connection.execute(insert(LETTERS), {"blob": late}) and None)
        store.blobs.release(late)

    asked = store.blobs.expected

    def expected() -> frozenset[str]:
        if moment == "before the holders are asked":
            commit()
            return asked()
        found = asked()
        commit()
        return found

    monkeypatch.setattr(store.blobs, "expected", expected)
    assert store.collector().sweep(NEVER, however_many=True).deleted == 0
    assert store.blobs.get(KIND, late) == b"late"


def test_a_name_that_moves_to_another_row_in_the_midst_is_seen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All columns are read in one snapshot: what leaves one that is not read yet for one that is, is not missed."""
    wanderer = store.keep(column="twin")
    store.age(wanderer)
    moves: list[str] = []

    def move() -> None:
        twin = {"twin": None, "blob": wanderer}
        store.database.transact(lambda connection: connection.execute(update(LETTERS).values(twin)) and None)
        moves.append("moved")

    def read(work: Callable[[Connection], None]) -> None:
        def interrupted(connection: Connection) -> None:
            execute = connection.scalars

            def scalars(*arguments: object, **options: object) -> object:
                found = execute(*arguments, **options)  # type: ignore[call-overload]
                if not moves:
                    with ThreadPoolExecutor(1) as other:
                        other.submit(move).result()
                return found

            monkeypatch.setattr(connection, "scalars", scalars)
            work(connection)

        Database.read(store.database, interrupted)

    monkeypatch.setattr(store.database, "read", read)
    assert store.collector().sweep(NEVER, however_many=True).deleted == 0
    assert moves == ["moved"]
    assert store.blobs.get(KIND, wanderer) == b"x"


def test_nothing_kept_is_lost_while_many_keep_and_sweeps_never_end(store: Store) -> None:
    """Every blob is old at once here: only the order of looking protects it."""
    enough = threading.Event()
    collector = store.collector(grace_seconds=-3600)

    def sweep() -> int:
        deleted = 0
        while not enough.is_set():
            deleted += collector.sweep(NEVER, however_many=True).deleted
        return deleted

    def keep(number: int) -> str | None:
        if number % 10 == 0:
            store.abandon()
            return None
        return store.keep(b"%d" % number)

    with ThreadPoolExecutor(9) as threads:
        sweeping = threads.submit(sweep)
        try:
            kept = {blob: number for number, blob in enumerate(threads.map(keep, range(400))) if blob}
        finally:
            enough.set()
        deleted = sweeping.result() + collector.sweep(NEVER, however_many=True).deleted
    assert deleted == 40
    assert store.here() == set(kept)
    for blob, number in kept.items():
        assert store.blobs.get(KIND, blob) == b"%d" % number


def test_any_division_into_parts_finds_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(7)
    named, left = {store.keep() for _ in range(120)}, store.abandon(30)
    for blob in named | left:
        store.age(blob)
    for at_once in (1, 2, 7, 64):
        monkeypatch.setattr(orphans, "_AT_ONCE", at_once)
        monkeypatch.setattr(orphans, "_ROWS", 3)
        gone = set(random.sample(sorted(left), 7))
        left -= gone
        for blob in left:  # these are held for the moment
            store.blobs._expected.add(blob)
        while store.collector().sweep(NEVER, however_many=True).deleted:
            pass  # no more at once than can be held in memory
        assert store.here() == named | left
        for blob in left:
            store.blobs.release(blob)


def test_what_is_no_blob_is_left_alone(store: Store, tmp_path: Path) -> None:
    store.age(store.keep())
    foreign = [tmp_path / "blobs/00" / name for name in ("README", "x" * 30, "0" * 31, ".hidden")]
    for path in foreign:
        path.write_bytes(b"?")
        os.utime(path, (1, 1))
    assert store.collector().sweep(NEVER, however_many=True).orphans == 0
    assert all(path.exists() for path in foreign)


def test_a_directory_that_wanders_off_stops_the_sweep_and_deletes_nothing(store: Store, tmp_path: Path) -> None:
    store.age(store.keep())
    left = store.abandon(3)
    for blob in left:
        store.age(blob)
    (tmp_path / "blobs/ff").rename(tmp_path / "ff")
    with pytest.raises(FileNotFoundError):
        store.collector().sweep(NEVER, however_many=True)
    (tmp_path / "ff").rename(tmp_path / "blobs/ff")
    assert left < store.here()


@pytest.mark.parametrize(
    ("looked_at", "found", "expected"),
    [
        (0, 0, True),
        (1, 1, False),
        (3, 2, False),
        (4, 2, True),
        (200, 100, True),
        (201, 101, False),
        (10_000, 100, True),
        (10_000, 101, False),
        (1_000_000, 10_000, True),
        (1_000_000, 10_001, False),
    ],
)
def test_how_many_crashes_explain(looked_at: int, found: int, expected: bool) -> None:
    assert plausible(looked_at, found) is expected


def test_an_emptied_database_costs_no_blob(store: Store) -> None:
    named = {store.keep() for _ in range(30)}
    for blob in named:
        store.age(blob)
    store.database.transact(lambda connection: connection.execute(LETTERS.delete()) and None)
    held_back = store.collector().sweep(NEVER)
    assert (held_back.orphans, held_back.deleted, held_back.held_back) == (30, 0, True)
    assert store.here() == named
    assert store.collector().sweep(NEVER, however_many=True).deleted == 30


def test_a_database_that_cannot_be_read_costs_no_blob(store: Store) -> None:
    named = {store.keep() for _ in range(5)} | store.abandon()
    for blob in named:
        store.age(blob)
    store.database.transact(TABLES.drop_all)
    with pytest.raises(SQLAlchemyError):
        store.collector().sweep(NEVER, however_many=True)
    assert store.here() == named


def test_broken_off_at_any_moment_nothing_is_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {store.keep() for _ in range(10)} | store.abandon(3)
    for blob in named:
        store.age(blob)

    class After(threading.Event):
        """Set after so many looks at it."""

        def __init__(self, looks: int) -> None:
            super().__init__()
            self.looks = looks

        def is_set(self) -> bool:
            self.looks -= 1
            return self.looks < 0

        def wait(self, timeout: float | None = None) -> bool:
            return self.is_set()

    for looks in (0, 1, 100, 255, 256, 257, 258):
        assert store.collector().sweep(After(looks), however_many=True).deleted == 0, looks
        assert store.here() == named
    assert store.collector().sweep(NEVER).deleted == 3


def test_killed_while_deleting_the_rest_goes_next_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    named, left = {store.keep() for _ in range(20)}, store.abandon(5)
    for blob in named | left:
        store.age(blob)
    delete, done = store.blobs.delete, []

    def dies(blob: str) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(blob)
        delete(blob)

    monkeypatch.setattr(store.blobs, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        store.collector().sweep(NEVER)
    monkeypatch.undo()
    assert store.here() == (named | left) - set(done)
    assert store.collector().sweep(NEVER).deleted == 3
    assert store.here() == named


_CHILD = """
import sys
from pathlib import Path
from sqlalchemy import insert
from tests.trust.test_orphans import KIND, LETTERS, Store
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

root = Path(sys.argv[1])
store = Store(Database(f"sqlite:///{root / 'relais.db'}"), BlobStore(root / "blobs", KeyVault.open(root / "vault")))
kept = [store.keep(b"kept") for _ in range(5)]
store.blobs.put(KIND, b"laid down, row never begun")
blob = store.blobs.put(KIND, b"laid down, row never committed")

def write(connection):
    connection.execute(insert(LETTERS), {"blob": blob})
    print(*kept, flush=True)
    sys.stdin.read()

store.database.transact(write)
"""


def test_what_a_killed_process_left_is_collected_and_what_it_acknowledged_is_not(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    TABLES.create_all(database.engine)
    vault = KeyVault.create(tmp_path / "vault")
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(tmp_path)],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        kept = set(child.stdout.readline().split())
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    store = Store(database, BlobStore(tmp_path / "blobs", vault))
    assert len(kept) == 5 and kept < store.here()
    for blob in store.here():
        store.age(blob)
    assert store.collector().sweep(NEVER).deleted == 2
    assert store.here() == kept
    assert {store.blobs.get(KIND, blob) for blob in kept} == {b"kept"}
    database.close()


def test_a_blob_is_expected_from_before_it_is_there_until_it_is_released(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    write = blobs._write

    def watched(kind: str, blob_id: str, content: bytes) -> None:
        seen.append(blob_id in blobs.expected())
        write(kind, blob_id, content)
        if content == b"full":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs, "_write", watched)
    first, second = blobs.put(KIND, b"1"), blobs.put(KIND, b"2")
    assert blobs.expected() == {first, second} and all(seen)
    blobs.release(first)
    blobs.release(first)
    blobs.release("")
    blobs.delete(second)
    with pytest.raises(OSError, match="No space"):
        blobs.put(KIND, b"full")
    assert blobs.expected() == frozenset()
    with pytest.raises(BlobMissingError):
        blobs.get(KIND, second)


def test_sweeps_take_turns(store: Store) -> None:
    for _ in range(10):
        store.age(store.keep())
    (left,) = store.abandon()
    store.age(left)
    collector = store.collector()
    with ThreadPoolExecutor(4) as threads:
        swept = list(threads.map(lambda _: collector.sweep(NEVER), range(4)))
    assert sorted(each.deleted for each in swept) == [0, 0, 0, 1]
    named = store.database.read(lambda connection: set(connection.scalars(select(LETTERS.c.blob))))
    assert store.here() == named
