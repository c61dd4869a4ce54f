"""Asking the DNS: one small contract, `Resolver.lookup`, over dnspython, bounded in time and remembered.

Whoever asks must be able to tell "there is nothing" from "nobody could say": the first is a fact about a domain, the
second is our trouble and passes. So an answer is a value with a state, and nothing a name server does raises.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import structlog

log = structlog.get_logger(__name__)


class State(Enum):
    """What is known of one name and type."""

    FOUND = "found"
    NONE = "none"
    """The DNS says that there is no such name, or no such record of it: believed and remembered for its TTL."""
    TEMPORARY = "temporary"
    """Nobody could say: no answer in time, SERVFAIL (also for what DNSSEC proves false), REFUSED, nonsense."""


@dataclass(frozen=True, slots=True)
class MxRecord:
    """RFC 5321 §5.1; `exchange` is lower case without the final dot, empty for the null MX (RFC 7505)."""

    preference: int
    exchange: str


@dataclass(frozen=True, slots=True)
class TlsaRecord:
    """RFC 6698 §2.1."""

    usage: int
    selector: int
    matching: int
    data: bytes


Record = str | MxRecord | TlsaRecord


@dataclass(frozen=True, slots=True)
class Answer:
    """What the DNS says about one name and type.

    Records by type: A, AAAA: the address as text; TXT: the record's strings joined, one character an octet (latin-1);
    MX: `MxRecord`, the preferred first; TLSA: `TlsaRecord`; PTR, CNAME, NS: the name in lower case without the final
    dot.
    """

    records: tuple[Record, ...]
    """Empty unless FOUND."""
    state: State
    authenticated: bool
    """Proved by DNSSEC, also that there is nothing (RFC 4035 §3.2.3): the AD bit of a resolver we may believe."""
    ttl: int
    """Seconds it may still be remembered."""
    name: str = ""
    """The name the records stand at once aliases are followed, lower case without the final dot; empty unless FOUND."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The records that are text (A, AAAA, TXT, PTR, CNAME, NS)."""
        return tuple(each for each in self.records if isinstance(each, str))

    @property
    def exchanges(self) -> tuple[MxRecord, ...]:
        return tuple(each for each in self.records if isinstance(each, MxRecord))

    @property
    def associations(self) -> tuple[TlsaRecord, ...]:
        return tuple(each for each in self.records if isinstance(each, TlsaRecord))


UNANSWERED = Answer((), State.TEMPORARY, False, 0)


@dataclass(frozen=True, slots=True)
class DnsOptions:
    servers: tuple[str, ...] = ()
    """`address` or `address:port` (`[v6]:port`); empty: those of the machine (resolv.conf)."""
    trust_ad: bool | None = None
    """Whether the servers' AD bit is believed. None: only when all of them are on this machine, where nobody between
    us can set it (RFC 4035 §4.9.3)."""
    seconds: float = 5.0
    """For one lookup, with every server and retry."""
    try_seconds: float = 1.5
    """For one try at one server."""
    entries: int = 20_000
    """Answers remembered at most; what was not asked for longest is forgotten first."""
    octets: int = 16 * 1024 * 1024
    """Of all records that are remembered: one answer over TCP may have 64 KB, and strangers choose what is asked."""
    longest_ttl: int = 3600
    longest_negative_ttl: int = 300
    failure_ttl: int = 30
    """A server that does not answer is not asked the same thing again at once (RFC 9520 §3.2)."""
    at_once: int = 64
    """Lookups on their way at the same time."""


