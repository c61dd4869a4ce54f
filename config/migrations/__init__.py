"""The schema's history, and the one place that imports every package's tables.

`upgrade` brings a database to the newest revision before anything else touches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config

import bridges.dossier.tables
import mta.tables
import trust.tables
from trust.store import metadata
from trust.store.database import Database

__all__ = ["metadata", "upgrade"]

# Importing declares the tables on `metadata`; naming them here keeps the imports from looking unused.
TABLES = (trust.tables, mta.tables, bridges.dossier.tables)
_MIGRATION_LOCK = 0x52656C616973
"""Key of the advisory lock, as good as any."""


def upgrade(database: Database) -> None:
    """Run the missing revisions in one transaction each. Raises what Alembic raises; nothing is half-done."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    with database.engine.connect() as connection, _alone(database):
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
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
