"""The migrations on PostgreSQL: the schema of the code, also when several nodes bring it up to date together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect

import config.migrations
from config.migrations import metadata, upgrade
from tests.support.postgresql import PostgresServer
from trust.store.database import Database


def test_a_migrated_database_has_exactly_the_schema_of_the_code(postgresql: PostgresServer) -> None:
    with closing(Database(postgresql.fresh())) as database:
        upgrade(database)
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []


def test_nodes_that_start_together_migrate_one_after_the_other(postgresql: PostgresServer) -> None:
    url = postgresql.fresh()

    def start(_: int) -> None:
        with closing(Database(url)) as database:
            upgrade(database)

    with ThreadPoolExecutor(3) as nodes:
        list(nodes.map(start, range(3)))
    with closing(Database(url)) as database:
        assert set(inspect(database.engine).get_table_names()) == {*metadata.tables, "alembic_version"}


def test_every_revision_rolls_back(postgresql: PostgresServer) -> None:
    with closing(Database(postgresql.fresh())) as database:
        upgrade(database)
        configuration = Config()
        configuration.set_main_option("script_location", str(Path(config.migrations.__file__).parent))
        with database.engine.connect() as connection:
            configuration.attributes["connection"] = connection
            command.downgrade(configuration, "base")
            connection.commit()
        assert inspect(database.engine).get_table_names() == ["alembic_version"]
        upgrade(database)
