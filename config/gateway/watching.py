"""What looks after a running gateway: retention, monitoring, room on the disk, housekeeping, the register's files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack

from prometheus_client.registry import Collector

from config.gateway.doors import listen
from config.gateway.running import Running
from config.gateway.spooling import Spooling
from config.gateway.store import Store
from config.housekeeping import Housekeeping
from config.metrics import MetricsServer
from config.monitored import checks, expiries
from config.node import Process
from config.purging import Purging, periods
from config.screening_service import scanner_checks
from config.synchronising import ScheduledSynchronisation, synchronisation_options
from directory.resolve import Directory
from mta.retention import Retention


def start_purging(process: Process, store: Store, spooling: Spooling, running: Running) -> Retention:
    """What is past its retention goes, from now on. Raises `SettingsError`."""
    section = process.loaded.settings.retention
    retention = Retention(
        store.database,
        store.blobs,
        store.vault,
        periods(process.loaded),
        node=process.name,
        batch=section.batch,
        clock=store.clock,
    )
    purging = functools.partial(Purging, retention, section.round_hours * 3600.0)
    running.start(spooling.once_for_all(purging), "purge")
    return retention


async def open_metrics(
    process: Process,
    store: Store,
    spooling: Spooling,
    directory: Directory,
    alive: Mapping[str, Callable[[], bool]],
    collectors: Iterable[Collector],
    stack: AsyncExitStack,
) -> None:
    """Where `[metrics]` says; `alive` says by name what of the gateway is at work. Raises `SettingsError`."""
    loaded = process.loaded
    section = loaded.settings.metrics
    if section is None:
        return
    asked = {**checks(loaded, directory, store.database), **scanner_checks(loaded), **alive}
    server = MetricsServer(spooling.spool, expiries(loaded, store.vault), asked, collectors)
    await listen(server.start, section.host, section.port + (process.number or 0) if section.port else 0)
    stack.push_async_callback(server.stop)


def start_housekeeping(process: Process, store: Store, running: Running) -> Housekeeping:
    """Of the machine's disk, by its first process, and of this process's blobs."""
    if process.first:
        running.start(store.ballast, "ballast")
    housekeeping = Housekeeping(store.database, store.blobs)
    running.start(housekeeping, "housekeeping")
    return housekeeping


def start_synchronising(process: Process, running: Running) -> None:
    """Keep the directory in step with the register's files, where there are such. Raises `SettingsError`."""
    loaded = process.loaded
    section = loaded.settings.synchronisation
    if section.source and process.first:
        source = loaded.path(section.source)
        scheduled = ScheduledSynchronisation(synchronisation_options(loaded), source, section.look_seconds)
        running.start(scheduled, "synchronisation")