class Resolver:
    """The DNS as we see it; used on one event loop. Concurrent questions for the same thing are asked once."""

    def __init__(self, options: DnsOptions = DnsOptions(), *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError when a server is not an address. A machine without resolv.conf has no servers: every
        lookup is then TEMPORARY."""
        self._options = options
        self._clock = clock
        self._asking = _dnspython(options)
        self._believes = options.trust_ad if options.trust_ad is not None else _all_local(self._asking)
        self._known: OrderedDict[tuple[str, str], tuple[float, Answer]] = OrderedDict()
        self._octets = 0
        self._under_way: dict[tuple[str, str], asyncio.Task[Answer]] = {}
        self._places = asyncio.Semaphore(options.at_once)
        self.counts: Counter[str] = Counter()
        """Lookups by how they ended: a state's value, or `remembered`."""

    async def lookup(self, name: str, kind: str) -> Answer:
        """What the DNS says of `name` (ASCII, final dot or not; A-labels) and the record type `kind` ("MX", "TXT" …).

        Returns within `DnsOptions.seconds` and never raises for what the DNS does or does not do. A name that cannot
        exist (a label over 63 octets, an empty one) is NONE. Raises ValueError for an unknown `kind`.
        """
        kind = kind.upper()
        if kind not in _READ:
            raise ValueError(f"{kind} is not a record type that is read here")
        key = (name.lower().removesuffix("."), kind)
        known = self._remembered(key)
        if known is not None:
            self.counts["remembered"] += 1
            return known
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key), name="dns")
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # whoever asked first may be cancelled; the others still wait
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Lookups still on their way are given up."""
        waiting = list(self._under_way.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _remembered(self, key: tuple[str, str]) -> Answer | None:
        found = self._known.get(key)
        if found is None:
            return None
        until, answer = found
        left = until - self._clock()
        if left <= 0:
            self._forget(key)
            return None
        self._known.move_to_end(key)
        return replace(answer, ttl=int(left))

    async def _ask(self, key: tuple[str, str]) -> Answer:
        try:
            async with asyncio.timeout(self._options.seconds), self._places:
                answer = await self._query(*key)
        except TimeoutError:
            answer = UNANSWERED
        self.counts[answer.state.value] += 1
        if answer.state is State.TEMPORARY:
            log.warning("dns.no-answer", kind=key[1])  # not the name: a patient's may be asked for by somebody's macro
            answer = replace(answer, ttl=self._options.failure_ttl)
        if answer.ttl > 0:
            self._forget(key)
            self._known[key] = (self._clock() + answer.ttl, answer)
            self._octets += _size(answer)
            while len(self._known) > self._options.entries or self._octets > self._options.octets:
                self._forget(next(iter(self._known)))
        return answer

    def _forget(self, key: tuple[str, str]) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._octets -= _size(known[1])

    async def _query(self, name: str, kind: str) -> Answer:
        if self._asking is None:
            return UNANSWERED
        try:  # label by label: dnspython's reader of text knows escapes, `@` and IDNA, none of which is meant here
            asked = dns.name.Name([*(label.encode("ascii") for label in name.split(".")), b""])
        except (dns.exception.DNSException, UnicodeError):
            return Answer((), State.NONE, False, self._options.longest_negative_ttl)
        try:
            found = await self._asking.resolve(
                asked, kind, raise_on_no_answer=False, search=False, lifetime=self._options.seconds
            )
        except dns.resolver.NXDOMAIN as denied:
            responses: dict[dns.name.Name, dns.message.Message] = denied.kwargs["responses"]
            return self._nothing(responses.get(asked))
        except (dns.exception.DNSException, OSError, EOFError, ValueError):
            # no server answered, or what came is no answer (dnspython raises ValueError for some malformed messages)
            return UNANSWERED
        if found.rrset is None:
            return self._nothing(found.response)
        read = _READ[kind]
        records = tuple(read(each) for each in found.rrset)
        if kind == "MX":
            records = tuple(sorted(records, key=_preference))
        return Answer(
            records,
            State.FOUND,
            self._authenticated(found.response),
            min(int(found.chaining_result.minimum_ttl), self._options.longest_ttl),
            _plain(found.canonical_name),
        )

    def _nothing(self, response: dns.message.Message | None) -> Answer:
        """RFC 2308 §5: how long a "no" holds stands in the SOA of the answer; without one it is not remembered long."""
        ttl = self._options.failure_ttl
        if response is None:
            return Answer((), State.NONE, False, ttl)
        for rrset in response.authority:
            if rrset.rdtype == dns.rdatatype.SOA:
                ttl = min(int(rrset.ttl), int(rrset[0].minimum), self._options.longest_negative_ttl)
        return Answer((), State.NONE, self._authenticated(response), ttl)

    def _authenticated(self, response: dns.message.Message) -> bool:
        return bool(self._believes and response.flags & dns.flags.AD)


def _dnspython(options: DnsOptions) -> dns.asyncresolver.Resolver | None:
    try:
        resolver = dns.asyncresolver.Resolver(configure=not options.servers)
    except (dns.resolver.NoResolverConfiguration, OSError):
        return None
    if options.servers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*_server(each)) for each in options.servers]
    resolver.timeout = options.try_seconds
    resolver.cache = None
    resolver.retry_servfail = False
    resolver.use_edns(0, 0, 1232)
    # RFC 6840 §5.7: AD in a question says that we understand it in the answer
    resolver.flags = dns.flags.RD | dns.flags.AD
    return resolver


def _server(text: str) -> tuple[str, int]:
    host, port = text, "53"
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        port = port.removeprefix(":") if port else "53" if closed else ""
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text} is not the address of a name server")
    try:
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError:
        raise ValueError(f"{text} is not the address of a name server") from None


def _all_local(resolver: dns.asyncresolver.Resolver | None) -> bool:
    if resolver is None:
        return False
    hosts = [each if isinstance(each, str) else getattr(each, "address", "") for each in resolver.nameservers]
    return bool(hosts) and all(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _size(answer: Answer) -> int:
    """Octets its records take, about."""
    exchanges = sum(len(each.exchange) + 16 for each in answer.exchanges)
    associations = sum(len(each.data) + 16 for each in answer.associations)
    return sum(len(text) + 16 for text in answer.texts) + exchanges + associations


def _plain(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def _preference(record: Record) -> int:
    return record.preference if isinstance(record, MxRecord) else 0


def _target(rdata: Any) -> Record:
    return _plain(rdata.target)


_READ: dict[str, Callable[[Any], Record]] = {
    "A": lambda rdata: str(rdata.address),
    "AAAA": lambda rdata: str(rdata.address),
    "TXT": lambda rdata: b"".join(rdata.strings).decode("latin-1"),
    "MX": lambda rdata: MxRecord(int(rdata.preference), _plain(rdata.exchange)),
    "TLSA": lambda rdata: TlsaRecord(int(rdata.usage), int(rdata.selector), int(rdata.mtype), bytes(rdata.cert)),
    "PTR": _target,
    "CNAME": _target,
    "NS": _target,
}
