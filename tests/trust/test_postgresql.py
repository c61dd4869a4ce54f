"""What only a server can do to us: it goes away, refuses to sync, and lets two nodes stand in each other's way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, insert, select, text, update
from sqlalchemy.exc import DBAPIError

from tests.support.postgresql import PostgresServer, postgres_server, programs
from trust.store import postgresql as dialect
from trust.store.database import Database, StoreUnavailableError, UnsupportedDatabaseError
from trust.store.nodes import Nodes
from trust.tables import nodes as nodes_table

pytestmark = pytest.mark.skipif(programs() is None, reason="PostgreSQL is not installed (package postgresql)")

tables = MetaData()
notes = Table("notes", tables, Column("id", Integer, primary_key=True), Column("text", String), Column("at", Float))


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with postgres_server() as started:
        yield started


@pytest.fixture
def url(server: PostgresServer) -> str:
    return server.fresh()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    tables.create_all(opened.engine)
    yield opened
    opened.close()


def add(number: int, words: str = ""):
    return lambda connection: connection.execute(insert(notes).values(id=number, text=words)) and None


def count(database: Database) -> int:
    return len(database.read(lambda connection: connection.execute(select(notes.c.id)).all()))


def setting(database: Database, name: str) -> str:
    return database.transact(lambda connection: connection.execute(text(f"SHOW {name}")).scalar())


def test_a_commit_waits_for_the_disk_whatever_the_servers_default(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2]
    for default, ours in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
        server.execute(f"ALTER DATABASE {name} SET synchronous_commit = {default}")
        with closing(Database(url)) as database:
            assert setting(database, "synchronous_commit") == ours


def test_a_database_that_cannot_hold_our_text_is_refused(server: PostgresServer, url: str) -> None:
    name = url.rpartition("/")[2] + "_latin"
    server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pytest.raises(UnsupportedDatabaseError, match="UTF8"):
        Database(server.url(name))


def test_a_server_that_is_not_there_is_found_out_at_once() -> None:
    with pytest.raises(DBAPIError):
        Database("postgresql://nobody@127.0.0.1:9/nothing")


def test_a_restarted_server_is_found_again(server: PostgresServer, database: Database) -> None:
    database.transact(add(1))
    assert count(database) == 1
    server.stop()
    with pytest.raises(StoreUnavailableError):
        database.transact(add(2))
    with pytest.raises(DBAPIError):
        count(database)
    server.start()
    assert count(database) == 1
    database.transact(add(2))
    assert count(database) == 2


def test_a_connection_that_broke_before_commit_costs_nobody_anything(
    server: PostgresServer, database: Database
) -> None:
    """As when the server was started again while nothing went on: every connection in the pools is dead."""
    database.transact(add(1))
    count(database)
    server.stop(signal.SIGQUIT)
    server.start()
    database.transact(add(2))
    assert count(database) == 2


def test_a_killed_backend_in_the_midst_of_a_batch_repeats_it_whole(server: PostgresServer, database: Database) -> None:
    runs = []

    def cut_off(connection) -> None:
        runs.append(1)
        connection.execute(insert(notes).values(id=1))
        if len(runs) == 1:
            server.execute(f"SELECT pg_terminate_backend({connection.scalar(text('SELECT pg_backend_pid()'))})")
        connection.execute(insert(notes).values(id=2))

    database.transact(cut_off)
    assert len(runs) == 2
    assert count(database) == 2


def test_an_unknown_commit_is_never_called_kept(server: PostgresServer, database: Database) -> None:
    """The connection breaks while COMMIT is on its way: whether it is kept nobody knows, and it is not done twice."""
    runs = []

    def work(connection) -> None:
        runs.append(1)
        connection.execute(insert(notes).values(id=len(runs)))

    from sqlalchemy import event

    def break_it(connection) -> None:
        connection.connection.driver_connection.close()

    event.listen(database.engine, "commit", break_it)
    with pytest.raises(StoreUnavailableError):
        database.transact(work)
    event.remove(database.engine, "commit", break_it)
    assert len(runs) == 1
    assert database.transact(add(7)) is None


def test_nodes_that_stand_in_each_others_way_both_get_through(url: str) -> None:
    with closing(Database(url)) as one, closing(Database(url)) as other:
        tables.create_all(one.engine)
        one.transact(add(1))
        one.transact(add(2))
        meeting = threading.Barrier(2, timeout=20)
        runs: list[str] = []

        def both(first: int, second: int, words: str):
            def work(connection) -> None:
                runs.append(words)
                connection.execute(update(notes).where(notes.c.id == first).values(text=words))
                if runs.count(words) == 1:
                    meeting.wait()
                connection.execute(update(notes).where(notes.c.id == second).values(text=words))

            return work

        ours, theirs = one.submit(both(1, 2, "one")), other.submit(both(2, 1, "other"))
        assert ours.result(30) is theirs.result(30) is None
        assert len(runs) == 3, "one of them was tried again"
        said = one.read(lambda connection: connection.scalars(select(notes.c.text)).all())
        assert said in (["one"] * 2, ["other"] * 2)


def test_a_swallowed_error_fails_its_function_alone(database: Database) -> None:
    def swallow(connection) -> None:
        try:
            connection.execute(text("SELECT * FROM nothing"))
        except DBAPIError:
            return

    broken, sound = database.submit(swallow), database.submit(add(1))
    with pytest.raises(RuntimeError, match="errors"):
        broken.result(10)
    assert sound.result(10) is None
    assert count(database) == 1


@pytest.mark.parametrize("value", [{"text": "secret value"}, {"id": "secret value"}, {"id": 2, "at": "secret value"}])
def test_what_the_server_quotes_stays_out_of_error_texts(database: Database, value: dict[str, object]) -> None:
    database.transact(add(1, "secret value"))
    database.transact(lambda connection: connection.execute(text("CREATE UNIQUE INDEX once ON notes (text)")) and None)
    with pytest.raises(DBAPIError) as failure:
        database.transact(
            lambda connection: connection.execute(
                text(f"INSERT INTO notes ({', '.join(value)}) VALUES ({', '.join(f':{name}' for name in value)})"),
                value,
            )
        )
    error: BaseException | None = failure.value
    while error is not None:
        assert "secret value" not in str(error)
        error = error.__cause__ or error.__context__


def test_without_the_driver_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedDatabaseError, match="extra `postgresql`"):
        Database("postgresql://x@127.0.0.1:9/y")


# Who lives


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def shared(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    nodes_table.create(opened.engine)
    yield opened
    opened.close()


def test_who_stands_still_for_the_patience_is_dead_and_nobody_else(shared: Database) -> None:
    clock = Clock()
    mine, other = (Nodes(shared, name, patience=30, monotonic=clock) for name in ("mine", "other"))
    mine.join()
    other.join()
    for _ in range(9):
        clock.now += 5
        assert mine.beat() == []
        assert other.beat() == []
    assert {each.name for each in mine.members} == {"mine", "other"}
    assert mine.eldest is not other.eldest
    dead: list[str] = []
    for _ in range(7):
        assert dead == []
        clock.now += 5
        dead = mine.beat()
    assert dead == [other.holder]
    assert [each.name for each in mine.members] == ["mine"]
    assert mine.eldest
    mine.bury(other.holder)
    assert mine.beat() == []
    assert other.beat() == [], "it was only cut off, and is back"
    clock.now += 5
    mine.beat()
    assert {each.name for each in mine.members} == {"mine", "other"}


def test_whoever_was_cut_off_itself_calls_nobody_dead(shared: Database) -> None:
    clock = Clock()
    mine, other = (Nodes(shared, name, patience=30, monotonic=clock) for name in ("mine", "other"))
    mine.join()
    other.join()
    mine.beat()
    clock.now += 3600  # no database for an hour, for either
    assert mine.beat() == []
    clock.now += 5
    assert mine.beat() == []
    other.leave()
    clock.now += 5
    mine.beat()
    assert [each.name for each in mine.members] == ["mine"]
