"""The journal stands with its transaction, and shows every way of tampering with it."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import delete, insert, select, update

from trust.journal import Journal, JournalEntry
from trust.store import metadata
from trust.store.database import Database
from trust.tables import journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault

SUBJECT = "ab" * 32


def entry(number: int, subject: str = "") -> JournalEntry:
    return JournalEntry("medecin@cabinet.example", "dossier.read", "done", subject, f"doc-{number}", details={"n": "é"})


@pytest.fixture(scope="module")
def vault(tmp_path_factory):
    return KeyVault.create(tmp_path_factory.mktemp("keys") / "vault")


@pytest.fixture
def database(database_url):
    database = Database(database_url)
    metadata.create_all(database.engine, tables=[journal_entries, journal_payloads, journal_heads])
    yield database
    database.close()


@pytest.fixture
def journal(vault, database):
    """Ten entries by one writer, three by another."""
    for writer, count in (("node-1", 10), ("node-2", 3)):
        mine = Journal(vault, writer)
        for number in range(1, count + 1):
            subject = SUBJECT if number % 4 == 0 else ""
            receipt = database.transact(lambda c, n=number, j=mine, s=subject: j.append(c, entry(n, s)))
            assert (receipt.writer, receipt.sequence) == (writer, number)
    return Journal(vault, "node-1")


def tamper(database, *statements) -> None:
    """As somebody would who can write to the database, foreign keys or not."""
    with database.engine.connect() as connection:
        raw = connection.connection.driver_connection
        if connection.dialect.name == "sqlite":
            raw.execute("PRAGMA foreign_keys=OFF")
        with connection.begin():
            if connection.dialect.name == "postgresql":
                raw.execute("SET LOCAL session_replication_role = replica")
            for statement in statements:
                connection.execute(statement)
        if connection.dialect.name == "sqlite":
            raw.execute("PRAGMA foreign_keys=ON")


def at(table, sequence, writer="node-1"):
    return (table.c.writer == writer) & (table.c.sequence == sequence)


def test_intact(journal, database) -> None:
    verdict = database.read(journal.verify)
    assert (verdict.ok, verdict.entries, verdict.problem) == (True, 13, "")


def test_empty(vault, database) -> None:
    assert database.read(Journal(vault, "node-1").verify).ok


def test_read_back(journal, database) -> None:
    moment = datetime(2026, 11, 21, 8, 0, 0, 123456, tzinfo=UTC)
    database.transact(lambda c: journal.append(c, entry(77, SUBJECT), at=moment.replace(year=2100)))
    stored = database.read(lambda c: journal.entries(c, limit=5))
    assert len(stored) == 5
    assert stored[0].entry == entry(77, SUBJECT)
    assert stored[0].at == moment.replace(year=2100)
    about = database.read(lambda c: journal.entries(c, subject=SUBJECT))
    assert [each.entry.object_id for each in about] == ["doc-77", "doc-8", "doc-4"]
    assert database.read(lambda c: journal.entries(c, subject="nobody")) == []


def test_stands_with_its_transaction(journal, database) -> None:
    def fail(connection) -> None:
        journal.append(connection, entry(11))
        raise KeyError

    with pytest.raises(KeyError):
        database.transact(fail)
    verdict = database.read(journal.verify)
    assert (verdict.ok, verdict.entries) == (True, 13)
    assert database.transact(lambda c: journal.append(c, entry(11))).sequence == 11
    assert database.read(journal.verify).ok


def test_payload_is_sealed_on_disk(journal, database, stored_octets) -> None:
    stored = stored_octets(database)
    assert b"node-1" in stored
    assert b"medecin@cabinet" not in stored
    assert b"dossier.read" not in stored


@pytest.mark.parametrize("column", ["at", "payload_hash", "erases", "hash"])
def test_an_edited_entry_is_seen(journal, database, column) -> None:
    value = 1 if column == "at" else "node-1#9" if column == "erases" else bytes(32)
    tamper(database, update(journal_entries).where(at(journal_entries, 5)).values({column: value}))
    verdict = database.read(journal.verify)
    assert not verdict.ok
    assert "node-1#5" in verdict.problem


@pytest.mark.parametrize("sequence", [1, 5])
def test_a_deleted_entry_is_seen(journal, database, sequence) -> None:
    tamper(
        database,
        delete(journal_entries).where(at(journal_entries, sequence)),
        delete(journal_payloads).where(at(journal_payloads, sequence)),
    )
    assert f"node-1#{sequence} is missing" in database.read(journal.verify).problem


def test_a_deleted_entry_with_the_rest_renumbered_is_seen(journal, database) -> None:
    tamper(
        database,
        delete(journal_entries).where(at(journal_entries, 5)),
        *(update(journal_entries).where(at(journal_entries, n)).values(sequence=n - 1) for n in range(6, 11)),
    )
    assert not database.read(journal.verify).ok


def test_reordered_entries_are_seen(journal, database) -> None:
    def move(source, target):
        return [update(table).where(at(table, source)).values(sequence=target) for table in TABLES]

    TABLES = (journal_entries, journal_payloads)
    tamper(database, *move(4, 99), *move(5, 4), *move(99, 5))
    assert "node-1#4" in database.read(journal.verify).problem


def test_a_cut_end_is_seen(journal, database, vault) -> None:
    tamper(database, delete(journal_entries).where(journal_entries.c.sequence > 8))
    assert "does not end where its head says" in database.read(journal.verify).problem
    with database.engine.connect() as connection:
        row = connection.execute(select(journal_entries).where(at(journal_entries, 8))).one()
    tamper(database, update(journal_heads).where(at(journal_heads, 10)).values(sequence=8, hash=row.hash))
    assert "head of node-1" in database.read(journal.verify).problem


@pytest.mark.parametrize("writer", ["node-1", "node-2"])
def test_a_whole_chain_removed_is_seen_by_its_head(journal, database, writer) -> None:
    tamper(database, delete(journal_entries).where(journal_entries.c.writer == writer))
    assert not database.read(journal.verify).ok


def test_a_chain_rebuilt_without_the_key_is_seen(journal, database, tmp_path) -> None:
    forger = Journal(KeyVault.create(tmp_path / "forged"), "node-1")
    mine = [
        delete(table).where(table.c.writer == "node-1") for table in (journal_payloads, journal_entries, journal_heads)
    ]
    tamper(database, *mine)
    database.transact(lambda c: forger.append(c, entry(1)))
    assert not database.read(journal.verify).ok


def test_altered_moved_and_removed_payloads_are_seen(journal, database) -> None:
    with database.engine.connect() as connection:
        sealed = connection.scalar(select(journal_payloads.c.sealed).where(at(journal_payloads, 3)))
    change = update(journal_payloads).where(at(journal_payloads, 3))
    tamper(database, change.values(sealed=sealed[:-1] + bytes([sealed[-1] ^ 1])))
    assert "payload of node-1#3 was altered" in database.read(journal.verify).problem
    assert [each.sequence for each in database.read(journal.entries) if each.entry is None] == [3]
    tamper(database, change.values(sealed=sealed, subject=SUBJECT))
    assert "node-1#3 is filed under another subject" in database.read(journal.verify).problem
    tamper(database, delete(journal_payloads).where(at(journal_payloads, 3)))
    assert "node-1#3 was removed" in database.read(journal.verify).problem


def test_a_payload_is_erased_lawfully(journal, database) -> None:
    order = JournalEntry("dpo@operateur.example", "journal.erase", "done", reason="demande 12")
    receipt = database.transact(lambda c: journal.erase(c, "node-2", 2, order))
    assert (receipt.writer, receipt.sequence) == ("node-1", 11)
    verdict = database.read(journal.verify)
    assert (verdict.ok, verdict.entries) == (True, 14)
    erased = [each for each in database.read(journal.entries) if each.entry is None]
    assert [(each.writer, each.sequence) for each in erased] == [("node-2", 2)]


def test_an_inserted_erasure_does_not_hide_a_removal(journal, database) -> None:
    forged = {"writer": "zz", "sequence": 1, "at": 1, "payload_hash": bytes(32), "erases": "node-1#3"}
    tamper(
        database,
        delete(journal_payloads).where(at(journal_payloads, 3)),
        insert(journal_entries).values(hash=bytes(32), **forged),
    )
    assert not database.read(journal.verify).ok


@pytest.mark.parametrize("name", ["", "a#b", "x" * 65])
def test_writer_names(vault, name) -> None:
    with pytest.raises(ValueError, match="writer"):
        Journal(vault, name)


def test_many_in_one_commit_with_some_that_fail(journal, database) -> None:
    """The head is written once for all of them; what a failing function appended is gone from it too."""

    def fail(connection) -> None:
        journal.append(connection, entry(0))
        raise KeyError

    def new_writer_fails(connection) -> None:
        Journal(journal._vault, "node-3").append(connection, entry(0))
        raise KeyError

    def look(connection) -> bool:
        return journal.verify(connection).ok

    works = [fail, lambda c: journal.append(c, entry(1)), fail, look, new_writer_fails] * 20
    futures = [database.submit(work) for work in works]
    outcomes = [future.exception(10) or future.result() for future in futures]
    assert [each.sequence for each in outcomes[1::5]] == list(range(11, 31))
    assert all(outcomes[3::5])
    third = Journal(journal._vault, "node-3")
    assert database.transact(lambda c: [third.append(c, entry(n)).sequence for n in range(3)]) == [1, 2, 3]
    verdict = database.read(journal.verify)
    assert (verdict.ok, verdict.entries) == (True, 36)


def test_outside_of_a_group_commit(journal, database) -> None:
    with database.engine.connect() as connection, connection.begin():
        journal.append(connection, entry(1))
        journal.append(connection, entry(2))
        assert journal.verify(connection).ok
    assert database.read(journal.verify).entries == 15


def test_not_inside_a_nested_transaction(journal, database) -> None:
    def nested(connection) -> None:
        with connection.begin_nested():
            journal.append(connection, entry(1))

    with pytest.raises(RuntimeError, match="nested"):
        database.transact(nested)
    assert database.read(journal.verify).entries == 13
