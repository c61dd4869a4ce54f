"""What `relais doctor` says of the database, of what survives a machine with it, and of the other nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Literal

from sqlalchemy import Connection, func, inspect, select, text

from config.node import SharedClock, open_database, uses_postgresql
from config.settings import Loaded, SettingsError
from trust.store.database import Database
from trust.tables import nodes

Level = Literal["ok", "notice", "problem"]

_CLOCK_NOTICE_SECONDS = 5.0
_CLOCK_PROBLEM_SECONDS = 60.0


def examine_store(loaded: Loaded) -> Iterator[tuple[Level, str]]:
    """Sentences with their level; nothing is changed."""
    if not uses_postgresql(loaded):
        return
    try:
        with closing(open_database(loaded)) as database:
            yield from _examine(database, loaded)
    except SettingsError as error:
        yield "problem", str(error)


def _examine(database: Database, loaded: Loaded) -> Iterator[tuple[Level, str]]:
    version, standbys = database.read(_server)
    yield "ok", f"PostgreSQL {version} keeps what it is asked to: any number of nodes may share it"
    if standbys:
        yield "ok", f"a commit waits for the standby ({standbys}): mail survives the loss of the database's machine"
    else:
        yield (
            "notice",
            "no synchronous standby (synchronous_standby_names is empty): mail survives the loss of a node, not of the "
            "database's machine",
        )
    if loaded.settings.store.blobs == "files":
        yield (
            "notice",
            "message bytes are in files: with several nodes store.blob_directory must be on a disk they share, and "
            "survive a machine as the database does",
        )
    if not loaded.settings.keys.vault:
        yield "notice", "the vault is in this node's state: several nodes need the same one (keys.vault)"
    difference = abs(SharedClock(database).difference)
    level: Level = "ok" if difference < _CLOCK_NOTICE_SECONDS else "notice"
    if difference > _CLOCK_PROBLEM_SECONDS:
        level = "problem"
    yield level, f"our clock and the database's differ by {difference:.1f} s" + ("" if level == "ok" else ": use NTP")
    names = database.read(_members)
    if names:
        yield "ok", f"{len(names)} process(es) share the database: {', '.join(names)}"
    for name in sorted({each for each in names if names.count(each) > 1}):
        yield (
            "notice",
            f"{name} is there twice: one was lost a moment ago, or two nodes have one name (store.node)",
        )


def _server(connection: Connection) -> tuple[str, str]:
    version, standbys = connection.execute(
        text("SELECT current_setting('server_version'), current_setting('synchronous_standby_names')")
    ).one()
    return str(version).partition(" ")[0], str(standbys)


def _members(connection: Connection) -> list[str]:
    if not inspect(connection).has_table(nodes.name):
        return []
    return list(connection.scalars(select(nodes.c.name).order_by(func.lower(nodes.c.name))))
