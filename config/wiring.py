"""One gateway, put together: settings become options, rooms get what they need, doors open last.

Reading `_start` top to bottom is reading the road: store, trust, directory, spool, stages, targets, doors. Each part of
it is a module of `config.gateway`. A practice connector's shorter road, of the same parts, is
`config.connector.serving`.
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import structlog

from config import allocator, logs
from config.answers import Answers
from config.connector.serving import start as start_connector
from config.directory_service import DirectoryCollector, open_writer
from config.door_service import DoorCollector
from config.follow_up_answers import FollowUpCollector
from config.gateway.arriving import open_arriving
from config.gateway.asking import open_control
from config.gateway.belief import open_belief
from config.gateway.discovery import open_discovery
from config.gateway.doors import open_doors
from config.gateway.following import open_following
from config.gateway.heads import publish_heads
from config.gateway.mailboxes import MailboxCollector, look_after_mailboxes, make_administration, open_mailboxes
from config.gateway.places import open_places
from config.gateway.running import Running, in_background
from config.gateway.serving import CertificateDoorCollector, make_serving, open_certificate_door
from config.gateway.spooling import open_spool
from config.gateway.stages import dkim_keys, make_stages, own_dkim, report_reader
from config.gateway.store import lockout_options, open_store
from config.gateway.systems import open_systems
from config.gateway.targets import authentication_socket, open_targets, worker_options
from config.gateway.telling import start_telling
from config.gateway.watching import open_metrics, start_housekeeping, start_purging, start_synchronising
from config.incoming import Incoming, IncomingCollector, MailCollectors, collector_options, open_resolver
from config.mailbox_answers import answers_about_mailboxes
from config.node import Process
from config.oidc_service import OidcService
from config.outgoing import OutgoingCollector
from config.purging import QueueCollector
from config.reloading import Reloading
from config.revocation_service import RevocationCollector
from config.screening_service import ScreeningCollector
from config.settings import Loaded
from config.survival_metrics import SurvivalCollector
from config.synchronising import SynchronisationCollector, synchronisation_folder
from config.trust_service import TrustCollector
from mta.notices import Notices
from mta.queue import Queue
from mta.worker import Worker
from trust.accounts import Accounts

log = structlog.get_logger(__name__)

_WORK_THREADS = 8
"""For parsing, composing, CMS and filing: more than cores, because part of it waits for the disk."""


async def serve(
    loaded: Loaded, process_number: int | None = None, path: Path | None = None, log_level: str = "INFO"
) -> None:
    """Run one gateway until SIGTERM or SIGINT. Raises `SettingsError` when it cannot start.

    `path`: where the configuration is read again at SIGHUP; None: it is not.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        reloading = Reloading(path or Path(), loaded)
        reloading.follow(["log"], lambda settings: logs.set_level(settings.log.level or log_level))
        if path is not None:
            _reload_at_hangup(reloading)
        start = start_connector if loaded.settings.connect else _start
        await start(Process(loaded, process_number), stack, reloading)
        reloading.ready()
        allocator.collect_rarely()
        log.info("gateway.ready", operator=loaded.settings.operator.host)
        await stop.wait()
        log.info("gateway.stopping")


