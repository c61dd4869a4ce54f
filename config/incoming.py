"""What judges mail that comes in, put together from the settings: the DNS, evaluation, authors, and doors for LMTP."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.sections import CollectSettings, LmtpListener
from config.settings import Loaded, Settings, SettingsError
from directory.partners import PartnerBook
from mta.authors import AuthorCheck
from mta.collecting import Collector as MailCollector
from mta.collecting_options import After, CollectorOptions, SignIn, Stays
from mta.dns import DnsOptions, Resolver
from mta.evaluation import DkimKeys, EvaluationOptions, Evaluator
from mta.mailboxes.rules import MailboxRules
from mta.smtp.door import DoorOptions
from mta.smtp.lmtp_door import LmtpDoor
from mta.smtp.policy import SubmissionRules
from mta.smtp.target import Operators
from mta.spool import Spool
from mta.upstream_secrets import Grant, GrantedToken, kept_in
from trust.accounts import Accounts
from trust.names import DistinguishedName
from trust.revocation.fetching import Fetcher, FetchOptions


def open_resolver(settings: Settings) -> Resolver:
    """The DNS. Raises `SettingsError`."""
    section = settings.dns
    trust_ad = {"local": None, "always": True, "never": False}[section.believe_dnssec]
    try:
        return Resolver(DnsOptions(section.servers, trust_ad, section.seconds))
    except ValueError as error:
        raise SettingsError(f"dns.servers: {error}") from error


class Incoming:
    """What the operators' door and the open stage share."""

    def __init__(
        self,
        settings: Settings,
        resolver: Resolver,
        partners: PartnerBook,
        own_dkim: Callable[[str, str], str | None],
        operators: Callable[[], Operators],
    ) -> None:
        section = settings.evaluation
        asked = resolver if section.dns else None
        self._operators = operators
        self.resolver = resolver
        self.evaluator = Evaluator(DkimKeys(partners, own_dkim, asked), asked, EvaluationOptions(section.seconds))
        self.authors = AuthorCheck(self.speaks_for, self.evaluator, refuse_unproven=section.unproven_author == "refuse")

    def speaks_for(self, peer: str, domain: str) -> bool:
        """Whether the operator of that name is listed for that domain now."""
        name = _name(peer)
        return name is not None and name in self._operators().operators_of(domain)


@functools.lru_cache(maxsize=4096)
def _name(peer: str) -> DistinguishedName | None:
    try:
        return DistinguishedName.parse(peer)
    except ValueError:
        return None


