"""A journal with two nodes and a file of published heads, and what somebody may do to its tables."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select
from sqlalchemy.exc import DataError

from trust.checkpoints import Checkpoints
from trust.journal import Journal, JournalEntry
from trust.journal_check import against_published, check
from trust.publishing import HeadFile, Publisher, PublisherOptions
from trust.signed_heads import SealedHeadSigner
from trust.store import metadata
from trust.store.database import Database
from trust.tables import journal_checkpoints, journal_entries, journal_heads, journal_payloads, journal_trees
from trust.vault import KeyVault

TABLES = (journal_payloads, journal_entries, journal_heads, journal_checkpoints, journal_trees)


def entry(number: int) -> JournalEntry:
    return JournalEntry("899700000001", "dossier.read", "done", "ab" * 32, f"doc-{number}")


class House:
    """One database, two nodes, one file of published heads."""

    def __init__(self, place: Path, vault: KeyVault, url: str = "") -> None:
        self.place, self.vault, self.url = place, vault, url or f"sqlite:///{place}/relais.db"
        self.heads = place / "elsewhere" / "heads.jsonl"
        self.heads.parent.mkdir(exist_ok=True)
        self.open()

    def open(self) -> None:
        self.database = Database(self.url)
        metadata.create_all(self.database.engine, tables=metadata.sorted_tables)
        self.signer = SealedHeadSigner.open(self.place / "journal.key", self.vault)
        self.nodes = [Journal(self.vault, name) for name in ("node-1", "node-2")]
        self.makers = [Checkpoints(self.database, node, self.signer, "house") for node in self.nodes]
        options = PublisherOptions(60, 3600)
        self.publisher = Publisher(self.database, self.makers[0], [HeadFile(self.heads)], "house", "node-1", options)

    def append(self, count: int, node: int = 0, at: datetime | None = None) -> None:
        for number in range(count):
            self.database.transact(lambda c, n=number: self.nodes[node].append(c, entry(n), at))

    def inside(self, **options) -> str:
        verdict = self.database.read(lambda c: check(c, self.vault, keys={self.signer.public_key}, **options))
        return verdict.problem

    def outside(self) -> str:
        """What `relais journal verify --heads` finds."""
        lines = self.heads.read_text().splitlines()
        compared = lambda c: against_published(c, "house", lines, {self.signer.public_key})  # noqa: E731
        return self.inside() or self.database.read(compared).problem

    def tamper(self, *statements) -> None:
        with self.database.engine.connect() as connection:
            raw = connection.connection.driver_connection
            postgresql = connection.dialect.name == "postgresql"
            if not postgresql:
                raw.execute("PRAGMA foreign_keys=OFF")
            with connection.begin():
                if postgresql:
                    raw.execute("SET LOCAL session_replication_role = replica")
                for statement in statements:
                    try:
                        connection.execute(statement)
                    except DataError:
                        pytest.skip("PostgreSQL takes no value of another kind than its column's")
            if not postgresql:
                raw.execute("PRAGMA foreign_keys=ON")


def at(table, sequence, writer="node-1"):
    return (table.c.writer == writer) & (table.c.sequence == sequence)


def rewrite(house: House, writer: str, drop: int = 0, insert_after: int = 0) -> None:
    """As somebody with the vault would: the whole chain anew without one entry, or with one more, seals and all."""
    forger = Journal(house.vault, writer)
    with house.database.engine.connect() as connection:
        old = connection.execute(
            select(journal_entries.c.sequence, journal_entries.c.at).where(journal_entries.c.writer == writer)
        ).all()
        contents = [(sequence, at, forger.payload(connection, writer, sequence)) for sequence, at in old]
    house.tamper(*[delete(table).where(table.c.writer == writer) for table in TABLES[:3]])
    for sequence, moment, payload in contents:
        if sequence == drop:
            continue
        said = json.loads(payload[16:])
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)
        house.database.transact(lambda c, s=said, w=when: forger.append(c, JournalEntry(**s), w))
        if sequence == insert_after:
            house.database.transact(lambda c, w=when: forger.append(c, entry(666), w))