async def _start(process: Process, stack: AsyncExitStack, reloading: Reloading) -> None:
    """Everything, in order; `stack` undoes it in reverse order."""
    loaded = process.loaded
    settings = loaded.settings
    running = Running(stack)
    threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="work")
    stack.callback(threads.shutdown, wait=False)
    # Of their own: no acknowledgement waits until the mails of others are composed.
    intake_threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="intake")
    stack.callback(intake_threads.shutdown, wait=False)

    # What we keep, whose keys we hold.
    store = await open_store(process, stack)
    journal_answers = await publish_heads(process, store, running)
    accounts = Accounts(store.database, store.vault, options=lockout_options(loaded), journal=store.journal)

    mailboxes = open_mailboxes(loaded, store, accounts)
    exists = mailboxes.exists

    # Whom to believe.
    belief = await open_belief(loaded, store, stack)
    trust, trust_list = belief.service, belief.trust_list

    # Who is where.
    places = open_places(loaded, belief.validator, stack, reloading)
    reloading.follow([], lambda _: [context.look() for context in trust.contexts])

    # The road: what is done to a mail, and where it ends.
    spooling = await open_spool(process, store, running)
    spool = spooling.spool
    parse = report_reader(settings)
    dkim_key_of = dkim_keys(loaded)
    resolver = open_resolver(settings)
    stack.push_async_callback(resolver.close)
    incoming = Incoming(settings, resolver, places.partners, own_dkim(dkim_key_of), lambda: trust_list.current)
    arriving = open_arriving(loaded, store, places, mailboxes.registry.find)
    follow = open_following(process, store, trust_list.is_trusted, spool, mailboxes.registry.find)
    stages = make_stages(
        loaded, store, belief.validator, places, incoming, dkim_key_of, parse, threads, spool, arriving, follow
    )
    notices = Notices(store.database, process.name, store.clock)
    targets = open_targets(
        loaded, store, belief, places, spool, incoming, notices, parse, mailboxes, arriving.wants_readings, stack
    )

    # Before the worker starts and until it has stopped: Dovecot takes no delivery without it.
    oidc = OidcService(loaded, accounts)
    served = make_serving(loaded, store.vault, mailboxes)
    authentication = authentication_socket(loaded, mailboxes, store.vault, oidc.authenticate if oidc else None, served)
    if process.first:
        await authentication.start()
        stack.push_async_callback(authentication.stop)

    work = worker_options(settings.spool.concurrency, settings.outbound.final_seconds)
    worker = Worker(spool, stages.in_order, targets.by_kind, work, store.clock)

    # Who is told how it ended, and of what takes too long.
    telling = start_telling(process, store, trust_list.is_trusted, spool, incoming, notices, parse, running, follow)
    if oidc:
        running.start(oidc, "oidc")

    # The doors, last: whatever they accept can be worked on.
    doors = await open_doors(process, spool, belief, places, incoming, accounts, mailboxes, oidc, reloading, stack)
    machines = await open_certificate_door(process, belief, mailboxes, served.passes, stack)
    await open_discovery(process, trust, stack)
    mail_collectors = MailCollectors()
    collected = [collector_options(loaded, each) for each in settings.collect]
    letters = await open_systems(
        process,
        spooling,
        places.directory,
        trust_list,
        parse,
        mailboxes,
        collected,
        mail_collectors,
        intake_threads,
        running,
        stack,
    )

    # What looks after it, and what can be asked of it.
    queue = Queue(
        spool,
        store.database,
        store.blobs,
        store.vault,
        store.journal,
        node=process.name,
        holder=spooling.holder,
        clock=store.clock,
    )
    retention = start_purging(process, store, spooling, running)
    mailbox_writer = open_writer(loaded)
    if mailbox_writer is not None:
        stack.callback(mailbox_writer.close)
    adoption, listing = look_after_mailboxes(process, store, mailboxes, places, mailbox_writer, spooling, running)
    alive = {"worker": lambda: worker.at_work, "tasks": running.whole}
    collectors = (
        TrustCollector(trust),
        RevocationCollector(belief.revocation),
        IncomingCollector(incoming),
        mail_collectors,
        OutgoingCollector(targets.outgoing.target, targets.outgoing.policies),
        DoorCollector(doors.open, doors.options),
        SurvivalCollector(loaded.state, store.database, journal_answers.publisher.published, alive),
        ScreeningCollector(stages.scans, telling.quarantine, telling.overdue),
        FollowUpCollector(follow),
        QueueCollector(queue, retention),
        MailboxCollector(mailboxes.registry),
        CertificateDoorCollector(machines),
        DirectoryCollector(places.directory, places.learning),
        SynchronisationCollector(synchronisation_folder(loaded)),
    )
    await open_metrics(process, store, spooling, places.directory, alive, collectors, stack)
    housekeeping = start_housekeeping(process, store, running)
    start_synchronising(process, running)
    running.start(trust, "trust")
    await open_control(
        process,
        store,
        belief,
        places.directory,
        accounts,
        answers_about_mailboxes(
            make_administration(mailboxes.registry, accounts, store.journal, loaded), listing, adoption, loaded
        ),
        Answers(store.database, journal_answers, spool, places.directory, letters, targets.dossier),
        queue,
        telling.quarantine,
        follow,
        housekeeping,
        worker,
        targets.outgoing,
        exists,
        threads,
        stack,
    )

    # Last: a start that fails, on a full disk say, must not have sent anything of which it then keeps no record.
    running.start(worker, "worker", settings.spool.drain_seconds)

    async def drain() -> None:
        """First of all at the end, and all at once: no door takes anybody in, nothing more is begun."""
        seconds = settings.spool.drain_seconds
        await asyncio.gather(*(door.stop(seconds) for door in doors.open), worker.stop(seconds), return_exceptions=True)

    stack.push_async_callback(drain)


def log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler prints tasks and exceptions with their texts, which may quote a message."""
    log.error("loop.error", what=context.get("message", ""), exc_info=context.get("exception"))


def _reload_at_hangup(reloading: Reloading) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: in_background(reloading.reload(), "reload"))
