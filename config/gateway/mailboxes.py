"""Our mailboxes: what is known of each, what the doors ask about them, and the tasks that look after their records."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from config.gateway.places import Places
from config.gateway.running import Running
from config.gateway.spooling import Spooling
from config.gateway.store import Store
from config.node import Process
from config.purging import Purging
from config.settings import Loaded
from directory.resolve import Directory, DirectoryRefusedError, DirectoryUnavailableError
from mta.bell import Repeating
from mta.mailboxes.administration import MailboxAdministration
from mta.mailboxes.adopting import Adoption
from mta.mailboxes.answered import AnsweredMarks
from mta.mailboxes.dovecot import MailboxRealm
from mta.mailboxes.exchanges import Exchanges
from mta.mailboxes.listing import Listing
from mta.mailboxes.moving import forget_headers
from mta.mailboxes.purging import MailboxPeriods, MailboxPurge
from mta.mailboxes.registry import Registry
from mta.mailboxes.rules import MailboxRules
from mta.mailboxes.sessions import end_sessions
from mta.retention import DAY
from trust.accounts import Accounts
from trust.catalogue import AUTHENTICATION_FAILED, CERTIFICATE_REFUSED
from trust.identities import CertificateSignIn, Identity, Service
from trust.journal import Journal
from trust.refusals import Refused
from trust.shared_addresses import Access
from trust.vault import KeyVault

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 300.0
"""Between two looks at accounts without a record, and at what the directory was not told."""
_SOON_SECONDS = 20.0
"""After a directory that did not answer."""
_BREATH_SECONDS = 0.02

SignIn = Callable[[str, str, str, Service], Identity | Refused]
Tokens = Callable[[str, str], Identity | Refused]


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """Of one gateway."""

    registry: Registry
    rules: MailboxRules
    exchanges: Exchanges
    accounts: Accounts

    def exists(self, address: str) -> bool:
        """Whether a mailbox is ours, and takes mail. May block."""
        return self.rules.receives(address) is None

    def sign_in(self, address: str, password: str, client: str, service: Service) -> Identity | Refused:
        """Who opens a mailbox with a password (IMAP, ManageSieve)."""
        return self.opened(address, self.accounts.open_mailbox(address, password, client, service))

    def token_sign_in(self, tokens: Tokens) -> Tokens:
        """Who opens a mailbox with a token, `tokens` having said whose that is."""

        def sign_in(address: str, token: str) -> Identity | Refused:
            found = tokens(address, token)
            if isinstance(found, Identity) and not self.accounts.may_open(found, address):
                return Refused(AUTHENTICATION_FAILED)
            return self.opened(address, found)

        return sign_in

    def opened(self, address: str, found: Identity | Refused, *, certified: bool = False) -> Identity | Refused:
        """Whoever was let in by their account, unless the mailbox is shut, or wants a certificate, or all of their own
        do: who has left reads no team's mailbox either."""
        if isinstance(found, Refused):
            return found
        refused = self.rules.enters(found, certified=certified) or self.rules.opens(address, certified=certified)
        return refused or found

    def certificate_sign_in(self, certificates: CertificateSignIn) -> CertificateSignIn:
        """Who opens a mailbox with a certificate, `certificates` having said whose that is: their own, or one they may
        read, with the rights they have there."""

        def sign_in(shown: Sequence[bytes], wanted: str) -> Identity | Refused:
            found = certificates(shown, "")  # a name is judged by who may send as it
            if isinstance(found, Refused) or not found.addresses:
                return found
            name = wanted.strip().lower()
            if name not in found.addresses and name in ("", found.login):
                name = found.addresses[0]
            if name not in found.addresses and Access.READ not in self.accounts.access(found, name):
                return Refused(CERTIFICATE_REFUSED, "login")
            return self.opened(name, found, certified=True)

        return sign_in


def make_registry(accounts: Accounts, vault: KeyVault, loaded: Loaded) -> Registry:
    """Of the operator of this configuration."""
    return Registry(accounts, vault, loaded.settings.identity.patient_domains)


def make_administration(
    registry: Registry, accounts: Accounts, journal: Journal, loaded: Loaded
) -> MailboxAdministration:
    return MailboxAdministration(registry, accounts, journal, loaded.settings.operator.domains)


def open_mailboxes(loaded: Loaded, store: Store, accounts: Accounts) -> Mailboxes:
    """Nothing runs yet."""
    registry = make_registry(accounts, store.vault, loaded)
    patients = loaded.settings.identity.patient_domains
    exchanges = Exchanges(store.database, store.vault, patients, store.clock)
    rules = MailboxRules(registry, exchanges, machine_passwords=loaded.settings.mailboxes.machine_passwords)
    return Mailboxes(registry, rules, exchanges, accounts)


