"""A migrated database and the code agree about every table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from config.migrations import metadata, upgrade
from trust.store.database import Database


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
