"""The schema's history, and the one place that imports every package's tables.

`upgrade` brings a database to the newest revision before anything else touches it.
"""

from __future__ import annotations

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


def upgrade(database: Database) -> None:
    """Run the missing revisions in one transaction each. Raises what Alembic raises; nothing is half-done."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent))
    with database.engine.connect() as connection:
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
        connection.commit()
