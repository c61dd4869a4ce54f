"""One gateway, put together: settings become options, rooms get what they need, doors open last.

Reading `Gateway.start` top to bottom is reading the road: store, trust, directory, spool, stages, targets, doors.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import shutil
import signal
import ssl
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bridges.cda import read_cda
from bridges.compose import ComposeOptions
from bridges.composing import ComposeStage
from bridges.dossier.repository import Dossier
from bridges.dossier.rights import load_matrix
from bridges.dossier.target import DossierTarget
from bridges.dropfolder import DropFolder
from bridges.hl7 import reader as hl7_reader
from bridges.hl7.client import MllpTarget
from bridges.hl7.door import MllpDoor, MllpOptions
from bridges.hl7.mllp import FrameError
from bridges.intake import Intake, IntakeOptions, SendingSystem
from bridges.letters import Letters
from bridges.receipts import ReceiptConsumer
from bridges.routing import RoutingOptions
from bridges.screening import ScreenStage
from config import allocator, logs
from config.accounts_answers import answers_about_accounts
from config.answers import Answers, off_loop
from config.backup.sources import RESTORING
from config.ballast import Ballast
from config.catalogue import CATALOGUE
from config.control import ControlSocket
from config.directory_answers import DirectoryAnswers
from config.directory_service import (
    DirectoryCollector,
    MailLearning,
    learn_with,
    open_directory,
    open_register,
    open_writer,
)
from config.door_service import RELOADED, DoorCollector, certificate_sign_in, door_options, limits_of
from config.housekeeping import Housekeeping
from config.incoming import (
    Incoming,
    IncomingCollector,
    MailCollectors,
    collector_options,
    lmtp_door,
    open_lmtp,
    open_resolver,
)
from config.journal_answers import JournalAnswers
from config.key_journal import KeyAnswers
from config.metrics import MetricsServer
from config.migrations import upgrade
from config.monitored import checks, expiries
from config.node import ForAll, Membership, Process, Task, clock_of, open_blobs, open_database, uses_postgresql
from config.oidc_service import OidcService
from config.outgoing import Outgoing, OutgoingCollector
from config.publishing import PublishingTask
from config.purging import Purging, QueueCollector, periods
from config.quarantine_answers import QuarantineAnswers
from config.queue_answers import QueueAnswers, Redirections
from config.reading import ReadOnce
from config.reloading import Reloading
from config.revocation_service import RevocationCollector, patiently, revocation_checker, revocation_policies
from config.screening_service import ScreeningCollector, overdue_options, scan_stages, scanner_checks
from config.settings import Loaded, MllpListener, Settings, SettingsError
from config.survival_metrics import SurvivalCollector
from config.synchronising import (
    ScheduledSynchronisation,
    SynchronisationCollector,
    synchronisation_folder,
    synchronisation_options,
)
from config.trust_service import TrustCollector, TrustService
from config.vaults import open_vault, vault_for
from directory.partners import PartnerBook
from directory.records import Partner
from mta.absorbing import ReceiptDoorkeeper
from mta.agreements import Agreements
from mta.awaited import AwaitedReceipts
from mta.believed import Believed
from mta.collecting import Collector
from mta.collecting_options import CollectorOptions
from mta.correspondents import Correspondents
from mta.dispositions import DispositionStage
from mta.dsn import DsnConsumer, DsnOptions
from mta.mailboxes.authentication import AuthenticationSocket
from mta.mailboxes.dovecot import MailboxRealm
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.message import Stage, TargetKind
from mta.notices import Notices
from mta.opening import OpenStage
from mta.overdue import Overdue
from mta.protecting import ProtectStage
from mta.quarantine import Quarantine
from mta.queue import Queue
from mta.reporting import Reporter
from mta.retention import Retention
from mta.schedule import RetrySchedule
from mta.smtp.door import OperatorDoor, SubmissionDoor
from mta.spool import Spool
from mta.system_mail import SystemMail
from mta.worker import Worker, WorkerOptions
from smime.dkim import DkimKey, public_record
from smime.failures import DecryptionFailures
from smime.policy import GcmVariant, ReadPolicy
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.certificates import CertificateValidator, Purpose
from trust.checkpoints import Checkpoints
from trust.journal import Journal
from trust.lockout import LockoutOptions
from trust.names import DistinguishedName
from trust.publishing import Destination, HeadFile, HeadSyslog, Publisher, PublisherOptions
from trust.signed_heads import HeadSigner, KeyHeadSigner, SealedHeadSigner
from trust.store.database import Database
from trust.syslog import SyslogAddress
from trust.vault import KeyVault

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 2.0
"""Between two looks at a drop folder."""
_TASKS: set[asyncio.Task[None]] = set()
"""asyncio itself keeps only weak references."""
_WORK_THREADS = 8
"""For parsing, composing, CMS and filing: more than cores, because part of it waits for the disk."""


async def serve(
    loaded: Loaded, process_number: int | None = None, path: Path | None = None, log_level: str = "INFO"
) -> None:
    """Run one gateway until SIGTERM or SIGINT. Raises `SettingsError` when it cannot start.

    `path`: where the configuration is read again at SIGHUP; None: it is not.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        reloading = Reloading(path or Path(), loaded)
        reloading.follow(["log"], lambda settings: logs.set_level(settings.log.level or log_level))
        if path is not None:
            _reload_at_hangup(reloading)
        await _start(Process(loaded, process_number), stack, reloading)
        reloading.ready()
        allocator.collect_rarely()
        log.info("gateway.ready", operator=loaded.settings.operator.host)
        await stop.wait()
        log.info("gateway.stopping")


