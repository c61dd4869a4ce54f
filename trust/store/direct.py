"""Statements run by the driver itself, for the few places where SQLAlchemy's own cost is most of the work.

With SQLite a statement is compiled once and handed to the driver; with any other database SQLAlchemy runs it as usual,
so that types, placeholders and server-side cursors stay its business. Values are int, str and bytes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Executable

_ROWS_IN_MEMORY = 2000


class DirectStatement:
    """One statement of SQLAlchemy Core whose every value is a named parameter."""

    def __init__(self, statement: Executable) -> None:
        self._statement: Any = statement
        self._sql = ""
        self._pick: Callable[[Mapping[str, Any]], Any] = dict

    def run(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Execute, for what gives no rows."""
        if connection.dialect.name == "sqlite":
            self._start(connection, values).close()
        else:
            connection.execute(self._statement, values)

    def insert_all(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> None:
        """For the INSERT of a table: once for each of `rows`, at least one, with a value for each of its columns."""
        if connection.dialect.name == "sqlite":
            self._prepare(connection)
            driver: Any = connection.connection.driver_connection
            driver.executemany(self._sql, rows).close()
        else:
            names = self._statement.table.columns.keys()
            connection.execute(self._statement, [dict(zip(names, row, strict=True)) for row in rows])

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The first row, None when there is none."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self._statement, values).first()
        cursor = self._start(connection, values)
        row: Sequence[Any] | None = cursor.fetchone()
        cursor.close()
        return row

    def batches(self, connection: Connection, values: Mapping[str, Any]) -> Iterator[Sequence[Sequence[Any]]]:
        """All rows, some thousands at a time: memory does not grow with their number."""
        if connection.dialect.name != "sqlite":
            options = {"yield_per": _ROWS_IN_MEMORY}
            with connection.execute(self._statement, values, execution_options=options) as rows:
                yield from rows.partitions()
            return
        cursor = self._start(connection, values)
        try:
            while rows_read := cursor.fetchmany(_ROWS_IN_MEMORY):
                yield rows_read
        finally:
            cursor.close()

    def _start(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        self._prepare(connection)
        driver: Any = connection.connection.driver_connection
        return driver.execute(self._sql, self._pick(values))

    def _prepare(self, connection: Connection) -> None:
        if not self._sql:
            compiled = self._statement.compile(dialect=connection.dialect)
            names = tuple(compiled.positiontup or ())
            self._pick = itemgetter(*names) if len(names) > 1 else lambda given: tuple(given[name] for name in names)
            self._sql = str(compiled)
