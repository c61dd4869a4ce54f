"""The one database: a single writer thread that commits many callers' work together, and readers beside it.

A commit costs one disk sync, whoever asked for it. So callers hand small functions to `submit`; the writer runs all
that are waiting inside one transaction, each in its own savepoint, syncs once, and only then tells each caller that
its work is kept. Readers have their own connections and never wait for the writer.

All that differs between SQLite and PostgreSQL is at the end of this file and in `trust.store.postgresql`.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

from trust.store import postgresql
from trust.store.durable import make_private_directory, write_durably

T = TypeVar("T")
X = TypeVar("X")

Together = Callable[[Connection, Sequence[X]], Sequence[T]]
"""What `Database.submit_together` takes: work on many callers' items at once, one result for each, in their order."""

_BUSY_TIMEOUT_MS = 30_000
"""How long SQLite waits for another process (a backup, a migration) before giving up."""

_CROWD = 8
"""So many jobs in one commit are taken for a crowd, whose next jobs are about to come."""
_GATHER_SECONDS = 0.001
"""How long the next commit waits for a crowd to come back; about what a sync costs."""

_DEFERRED = "relais.deferred"
_TRIES = 5
"""Of one batch where other nodes' transactions stand in the way, or the connection has broken before COMMIT."""

_SQLITE_PRAGMAS = (
    f"busy_timeout={_BUSY_TIMEOUT_MS}",
    "synchronous=FULL",  # NORMAL may lose acknowledged commits when the power fails
    "foreign_keys=ON",
    "temp_store=MEMORY",  # nothing we keep may spill into temporary files
    "secure_delete=ON",  # what is erased must not linger in free pages
)


class StoreUnavailableError(Exception):
    """The database could not begin or commit: nothing of the batch is promised, `__cause__` says why. Try later."""


class NestedTransactionError(RuntimeError):
    """`transact` was called from inside a transaction of the same database: it would wait for itself for ever."""


class DatabaseClosedError(RuntimeError):
    """Work was submitted after `close`."""


class UnsupportedDatabaseError(ValueError):
    """The URL names no database that can keep a message: SQLite in a file, or PostgreSQL."""


class _Answer:
    """What `transact` waits for: a future for one thread, which costs half of a `Future`."""

    __slots__ = ("_error", "_result", "_told")

    def __init__(self) -> None:
        self._told = threading.Lock()
        self._told.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def set_running_or_notify_cancel(self) -> bool:
        return True

    def set_result(self, result: Any) -> None:
        self._result = result
        self._told.release()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._told.release()

    def result(self) -> Any:
        """Wait, once."""
        self._told.acquire()
        try:
            if self._error is not None:
                raise self._error
            return self._result
        finally:
            self._error = None  # or exception, traceback and we would hold each other


_NO_ITEM = object()


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[..., Any]
    future: Future[Any] | _Answer
    item: Any = _NO_ITEM
    """What `work`, which then is a `Together`, is to be done on."""


