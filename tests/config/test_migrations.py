"""A migrated database and the code agree about every table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text, update

from config.migrations import metadata, roll_back, upgrade
from config.settings import SettingsError
from mta.delivery import Accepted, NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.tables import deliveries
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    yield opened
    opened.close()


def schema_of(database: Database) -> list[tuple[str, str]]:
    """Every CREATE statement as SQLite keeps it, white space aside."""
    wanted = text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'alembic_version'")
    rows = database.read(lambda connection: connection.execute(wanted).all())
    return sorted((name, _parts(sql)) for name, sql in rows)


def _parts(sql: str) -> str:
    """White space and order aside: SQLite writes an added column after the constraints."""
    return ",".join(sorted("".join(sql.rstrip(") \n").split()).split(",")))


def test_a_migrated_database_has_exactly_the_schema_of_the_code(database: Database) -> None:
    upgrade(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_migrated_and_created_are_the_same_statements(database: Database, tmp_path: Path) -> None:
    """What alembic does not compare: primary keys, checks, foreign keys' actions, partial indexes."""
    upgrade(database)
    created = Database(f"sqlite:///{tmp_path / 'created.db'}")
    try:
        metadata.create_all(created.engine)
        assert schema_of(database) == schema_of(created)
    finally:
        created.close()


def test_upgrading_again_changes_nothing(database: Database) -> None:
    upgrade(database)
    before = schema_of(database)
    database.transact(
        lambda connection: connection.execute(text("INSERT INTO identities VALUES ('x', x'00', 0, 0, 0)")) and None
    )
    upgrade(database)
    assert schema_of(database) == before
    assert database.read(lambda connection: connection.scalar(text("SELECT count(*) FROM identities"))) == 1
    assert database.read(lambda connection: connection.scalar(text("SELECT count(*) FROM alembic_version"))) == 1


# With mail in it


def revision_of(database: Database) -> str | None:
    return database.read(lambda connection: connection.scalar(text("SELECT version_num FROM alembic_version")))


def accepted(spool: Spool, number: int) -> str:
    kept = spool.accept(
        Submission(
            origin=Origin.SUBMISSION,
            sender="a@labo.example",
            peer="a@labo.example",
            content=b"Subject: x\r\n\r\n%d\r\n" % number,
            content_type="message/rfc822",
            deliveries=(NewDelivery("b@op2.example", TargetKind.SMTP),),
            dedup_key=f"k{number}",
            message_id_domain="labo.example",
        )
    )
    assert isinstance(kept, Accepted)
    return kept.spool_id


def waiting(database: Database) -> int:
    query = text("SELECT count(*) FROM mta_deliveries WHERE state = 'ready'")
    return database.read(lambda connection: connection.scalar(query)) or 0


def small_in_files(database: Database, tmp_path: Path) -> Spool:
    """As the versions before 0008 kept them."""
    vault = KeyVault.create(tmp_path / "vault")
    return Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n1", schedule=RetrySchedule())


def small_in_rows(database: Database, tmp_path: Path) -> Spool:
    vault = KeyVault.create(tmp_path / "vault")
    return Spool(database, BlobStore(tmp_path / "blobs", vault, database), vault, node="n1", schedule=RetrySchedule())


def test_a_full_queue_goes_back_and_forward_and_is_delivered(database: Database, tmp_path: Path) -> None:
    upgrade(database)
    spool = small_in_files(database, tmp_path)
    for number in range(50):
        accepted(spool, number)
    roll_back(database, "0005")
    assert waiting(database) == 50
    upgrade(database)
    leases = spool.claim(100, 60)
    assert len(leases) == 50
    assert {spool.content(lease) for lease in leases} == {b"Subject: x\r\n\r\n%d\r\n" % n for n in range(50)}


def test_contents_an_older_version_cannot_read_are_not_thrown_away(database: Database, tmp_path: Path) -> None:
    upgrade(database)
    spool = small_in_rows(database, tmp_path)
    accepted(spool, 1)
    with pytest.raises(RuntimeError, match="older versions cannot read"):
        roll_back(database, "0005")
    assert revision_of(database) == "0008", "what could be undone is undone, and the rest stands"
    upgrade(database)
    (lease,) = spool.claim(10, 60)
    assert spool.content(lease) == b"Subject: x\r\n\r\n1\r\n"


@pytest.mark.parametrize("held", ["delivery", "destination"])
def test_what_a_person_holds_is_not_sent_by_an_older_version(database: Database, tmp_path: Path, held: str) -> None:
    upgrade(database)
    accepted(small_in_files(database, tmp_path), 1)
    hold = (
        update(deliveries).values(held_at=1.0)
        if held == "delivery"
        else text("INSERT INTO mta_held_destinations VALUES ('smtp:op2.example', 1, x'00')")
    )
    database.transact(lambda connection: connection.execute(hold) and None)
    with pytest.raises(RuntimeError, match="held"):
        roll_back(database, "0005")
    assert revision_of(database) == "0006"
    upgrade(database)
    assert waiting(database) == 1


def test_a_narrow_right_does_not_become_every_right(database: Database) -> None:
    upgrade(database)
    rows = (
        "INSERT INTO identities VALUES ('team', x'00', 0, 0, 0)",
        "INSERT INTO identities VALUES ('member', x'00', 0, 0, 0)",
        "INSERT INTO identity_addresses (address, identity_id, position, sealed) VALUES ('a', 'team', 0, x'00')",
        "INSERT INTO address_grants VALUES ('a', 'member', 'r')",
    )
    for each in rows:
        database.transact(lambda connection, each=each: connection.execute(text(each)) and None)
    with pytest.raises(RuntimeError, match="1 rights of members"):
        roll_back(database, "0009")
    assert revision_of(database) == "0010"
    upgrade(database)
    use = "UPDATE address_grants SET \"right\" = 'use'"
    database.transact(lambda connection: connection.execute(text(use)) and None)
    roll_back(database, "0009")


def test_a_revision_that_fails_leaves_nothing_half_done(database: Database, tmp_path: Path) -> None:
    upgrade(database)
    spool = small_in_files(database, tmp_path)
    accepted(spool, 1)
    roll_back(database, "0006")
    in_the_way = "CREATE TABLE mta_quarantine (x INTEGER)"
    database.transact(lambda connection: connection.execute(text(in_the_way)) and None)
    with pytest.raises(Exception, match="mta_quarantine"):
        upgrade(database)
    assert revision_of(database) == "0006"
    assert not inspect(database.engine).has_table("mta_notices")
    database.transact(lambda connection: connection.execute(text("DROP TABLE mta_quarantine")) and None)
    upgrade(database)
    assert len(spool.claim(10, 60)) == 1


def test_an_older_version_says_that_the_database_is_newer(database: Database) -> None:
    upgrade(database)
    newer = text("UPDATE alembic_version SET version_num = '9999'")
    database.transact(lambda connection: connection.execute(newer) and None)
    with pytest.raises(SettingsError, match="newer version of Relais"):
        upgrade(database)
