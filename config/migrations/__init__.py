"""The schema's history, and the one place that imports every package's tables.

`upgrade` brings a database to the newest revision before anything else touches it. `roll_back` is for whoever has to go
back to an older version: it refuses where that would lose what was accepted, or send what a person has stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import bridges.dossier.tables
import mta.mailboxes.tables
import mta.tables
import trust.tables
from config.settings import SettingsError
from trust.store import metadata
from trust.store.database import Database

__all__ = ["metadata", "roll_back", "upgrade"]

# Importing declares the tables on `metadata`; naming them here keeps the imports from looking unused.
TABLES = (trust.tables, mta.tables, mta.mailboxes.tables, bridges.dossier.tables)
_MIGRATION_LOCK = 0x52656C616973
"""Key of the advisory lock, as good as any."""


def upgrade(database: Database) -> None:
    """Run the missing revisions in one transaction each. Raises what Alembic raises; nothing is half-done. Raises
    `SettingsError` when a newer version of ours has brought the database further than this one knows."""
    with _configured(database) as configuration:
        command.upgrade(configuration, "head")


def roll_back(database: Database, revision: str) -> None:
    """Undo every revision after this one, each in one transaction, with no gateway running. Raises RuntimeError where
    what is kept cannot be kept any more: what came before that stands, and `upgrade` goes forward again."""
    with _configured(database) as configuration:
        command.downgrade(configuration, revision)


@contextmanager
def _configured(database: Database) -> Iterator[Config]:
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    with database.engine.connect() as connection, _alone(database):
        _known(connection, ScriptDirectory.from_config(configuration))
        configuration.attributes["connection"] = connection
        yield configuration
        connection.commit()


def _known(connection: Connection, scripts: ScriptDirectory) -> None:
    if inspect(connection).has_table("alembic_version"):
        ours = {each.revision for each in scripts.walk_revisions()}
        for revision in connection.scalars(text("SELECT version_num FROM alembic_version")):
            if revision not in ours:
                raise SettingsError(
                    f"the database is of a newer version of Relais (schema {revision}): install that one again"
                )
    connection.commit()


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Nodes that start together migrate one after the other; the second finds nothing to do."""
    if database.engine.dialect.name != "postgresql":
        yield
        return
    with database.engine.connect() as keeper:
        keeper.exec_driver_sql("SET LOCAL lock_timeout = '600s'")
        keeper.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        keeper.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        yield