class Database:
    """One engine, one writer thread with group commit. Thread-safe.

    `url` is an SQLAlchemy URL (`sqlite:////var/lib/relais/relais.db`); the SQLite file and its directory are created
    private when missing. Raises `UnsupportedDatabaseError` for anything else than SQLite in a file or a PostgreSQL that
    keeps what it promises, `sqlalchemy.exc.DBAPIError` when the SQLite file cannot be opened or is no database, or the
    server cannot be reached.
    """

    engine: Engine
    """For schema work (`metadata.create_all`, migrations): each of its transactions takes the write lock."""

    def __init__(self, url: str, *, max_batch: int = 256, read_connections: int = 8) -> None:
        parsed = make_url(url)
        match parsed.get_backend_name():
            case "sqlite":
                self.engine, self._readers = _open_sqlite(parsed, read_connections)
            case "postgresql":
                self.engine, self._readers = _open_postgresql(parsed, read_connections)
            case other:
                raise UnsupportedDatabaseError(f"{other} is not supported: use SQLite in a file, or PostgreSQL")
        self._max_batch = max_batch
        self._jobs: deque[_Job] = deque()
        self._closed = False
        self._kept: Connection | None = None
        self._arrived = threading.Condition()
        self._enough = sys.maxsize  # jobs that wake the writer; while it works it need not be woken
        self._last = 0  # jobs of the last commit
        # A daemon: what it has not committed was promised to nobody, so it must not hold up the end of the process.
        self._writer = threading.Thread(target=self._write, name="database-writer", daemon=True)
        self._writer.start()

    def submit(self, fn: Callable[[Connection], T]) -> Future[T]:
        """Run `fn` in a transaction of its own making; the future resolves only once its COMMIT is durable.

        `fn` runs on the writer thread, and so do the future's callbacks: both must be quick. `fn` must not commit or
        roll back the connection, and must not return open results. When it raises, its own changes alone are undone
        and its future gets the exception. It is called again, all it did undone, when another node's transaction stood
        in its way. The future gets `StoreUnavailableError` when the database cannot begin or commit. Raises
        `DatabaseClosedError`.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(fn, future))
        return future

    def submit_together(self, work: Together[X, T], item: X) -> Future[T]:
        """As `submit`, but those who wait with the same `work` share one call of it, with all their items.

        So a thousand insertions are one statement. When the call raises, all it did is undone and each item is tried
        alone: one that is bad fails for its own caller only. Work may be done before what was submitted earlier.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(work, future, item))
        return future

    def transact_together(self, work: Together[X, T], item: X) -> T:
        """`submit_together`, and wait. Raises as `transact` does."""
        if threading.current_thread() is self._writer:
            raise NestedTransactionError("already in a transaction: use the connection you were given")
        answer = _Answer()
        self._enqueue(_Job(work, answer, item))
        result: T = answer.result()
        return result

    def transact(self, fn: Callable[[Connection], T]) -> T:
        """`submit`, and wait. Raises `NestedTransactionError` inside a transaction or a future's callback."""
        if threading.current_thread() is self._writer:
            raise NestedTransactionError("already in a transaction: use the connection you were given")
        answer = _Answer()
        self._enqueue(_Job(fn, answer))
        result: T = answer.result()
        return result

    def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on a read connection, all its statements over one snapshot; writing through it is an error. It is
        called again when the connection turns out to be broken."""
        try:
            with self._readers.connect() as connection:
                return fn(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._readers.connect() as connection:  # the server was started again: every old connection is gone
            return fn(connection)

    def close(self) -> None:
        """Commit what was submitted, then close every connection. Idempotent."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._writer.join()
        self._readers.dispose()
        self.engine.dispose()

    def _enqueue(self, job: _Job) -> None:
        with self._arrived:
            if self._closed:
                raise DatabaseClosedError("the database is closed")
            self._jobs.append(job)
            if len(self._jobs) >= self._enough:
                self._arrived.notify()

    def _write(self) -> None:
        try:
            while batch := self._next_batch():
                self._commit(batch)
        finally:
            if self._kept is not None:
                self._kept.close()

    def _next_batch(self) -> list[_Job]:
        """What is waiting, at least one job; empty when closed and drained."""
        with self._arrived:
            while not self._jobs and not self._closed:
                self._enough = 1
                self._arrived.wait()
            self._enough = sys.maxsize
            if len(self._jobs) < self._last and self._last >= _CROWD and not self._closed:
                # Told a moment ago that they are done, many callers bring their next job now: one sync for them all.
                self._enough = self._last
                self._arrived.wait(_GATHER_SECONDS)
                self._enough = sys.maxsize
            self._last = min(len(self._jobs), self._max_batch)
            return [self._jobs.popleft() for _ in range(self._last)]

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """The writer's; with SQLite the same from batch to batch, until something fails."""
        connection = self._kept or self.engine.connect()
        self._kept = None
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.dialect.name == "sqlite":
            self._kept = connection
        else:
            connection.close()

    def _commit(self, batch: list[_Job]) -> None:
        wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
        tries, committing = 1, False
        while True:
            try:
                with self._connection() as connection, connection.begin():
                    cursor = connection.connection.cursor()
                    info = connection.info  # a broken connection does not give it any more
                    info[_DEFERRED] = {}
                    try:
                        outcomes = [tell for group in _groups(wanted) for tell in _run_group(connection, cursor, group)]
                        settle(connection)
                    finally:
                        del info[_DEFERRED]
                    cursor.close()
                    committing = True  # from here on a failure does not say whether it is kept
                break
            except BaseException as cause:
                if not committing and tries < _TRIES and postgresql.may_pass(cause):
                    time.sleep(random.uniform(0.2, 1.0) * 0.01 * 2**tries)  # noqa: S311 - so that two nodes part ways
                    tries += 1
                    continue
                for job in wanted:
                    failure = StoreUnavailableError("the database did not commit")
                    failure.__cause__ = cause
                    job.future.set_exception(failure)
                return
        for tell in outcomes:
            tell()


def deferred(connection: Connection) -> dict[object, tuple[Callable[[Connection, Any], Any], Any]] | None:
    """What the functions of one transaction have put off until its COMMIT: by a key, what to call and with what.

    One function's entry is there for the next, who may replace it: so that what a hundred of them would write over and
    over is written once. What is called returns the value that stands there afterwards. Values are immutable: what a
    failing function put there is undone with it. None outside of `submit`'s transactions.
    """
    found: dict[object, tuple[Callable[[Connection, Any], Any], Any]] | None = connection.info.get(_DEFERRED)
    return found


def settle(connection: Connection) -> None:
    """Do now what was put off; for whoever reads it in the transaction that writes it."""
    waiting = deferred(connection) or {}
    for key, (write, value) in waiting.items():
        waiting[key] = (write, write(connection, value))