class IncomingCollector(Collector):
    """What became of questions and authors, for Prometheus."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        lookups = CounterMetricFamily(
            "relais_dns_lookups", "Questions put to the DNS, by how they were answered.", labels=["state"]
        )
        for state, count in sorted(self._incoming.resolver.counts.items()):
            lookups.add_metric([state], count)
        yield lookups
        authors = CounterMetricFamily(
            "relais_authors", "Mails from outside, by what proved their author.", labels=["proof"]
        )
        for proof, count in sorted(self._incoming.authors.counts.items()):
            authors.add_metric([proof], count)
        yield authors


class MailCollectors(Collector):
    """The upstream mailboxes this process collects, for Prometheus. Where nodes share a database, one collects."""

    def __init__(self) -> None:
        self._made: list[MailCollector] = []

    def add(self, collector: MailCollector) -> MailCollector:
        """Tell of it from now on, until it is stopped."""
        self._made = [*self.current(), collector]
        return collector

    def current(self) -> list[MailCollector]:
        """Those that are not stopped. From any thread."""
        return [each for each in self._made if not each.stopping]

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        connected = GaugeMetricFamily(
            "relais_collector_connected", "1 while an upstream mailbox is being collected.", labels=["collector"]
        )
        found = CounterMetricFamily(
            "relais_collector_messages",
            "Messages found in an upstream mailbox, by what became of them; oversized and refused ones stay there. One "
            "that is removed was collected before.",
            labels=["collector", "result"],
        )
        for each in self.current():
            status = each.status
            connected.add_metric([each.name], float(status.connected))
            for result in ("collected", "repeated", "removed", "oversized", "refused"):
                found.add_metric([each.name, result], getattr(status, result))
        yield connected
        yield found


def lmtp_door(
    listener: LmtpListener,
    spool: Spool,
    accounts: Accounts,
    exists: Callable[[str], bool],
    is_local: Callable[[str], bool],
    is_trusted: Callable[[str], bool],
    options: DoorOptions,
    mailboxes: MailboxRules,
    rules: SubmissionRules,
) -> LmtpDoor:
    """Not yet listening. A server may write as the mailboxes its section names, as far as there are such."""
    addresses = {each for each in listener.senders if not each.startswith("@")}
    domains = {each[1:] for each in listener.senders if each.startswith("@")}

    def may_send(address: str) -> bool:
        named = address in addresses or address.rpartition("@")[2] in domains
        return named and exists(address)

    return LmtpDoor(listener.name, spool, accounts, may_send, exists, is_local, is_trusted, options, mailboxes, rules)


async def open_lmtp(door: LmtpDoor, loaded: Loaded, listener: LmtpListener, *, first: bool, reuse_port: bool) -> None:
    """Listen where the section says; `first`: of several processes one has the Unix socket. Raises `SettingsError`."""
    where = listener.socket or f"{listener.host}:{listener.port}"
    try:
        if not listener.socket:
            await door.start(listener.host, listener.port, reuse_port=reuse_port)
        elif first:
            await door.start_unix(loaded.path(listener.socket), listener.group)
    except (OSError, ValueError) as error:
        raise SettingsError(f"lmtp {listener.name} cannot listen on {where}: {error}") from error


SignedIn = tuple[SignIn, Callable[[], str] | None]
"""How to sign in, and what gives the password or token."""


def collector_options(loaded: Loaded, section: CollectSettings, signed_in: SignedIn | None = None) -> CollectorOptions:
    """One upstream mailbox. `signed_in`: what others sign in with, too. Raises `SettingsError`."""
    connect = loaded.settings.connect
    try:
        context = ssl.create_default_context(cafile=str(loaded.path(section.ca)))
        if section.certificate:
            context.load_cert_chain(loaded.path(section.certificate), loaded.path(section.key or section.certificate))
        sign_in, secret = signed_in or upstream_secret(loaded, section)
        return CollectorOptions(
            name=section.name,
            host=section.host,
            port=section.port,
            user=section.user,
            password="",
            folder=section.folder,
            after=After(section.after),
            move_to=section.move_to,
            deliver_to=section.deliver_to,
            context=context,
            max_message_bytes=loaded.settings.spool.max_message_bytes,
            stays=Stays(section.stays),
            to_folder=connect is not None and bool(connect.inbox_folder),
            # what a connector has sent to its own mailbox comes back to it, and all connectors have one name
            trace_host="" if connect else loaded.settings.operator.host,
            longest_pause=60.0 if connect else 300.0,
            sign_in=sign_in,
            secret=secret,
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"collect {section.name} cannot be used: {error}") from error


def upstream_secret(loaded: Loaded, section: CollectSettings) -> SignedIn:
    """From now on; one for each section, whoever uses it (`GrantedToken`). Raises
    ValueError, or OSError for a file that is missing: later it may be away for a while, but at the start that is a
    mistake."""
    if sum(map(bool, (section.password_file, section.token_file, section.token_uri))) > 1:
        raise ValueError("password_file, token_file and token_uri are three ways to sign in; name one")
    if section.password_file:
        return SignIn.PASSWORD, kept_in(_present(loaded, section.password_file))
    if section.token_file:
        return SignIn.TOKEN, kept_in(_present(loaded, section.token_file))
    if not section.token_uri:
        if not section.certificate:
            raise ValueError("name password_file, token_file, token_uri or certificate")
        return SignIn.CERTIFICATE, None
    if not section.token_uri.startswith("https://"):
        raise ValueError("token_uri must be https: what is sent there opens the mailbox")
    if not section.client_id or not section.client_secret_file:
        raise ValueError("token_uri needs client_id and client_secret_file")
    grant = Grant(
        section.token_uri,
        section.client_id,
        kept_in(_present(loaded, section.client_secret_file)),
        section.scope,
        _present(loaded, section.refresh_token_file) if section.refresh_token_file else None,
    )
    tls = ssl.create_default_context(cafile=str(loaded.path(section.token_ca)) if section.token_ca else None)
    # what is sent there is secret: it goes where it was told to and nowhere else
    options = FetchOptions(allowed=frozenset(section.internal_hosts), redirects=0)
    return SignIn.TOKEN, GrantedToken(grant, Fetcher(options, tls=tls).post)


def _present(loaded: Loaded, file: str) -> Path:
    path = loaded.path(file)
    with path.open("rb"):
        return path
