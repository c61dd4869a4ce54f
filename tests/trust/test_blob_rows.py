"""Small blobs in the database: kept or lost with the rows that name them, as safe as files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, MetaData, String, Table, delete, insert, select, update

from trust.store.blobs import ROW_BYTES, BlobDamagedError, BlobMissingError, BlobStore
from trust.store.database import Database
from trust.store.orphans import OrphanCollector
from trust.tables import blobs as table
from trust.vault import KeyVault

NAMES = MetaData()
LETTERS = Table("letters", NAMES, Column("blob", String(33)))
CONTENT = b"Hemoglobine 8.1 g/dL " * 50


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    NAMES.create_all(opened.engine)
    table.create(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path, database: Database) -> BlobStore:
    return BlobStore(tmp_path / "blobs", KeyVault.create(tmp_path / "vault"), database)


def keep(database: Database, blobs: BlobStore, content: bytes, kind: str = "letter") -> str:
    draft = blobs.draft(kind, content)

    def write(connection) -> str:
        connection.execute(insert(LETTERS).values(blob=draft.id))
        blobs.keep(connection, [draft])
        return draft.id

    kept = database.transact(write)
    blobs.release(draft.id)
    return kept


@pytest.mark.parametrize("size", [0, 1, 1000, ROW_BYTES, ROW_BYTES + 1, 3_000_000])
def test_kept_and_read_whatever_its_size(database: Database, blobs: BlobStore, tmp_path: Path, size: int) -> None:
    content = CONTENT[:1] * size
    kept = keep(database, blobs, content)
    assert blobs.get("letter", kept) == content
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert len(files) == (size > ROW_BYTES)
    assert blobs.size(kept) > size


def test_it_is_encrypted_and_bound_to_its_name_and_kind(database: Database, blobs: BlobStore) -> None:
    one, other = keep(database, blobs, CONTENT), keep(database, blobs, CONTENT)
    stored = database.read(lambda connection: connection.scalars(select(table.c.content)).all())
    assert all(b"Hemoglobine" not in each for each in stored)
    with pytest.raises(BlobDamagedError):
        blobs.get("document", one)
    moved = select(table.c.content).where(table.c.id == other).scalar_subquery()
    database.transact(lambda c: c.execute(update(table).where(table.c.id == one).values(content=moved)).rowcount)
    with pytest.raises(BlobDamagedError):
        blobs.get("letter", one)
    assert blobs.get_rows([("letter", one), ("letter", other), ("letter", "t" + "0" * 32)]) == {other: CONTENT}


def test_every_altered_octet_is_seen(database: Database, blobs: BlobStore) -> None:
    kept = keep(database, blobs, b"short")
    intact = database.read(lambda connection: connection.scalar(select(table.c.content)))
    for position in range(len(intact)):
        altered = bytearray(intact)
        altered[position] ^= 1
        database.transact(lambda c, altered=altered: c.execute(update(table).values(content=bytes(altered))).rowcount)
        with pytest.raises(BlobDamagedError):
            blobs.get("letter", kept)


def test_without_its_commit_there_is_nothing(database: Database, blobs: BlobStore) -> None:
    draft = blobs.draft("letter", CONTENT)

    def write(connection) -> None:
        blobs.keep(connection, [draft])
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.transact(write)
    blobs.discard(draft)
    with pytest.raises(BlobMissingError):
        blobs.get("letter", draft.id)


def test_delete_and_files_of_before(database: Database, blobs: BlobStore, tmp_path: Path) -> None:
    kept, put = keep(database, blobs, CONTENT), blobs.put("letter", CONTENT)
    assert blobs.get("letter", put) == CONTENT
    for each in (kept, put):
        blobs.delete(each)
        blobs.delete(each)
        with pytest.raises(BlobMissingError):
            blobs.get("letter", each)
        assert blobs.size(each) == 0


def test_orphaned_rows_are_swept_and_no_other(database: Database, blobs: BlobStore) -> None:
    named = [keep(database, blobs, CONTENT) for _ in range(8)]
    orphans = [keep(database, blobs, CONTENT) for _ in range(3)]
    database.transact(lambda c: c.execute(delete(LETTERS).where(LETTERS.c.blob.in_(orphans))).rowcount)
    collector = OrphanCollector(database, blobs, [LETTERS.c.blob], grace_seconds=-60)
    young = OrphanCollector(database, blobs, [LETTERS.c.blob], grace_seconds=60).sweep(threading.Event())
    assert (young.looked_at, young.deleted) == (0, 0)
    swept = collector.sweep(threading.Event())
    assert (swept.looked_at, swept.orphans, swept.deleted) == (11, 3, 3)
    assert all(blobs.get("letter", each) == CONTENT for each in named)
    with pytest.raises(BlobMissingError):
        blobs.get("letter", orphans[0])
