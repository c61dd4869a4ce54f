"""What judges mail that comes in, put together from the settings: the DNS, evaluation, authors, and doors for LMTP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from config.settings import LmtpListener, Loaded, Settings, SettingsError
from directory.partners import PartnerBook
from mta.authors import AuthorCheck
from mta.dns import DnsOptions, Resolver
from mta.evaluation import DkimKeys, EvaluationOptions, Evaluator
from mta.smtp.door import DoorOptions
from mta.smtp.lmtp_door import LmtpDoor
from mta.smtp.target import Operators
from mta.spool import Spool
from trust.accounts import Accounts
from trust.names import DistinguishedName


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


def lmtp_door(
    listener: LmtpListener,
    spool: Spool,
    accounts: Accounts,
    partners: PartnerBook,
    exists: Callable[[str], bool],
    is_local: Callable[[str], bool],
    is_trusted: Callable[[str], bool],
    options: DoorOptions,
) -> LmtpDoor:
    """Not yet listening. A server may write as the mailboxes its section names, as far as there are such."""
    addresses = {each for each in listener.senders if not each.startswith("@")}
    domains = {each[1:] for each in listener.senders if each.startswith("@")}

    def may_send(address: str) -> bool:
        named = address in addresses or address.rpartition("@")[2] in domains
        return named and exists(address)

    def size_limit_of(domain: str) -> int | None:
        partner = partners.of(domain)
        return None if partner is None else partner.max_message_bytes

    return LmtpDoor(listener.name, spool, accounts, may_send, exists, is_local, is_trusted, options, size_limit_of)


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
