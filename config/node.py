"""One process of a gateway among others: its database, its name, its own files in the state, and what it hears of the
others.

A gateway is one process on SQLite, or any number of processes on any number of machines on one PostgreSQL
(docs/nodes.md). Processes of one machine share its configuration, state and ports; `--process N` tells them apart, and
the first does what a machine needs once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from sqlalchemy import Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from config.settings import Loaded, SettingsError
from mta.bell import Repeating
from mta.spool import Spool
from trust.store.blobs import ALL_ROWS, ROW_BYTES, BlobStore
from trust.store.database import Database, UnsupportedDatabaseError
from trust.store.durable import write_durably
from trust.store.nodes import Nodes
from trust.vault import KeyVault

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 3.0
"""Between two looks at whose turn it is to do what one process does for all."""
_NOW = text("SELECT extract(epoch FROM clock_timestamp())")
_CLOCK_SECONDS = 5.0
"""More than this between our clock and the database's is told."""


@dataclass(frozen=True, slots=True)
class Process:
    """Which process of the gateway this is."""

    loaded: Loaded
    number: int | None = None
    """None: the only one on this machine."""

    @property
    def name(self) -> str:
        """Of the node and of its chain in the journal; unique among all that share the database."""
        own = self.loaded.settings.store.node or self.loaded.settings.operator.host
        return f"{own}.{self.number}" if self.number else own

    @property
    def first(self) -> bool:
        """Whether to do what a machine needs once: Dovecot's questions, drop folders, the file of heads."""
        return not self.number

    @property
    def shares_ports(self) -> bool:
        """Whether other processes of this machine listen at the same addresses (SO_REUSEPORT)."""
        return self.number is not None

    def file(self, stem: str, suffix: str) -> Path:
        """A file of this process alone in the state they share."""
        return self.loaded.state / (f"{stem}-{self.number}{suffix}" if self.number else f"{stem}{suffix}")


def uses_postgresql(loaded: Loaded) -> bool:
    """Whether several processes can share the database."""
    return bool(loaded.settings.store.url)


def database_url(loaded: Loaded) -> str:
    """With its password; not for logs. Raises `SettingsError`."""
    section = loaded.settings.store
    if not section.url:
        return f"sqlite:///{loaded.state / 'relais.db'}"
    try:
        url = make_url(section.url)
    except ArgumentError as error:
        raise SettingsError("store.url must be postgresql://user@host/database") from error
    if url.get_backend_name() != "postgresql":
        raise SettingsError("store.url must be postgresql://user@host/database; leave it empty for SQLite")
    if url.password:
        raise SettingsError("store.url holds a password: put it into a file of mode 0600, named by store.password_file")
    if section.password_file:
        path = loaded.path(section.password_file)
        try:
            if path.stat().st_mode & 0o077:
                raise SettingsError(f"store.password_file {path} is readable by others: chmod 600 {path}")
            url = url.set(password=path.read_text().strip())
        except OSError as error:
            raise SettingsError(f"store.password_file cannot be read: {error.strerror}") from error
    return url.render_as_string(hide_password=False)


def open_database(loaded: Loaded) -> Database:
    """Raises `SettingsError` when it cannot be used."""
    url = database_url(loaded)
    try:
        return Database(url)
    except UnsupportedDatabaseError as error:
        raise SettingsError(f"the database cannot be used: {error}") from error
    except DBAPIError as error:
        if not uses_postgresql(loaded):
            raise
        raise SettingsError(
            f"the database of store.url does not let us in ({type(error.orig).__name__}): is it running, and are user, "
            "database and password right?"
        ) from error


def open_blobs(loaded: Loaded, vault: KeyVault, database: Database) -> BlobStore:
    """Where message bytes are kept: in PostgreSQL, for every node to have them, or in files."""
    store = loaded.settings.store
    rows = ROW_BYTES if not uses_postgresql(loaded) or store.blobs == "files" else ALL_ROWS
    folder = loaded.path(store.blob_directory) if store.blob_directory else loaded.state / "blobs"
    return BlobStore(folder, vault, database, rows)


