"""Where a domain's mail goes: what is configured, else what its MX records say.

The DNS is other people's input and a gateway stands inside a hospital's network: it must not lead us to what is there.
Only host names count as exchanges, never an address literal; only public addresses are connected to, unless the host is
named in the configuration; and the address that was looked at is the one connected to.
"""

from __future__ import annotations

import ipaddress
import random
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from mta import refusals
from mta.dns import Answer, MxRecord, State
from trust.refusals import Refused
from trust.revocation.fetching import is_public

MAX_HOSTS = 8
MAX_ADDRESSES = 4
"""Of one host. More is no redundancy but a way to make others knock at doors."""
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")
"""The last label begins with a letter: an address in dotted decimal is no host name."""

Doubt = Callable[[ssl.SSLObject], Refused | None]


class Lookup(Protocol):
    """What is needed of `mta.dns.Resolver`."""

    async def lookup(self, name: str, kind: str) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a route, and where it is."""

    name: str
    port: int
    addresses: tuple[str, ...]
    doubts: tuple[Doubt, ...] = ()
    """What its certificate must answer besides being believed."""

    def doubt(self, session: ssl.SSLObject | None) -> Refused | None:
        """Why this peer is not the host the domain means; None when it is."""
        for each in self.doubts:
            refused = Refused(refusals.TLS_UNAVAILABLE, "no session") if session is None else each(session)
            if refused is not None:
                return refused
        return None


@dataclass(frozen=True, slots=True)
class Route:
    """Hosts in the order they are tried. Connections are shared by routes of the same key."""

    key: tuple[object, ...]
    hosts: tuple[Host, ...]

    @classmethod
    def static(cls, host: str, port: int) -> Route:
        """What is configured: any name or address, resolved by the machine when a connection is opened."""
        return cls((host, port), (Host(host, port, (host,)),))


Requirements = Callable[[str, Answer, tuple[MxRecord, ...]], Awaitable["dict[str, tuple[Doubt, ...]] | Refused"]]
"""What a domain publishes about its exchanges: those mail may go to, and what their certificates must answer."""


class Router:
    """Routes out of the DNS. Used on one event loop."""

    def __init__(
        self,
        resolver: Lookup,
        *,
        own_names: frozenset[str] = frozenset(),
        internal_hosts: frozenset[str] = frozenset(),
        requirements: tuple[Requirements, ...] = (),
        port: int = 25,
    ) -> None:
        """`own_names`: host names of this gateway, in lower case; an exchange of ours and those less preferred are left
        out, or mail would come back (RFC 5321 §5.1). `internal_hosts`: exchanges that may be at internal addresses."""
        self._resolver = resolver
        self._own = own_names
        self._internal = internal_hosts
        self._requirements = requirements
        self._port = port

    async def route(self, domain: str) -> Route | Refused:
        """Where the mail of `domain` (lower case, A-labels) goes; why nowhere. Never raises on what the DNS says."""
        answer = await self._resolver.lookup(domain, "MX")
        if answer.state is State.TEMPORARY:
            return Refused(refusals.DNS_UNAVAILABLE, f"MX of {domain}")
        exchanges = answer.exchanges
        if any(not each.exchange for each in exchanges):
            if len(exchanges) == 1:
                return Refused(refusals.NO_MAIL_ACCEPTED, domain)  # RFC 7505 §3
            exchanges = tuple(each for each in exchanges if each.exchange)
        if not exchanges and answer.state is State.NONE:
            exchanges = (MxRecord(0, domain),)  # RFC 5321 §5.1: the domain itself
        chosen = self._chosen(exchanges)
        if not chosen:
            return Refused(refusals.HOST_REFUSED, f"{domain}: no exchange to go to")
        doubts: dict[str, tuple[Doubt, ...]] = {each.exchange: () for each in chosen}
        for ask in self._requirements:
            found = await ask(domain, answer, chosen)
            if isinstance(found, Refused):
                return found
            doubts = {name: (*doubts[name], *found[name]) for name in doubts if name in found}
        return await self._located(domain, [each for each in chosen if each.exchange in doubts], doubts)

    def _chosen(self, exchanges: tuple[MxRecord, ...]) -> tuple[MxRecord, ...]:
        ours = [each.preference for each in exchanges if each.exchange in self._own]
        limit = min(ours) if ours else 1 << 16
        fit = [
            each
            for each in exchanges
            if each.preference < limit and len(each.exchange) <= 253 and _HOST_NAME.fullmatch(each.exchange)
        ]
        # of too many always the same, or whom connections are shared with would change with each message
        first = sorted(set(fit), key=lambda each: (each.preference, each.exchange))[:MAX_HOSTS]
        # among equals by chance, so that load is shared (RFC 5321 §5.1)
        return tuple(sorted(first, key=lambda each: (each.preference, random.random())))  # noqa: S311

    async def _located(
        self, domain: str, chosen: list[MxRecord], doubts: dict[str, tuple[Doubt, ...]]
    ) -> Route | Refused:
        hosts: list[Host] = []
        unknown = internal = False
        for each in chosen:
            found = await self._addresses(each.exchange)
            unknown |= found is None
            if found:
                fit = tuple(a for a in found if each.exchange in self._internal or is_public(ipaddress.ip_address(a)))
                internal |= not fit
                if fit:
                    hosts.append(Host(each.exchange, self._port, fit[:MAX_ADDRESSES], doubts[each.exchange]))
        if hosts:
            # the order among equals changes; whom connections are shared with must not
            names = tuple(sorted((each.preference, each.exchange) for each in chosen))
            required = domain if any(host.doubts for host in hosts) else ""
            return Route(("mx", names, self._port, required), tuple(hosts))
        if internal:
            return Refused(refusals.HOST_REFUSED, f"{domain}: internal addresses only")
        if unknown:
            return Refused(refusals.DNS_UNAVAILABLE, f"addresses of {domain}")
        return Refused(refusals.HOST_REFUSED, f"{domain}: no exchange has an address")

    async def _addresses(self, name: str) -> list[str] | None:
        """IPv6 and IPv4; None when nobody could say."""
        found: list[str] = []
        unknown = False
        for kind in ("AAAA", "A"):
            answer = await self._resolver.lookup(name, kind)
            unknown |= answer.state is State.TEMPORARY
            found += answer.texts
        return found or (None if unknown else [])