def realm_of(loaded: Loaded, vault: KeyVault) -> MailboxRealm:
    """Where the mail of this operator's mailboxes is on this machine, and where Dovecot asks about them."""
    section = loaded.settings.mailboxes
    return MailboxRealm(
        loaded.settings.operator.domains,
        loaded.path(section.authentication_socket),
        loaded.path(section.home),
        lambda address: vault.pseudonym("mailbox home", address)[:40],
    )


def answered_marks(loaded: Loaded, mailboxes: Mailboxes) -> AnsweredMarks | None:
    """Who says in a team's mailbox which of its members has answered; None where Dovecot cannot be asked."""
    doveadm = loaded.settings.mailboxes.search_socket
    return AnsweredMarks(mailboxes.registry, loaded.path(doveadm)) if doveadm else None


def look_after_mailboxes(
    process: Process,
    store: Store,
    mailboxes: Mailboxes,
    places: Places,
    writer: Directory | None,
    spooling: Spooling,
    running: Running,
) -> tuple[Adoption, Listing | None]:
    """From now on: accounts get records, the directory is told, what is past its retention goes. Returns who asks the
    directory and who tells it; None where nobody may write there."""
    loaded, database, journal = process.loaded, store.database, store.journal
    adoption = Adoption(mailboxes.registry, database, journal, places.directory, store.clock)
    listing = None if writer is None else Listing(mailboxes.registry, database, store.vault, writer, adoption)
    running.start(spooling.once_for_all(functools.partial(Records, adoption, listing)), "mailbox records")
    if process.first:  # each machine purges the mail it has
        retention = loaded.settings.retention
        realm = realm_of(loaded, store.vault)
        purge = MailboxPurge(
            mailboxes.registry,
            mailboxes.exchanges,
            database,
            journal,
            realm.home_of,
            MailboxPeriods(retention.closed_mailbox_days * DAY, retention.key_days * DAY),
            forget=_forgetting(loaded, realm),
            clock=store.clock,
            batch=retention.batch,
        )
        running.start(Purging(purge, retention.round_hours * 3600.0), "purge of mailboxes")
    return adoption, listing


def _forgetting(loaded: Loaded, realm: MailboxRealm) -> list[Callable[[str], object]]:
    """Before the mail of a purged mailbox goes: its sessions end, then what Dovecot remembers of it goes."""
    section = loaded.settings.mailboxes
    steps: list[Callable[[str], object]] = []
    if section.search_socket:
        doveadm = loaded.path(section.search_socket)
        steps.append(lambda address: end_sessions(doveadm, [address]))
    if section.memory:
        memory = loaded.path(section.memory)
        steps.append(lambda address: forget_headers(memory, home) if (home := realm.home_of(address)) else None)
    return steps


class MailboxCollector(Collector):
    """How many mailboxes there are, for Prometheus."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            counts, untold = self._registry.counts(), self._registry.untold()
        except SQLAlchemyError:  # `relais_up` says it
            return
        gauge = GaugeMetricFamily("relais_mailboxes", "Mailboxes, by kind and state.", labels=["kind", "state"])
        for (kind, state), number in sorted(counts.items()):
            gauge.add_metric([kind, state], number)
        yield gauge
        yield GaugeMetricFamily(
            "relais_mailboxes_untold", "Mailboxes of which the directory does not know the last yet.", untold
        )


class Records(Repeating):
    """The task that keeps records whole and the directory informed. A turn is a batch of each."""

    def __init__(self, adoption: Adoption, listing: Listing | None) -> None:
        super().__init__()
        self._adoption = adoption
        self._listing = listing
        self._said = ""

    async def _turn(self) -> float:
        done, problem = await asyncio.to_thread(self._work)
        if problem is not None:  # its text may name whose mailbox it was about
            self._say(type(problem).__name__)
        elif not done:
            self._say("")
        if done:
            return _BREATH_SECONDS
        return (
            _SOON_SECONDS if isinstance(problem, DirectoryUnavailableError | DirectoryRefusedError) else _LOOK_SECONDS
        )

    def _work(self) -> tuple[int, Exception | None]:
        """How many there were, and what kept some of them waiting. Neither keeps the other from its turn."""
        done, problem = 0, None
        for each in (self._adoption, self._listing):
            try:
                done += 0 if each is None else each.turn()
            except Exception as error:
                problem = error
        return done, problem

    def _say(self, problem: str) -> None:
        """Once when it begins, once when it is over."""
        if problem != self._said:
            if problem:
                log.warning("mailboxes.directory-not-told", error=problem)
            else:
                log.info("mailboxes.directory-told")
            self._said = problem