async def _start(process: Process, stack: AsyncExitStack, reloading: Reloading) -> None:
    """Everything, in order; `stack` undoes it in reverse order."""
    loaded = process.loaded
    settings = loaded.settings
    threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="work")
    stack.callback(threads.shutdown, wait=False)
    # Of their own: no acknowledgement waits until the mails of others are composed.
    intake_threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="intake")
    stack.callback(intake_threads.shutdown, wait=False)

    if (loaded.state / RESTORING).exists():
        raise SettingsError(f"a restore into {loaded.state} has not ended: give the same relais restore again")
    # What we keep, whose keys we hold.
    shared = uses_postgresql(loaded)
    if process.shares_ports and not shared:
        raise SettingsError("several processes need PostgreSQL: fill in store.url, or leave --process out")
    stack.callback(os.close, await _own(process.file("serve", ".lock"), settings.spool.drain_seconds + 6.0))
    ballast = Ballast(loaded.state)
    await asyncio.to_thread(ballast.look)  # first: on a full disk nothing else opens
    database = await asyncio.to_thread(open_database, loaded)
    stack.callback(database.close)
    shared_clock = await asyncio.to_thread(clock_of, database)
    clock = shared_clock or time.time
    await asyncio.to_thread(upgrade, database)
    vault = open_vault(loaded)
    if vault.token is not None:
        stack.callback(vault.token.close)
    blobs = open_blobs(loaded, vault, database)
    journal = Journal(vault, process.name)
    running: list[asyncio.Task[None]] = []
    journal_answers = await _publish_journal(process, database, vault, journal, stack, running)
    accounts = Accounts(database, vault, options=_lockout(loaded), journal=journal)

    # Whom to believe.
    anchors = loaded.path(settings.trust.anchors)
    intermediates = settings.trust.intermediates
    authorities = (
        _certificates(anchors),
        _certificates(loaded.path(intermediates)) if intermediates else [],
    )
    revocation = revocation_checker(loaded, *authorities)
    await asyncio.to_thread(revocation.start)
    stack.callback(revocation.stop)
    validator = CertificateValidator(*authorities, revocation, revocation_policies(loaded), source=revocation)
    trust = await patiently(
        functools.partial(
            TrustService.open,
            loaded,
            validator,
            lambda entry: database.transact(lambda connection: journal.append(connection, entry)),
            revocation.settled,
        ),
        revocation,
    )
    trust_list = trust.keeper

    # Who is where.
    directory = open_directory(loaded)
    stack.callback(directory.close)
    writer = open_writer(loaded) if settings.directory.learn_from_mail else None
    learning = MailLearning(writer, validator) if writer is not None else None
    if learning is not None:
        stack.callback(learning.close)
    partners = PartnerBook(_partners(settings))
    reloading.follow(["partners"], lambda changed: partners.replace(_partners(changed)))
    reloading.follow([], lambda _: [context.look() for context in trust.contexts])

    # The road.
    membership = await asyncio.to_thread(Membership, process, database, shared_clock) if shared_clock else None
    spool = Spool(
        database,
        blobs,
        vault,
        node=process.name,
        schedule=_schedule(loaded),
        free_bytes=None if shared else lambda: shutil.disk_usage(loaded.state).free,
        holder=membership.holder if membership else "",
        bulk_recipients=settings.spool.bulk_recipients,
        clock=clock,
    )
    recovered = (
        await asyncio.to_thread(membership.take_over, spool) if membership else await asyncio.to_thread(spool.recover)
    )
    if membership is not None:
        running.append(_run(membership.run(), "membership"))
        stack.push_async_callback(membership.stop)
    if recovered:
        log.info("spool.recovered", deliveries=recovered)
    routing = RoutingOptions(
        local_domains=frozenset(settings.operator.domains),
        patient_domains=frozenset(settings.identity.patient_domains),
        dossier=settings.dossier.enabled,
    )
    parse = ReadOnce(functools.partial(hl7_reader.parse, environment=settings.identity.environment))
    compose = ComposeStage(
        parse,
        {listener.sender: listener.sender_name for listener in settings.mllp}
        | {service.sender: service.sender_name for service in settings.letters},
        ComposeOptions(
            software_reference=settings.operator.software_reference,
            environment=settings.identity.environment,
            host_name=settings.operator.host,
        ),
        routing,
        threads,
    )
    dkim_key_of = _dkim(loaded)
    correspondents = Correspondents(database, vault)
    protect = ProtectStage(
        vault,
        directory,
        validator,
        dkim_key_of,
        settings.operator.host,
        Agreements(partners, correspondents, settings.smime.floor),
    )

    def own_dkim(domain: str, selector: str) -> str | None:
        key = dkim_key_of(domain)
        return public_record(key.key) if key is not None and key.selector == selector else None

    resolver = open_resolver(settings)
    stack.push_async_callback(resolver.close)
    incoming = Incoming(settings, resolver, partners, own_dkim, lambda: trust_list.current)
    screen = ScreenStage()
    opening = OpenStage(
        vault,
        validator,
        partners,
        settings.operator.host,
        own_dkim=own_dkim,
        remember=correspondents.remember,
        learn=learn_with(learning),
        policy=ReadPolicy(
            triple_des=settings.smime.triple_des,
            sha1=settings.smime.sha1,
            gcm_variants=frozenset(map(GcmVariant, settings.smime.gcm_variants)),
        ),
        failures=DecryptionFailures(settings.smime.failures_per_hour),
        evaluator=incoming.evaluator,
        authors=incoming.authors,
    )
    mailboxes = settings.mailboxes
    lmtp = LmtpTarget(
        LmtpOptions(
            settings.operator.host,
            loaded.path(mailboxes.lmtp_socket),
            search_socket=loaded.path(mailboxes.search_socket) if mailboxes.search_socket else None,
        )
    )
    stack.push_async_callback(lmtp.close)
    outgoing = Outgoing(
        loaded,
        partners,
        lambda: trust_list.current,
        trust.partners,
        trust.judge(Purpose.OPERATOR_TLS_SERVER),
        resolver,
        stack,
    )
    smtp = outgoing.target
    dossier = Dossier(database, blobs, vault, journal, load_matrix()) if settings.dossier.enabled else None
    receivers = {listener.partner: listener for listener in settings.mllp if listener.receiver_port}
    acknowledge = MllpTarget({name: (each.receiver_host, each.receiver_port) for name, each in receivers.items()})
    stack.push_async_callback(acknowledge.close)

    def operator_may_report(peer: str, domain: str) -> bool:
        try:
            return DistinguishedName.parse(peer) in trust_list.operators_of(domain)
        except ValueError:
            return False

    notices = Notices(database, process.name, clock)
    targets: dict[TargetKind, Any] = {
        TargetKind.MAILBOX: ReceiptDoorkeeper(lmtp, spool, Believed(spool, operator_may_report), notices),
        TargetKind.SMTP: smtp,
        TargetKind.MLLP: acknowledge,
    }
    if dossier is not None:
        targets[TargetKind.DOSSIER] = DossierTarget(dossier, parse)

    # Before the worker starts and until it has stopped: Dovecot takes no delivery without it.
    home = loaded.path(settings.mailboxes.home)
    authentication_socket = loaded.path(settings.mailboxes.authentication_socket)
    realm = MailboxRealm(
        settings.operator.domains,
        authentication_socket,
        home,
        lambda address: vault.pseudonym("mailbox home", address)[:40],
    )
    oidc = OidcService(loaded, accounts)
    authentication = AuthenticationSocket(
        authentication_socket, accounts, realm.home_of, accounts.open_mailbox, oidc.authenticate if oidc else None
    )
    if process.first:
        await authentication.start()
        stack.push_async_callback(authentication.stop)

    scans = scan_stages(loaded)
    stages: tuple[Stage, ...] = (compose, DispositionStage(), protect, opening, screen, *scans)
    worker = Worker(
        spool, stages, targets, _worker_options(settings.spool.concurrency, settings.outbound.final_seconds), clock
    )

    # Who is told how it ended: the sender's mailbox, the sender's system; and of what takes too long.
    us = (settings.operator.postmaster, settings.operator.host, settings.operator.domains, trust_list.is_trusted)
    patients = settings.identity.patient_domains
    dsn = DsnConsumer(
        spool,
        *us,
        CATALOGUE,
        patient_domains=patients,
        options=DsnOptions(settings.notifications.return_max_bytes, lifetime=settings.spool.expire_seconds),
        notices=notices,
        node=process.name,
    )
    system_mail = SystemMail(spool, *us, patients)
    quarantine = Quarantine(spool, database, blobs, vault, journal, system_mail, node=process.name, clock=clock)
    overdue = Overdue(spool, database, dsn, quarantine, overdue_options(loaded), node=process.name, clock=clock)

    receipts = ReceiptConsumer(
        spool,
        {name: each.sender for name, each in receivers.items()},
        parse,
        CATALOGUE,
        operator_may_report,
    )
    reporter = Reporter(spool, (dsn, quarantine, receipts, AwaitedReceipts(spool, operator_may_report)))
    running.append(_run(reporter.run(), "reporter"))
    stack.push_async_callback(reporter.stop)
    running.append(_run(overdue.run(), "overdue"))
    stack.push_async_callback(overdue.stop)

    if oidc:
        running.append(_run(oidc.run(), "oidc"))
        stack.push_async_callback(oidc.stop)

    # The doors, last: whatever they accept can be worked on.
    options_of_doors = door_options(settings)
    doors: list[SubmissionDoor | OperatorDoor] = []

    def exists(address: str) -> bool:
        return accounts.by_address(address) is not None

    operators = OperatorDoor(
        spool,
        lambda: trust_list.current,
        exists,
        trust.operators,
        options_of_doors,
        trust.judge(Purpose.OPERATOR_TLS_CLIENT),
        incoming.authors,
    )
    await _open(operators.start, settings.operators.host, settings.operators.port, reuse_port=process.shares_ports)
    stack.push_async_callback(operators.stop)
    doors.append(operators)
    if settings.submission is not None and trust.submission is not None:
        submission = SubmissionDoor(
            spool,
            accounts,
            exists,
            frozenset(settings.operator.domains).__contains__,
            trust_list.is_trusted,
            trust.submission,
            options_of_doors,
            oidc.authenticate if oidc else None,
            certificate_sign_in(accounts, validator) if settings.submission.client_certificates else None,
        )
        await _open(
            submission.start, settings.submission.host, settings.submission.port, reuse_port=process.shares_ports
        )
        stack.push_async_callback(submission.stop)
        doors.append(submission)
        if settings.submissions is not None:
            await _open(
                functools.partial(submission.start, implicit_tls=True),
                settings.submissions.host,
                settings.submissions.port,
                reuse_port=process.shares_ports,
            )
    reloading.follow(
        ["spool.max_message_bytes", *RELOADED], lambda changed: [door.reload(limits_of(changed)) for door in doors]
    )
    for each_lmtp in settings.lmtp:
        is_local = frozenset(settings.operator.domains).__contains__
        lmtp_in = lmtp_door(
            each_lmtp, spool, accounts, partners, exists, is_local, trust_list.is_trusted, options_of_doors
        )
        await open_lmtp(lmtp_in, loaded, each_lmtp, first=process.first, reuse_port=process.shares_ports)
        doors.append(lmtp_in)
    intake = Intake(
        spool,
        directory,
        trust_list,
        parse,
        IntakeOptions(routing),
    )
    stack.callback(intake.close)
    for listener in settings.mllp:
        door = _mllp_door(listener, intake, intake_threads)
        await _open(door.start, listener.host, listener.port, reuse_port=process.shares_ports)
        stack.push_async_callback(door.stop)

    collectors = MailCollectors()
    for each in settings.collect:
        options = collector_options(loaded, each)

        def collect(options: CollectorOptions = options) -> Collector:
            return collectors.add(Collector(options, spool, exists))

        collector: Task = collect() if membership is None else ForAll(lambda: membership.eldest, collect)
        running.append(_run(collector.run(), f"collect {each.name}"))
        stack.push_async_callback(collector.stop)
    letters = Letters(
        intake,
        read_cda,
        {
            each.sender: SendingSystem(f"letters:{each.sender}", each.sender, each.sender_name)
            for each in settings.letters
        },
    )
    for each_letters in settings.letters:
        if each_letters.folder and process.first:
            folder = DropFolder(loaded.path(each_letters.folder), letters, each_letters.sender, _LOOK_SECONDS)
            running.append(_run(folder.run(), f"letters {each_letters.sender}"))
            stack.push_async_callback(folder.stop)
    holder = membership.holder if membership else ""
    queue = Queue(spool, database, blobs, vault, journal, node=process.name, holder=holder, clock=clock)
    batch = settings.retention.batch
    retention = Retention(database, blobs, vault, periods(loaded), node=process.name, batch=batch, clock=clock)
    purging: Task = Purging(retention, settings.retention.round_hours * 3600.0)
    if membership is not None:
        purging = ForAll(
            lambda: membership.eldest, functools.partial(Purging, retention, settings.retention.round_hours * 3600.0)
        )
    running.append(_run(purging.run(), "purge"))
    stack.push_async_callback(purging.stop)
    if settings.metrics is not None:
        alive = {
            "worker": lambda: worker.at_work,
            "tasks": lambda: not any(task.done() for task in running),
        }
        metrics = MetricsServer(
            spool,
            expiries(loaded, vault),
            {**checks(loaded, directory, database), **scanner_checks(loaded), **alive},
            (
                TrustCollector(trust),
                RevocationCollector(revocation),
                IncomingCollector(incoming),
                collectors,
                OutgoingCollector(outgoing),
                DoorCollector(doors, options_of_doors),
                SurvivalCollector(loaded.state, database, journal_answers.publisher.published, alive),
                ScreeningCollector(scans[0].counts if scans else None, quarantine, overdue),
                QueueCollector(queue, retention),
                DirectoryCollector(directory, learning),
                SynchronisationCollector(synchronisation_folder(loaded)),
            ),
        )
        port = settings.metrics.port + (process.number or 0) if settings.metrics.port else 0
        await _open(metrics.start, settings.metrics.host, port)
        stack.push_async_callback(metrics.stop)

    if process.first:
        running.append(_run(ballast.run(), "ballast"))
        stack.push_async_callback(ballast.stop)
    housekeeping = Housekeeping(database, blobs)
    running.append(_run(housekeeping.run(), "housekeeping"))
    stack.push_async_callback(housekeeping.stop)

    if settings.synchronisation.source and process.first:
        source, look_seconds = loaded.path(settings.synchronisation.source), settings.synchronisation.look_seconds
        synchronising = ScheduledSynchronisation(synchronisation_options(loaded), source, look_seconds)
        running.append(_run(synchronising.run(), "synchronisation"))
        stack.push_async_callback(synchronising.stop)

    answers = Answers(database, journal_answers, spool, directory, letters, dossier)
    about_directory = DirectoryAnswers(
        directory,
        settings.directory.base,
        validator,
        functools.partial(open_writer, loaded),
        functools.partial(open_register, loaded),
    )
    running.append(_run(trust.run(), "trust"))
    stack.push_async_callback(trust.stop)
    account_answers = answers_about_accounts(Administration(accounts, journal), validator, loaded)
    local_domains = frozenset(settings.operator.domains)
    loop = asyncio.get_running_loop()

    def hurry() -> None:
        """An operator says "now": also to destinations that rest. From any thread."""
        loop.call_soon_threadsafe(outgoing.target.try_now)
        loop.call_soon_threadsafe(worker.wake)

    redirections = Redirections(directory, exists, local_domains, frozenset(patients), trust_list.is_trusted)
    own = {
        **account_answers.calls(),
        **KeyAnswers(database, journal).calls(),
        **housekeeping.calls(),
        **QuarantineAnswers(quarantine).calls(),
        **about_directory.calls(),
        **QueueAnswers(queue, redirections, hurry).calls(),
    }
    calls = {**answers.calls(threads), **trust.calls(threads), **off_loop(own, threads)}
    control = ControlSocket(process.file("control", ".sock"), calls)
    await control.start()
    stack.push_async_callback(control.stop)
    # Last: a start that fails, on a full disk say, must not have sent anything of which it then keeps no record.
    running.append(_run(worker.run(), "worker"))
    stack.push_async_callback(worker.stop, settings.spool.drain_seconds)

    async def drain() -> None:
        """First of all at the end, and all at once: no door takes anybody in, nothing more is begun."""
        seconds = settings.spool.drain_seconds
        await asyncio.gather(*(door.stop(seconds) for door in doors), worker.stop(seconds), return_exceptions=True)

    stack.push_async_callback(drain)


