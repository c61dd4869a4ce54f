"""Where a domain's own servers are, of LDAP first of all: SRV records, in the order RFC 2782 wants them tried.

Small and synchronous, beside the resolver of `mta`, because the directory answers in threads and lies below it.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from directory.pool import DirectoryUnavailableError

MOST_SERVERS = 16
"""Records looked at; a domain with more has them for other reasons than ours."""

Chance = Callable[[int], int]
"""A number from 0 to the argument, both included, each as likely as the other."""


@dataclass(frozen=True, slots=True)
class SrvRecord:
    """RFC 2782. `target`: host name in lower case without the final dot."""

    priority: int
    weight: int
    port: int
    target: str


def in_order(records: Iterable[SrvRecord], chance: Chance = lambda most: random.randint(0, most)) -> list[SrvRecord]:  # noqa: S311 - spreads load
    """By priority; among equals drawn by weight, those of weight 0 last but not never (RFC 2782, "Weight")."""
    ordered: list[SrvRecord] = []
    remaining = sorted(records, key=lambda each: (each.priority, each.weight))
    while remaining:
        candidates = [each for each in remaining if each.priority == remaining[0].priority]
        drawn = chance(sum(each.weight for each in candidates))
        running = 0
        chosen = candidates[-1]
        for each in candidates:
            running += each.weight
            if running >= drawn:
                chosen = each
                break
        ordered.append(chosen)
        remaining.remove(chosen)
    return ordered


class SrvLookup:
    """Asks the DNS. Thread-safe; what was found is remembered for its TTL by dnspython's bounded cache."""

    def __init__(self, servers: Sequence[str] = (), seconds: float = 3.0) -> None:
        """`servers`: `address` or `address:port` (`[v6]:port`); none: those of the machine (resolv.conf).

        Raises ValueError when one is no address.
        """
        try:
            self._resolver = dns.resolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration:
            self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.lifetime = seconds
        self._resolver.cache = dns.resolver.LRUCache(5_000)
        if servers:
            self._resolver.nameservers = nameservers(servers)

    def __call__(self, domain: str, service: str = "_ldap._tcp") -> list[SrvRecord]:
        """The servers of a domain for a service; empty when it has none, or says so with the target `.`.

        Raises `DirectoryUnavailableError` when nobody could say.
        """
        try:
            answer = self._resolver.resolve(f"{service}.{domain}.", dns.rdatatype.SRV, search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError, ValueError):
            raise DirectoryUnavailableError("the DNS does not say where a domain's servers are") from None
        records = [
            SrvRecord(each.priority, each.weight, each.port, each.target.to_text(omit_final_dot=True).lower())
            for each in list(answer)[:MOST_SERVERS]
        ]
        return [each for each in records if each.target not in ("", ".")]


def nameservers(servers: Iterable[str]) -> list[str | dns.nameserver.Nameserver]:
    """`address` or `address:port` (`[v6]:port`) as dnspython asks them. Raises ValueError when one is no address."""
    return [dns.nameserver.Do53Nameserver(*_address(each)) for each in servers]


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        host, port = text, "53"
    return str(ipaddress.ip_address(host.strip("[]"))), int(port)
