"""A gateway's data of PostgreSQL as a SQLite file of the same schema, and back: one form of backup for both.

Out of PostgreSQL everything is read in one transaction, so that the file is one moment of what all nodes do. Into
PostgreSQL everything goes in one transaction, into an empty database only. As what is backed up is the same, a gateway
may come back on the other kind of database.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.exc import SQLAlchemyError

from config.backup.store import BackupError
from config.migrations import metadata, upgrade
from trust.store.database import Database, StoreUnavailableError
from trust.tables import blobs, journal_heads, nodes

_MANY, _FEW = 1000, 4
"""Rows read at once; of those that may be a whole message each."""
_REVISION = "SELECT version_num FROM alembic_version"


def export(source: Database, to: Path, reserve: int) -> datetime:
    """Copy all that is there at one moment, which is returned, into the new SQLite file `to`. Raises `BackupError`;
    also when less than `reserve` octets would be left on its disk."""

    def read(connection: Connection) -> datetime:
        revision = connection.exec_driver_sql(_REVISION).scalar()  # from here on nothing changes for this transaction
        moment = datetime.now(UTC)
        size = int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
        if shutil.disk_usage(to.parent).free < size + reserve:
            raise BackupError(f"{to.parent} has no room for a copy of the database ({size} bytes): make room first")
        to.unlink(missing_ok=True)  # of an attempt during which the connection broke
        with closing(Database(f"sqlite:///{to}")) as file:
            upgrade(file)
            with file.engine.begin() as writer:
                if revision != writer.exec_driver_sql(_REVISION).scalar():
                    raise BackupError("the database is not of this version: make the backup with the one that runs")
                _copy(connection, writer)
        return moment

    try:
        return source.read(read)
    except (SQLAlchemyError, StoreUnavailableError) as error:
        raise BackupError(f"the database cannot be copied: {type(error).__name__}") from error


def load(file: Path, target: Database) -> None:
    """Put what `export` or a backup made into an empty database, wholly or not at all; again it changes nothing.
    Raises `BackupError`."""
    try:
        upgrade(target)
        with closing(Database(f"sqlite:///{file}")) as source, target.engine.begin() as writer:
            writer.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            if source.read(_heads) == _heads(writer) != {}:
                return  # a restore that was killed had done it
            if filled := _filled(writer):
                raise BackupError(_not_empty(filled))
            source.read(lambda reader: _copy(reader, writer))
            for table in metadata.sorted_tables:
                _count_on(writer, table)
    except (SQLAlchemyError, StoreUnavailableError) as error:
        raise BackupError(f"PostgreSQL did not take the database of the cut: {type(error).__name__}") from error


def refuse_filled(target: Database) -> None:
    """Raises `BackupError` when the database is not empty."""
    try:
        upgrade(target)
        filled = target.read(_filled)
    except (SQLAlchemyError, StoreUnavailableError) as error:
        raise BackupError(f"the database of store.url cannot be used: {type(error).__name__}") from error
    if filled:
        raise BackupError(_not_empty(filled))


def named_blobs(source: Database) -> set[bytes]:
    """Ids of the blobs in files that its rows name now."""

    def read(connection: Connection) -> set[bytes]:
        columns = [each for table in metadata.sorted_tables for each in table.columns if names_blob(each.name)]
        named = (value for each in columns for value in connection.scalars(select(each).where(each.is_not(None))))
        return {bytes.fromhex(value) for value in named if len(value) == 32}

    return source.read(read)


def names_blob(column: str) -> bool:
    """Whether a column of this name holds ids of blobs, whoever's table it is in."""
    return column.endswith(("blob", "blob_id"))


def _copy(reader: Connection, writer: Connection) -> None:
    for table in metadata.sorted_tables:
        if table is nodes:  # who lives now: nobody of it will
            continue
        at_once = _FEW if table is blobs else _MANY
        found = reader.execute(select(table).execution_options(stream_results=True, yield_per=at_once))
        for rows in found.mappings().partitions():
            writer.execute(table.insert(), [dict(row) for row in rows])


def _heads(connection: Connection) -> dict[str, bytes]:
    """Where each chain of the journal is: tells one database from every other."""
    found = connection.execute(select(journal_heads.c.writer, journal_heads.c.hash)).all()
    return {row.writer: bytes(row.hash) for row in found}


def _filled(connection: Connection) -> str:
    """A table that holds anything, or an empty text."""
    tables = (each for each in metadata.sorted_tables if each is not nodes)
    return next((each.name for each in tables if connection.execute(select(each).limit(1)).first()), "")


def _not_empty(table: str) -> str:
    return f"nothing is ever overwritten, and the database of store.url holds rows ({table}): name an empty one"


def _count_on(writer: Connection, table: Table) -> None:
    """The next row gets a number behind those that were copied."""
    column = table.autoincrement_column
    if column is not None:
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        most = writer.scalar(select(func.max(column)))
        if most is not None:
            writer.execute(select(func.setval(sequence, most)))
