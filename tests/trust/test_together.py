"""Work that many callers share: one call for all, one bad item for its own caller only."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, column, insert, select, table
from sqlalchemy.exc import DBAPIError, IntegrityError

from trust.store.database import Database, NestedTransactionError
from trust.store.direct import DirectStatement, insertion

TABLES = MetaData()
NUMBERS = Table("numbers", TABLES, Column("n", Integer, primary_key=True))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    TABLES.create_all(opened.engine)
    yield opened
    opened.close()


class Keeping:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, connection: Connection, numbers: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(numbers))
        connection.execute(insert(NUMBERS), [{"n": each} for each in numbers])
        if any(each < 0 for each in numbers):
            raise ValueError("negative")
        return [each * 10 for each in numbers]


def held_up(database: Database) -> tuple[threading.Event, Future[object]]:
    """The writer, busy until the event is set: what is submitted meanwhile waits together."""
    gate, begun = threading.Event(), threading.Event()

    def wait(_: Connection) -> None:
        begun.set()
        gate.wait(10)

    future: Future[object] = database.submit(wait)
    begun.wait(10)
    return gate, future


def kept(database: Database) -> list[int]:
    return list(database.read(lambda connection: connection.scalars(select(NUMBERS.c.n)).all()))


def test_those_who_wait_share_one_call(database: Database) -> None:
    keeping = Keeping()
    gate, first = held_up(database)
    futures = [database.submit_together(keeping, number) for number in range(50)]
    gate.set()
    assert first.result(10) is None
    assert [future.result(10) for future in futures] == [number * 10 for number in range(50)]
    assert keeping.calls == [list(range(50))]
    assert kept(database) == list(range(50))


def test_a_bad_one_fails_alone(database: Database) -> None:
    keeping = Keeping()
    gate, _ = held_up(database)
    futures = [database.submit_together(keeping, number) for number in (1, -2, 3)]
    beside = database.submit(lambda connection: connection.execute(insert(NUMBERS).values(n=4)).rowcount)
    gate.set()
    assert futures[0].result(10) == 10
    with pytest.raises(ValueError, match="negative"):
        futures[1].result(10)
    assert futures[2].result(10) == 30
    assert beside.result(10) == 1
    assert keeping.calls == [[1, -2, 3], [1], [-2], [3]]
    assert kept(database) == [1, 3, 4]


def test_different_work_is_not_mixed(database: Database) -> None:
    one, other = Keeping(), Keeping()
    gate, _ = held_up(database)
    futures = [database.submit_together(each, number) for number, each in enumerate((one, other, one, other))]
    gate.set()
    assert [future.result(10) for future in futures] == [0, 10, 20, 30]
    assert (one.calls, other.calls) == ([[0, 2]], [[1, 3]])


def test_waiting_inside_a_transaction_is_refused(database: Database) -> None:
    def nested(_: Connection) -> None:
        database.transact_together(Keeping(), 1)

    with pytest.raises(NestedTransactionError):
        database.transact(nested)


def test_what_the_driver_refuses_is_raised_as_sqlalchemy_raises_it(database: Database) -> None:
    """Whoever tries again when the store fails for a while looks for these errors, whichever way a statement went."""
    database.transact(
        lambda connection: connection.exec_driver_sql("CREATE TABLE once (name TEXT PRIMARY KEY)").close()
    )
    once = Table("once", MetaData(), Column("name", Text, primary_key=True))
    adding = insertion(once)

    def twice(connection: Connection) -> None:
        adding.many(connection, [{"name": "secret"}])
        adding.run(connection, {"name": "secret"})

    def missing(connection: Connection) -> object:
        return DirectStatement(select(table("nowhere", column("name")).c.name)).first(connection, {})

    with pytest.raises(IntegrityError) as refused:
        database.transact(twice)
    assert "secret" not in str(refused.value)
    with pytest.raises(DBAPIError):
        database.transact(missing)
