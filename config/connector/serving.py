"""The road of a practice connector, from the parts every gateway is made of.

Shorter than an operator's (`config.wiring`): there is no trust list, for the practice's operators judge whom its mail
may go to; no door for other operators; and one way out, through the accounts. Mail comes in from the operators'
mailboxes and from the mail program, and ends in the private Dovecot, in the practice software's folder, or at an
operator.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from bridges.practice_folder import NoFolder, PracticeFolder
from config.accounts_answers import answers_about_accounts
from config.answers import Answers, off_loop
from config.connector.expanding import CHAIN, KEY, account_name
from config.connector.local_accounts import keep_accounts
from config.connector.sections import ConnectAccountSettings, ConnectSettings
from config.connector.standstills import look_for_standstills
from config.control import ControlSocket
from config.directory_answers import DirectoryAnswers
from config.directory_service import open_register, open_writer
from config.door_service import RELOADED, DoorCollector, door_options, limits_of
from config.gateway.arriving import open_arriving
from config.gateway.belief import open_validator
from config.gateway.doors import listen
from config.gateway.following import open_following
from config.gateway.heads import publish_heads
from config.gateway.mailboxes import Mailboxes, look_after_mailboxes, make_administration, open_mailboxes
from config.gateway.places import open_places
from config.gateway.running import Running
from config.gateway.serving import make_serving
from config.gateway.spooling import open_spool
from config.gateway.stages import make_stages, report_reader
from config.gateway.store import lockout_options, open_store
from config.gateway.submission import submission_rules
from config.gateway.systems import open_systems
from config.gateway.targets import authentication_socket, worker_options
from config.gateway.telling import start_telling
from config.gateway.watching import open_metrics, start_housekeeping, start_purging
from config.incoming import Incoming, MailCollectors, SignedIn, collector_options, open_resolver, upstream_secret
from config.key_journal import KeyAnswers
from config.mailbox_answers import answers_about_mailboxes
from config.node import Process
from config.outgoing import OutgoingCollector
from config.purging import QueueCollector
from config.quarantine_answers import QuarantineAnswers
from config.queue_answers import QueueAnswers, Redirections
from config.reloading import Reloading
from config.revocation_service import RevocationCollector
from config.sections import CollectSettings
from config.settings import Loaded, SettingsError
from directory.partners import PartnerBook
from mta.absorbing import ReceiptDoorkeeper
from mta.believed import Believed
from mta.collecting_options import CollectorOptions
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.message import Stage, Target, TargetKind
from mta.notices import Notices
from mta.opening import OpenStage
from mta.outages import Outages
from mta.practice import FileUnopened, NoticesStayHere
from mta.protecting import ProtectStage
from mta.queue import Queue
from mta.smtp.client import Timeouts
from mta.smtp.door import DoorOptions, SubmissionDoor
from mta.smtp.policy import SubmissionRules
from mta.smtp.relay import RelayAccount, RelayOptions, RelayTarget
from mta.spool import Spool
from mta.system_mail import SystemMail
from mta.worker import Worker
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.names import DistinguishedName
from trust.tls import TlsMaterialError, followed_service_server
from trust.vault import KeyUse

log = structlog.get_logger(__name__)

_WORK_THREADS = 4


def _nobody(domain: str) -> bool:
    """No domain is ours, and to none do we report."""
    return False


def _without_dkim(domain: str) -> None:
    """Its operator signs what leaves."""


class _NobodyListed:
    """The trust list of who has none."""

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]:
        return frozenset()

    def is_operator(self, name: DistinguishedName) -> bool:
        return False


class _EveryDomain:
    """The operator says whom mail may go to, when it is submitted there; and nobody gets mail without a certificate
    that our anchors vouch for."""

    def is_trusted(self, domain: str) -> bool:
        return True


class _FromOurOperators(Incoming):
    """Receipts that we collect from an operator of ours are believed as its own word: nobody else reports to us, and
    all that follows is that we stop waiting for them."""

    def __init__(self, loaded: Loaded, connect: ConnectSettings, partners: PartnerBook) -> None:
        super().__init__(
            loaded.settings, open_resolver(loaded.settings), partners, lambda domain, selector: None, _NobodyListed
        )
        self._names = frozenset(map(account_name, connect.accounts))

    def speaks_for(self, peer: str, domain: str) -> bool:
        return peer in self._names


async def start(process: Process, stack: AsyncExitStack, reloading: Reloading) -> None:
    """Everything, in order; `stack` undoes it in reverse order. Raises `SettingsError`."""
    loaded = process.loaded
    settings, connect = loaded.settings, loaded.settings.connect
    assert connect is not None  # noqa: S101 - who calls has asked
    running = Running(stack)
    threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="work")
    stack.callback(threads.shutdown, wait=False)
    intake_threads = ThreadPoolExecutor(_WORK_THREADS, thread_name_prefix="intake")
    stack.callback(intake_threads.shutdown, wait=False)

    # What we keep, whose keys we hold, who may come in.
    store = await open_store(process, stack)
    journal_answers = await publish_heads(process, store, running)
    accounts = Accounts(store.database, store.vault, options=lockout_options(loaded), journal=store.journal)
    administration = Administration(accounts, store.journal)
    await asyncio.to_thread(keep_accounts, loaded, connect, store.vault, accounts, administration)

    mailboxes = open_mailboxes(loaded, store, accounts)
    exists = mailboxes.exists

    # Whom to believe, and where correspondents' certificates are.
    revocation, validator = await open_validator(loaded, stack)
    places = open_places(loaded, validator, stack, reloading)

    # The road.
    spooling = await open_spool(process, store, running)
    spool = spooling.spool
    parse = report_reader(settings)
    incoming = _FromOurOperators(loaded, connect, places.partners)
    stack.push_async_callback(incoming.resolver.close)
    arriving = open_arriving(loaded, store, places, mailboxes.registry.find)
    follow = open_following(process, store, _nobody, spool, mailboxes.registry.find)
    stages = make_stages(
        loaded, store, validator, places, incoming, _without_dkim, parse, threads, spool, arriving, follow
    )
    lmtp = LmtpTarget(
        LmtpOptions(
            settings.operator.host,
            loaded.path(settings.mailboxes.lmtp_socket),
            search_socket=loaded.path(settings.mailboxes.search_socket),
        )
    )
    stack.push_async_callback(lmtp.close)
    ways = ways_of(loaded, connect)
    for reason in ways.unusable.values():
        log.error("connect.account-left-out", reason=reason)
    relay = RelayTarget(
        ways.relays,
        RelayOptions(settings.operator.host, Timeouts(final=settings.outbound.final_seconds)),
        ways.unusable.keys(),
    )
    stack.push_async_callback(relay.close)
    notices = Notices(store.database, process.name, store.clock)
    believed = Believed(spool, incoming.speaks_for, collected=True)
    # reading receipts are filed: nobody here looks at a trace
    filing = ReceiptDoorkeeper(lmtp, spool, believed, notices)
    targets: dict[TargetKind, Target] = {TargetKind.MAILBOX: filing, TargetKind.SMTP: relay}
    folder = connect.inbox_folder
    targets[TargetKind.FOLDER] = PracticeFolder(loaded.path(folder)) if folder else NoFolder()
    served = make_serving(loaded, store.vault, mailboxes)
    authentication = authentication_socket(loaded, mailboxes, store.vault, None, served)
    await authentication.start()
    stack.push_async_callback(authentication.stop)
    work = worker_options(settings.spool.concurrency, settings.outbound.final_seconds)
    worker = Worker(spool, _beside_the_reader(stages.in_order, settings.operator.host), targets, work, store.clock)

    # Who is told how it ended: our own people only.
    telling = start_telling(
        process,
        store,
        _nobody,
        spool,
        incoming,
        notices,
        parse,
        running,
        follow,
    )

    # What comes in: the mail program's mail, the operators' mailboxes, the practice software's letters.
    options = door_options(settings)
    rules = submission_rules(settings, places, tuple)
    door = await _open_door(loaded, connect, options, spool, accounts, mailboxes, rules, reloading, stack)
    mail_collectors = MailCollectors()
    letters = await open_systems(
        process,
        spooling,
        places.directory,
        _EveryDomain(),
        parse,
        mailboxes,
        ways.collected,
        mail_collectors,
        intake_threads,
        running,
        stack,
        lambda address: bool(store.vault.certificates(address, KeyUse.ENCRYPTION)),
    )
    look = functools.partial(
        look_for_standstills,
        spool,
        mail_collectors.current,
        [each.address for each in connect.accounts],
        ways.unusable.keys(),
        store.clock,
    )
    operator = settings.operator
    reader_mail = SystemMail(spool, operator.postmaster, operator.host, operator.domains, _nobody)
    running.start(Outages(reader_mail, look, clock=store.clock), "standstills")

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
    adoption, listing = look_after_mailboxes(process, store, mailboxes, places, None, spooling, running)
    kept = make_administration(mailboxes.registry, accounts, store.journal, loaded)
    alive = {"worker": lambda: worker.at_work, "tasks": running.whole}
    collectors = (
        RevocationCollector(revocation),
        mail_collectors,
        OutgoingCollector(relay),
        DoorCollector([door], options),
        QueueCollector(queue, retention),
    )
    await open_metrics(process, store, spooling, places.directory, alive, collectors, stack)
    housekeeping = start_housekeeping(process, store, running)
    loop = asyncio.get_running_loop()

    def hurry() -> None:
        """Somebody says "now". From any thread."""
        loop.call_soon_threadsafe(relay.try_now)
        loop.call_soon_threadsafe(worker.wake)

    redirections = Redirections(
        places.directory, exists, frozenset(), frozenset(settings.identity.patient_domains), _EveryDomain().is_trusted
    )
    own = {
        **answers_about_accounts(administration, validator, loaded).calls(),
        **answers_about_mailboxes(kept, listing, adoption, loaded).calls(),
        **KeyAnswers(store.database, store.journal).calls(),
        **housekeeping.calls(),
        **QuarantineAnswers(telling.quarantine).calls(),
        **DirectoryAnswers(
            places.directory,
            settings.directory.base,
            validator,
            functools.partial(open_writer, loaded),
            functools.partial(open_register, loaded),
        ).calls(),
        **QueueAnswers(queue, redirections, hurry).calls(),
    }
    answers = Answers(store.database, journal_answers, spool, places.directory, letters, None)
    control = ControlSocket(process.file("control", ".sock"), {**answers.calls(threads), **off_loop(own, threads)})
    await control.start()
    stack.push_async_callback(control.stop)
    running.start(worker, "worker", settings.spool.drain_seconds)

    async def drain() -> None:
        """First of all at the end: the door takes nobody in, nothing more is begun."""
        seconds = settings.spool.drain_seconds
        await asyncio.gather(door.stop(seconds), worker.stop(seconds), return_exceptions=True)

    stack.push_async_callback(drain)


def _beside_the_reader(stages: Sequence[Stage], host: str) -> tuple[Stage, ...]:
    """See `mta.practice`."""

    def beside(stage: Stage) -> Stage:
        if isinstance(stage, OpenStage):
            return FileUnopened(stage, host)
        return NoticesStayHere(stage) if isinstance(stage, ProtectStage) else stage

    return tuple(map(beside, stages))


async def _open_door(
    loaded: Loaded,
    connect: ConnectSettings,
    options: DoorOptions,
    spool: Spool,
    accounts: Accounts,
    mailboxes: Mailboxes,
    rules: SubmissionRules,
    reloading: Reloading,
    stack: AsyncExitStack,
) -> SubmissionDoor:
    """For the mail program of this machine; every recipient is elsewhere. Raises `SettingsError`."""
    try:
        context = followed_service_server("submission", loaded.state / CHAIN, loaded.state / KEY)
    except TlsMaterialError as error:
        raise SettingsError(f"TLS cannot be set up: {error}; is this started by relais connect?") from error
    door = SubmissionDoor(
        spool,
        accounts,
        mailboxes.exists,
        _nobody,
        _EveryDomain().is_trusted,
        context,
        options,
        mailboxes=mailboxes.rules,
        rules=rules,
    )
    await listen(functools.partial(door.start, implicit_tls=True), "127.0.0.1", connect.submissions_port)
    stack.push_async_callback(door.stop)
    reloading.follow(["spool.max_message_bytes", *RELOADED], lambda changed: door.reload(limits_of(changed)))
    return door


@dataclass(frozen=True, slots=True)
class Ways:
    """To and from the operators, for the accounts that can be used."""

    relays: tuple[RelayAccount, ...]
    collected: tuple[CollectorOptions, ...]
    unusable: Mapping[str, str]
    """The other accounts, by address, and why: beside a doctor one of them must not shut the mailboxes of all."""


def ways_of(loaded: Loaded, connect: ConnectSettings) -> Ways:
    """As the file says."""
    relays, collected, unusable = list[RelayAccount](), list[CollectorOptions](), dict[str, str]()
    # `config.connector.expanding` makes one section to collect of each account, in their order
    for account, section in zip(connect.accounts, loaded.settings.collect, strict=True):
        try:
            signed_in = upstream_secret(loaded, section)
            relay = _relay_account(loaded, account, section, signed_in)
            collected.append(collector_options(loaded, section, signed_in))
            relays.append(relay)
        except (OSError, ValueError, SettingsError) as error:
            unusable[account.address] = f"connect.accounts {section.name} cannot be used: {error}"
    return Ways(tuple(relays), tuple(collected), unusable)


def _relay_account(
    loaded: Loaded, account: ConnectAccountSettings, collected: CollectSettings, signed_in: SignedIn
) -> RelayAccount:
    """Raises OSError and ValueError."""
    context = ssl.create_default_context(cafile=str(loaded.path(collected.ca)))
    if account.certificate:
        context.load_cert_chain(loaded.path(account.certificate), loaded.path(account.key or account.certificate))
    sign_in, secret = signed_in
    return RelayAccount(
        name=collected.name,
        address=account.address,
        host=account.smtp_host or account.imap_host,
        port=account.smtp_port,
        context=context,
        implicit_tls=account.smtp_tls == "implicit",
        sign_in=sign_in,
        user=collected.user,
        secret=secret,
    )
