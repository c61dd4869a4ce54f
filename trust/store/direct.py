"""Statements run by the driver itself, for the few places where SQLAlchemy's own cost is most of the work.

With SQLite a statement is compiled once and handed to the driver; with any other database SQLAlchemy runs it as usual,
so that types, placeholders and server-side cursors stay its business. Values are None, bool, int, float, str and bytes
only. What fails raises SQLAlchemy's errors with either: whoever waits for a full disk to pass knows no driver's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Executable, Table, bindparam
from sqlalchemy.exc import DBAPIError

_ROWS_IN_MEMORY = 2000


class DirectStatement:
    """One statement of SQLAlchemy Core whose values are named parameters or constants."""

    def __init__(self, statement: Executable) -> None:
        self._statement: Any = statement
        self._sql = ""
        self._pick: Callable[[Mapping[str, Any]], Any] = dict

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Execute, for what gives no rows; returns how many it changed."""
        if connection.dialect.name != "sqlite":
            return int(connection.execute(self._statement, values).rowcount)
        try:
            cursor = self._start(connection, values)
            changed: int = cursor.rowcount
            cursor.close()
        except sqlite3.Error as error:
            raise self._told(connection, error) from error
        return changed

    def many(self, connection: Connection, values: Sequence[Mapping[str, Any]]) -> None:
        """Execute once for each, for what gives no rows."""
        if not values:
            return
        if connection.dialect.name != "sqlite":
            connection.execute(self._statement, list(values))
            return
        self._prepare(connection)
        self._run_many(connection, [self._pick(each) for each in values])

    def insert_all(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
        """For the INSERT of a table: once for each of `rows`, at least one, with a value for each of its columns."""
        if connection.dialect.name == "sqlite":
            self._prepare(connection)
            self._run_many(connection, rows)
        else:
            names = self._statement.table.columns.keys()
            connection.execute(self._statement, [dict(zip(names, row, strict=True)) for row in rows])

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The first row, None when there is none."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, values).first()
        try:
            cursor = self._start(connection, values)
            row: Sequence[Any] | None = cursor.fetchone()
            cursor.close()
        except sqlite3.Error as error:
            raise self._told(connection, error) from error
        return row

    def batches(self, connection: Connection, values: Mapping[str, Any]) -> Iterator[Sequence[Sequence[Any]]]:
        """All rows, some thousands at a time: memory does not grow with their number."""
        if connection.dialect.name != "sqlite":
            options = {"yield_per": _ROWS_IN_MEMORY}
            with connection.execute(self._statement, values, execution_options=options) as rows:
                yield from rows.partitions()
            return
        try:
            cursor = self._start(connection, values)
            try:
                while rows_read := cursor.fetchmany(_ROWS_IN_MEMORY):
                    yield rows_read
            finally:
                cursor.close()
        except sqlite3.Error as error:
            raise self._told(connection, error) from error

    def _run_many(self, connection: Connection, rows: Sequence[Any]) -> None:
        driver: Any = connection.connection.driver_connection
        try:
            driver.executemany(self._sql, rows).close()
        except sqlite3.Error as error:
            raise self._told(connection, error) from error

    def _start(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        self._prepare(connection)
        driver: Any = connection.connection.driver_connection
        return driver.execute(self._sql, self._pick(values))

    def _told(self, connection: Connection, error: sqlite3.Error) -> Exception:
        """The same error as SQLAlchemy raises it, without the values."""
        raised: Exception = DBAPIError.instance(
            self._sql, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        )
        return raised

    def _prepare(self, connection: Connection) -> None:
        if self._sql:
            return
        compiled = self._statement.compile(dialect=connection.dialect)
        names = tuple(compiled.positiontup or ())
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        if constants or len(names) < 2:
            self._pick = lambda given: tuple([given[name] if name in given else constants[name] for name in names])
        else:
            self._pick = itemgetter(*names)
        self._sql = str(compiled)


def insertion(table: Table, *names: str) -> DirectStatement:
    """INSERT of these columns, all when none is named."""
    return DirectStatement(table.insert().values({name: bindparam(name) for name in names or table.columns.keys()}))