def _groups(jobs: Sequence[_Job]) -> Iterable[list[_Job]]:
    """Jobs that share their work; each other one by itself."""
    groups: dict[object, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(id(job) if job.item is _NO_ITEM else job.work, []).append(job)
    return groups.values()


def _run_group(connection: Connection, cursor: Any, group: list[_Job]) -> list[Callable[[], None]]:
    """Run jobs that share their work; returns how to tell their callers, once the batch is committed."""
    first = group[0]
    if first.item is _NO_ITEM:
        return [_run_in_savepoint(connection, cursor, first.work, first.future)]
    if len(group) == 1:
        alone = partial(_of_one, first.work, first.item)
        return [_run_in_savepoint(connection, cursor, alone, first.future)]
    answer: Future[Sequence[Any]] = Future()
    items = [job.item for job in group]
    _run_in_savepoint(connection, cursor, lambda open_connection: first.work(open_connection, items), answer)()
    if answer.exception() is not None:
        return [tell for job in group for tell in _run_group(connection, cursor, [job])]
    return [partial(job.future.set_result, result) for job, result in zip(group, answer.result(), strict=True)]


def _of_one(work: Together[Any, Any], item: Any, connection: Connection) -> Any:
    (result,) = work(connection, [item])
    return result


def _run_in_savepoint(
    connection: Connection, cursor: Any, work: Callable[[Connection], Any], future: Future[Any] | _Answer
) -> Callable[[], None]:
    """Run one job; returns how to tell its caller, once the batch is committed.

    When the database has given up the whole transaction (SQLite may on a full disk or an I/O error) the error is let
    through and fails the batch: what ran before is gone, and what would run next would commit on its own. So is the
    error of another node's being in the way, which only letting go of all locks resolves.

    The savepoint is set by the driver's own cursor: SQLAlchemy's costs more than many a job does.
    """
    cursor.execute("SAVEPOINT job")
    before = connection.info[_DEFERRED].copy()
    try:
        result = work(connection)
        if connection.in_nested_transaction():
            raise RuntimeError("a function must end the nested transactions it begins")
        if _statement_failed(connection):
            raise RuntimeError("a function must let the errors of its statements through")
    except BaseException as error:
        if _transaction_is_lost(connection) or postgresql.conflicts(error):
            raise
        while nested := connection.get_nested_transaction():
            nested.rollback()
        cursor.execute("ROLLBACK TO SAVEPOINT job")
        cursor.execute("RELEASE SAVEPOINT job")
        connection.info[_DEFERRED] = before
        return partial(future.set_exception, error)
    cursor.execute("RELEASE SAVEPOINT job")  # fails, and with it the batch, when the job ended the transaction
    return partial(future.set_result, result)


def _open_sqlite(url: URL, read_connections: int) -> tuple[Engine, Engine]:
    if not url.database or url.database == ":memory:" or url.query:
        raise UnsupportedDatabaseError("SQLite must be a plain file: sqlite:////path/to/relais.db")
    path = Path(url.database).absolute()
    make_private_directory(path.parent)
    with suppress(FileExistsError):
        # SQLite alone would make it readable by others; its -wal and -shm copy the mode.
        write_durably(path, replace=False)
    # Values never appear in exception texts: they end up in logs.
    writer = create_engine(url, hide_parameters=True, pool_size=2)
    readers = create_engine(url, hide_parameters=True, pool_size=read_connections, max_overflow=0)
    # A deferred writer could find its snapshot outdated at its first write, which no waiting would cure.
    _control_sqlite(writer, "BEGIN IMMEDIATE", _SQLITE_PRAGMAS)
    _control_sqlite(readers, "BEGIN", (*_SQLITE_PRAGMAS, "query_only=ON"))
    writer.connect().close()  # what is no database is found out now, not by the first message
    return writer, readers


def _control_sqlite(engine: Engine, begin: str, pragmas: tuple[str, ...]) -> None:
    """Take BEGIN out of the hands of Python's driver, which places it too late for savepoints and snapshots."""

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise UnsupportedDatabaseError("this file system does not allow SQLite's write-ahead log")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)


def _transaction_is_lost(connection: Connection) -> bool:
    """Whether the transaction has ended under our feet, which neither driver tells, not even on commit."""
    if connection.invalidated:
        return True
    driver = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        return driver is None or not driver.in_transaction
    return not connection.in_transaction() or postgresql.transaction_is_lost(driver)


def _statement_failed(connection: Connection) -> bool:
    """Whether the function hid an error after which PostgreSQL takes no more statements; SQLite always does."""
    if connection.dialect.name == "sqlite" or connection.invalidated:
        return False
    return postgresql.statement_failed(connection.connection.driver_connection)


def _open_postgresql(url: URL, read_connections: int) -> tuple[Engine, Engine]:
    try:
        writer, readers = postgresql.open_postgresql(url, read_connections)
        writer.connect().close()
    except postgresql.UnsuitableServerError as error:
        raise UnsupportedDatabaseError(str(error)) from error
    return writer, readers
