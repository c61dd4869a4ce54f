"""Group commit, isolation, snapshots, and what SIGKILL leaves behind."""

import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, event, func, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from trust.store.database import (
    Database,
    DatabaseClosedError,
    NestedTransactionError,
    StoreUnavailableError,
    UnsupportedDatabaseError,
)

ROOT = Path(__file__).parents[2]

metadata = MetaData()
notes = Table("notes", metadata, Column("id", Integer, primary_key=True), Column("text", String, unique=True))
replies = Table("replies", metadata, Column("note", ForeignKey("notes.id"), primary_key=True))


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def sqlite(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/private/relais.db")
    metadata.create_all(database.engine)
    yield database
    database.close()


def add(number, text=None):
    return lambda connection: connection.execute(insert(notes).values(id=number, text=text)) and number


def count(database) -> int:
    return database.read(lambda connection: connection.scalar(select(func.count()).select_from(notes)))


class Gate:
    """Holds the writer inside one transaction so that what follows is committed as one batch."""

    def __init__(self, database):
        self._open = threading.Event()
        self._entered = threading.Event()
        self.future = database.submit(self._wait)
        assert self._entered.wait(10)

    def _wait(self, _connection):
        self._entered.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


def test_kept_and_read(database) -> None:
    assert database.transact(add(1, "un")) == 1
    assert count(database) == 1


def test_settings_and_modes(sqlite, tmp_path) -> None:
    def settings(connection):
        return [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]

    assert sqlite.transact(settings) == ["wal", 2, 1, 30_000]
    assert sqlite.read(settings) == ["wal", 2, 1, 30_000]
    directory = tmp_path / "private"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    sqlite.transact(add(1))
    assert {stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()} == {0o600}


def test_a_batch_is_one_commit_and_a_failing_function_fails_alone(database) -> None:
    commits = []
    event.listen(database.engine, "commit", lambda _connection: commits.append(1))
    gate = Gate(database)

    def half_done(connection):
        add(50)(connection)
        raise KeyError("mine")

    futures = [database.submit(add(number, str(number))) for number in range(1, 21)]
    broken = database.submit(half_done)
    duplicate = database.submit(add(99, "7"))
    orphan = database.submit(lambda connection: connection.execute(insert(replies).values(note=12345)))
    last = database.submit(add(21, "21"))
    gate.open()
    assert [future.result(10) for future in (*futures, last)] == list(range(1, 22))
    with pytest.raises(KeyError, match="mine"):
        broken.result(10)
    with pytest.raises(IntegrityError):
        duplicate.result(10)
    with pytest.raises(IntegrityError):
        orphan.result(10)
    assert count(database) == 21
    assert len(commits) == 2  # the gate's, and one for all the others


def test_nobody_is_told_before_the_commit(database) -> None:
    visible = []
    told = threading.Event()

    def look(_future) -> None:
        visible.append(count(database))
        told.set()

    gate = Gate(database)
    futures = [database.submit(add(number)) for number in range(5)]
    futures[0].add_done_callback(look)
    assert count(database) == 0
    gate.open()
    assert told.wait(10)
    assert visible == [5]


def test_a_failed_commit_fails_the_whole_batch(database) -> None:
    def refuse(_connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    event.listen(database.engine, "commit", refuse)
    gate = Gate(database)
    futures = [database.submit(add(number)) for number in range(3)]
    gate.open()
    for future in (gate.future, *futures):
        with pytest.raises(StoreUnavailableError) as failure:
            future.result(10)
        assert "disk I/O error" in str(failure.value.__cause__)
    event.remove(database.engine, "commit", refuse)
    assert count(database) == 0
    assert database.transact(add(1)) == 1


@pytest.mark.parametrize("raises", [False, True])
def test_a_lost_transaction_fails_the_whole_batch(database, raises) -> None:
    """SQLite rolls everything back by itself on a full disk: nothing that ran beside may be called kept."""

    def lose(connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        if raises:
            raise KeyError

    gate = Gate(database)
    before = database.submit(add(1))
    culprit = database.submit(lose)
    after = database.submit(add(2))
    gate.open()
    for future in (before, culprit, after):
        with pytest.raises(StoreUnavailableError):
            future.result(10)
    assert count(database) == 0
    assert database.transact(add(3)) == 3


@pytest.mark.parametrize("misuse", ["commit", "rollback"])
def test_a_function_that_ends_the_transaction_is_an_error(database, misuse) -> None:
    def end(connection) -> None:
        getattr(connection, misuse)()

    with pytest.raises(StoreUnavailableError):
        database.transact(end)
    assert database.transact(add(3)) == 3


def test_a_full_disk_is_told_to_everybody_and_leaves_a_working_database(sqlite) -> None:
    pages = sqlite.transact(lambda connection: connection.exec_driver_sql("PRAGMA page_count").scalar())
    sqlite.transact(lambda connection: connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}").scalar())
    with pytest.raises((OperationalError, StoreUnavailableError)):
        sqlite.transact(add(1, "x" * 100_000))
    assert count(sqlite) == 0
    assert sqlite.transact(add(2, "small")) == 2


def test_a_nested_transaction_is_refused_not_dead(database) -> None:
    with pytest.raises(NestedTransactionError):
        database.transact(lambda _connection: database.transact(add(1)))
    assert count(database) == 0


def test_submitting_from_a_transaction_comes_after_it(database) -> None:
    later = database.transact(lambda _connection: database.submit(add(1)))
    assert isinstance(later, Future)
    assert later.result(10) == 1


def test_a_cancelled_function_does_not_run(database) -> None:
    gate = Gate(database)
    unwanted = database.submit(add(1))
    assert unwanted.cancel()
    gate.open()
    database.transact(add(2))
    assert count(database) == 1


def test_a_read_is_one_snapshot_and_cannot_write(database) -> None:
    database.transact(add(1))

    def look_twice(connection):
        query = select(func.count()).select_from(notes)
        first = connection.scalar(query)
        database.transact(add(2))
        return first, connection.scalar(query)

    assert database.read(look_twice) == (1, 1)
    assert count(database) == 2
    with pytest.raises(DBAPIError, match=r"read-?only"):
        database.read(add(3))


def test_values_stay_out_of_error_texts(database) -> None:
    database.transact(add(1, "secret value"))
    with pytest.raises(DBAPIError) as failure:
        database.transact(add(2, "secret value"))
    assert "secret value" not in str(failure.value)


def test_many_threads(database) -> None:
    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(lambda number: database.transact(add(number)), range(400)))
    assert numbers == list(range(400))
    assert count(database) == 400


def test_closing_drains_and_is_final(tmp_path) -> None:
    database = Database(f"sqlite:///{tmp_path}/relais.db", max_batch=3)
    metadata.create_all(database.engine)
    futures = [database.submit(add(number)) for number in range(10)]
    database.close()
    database.close()
    assert [future.result(0) for future in futures] == list(range(10))
    with pytest.raises(DatabaseClosedError):
        database.submit(add(11))
    assert not (tmp_path / "relais.db-wal").exists()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true", "mysql://x/y"])
def test_what_cannot_keep_a_message_is_refused(url) -> None:
    with pytest.raises(UnsupportedDatabaseError):
        Database(url)


def test_a_file_that_is_no_database_is_found_out_at_once(tmp_path) -> None:
    (tmp_path / "relais.db").write_bytes(b"something else entirely, long enough to be read" * 10)
    with pytest.raises(DBAPIError, match="not a database"):
        Database(f"sqlite:///{tmp_path}/relais.db")


WRITER = """
import sys, threading
from pathlib import Path
from sqlalchemy import insert
from tests.trust.test_database import metadata, notes
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

root = Path(sys.argv[1])
database = Database(f"sqlite:///{root}/relais.db")
metadata.create_all(database.engine)
blobs = BlobStore(root / "blobs", KeyVault.create(root / "vault"))

def write(lane):
    for number in range(lane, 10**9, 4):
        blob_id = blobs.put("note", str(number).encode())
        database.transact(lambda connection: connection.execute(insert(notes).values(id=number, text=blob_id)) and None)
        sys.stdout.write(f"{number} {blob_id}\\n")
        sys.stdout.flush()

for lane in range(4):
    threading.Thread(target=write, args=(lane,)).start()
"""


def test_what_was_acknowledged_survives_sigkill(tmp_path) -> None:
    from trust.store.blobs import BlobStore
    from trust.vault import KeyVault

    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with child:
        lines = [child.stdout.readline() for _ in range(300)]
        child.kill()
        lines += child.stdout.readlines()
    acknowledged = dict(line.split() for line in lines if line.endswith("\n"))
    assert len(acknowledged) >= 300
    database = Database(f"sqlite:///{tmp_path}/relais.db")
    kept = {str(number): blob_id for number, blob_id in database.read(lambda c: c.execute(select(notes)).all())}
    assert database.read(lambda c: c.exec_driver_sql("PRAGMA integrity_check").scalar()) == "ok"
    database.close()
    assert acknowledged.items() <= kept.items()
    blobs = BlobStore(tmp_path / "blobs", KeyVault.open(tmp_path / "vault"))
    assert all(blobs.get("note", blob_id) == number.encode() for number, blob_id in kept.items())