async def _publish_journal(
    process: Process,
    database: Database,
    vault: KeyVault,
    journal: Journal,
    stack: AsyncExitStack,
    running: list[asyncio.Task[None]],
) -> JournalAnswers:
    """Signed heads of the journal leave the machine from now on."""
    loaded = process.loaded
    section = loaded.settings.journal
    name = section.name or loaded.settings.operator.host
    try:
        signer: HeadSigner
        if section.signer:
            held = await asyncio.to_thread(vault.signer, section.signer)
            if held is None:
                raise SettingsError(f"journal.signer: no valid signing key of {section.signer} is held")
            signer = KeyHeadSigner(held)
        else:
            signer = await asyncio.to_thread(SealedHeadSigner.open, _head_key(loaded), vault)
        context = None
        if any(url.startswith("tls:") for url in section.syslog):
            context = ssl.create_default_context(
                cafile=str(loaded.path(section.syslog_ca)) if section.syslog_ca else None
            )
            if section.syslog_chain:
                context.load_cert_chain(loaded.path(section.syslog_chain), loaded.path(section.syslog_key))
        destinations: list[Destination] = [HeadFile(loaded.path(section.heads))] if section.heads else []
        destinations += [HeadSyslog(SyslogAddress(url, context), journal.writer) for url in section.syslog]
        if not process.first:  # the first process of this machine publishes every head
            destinations = []
    except (OSError, ValueError) as error:
        raise SettingsError(f"the journal's heads cannot be published as [journal] says: {error}") from error
    checkpoints = Checkpoints(database, journal, signer, name)
    options = PublisherOptions(section.checkpoint_seconds, section.idle_seconds)
    publisher = Publisher(database, checkpoints, destinations, name, journal.writer, options)
    publishing = PublishingTask(publisher, section.checkpoint_seconds)
    running.append(_run(publishing.run(), "journal heads"))
    stack.push_async_callback(publishing.stop)
    return JournalAnswers(database, vault, journal, checkpoints, publisher, name, signer.public_key)