class Membership(Repeating):
    """The task that says that this process lives, and frees what dead ones had under lease."""

    def __init__(self, process: Process, database: Database, clock: SharedClock) -> None:
        """Joins. Raises what the database raises."""
        super().__init__()
        self._clock = clock
        self._clock_differs = False
        self._nodes = Nodes(database, process.name, patience=process.loaded.settings.store.patience_seconds)
        self._file = process.file("holder", "")
        self._spool: Spool | None = None
        self._said = ""
        self._nodes.join()

    @property
    def holder(self) -> str:
        """Under whose name this process leases deliveries."""
        return self._nodes.holder

    @property
    def eldest(self) -> bool:
        """Whether to do what one process should do for all."""
        return self._nodes.eldest

    @property
    def names(self) -> tuple[str, ...]:
        """Who lives."""
        return tuple(each.name for each in self._nodes.members)

    def take_over(self, spool: Spool) -> int:
        """At start: free what our own predecessor on this state had, dead since we hold its lock. Returns how
        much."""
        self._spool = spool
        try:
            before = self._file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            before = ""
        freed = 0
        if len(before) == len(self.holder) and before.isalnum():
            freed = spool.recover(before)
            self._nodes.bury(before)
        write_durably(self._file, self.holder.encode())
        return freed

    async def stop(self) -> None:
        """Leave: nothing is leased to us any more."""
        await super().stop()
        try:
            await asyncio.to_thread(self._leave)
        except Exception as error:  # the others find out
            log.warning("node.not-left", error=type(error).__name__)

    def _leave(self) -> None:
        if self._spool is not None:
            self._spool.recover(self.holder)  # what the worker could not give back
        self._nodes.leave()

    async def _turn(self) -> float:
        try:
            for dead in await asyncio.to_thread(self._nodes.beat):
                if self._spool is not None:
                    freed = await asyncio.to_thread(self._spool.recover, dead)
                    await asyncio.to_thread(self._nodes.bury, dead)
                    log.warning("node.died", holder=dead, deliveries=freed)
            await asyncio.to_thread(self._clock.look)
            self._tell_clock()
            self._say("")
        except Exception as error:
            self._say(type(error).__name__)
        return self._nodes.interval

    def _tell_clock(self) -> None:
        """Once when it goes wrong: what is queued goes by the database's, but not what else a clock is for."""
        differs = abs(self._clock.difference) > _CLOCK_SECONDS
        if differs and not self._clock_differs:
            log.error("node.clock-differs", seconds=round(self._clock.difference, 1))
        self._clock_differs = differs

    def _say(self, problem: str) -> None:
        """Once when it begins, once when it is over."""
        if problem != self._said:
            if problem:
                log.error("node.cut-off", error=problem)
            else:
                log.info("node.back")
            self._said = problem


class Task(Protocol):
    """What runs until it is stopped."""

    async def run(self) -> None: ...

    async def stop(self) -> None: ...


class ForAll(Repeating):
    """A task that one process does for all: it runs here while this is the eldest. Idempotent: for a moment two
    may do it, or none."""

    def __init__(self, eldest: Callable[[], bool], make: Callable[[], Task]) -> None:
        super().__init__()
        self._eldest = eldest
        self._make = make
        self._running: tuple[Task, asyncio.Task[None]] | None = None

    async def run(self) -> None:
        """Until `stop`, or until the task breaks."""
        await self._bell.run(self._turn, self._end)

    async def _turn(self) -> float:
        if self._running is None and self._eldest():
            work = self._make()
            self._running = (work, asyncio.create_task(work.run()))
        elif self._running is not None and self._running[1].done():
            self._running[1].result()
        elif self._running is not None and not self._eldest():
            await self._end()
        return _LOOK_SECONDS

    async def _end(self) -> None:
        if self._running is not None:
            work, task = self._running
            self._running = None
            await work.stop()
            await task


class SharedClock:
    """UNIX time as PostgreSQL has it, the same for all who share it.

    A node whose own clock is wrong, or jumps, takes no other's lease for over and ends no mail before its time. Between
    two looks the machine's monotonic clock counts.
    """

    def __init__(self, database: Database) -> None:
        """Looks. Raises what the database raises."""
        self._database = database
        self.difference = 0.0
        """Our machine's clock minus this one at the last look, seconds."""
        self.look()

    def __call__(self) -> float:
        return self._began + time.monotonic()

    def look(self) -> None:
        """Ask the database again. Raises what the database raises."""

        def read(connection: Connection) -> tuple[float, float]:
            connection.execute(_NOW)  # whatever a first statement costs is over
            asked = time.monotonic()
            now = float(connection.execute(_NOW).scalar_one())
            return now, (asked + time.monotonic()) / 2

        now, at = self._database.read(read)
        self._began = now - at
        self.difference = time.time() - self()


def clock_of(database: Database) -> SharedClock | None:
    """The one to go by; None on SQLite, which nobody shares."""
    return SharedClock(database) if database.engine.dialect.name == "postgresql" else None
