"""A gateway whose data is in PostgreSQL: backed up while it works, and back in an empty database, or in SQLite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result
from sqlalchemy import select

from config import backup_command
from config.backup import portable, restoring
from config.migrations import metadata, upgrade
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.tables import messages, steps
from tests.config.backup_state import accept, relais_toml, run
from tests.support.postgresql import PostgresServer
from trust.accounts import Accounts
from trust.journal import Journal, JournalEntry
from trust.journal_check import check
from trust.store.blobs import ALL_ROWS, BlobStore
from trust.store.database import Database
from trust.tables import nodes
from trust.vault import KeyVault


@pytest.fixture(autouse=True)
def stay_who_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run in this process: it must not become another user."""
    monkeypatch.setattr(backup_command, "drop", lambda state: state.mkdir(parents=True, exist_ok=True))


class Gateway:
    """What one keeps, without the gateway."""

    def __init__(self, place: Path, url: str) -> None:
        place.mkdir()
        self.state, self.url = place / "state", url
        self.configuration = place / "relais.toml"
        self.configuration.write_text(relais_toml(self.state, f'[store]\nurl = "{url}"\n'))
        self.kek = self.state / "vault" / "kek"

    def fill(self) -> None:
        vault = KeyVault.create(self.state / "vault")
        with closing(Database(self.url)) as database:
            upgrade(database)
            journal = Journal(vault, "n1")
            database.transact(lambda connection: journal.append(connection, JournalEntry("a", "test", "done")))
            blobs = BlobStore(self.state / "blobs", vault, database, ALL_ROWS)
            spool = Spool(database, blobs, vault, node="n1", schedule=RetrySchedule())
            for number in range(3):
                accept(spool, f"mail-{number}")
            Accounts(database, vault, journal=journal).create("a@exemple.fr", ["a@exemple.fr"], None)
            with database.engine.begin() as connection:
                connection.execute(nodes.insert(), [{"holder": "h", "name": "n1", "since": 1.0, "beats": 1}])


@pytest.fixture
def gateway(tmp_path: Path, postgresql: PostgresServer) -> Iterator[Gateway]:
    made = Gateway(tmp_path / "old", postgresql.fresh())
    made.fill()
    yield made


@pytest.fixture
def target(tmp_path: Path, gateway: Gateway) -> Path:
    done = run("backup", tmp_path / "target", "--config", gateway.configuration, "--json")
    assert done.exit_code == 0, done.output
    return tmp_path / "target"


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    tables = [table for table in metadata.sorted_tables if table is not nodes]
    return database.read(
        lambda connection: {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr) for table in tables
        }
    )


def restored(target: Path, old: Gateway, new: Gateway) -> Result:
    return run("restore", target, "--config", new.configuration, "--kek", old.kek, "--json")


def test_everything_comes_back_into_an_empty_database_and_numbers_go_on(
    gateway: Gateway, target: Path, tmp_path: Path, postgresql: PostgresServer
) -> None:
    new = Gateway(tmp_path / "new", postgresql.fresh())
    done = restored(target, gateway, new)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["in_flight"] == 3 and row["manifest"]["messages"] == 3
    assert not (new.state / "relais.db").exists()
    vault = KeyVault.open(new.state / "vault")
    with closing(Database(gateway.url)) as before, closing(Database(new.url)) as after:
        was, is_now = contents(before), contents(after)
        same = {name for name in was if was[name] == is_now[name]}
        assert {name for name in was if was[name]} - same == {
            "mta_steps",
            "journal_entries",
            "journal_heads",
            "journal_payloads",
        }
        assert len(is_now["mta_steps"]) == len(was["mta_steps"]) + 3
        assert after.read(lambda connection: check(connection, vault)).ok
        blobs = BlobStore(new.state / "blobs", vault, after, ALL_ROWS)
        spool = Spool(after, blobs, vault, node="n1", schedule=RetrySchedule())
        accept(spool, "mail-3")  # its steps get numbers nobody has
        kept = after.read(lambda connection: connection.execute(messages.select()).all())
        assert {blobs.get("mta-content", each.content_blob)[:6] for each in kept} == {b"mail-%d" % n for n in range(4)}
        assert after.read(lambda connection: len(connection.execute(steps.select()).all())) > len(is_now["mta_steps"])


def test_a_database_that_holds_anything_is_refused(
    gateway: Gateway, target: Path, tmp_path: Path, postgresql: PostgresServer
) -> None:
    new = Gateway(tmp_path / "new", postgresql.fresh())
    Gateway(tmp_path / "other", new.url).fill()
    done = restored(target, gateway, new)
    assert done.exit_code == 1 and "ever overwritten" in done.output
    assert not (new.state / "vault").exists()


def test_a_restore_killed_when_the_database_was_filled_goes_on(
    gateway: Gateway, target: Path, tmp_path: Path, postgresql: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Gateway(tmp_path / "new", postgresql.fresh())

    class KilledError(Exception):
        pass

    def killed(file: Path, server: Database) -> None:
        portable.load(file, server)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(restoring, "load", killed)
        assert isinstance(restored(target, gateway, new).exception, KilledError)
    with closing(Database(new.url)) as database:
        filled = contents(database)
        done = restored(target, gateway, new)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)[0]["in_flight"] == 3, "what the first one found is told"
        assert contents(database) == filled


def test_what_was_in_postgresql_comes_back_as_sqlite_and_the_other_way_round(
    gateway: Gateway, target: Path, tmp_path: Path, postgresql: PostgresServer
) -> None:
    done = run("restore", target, "--state", tmp_path / "single", "--kek", gateway.kek)
    assert done.exit_code == 0 and "holds what was in PostgreSQL" in done.output
    again = tmp_path / "again"
    assert run("backup", again, "--state", tmp_path / "single").exit_code == 0
    new = Gateway(tmp_path / "new", postgresql.fresh())
    done = restored(again, gateway, new)
    assert done.exit_code == 0, done.output
    with closing(Database(new.url)) as database:
        assert len(contents(database)["mta_messages"]) == 3


def test_a_server_that_does_not_answer_is_told_in_a_sentence(gateway: Gateway, tmp_path: Path) -> None:
    text = gateway.configuration.read_text()
    gateway.configuration.write_text(text.replace(gateway.url, "postgresql://relais@127.0.0.1:1/none"))
    told = run("backup", tmp_path / "target", "--config", gateway.configuration)
    assert told.exit_code == 1 and "does not let us in" in told.output
