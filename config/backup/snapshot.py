"""The databases of one or several gateways, fixed at one moment while they go on working.

SQLite: each database's write lock is taken for the blink in which all read transactions begin, so that the cuts of
several gateways agree with each other: no mail is "delivered" in one and unknown in the other. Then each is copied by
SQLite's online backup out of its read transaction; writers go on meanwhile (WAL).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from config.backup.store import BackupError

_LOCK_SECONDS = 30.0


@contextmanager
def fixed(databases: Sequence[Path]) -> Iterator[tuple[datetime, list[sqlite3.Connection]]]:
    """The moment, and a connection to each database that sees it as it was then. Raises `BackupError`."""
    with ExitStack() as stack:
        with ExitStack() as locks:
            try:
                readers = [_connect(path, stack) for path in databases]
                for path in sorted(databases):
                    guard = _connect(path, locks)
                    guard.execute("BEGIN IMMEDIATE")
                    locks.callback(guard.execute, "ROLLBACK")
                for reader in readers:
                    reader.execute("BEGIN")
                    reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.Error as error:
                raise BackupError(f"the database cannot be read now: {error}") from error
            moment = datetime.now(UTC)
        yield moment, readers


def copy(reader: sqlite3.Connection, to: Path) -> None:
    """What the reader sees, as a database file of its own. Raises `BackupError`."""
    try:
        target = sqlite3.connect(to, isolation_level=None)
        try:
            to.chmod(0o600)
            target.execute("PRAGMA synchronous=OFF")  # it is read once, by ourselves
            reader.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
        finally:
            target.close()
    except sqlite3.Error as error:
        raise BackupError(f"the database cannot be copied: {error}") from error


def _connect(path: Path, stack: ExitStack) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw", uri=True, isolation_level=None, timeout=_LOCK_SECONDS
    )
    stack.callback(connection.close)
    return connection
