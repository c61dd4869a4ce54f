"""What a gateway keeps and whose keys it holds: its state owned, disk looked at, database opened and brought up to
date, vault, blobs, journal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from config.backup.sources import RESTORING
from config.ballast import Ballast
from config.migrations import upgrade
from config.node import Process, SharedClock, clock_of, open_blobs, open_database, uses_postgresql
from config.settings import Loaded, SettingsError
from config.vaults import open_vault
from trust.journal import Journal
from trust.lockout import LockoutOptions
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault


@dataclass(frozen=True, slots=True)
class Store:
    """Of one process of a gateway."""

    ballast: Ballast
    database: Database
    vault: KeyVault
    blobs: BlobStore
    journal: Journal
    shared_clock: SharedClock | None
    """None on SQLite."""

    @property
    def clock(self) -> Callable[[], float]:
        """UNIX time by which what is queued goes."""
        return self.shared_clock or time.time


async def open_store(process: Process, stack: AsyncExitStack) -> Store:
    """Raises `SettingsError` when this process must not, or cannot, use it."""
    loaded = process.loaded
    if (loaded.state / RESTORING).exists():
        raise SettingsError(f"a restore into {loaded.state} has not ended: give the same relais restore again")
    if process.shares_ports and not uses_postgresql(loaded):
        raise SettingsError("several processes need PostgreSQL: fill in store.url, or leave --process out")
    patience = loaded.settings.spool.drain_seconds + 6.0
    stack.callback(os.close, await own(process.file("serve", ".lock"), patience))
    ballast = Ballast(loaded.state)
    await asyncio.to_thread(ballast.look)  # first: on a full disk nothing else opens
    database = await asyncio.to_thread(open_database, loaded)
    stack.callback(database.close)
    shared_clock = await asyncio.to_thread(clock_of, database)
    await asyncio.to_thread(upgrade, database)
    vault = open_vault(loaded)
    if vault.token is not None:
        stack.callback(vault.token.close)
    blobs = open_blobs(loaded, vault, database)
    return Store(ballast, database, vault, blobs, Journal(vault, process.name), shared_clock)


async def own(lock: Path, patience: float) -> int:
    """One process per state: leases and the journal's chain depend on it. Returns the held lock.

    A predecessor whose supervisor was killed may still be letting its deliveries end: waits `patience` seconds for it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise SettingsError(f"another relais serve already uses {lock.parent}") from error
        await asyncio.sleep(0.1)


def lockout_options(loaded: Loaded) -> LockoutOptions:
    """How guessing at passwords is stopped, as `[accounts]` has it."""
    section = loaded.settings.accounts
    return LockoutOptions(
        section.max_failures,
        section.lock_seconds,
        section.longest_lock_seconds,
        section.account_failures,
        section.network_failures,
        section.familiar_days * 86400.0,
    )