def _head_key(loaded: Loaded) -> Path:
    """Beside the vault where nodes share one: heads of one journal are signed by one key."""
    return (vault_for(loaded) if loaded.settings.keys.vault else loaded.state) / "journal.key"


async def _own(lock: Path, patience: float) -> int:
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


def _lockout(loaded: Loaded) -> LockoutOptions:
    section = loaded.settings.accounts
    return LockoutOptions(
        section.max_failures,
        section.lock_seconds,
        section.longest_lock_seconds,
        section.account_failures,
        section.network_failures,
        section.familiar_days * 86400.0,
    )


def _worker_options(per_destination: int, final_seconds: float = 600.0) -> WorkerOptions:
    """More places in all than for one destination, or one that stalls would stop every other. An attempt outlasts the
    wait for a final answer, or what was sent whole would be given up and sent again."""
    attempt = max(600.0, final_seconds + 300.0)
    return WorkerOptions(
        concurrency=4 * per_destination,
        per_destination=per_destination,
        attempt_seconds=attempt,
        lease_seconds=attempt + 900.0,
    )


def _log_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler prints tasks and exceptions with their texts, which may quote a message."""
    log.error("loop.error", what=context.get("message", ""), exc_info=context.get("exception"))


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise SettingsError(f"{path} must hold PEM certificates") from error


def _schedule(loaded: Loaded) -> RetrySchedule:
    spool = loaded.settings.spool
    pauses = [spool.first_retry_seconds]
    while pauses[-1] < spool.longest_retry_seconds:
        pauses.append(min(pauses[-1] * 2, spool.longest_retry_seconds))
    return RetrySchedule(pauses=tuple(pauses), lifetime=spool.expire_seconds)


def _dkim(loaded: Loaded) -> Callable[[str], DkimKey | None]:
    """The DKIM key by sender domain: one key and selector for all our domains."""
    section = loaded.settings.dkim
    if not section.key:
        return lambda domain: None
    try:
        key = load_pem_private_key(loaded.path(section.key).read_bytes(), None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"dkim.key {loaded.path(section.key)} must hold an unencrypted RSA key in PEM") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise SettingsError("dkim.key must be an RSA key")
    keys = {domain: DkimKey(domain, section.selector, key) for domain in loaded.settings.operator.domains}
    return keys.get


def _mllp_door(listener: MllpListener, intake: Intake, threads: ThreadPoolExecutor) -> MllpDoor:
    system = SendingSystem(listener.partner, listener.sender, listener.sender_name)

    def receive(frame: bytes) -> bytes:
        return intake.receive(frame, system)

    def refuse(error: FrameError) -> bytes:
        return intake.refuse(error, system)

    options = MllpOptions(listener.max_frame_bytes, listener.idle_seconds)
    return MllpDoor(options, receive, refuse, threads)


def _partners(settings: Settings) -> list[Partner]:
    return [Partner(**msgspec.structs.asdict(partner)) for partner in settings.partners]


def _reload_at_hangup(reloading: Reloading) -> None:
    def hangup() -> None:
        task = asyncio.create_task(reloading.reload(), name="reload")
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup)


async def _open(start: Callable[..., Any], host: str, port: int, **how: bool) -> None:
    try:
        await start(host, port, **how)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    except ValueError as error:  # metrics, which are for loopback only
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from error


def _run(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task the gateway cannot do without: when it dies the gateway ends, and is restarted."""
    task = asyncio.create_task(work, name=name)
    _TASKS.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[None]) -> None:
    _TASKS.discard(task)
    if not task.cancelled() and task.exception() is not None:
        log.error("task.died", task=task.get_name(), exc_info=task.exception())
        os.kill(os.getpid(), signal.SIGTERM)
