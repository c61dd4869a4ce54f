"""The spool of a gateway, and the life of this process among those that share it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from config.gateway.running import Running
from config.gateway.store import Store
from config.node import ForAll, Membership, Process, Task, uses_postgresql
from config.settings import Loaded
from mta.message import Origin
from mta.schedule import RetrySchedule
from mta.spool import Spool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Spooling:
    """Of one process of a gateway."""

    spool: Spool
    membership: Membership | None
    """None: nobody shares the database."""

    @property
    def holder(self) -> str:
        """Under whose name this process leases deliveries; empty where it is the only one."""
        return self.membership.holder if self.membership is not None else ""

    def once_for_all(self, make: Callable[[], Task]) -> Task:
        """The task that `make` makes, which one process of those that share the database does for all."""
        membership = self.membership
        return make() if membership is None else ForAll(lambda: membership.eldest, make)


async def open_spool(process: Process, store: Store, running: Running) -> Spooling:
    """What a predecessor had under way is free again."""
    loaded, settings = process.loaded, process.loaded.settings
    membership = None
    if store.shared_clock is not None:
        membership = await asyncio.to_thread(Membership, process, store.database, store.shared_clock)
    spool = Spool(
        store.database,
        store.blobs,
        store.vault,
        node=process.name,
        schedule=_schedule(loaded),
        free_bytes=None if uses_postgresql(loaded) else lambda: shutil.disk_usage(loaded.state).free,
        holder=membership.holder if membership else "",
        bulk_recipients=settings.spool.bulk_recipients,
        clock=store.clock,
    )
    if membership is None:
        recovered = await asyncio.to_thread(spool.recover)
    else:
        recovered = await asyncio.to_thread(membership.take_over, spool)
        running.start(membership, "membership")
    if recovered:
        log.info("spool.recovered", deliveries=recovered)
    return Spooling(spool, membership)


def _schedule(loaded: Loaded) -> RetrySchedule:
    spool = loaded.settings.spool
    pauses = [spool.first_retry_seconds]
    while pauses[-1] < spool.longest_retry_seconds:
        pauses.append(min(pauses[-1] * 2, spool.longest_retry_seconds))
    # a connector's reader is the one who is waiting: for the card in the other coat, the folder's disk
    unending = frozenset((Origin.COLLECTED,)) if loaded.settings.connect else frozenset[Origin]()
    return RetrySchedule(pauses=tuple(pauses), lifetime=spool.expire_seconds, unending=unending)
