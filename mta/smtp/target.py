"""Where deliveries to other operators end: SMTP under mutual TLS, to hosts the trust list vouches for.

Nothing is said to a server before its certificate's name has been found among the operators of the recipient's domain,
and nothing is ever sent in the clear. Where a domain's mail goes is `mta.smtp.routes`' to say; which connection carries
it, `mta.smtp.destination`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from directory.records import Partner
from mta import refusals
from mta.delivery import destination_of
from mta.message import Deferred, Failed, Message, Origin, Outcome, TargetKind
from mta.smtp.address import domain_of, is_address, valid_envid, valid_notify, valid_orcpt
from mta.smtp.client import (
    Answered,
    ConnectionBrokenError,
    DsnRequest,
    SmtpConnection,
    Timeouts,
    Transaction,
)
from mta.smtp.content import crlf_only
from mta.smtp.gate import Gate
from mta.smtp.pool import Counts, Destination, Job, NotOpenedError, Pool, PoolOptions, delivered
from mta.smtp.routes import MAX_ADDRESSES, Host, Route, Router
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.tls import Context, PeerJudge, in_force, peer_name, presented

REQUIRE_TLS = "REQUIRETLS"
"""Flag of a message whose sender demands TLS all the way (RFC 8689 §3)."""
UTF8 = "SMTPUTF8"
"""Flag of a message whose sender said that its header may be in UTF-8 (RFC 6531 §3.4). Without it octets outside ASCII
in a header are an old client's, and travel as they always did."""
_OF_DOMAIN = (
    refusals.NO_ROUTE,
    refusals.DNS_UNAVAILABLE,
    refusals.HOST_REFUSED,
    refusals.PEER_NOT_OPERATOR,
    refusals.PEER_NOT_BELIEVED,
)
_ROUNDS = 3
"""Times the patience with one address that a route with many of them gets."""
_REMEMBERED = 10_000
"""Destinations by domain."""


class Partners(Protocol):
    """What the target needs of `directory.partners.PartnerBook`."""

    def of(self, domain: str) -> Partner | None: ...


class Operators(Protocol):
    """What doors and targets need of `trust.trustlist.TrustList`."""

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]: ...

    def is_operator(self, name: DistinguishedName) -> bool: ...


@dataclass(frozen=True, slots=True)
class SmtpTargetOptions:
    helo_name: str
    """Our name in EHLO, a fully qualified domain name."""
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    pool: PoolOptions = PoolOptions()  # noqa: RUF009 - frozen
    judged_seconds: float = 0.0
    """How long the judge's word on a connection holds; 0: it is asked before each message."""
    unanswered_pauses: tuple[float, ...] = (0.0, 3600.0, 14400.0, 57600.0)
    """Seconds to wait at the least after the first, second, ... time a message was sent whole and never answered: the
    first repeat follows the schedule, and whoever takes every copy without a word gets few of them. At most
    `mta.schedule.LONGEST_ASKED`."""


class SmtpTarget:
    """A `PacedTarget`. One per event loop; `close` at the end."""

    def __init__(
        self,
        partners: Partners,
        trust_list: Callable[[], Operators],
        context: Context,
        options: SmtpTargetOptions,
        judge: PeerJudge | None = None,
        router: Router | None = None,
    ) -> None:
        """`trust_list` gives the list in force at each delivery; `context` is `trust.tls.operator_client_context`.

        `judge` is asked about the peer before each message, besides what the handshake checked. `router` finds the
        hosts of domains whose partner has none configured; without one they are unreachable.
        """
        self._partners = partners
        self._trust_list = trust_list
        self._context = context
        self._judge = judge
        self._options = options
        self._router = router
        self._pool = Pool(options.pool)
        self._destinations: OrderedDict[str, Destination] = OrderedDict()
        """The last one used, by domain."""
        self._closed: OrderedDict[str, Gate] = OrderedDict()
        """Domains that have no route now, or whose host is not theirs, whatever else the host serves."""

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. The content must be prepared: CRLF lines, nothing that may not travel."""
        refused = check_message(message)
        if refused is not None:
            return Failed(refused)
        domain = domain_of(message.recipient)
        partner = self._partners.of(domain)
        if partner is not None and len(message.content) > partner.max_message_bytes:
            return Failed(Refused(refusals.PARTNER_SIZE_LIMIT, f"limit {partner.max_message_bytes} octets"))
        route = await self._route(domain, partner)
        if isinstance(route, Refused):
            return self._of_domain(domain, Failed(route) if route.refusal.permanent else Deferred(route))
        destination = self._pool.to(route.key, lambda: self._open(route))
        self._remember(domain, destination)
        dsn = dsn_request(message)
        transaction = Transaction(
            message.sender,
            message.recipient,
            message.content,
            dsn,
            require_tls=REQUIRE_TLS in message.flags,
            utf8=UTF8 in message.flags and international(message.content),
        )
        job = Job(transaction, lambda connection: self._admit(connection, domain, transaction), _conclusion(message))
        outcome = await destination.deliver(job)
        if job.unknown and isinstance(outcome, Deferred):
            pauses = self._options.unanswered_pauses
            outcome = replace(outcome, retry_after=pauses[min(message.unanswered, len(pauses) - 1)])
        return self._of_domain(domain, outcome)

    async def close(self) -> None:
        """Say goodbye to idle peers."""
        self._destinations.clear()
        await self._pool.close()

    # `PacedTarget`, and what monitoring and the operator ask

    def resting(self) -> Collection[str]:
        now = asyncio.get_running_loop().time()
        resting = {_name(domain) for domain, each in self._destinations.items() if each.gate.rests(now)}
        return resting | {_name(domain) for domain, gate in self._closed.items() if gate.rests(now)}

    def probing(self) -> Collection[str]:
        now = asyncio.get_running_loop().time()
        names = {_name(domain) for domain, each in self._destinations.items() if each.gate.probing(now)}
        names |= {_name(domain) for domain, gate in self._closed.items() if gate.probing(now)}
        return {name for name in names if self.places(name) == 1}

    def places(self, destination: str) -> int | None:
        domain = destination.partition(":")[2]
        found = self._destinations.get(domain)
        gates = [gate for gate in (found.gate if found else None, self._closed.get(domain)) if gate is not None]
        now = asyncio.get_running_loop().time()
        if any(gate.rests(now) for gate in gates):
            return 0
        return 1 if any(gate.probing(now) for gate in gates) else None

    @property
    def at_rest(self) -> int:
        """How many destinations are left alone now. From any thread."""
        return self._pool.resting(time.monotonic())

    def try_now(self) -> None:
        """Let no destination rest any longer: somebody knows that it is back. From the event loop."""
        self._pool.forgive()
        self._closed.clear()

    @property
    def counts(self) -> Counts:
        """Since the beginning."""
        return self._pool.counts

    @property
    def connections(self) -> int:
        """Open now."""
        return self._pool.connections

    # Inside

    async def _route(self, domain: str, partner: Partner | None) -> Route | Refused:
        if partner is not None and partner.host:
            return Route.static(partner.host, partner.port)
        if self._router is None:
            return Refused(refusals.NO_ROUTE, domain)
        if not self._trust_list().operators_of(domain):
            return Refused(refusals.PEER_NOT_OPERATOR, f"{domain}: not in the trust list")
        return await self._router.route(domain)

    def _of_domain(self, domain: str, outcome: Outcome) -> Outcome:
        """Leave a domain alone for a while that no message can go to, whichever it is."""
        if isinstance(outcome, Deferred) and outcome.reason.refusal in _OF_DOMAIN:
            gate = self._closed.get(domain) or Gate(self._options.pool.gate)
            now = asyncio.get_running_loop().time()
            if not gate.rests(now):
                gate.failed(now)
            self._closed[domain] = gate
            if len(self._closed) > _REMEMBERED:
                self._closed.popitem(last=False)
        elif self._closed and not isinstance(outcome, Deferred):
            self._closed.pop(domain, None)
        return outcome

    def _remember(self, domain: str, destination: Destination) -> None:
        self._destinations[domain] = destination
        self._destinations.move_to_end(domain)
        if len(self._destinations) > _REMEMBERED:
            self._destinations.popitem(last=False)

    async def _open(self, route: Route) -> SmtpConnection:
        """A connection to the first of the route's hosts that can be used. Raises `NotOpenedError`."""
        told: Refused | None = None
        clock = asyncio.get_running_loop().time
        deadline = clock() + _ROUNDS * self._options.timeouts.connect
        for host in route.hosts:
            for address in await self._located(host):
                if clock() > deadline:
                    break
                try:
                    return await self._open_one(host, address)
                except NotOpenedError as error:
                    # what the preferred host said is what the operator wants to know, unless it was not there at all
                    if told is None or told.refusal is refusals.UNREACHABLE:
                        told = error.refused
        raise NotOpenedError(told or Refused(refusals.UNREACHABLE, "no address"))

    async def _located(self, host: Host) -> Sequence[str]:
        """Each of its addresses is tried, with time of its own: what is configured may be a name."""
        found: list[str] = []
        for each in host.addresses:
            if _is_address(each):
                found.append(each)
                continue
            look = asyncio.get_running_loop().getaddrinfo(each, host.port, type=socket.SOCK_STREAM)
            # nobody knows it now: `UNREACHABLE`
            with contextlib.suppress(OSError, UnicodeError, TimeoutError):
                async with asyncio.timeout(self._options.timeouts.connect):
                    found += [str(info[4][0]) for info in await look]
        return list(dict.fromkeys(found))[:MAX_ADDRESSES]

    async def _open_one(self, host: Host, address: str) -> SmtpConnection:
        options = self._options
        try:
            connection = await SmtpConnection.open(address, host.port, options.timeouts)
        except ConnectionBrokenError as error:
            raise NotOpenedError(Refused(refusals.UNREACHABLE, str(error))) from None
        kept = False
        try:
            hello = await connection.hello(options.helo_name)
            if hello.code != 250:
                raise NotOpenedError(Refused(refusals.REMOTE_DEFERRED, hello.words))
            if "STARTTLS" not in connection.capabilities:
                raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, "STARTTLS is not offered"))
            reply = await connection.start_tls(in_force(self._context), host.name)
            if reply.code != 220:
                raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, reply.words))
            await self._believe(host, connection)
            hello = await connection.hello(options.helo_name)
            if hello.code != 250:
                raise NotOpenedError(Refused(refusals.REMOTE_DEFERRED, hello.words))
            kept = True
            return connection
        except ssl.SSLError as error:
            raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, tls_words(error))) from None
        except ConnectionBrokenError as error:
            # a server that dislikes our certificate closes without a word under TLS 1.3
            raise NotOpenedError(Refused(refusals.CONNECTION_LOST, str(error))) from None
        finally:
            if not kept:
                connection.abort()

    async def _believe(self, host: Host, connection: SmtpConnection) -> None:
        """That the peer is an operator at all, and the host the domain means: if not, the route's next host may be.
        Whose operator it is, is asked for each message (`_admit`). Raises `NotOpenedError`."""
        session = connection.ssl_object
        name = None if session is None else peer_name(session)
        if session is None or name is None or not self._trust_list().is_operator(name):
            raise NotOpenedError(Refused(refusals.PEER_NOT_OPERATOR, f"{host.name}: {name or 'no name'}"))
        doubt = host.doubt(session)
        if doubt is None and self._judge is not None:
            doubt = await self._judged(connection, self._judge, session, host.name)
        if doubt is not None:
            raise NotOpenedError(doubt)

    def _admit(
        self, connection: SmtpConnection, domain: str, transaction: Transaction
    ) -> Refused | Awaitable[Refused | None] | None:
        """Whether this message may be handed to this peer now."""
        session = connection.ssl_object
        name = None if session is None else peer_name(session)
        if name is None or name not in self._trust_list().operators_of(domain):
            return Refused(refusals.PEER_NOT_OPERATOR, f"{domain}: {name or 'no name'}")
        refused = admissible(connection, transaction)
        if refused is None and transaction.utf8 and UTF8 not in connection.capabilities:
            refused = Refused(refusals.SMTPUTF8_UNSUPPORTED)
        if refused is not None or self._judge is None or session is None:
            return refused
        if asyncio.get_running_loop().time() - connection.judged_at < self._options.judged_seconds:
            return None
        return self._judged(connection, self._judge, session, domain)

    async def _judged(
        self, connection: SmtpConnection, judge: PeerJudge, session: ssl.SSLObject, whose: str
    ) -> Refused | None:
        doubt = await asyncio.to_thread(judge, presented(session))
        if doubt:
            return Refused(refusals.PEER_NOT_BELIEVED, f"{whose}: {doubt}")
        connection.judged_at = asyncio.get_running_loop().time()
        return None


def _conclusion(message: Message) -> Callable[[SmtpConnection, Answered], Outcome]:
    # RFC 3461 §5.2.1: who was passed the wish for a receipt answers it
    wanted = awaits_receipt(message)
    return lambda connection, answered: delivered(answered, reports=wanted and "DSN" in connection.capabilities)


def admissible(connection: SmtpConnection, transaction: Transaction) -> Refused | None:
    """Whether the server takes such a message at all, as far as it has said so."""
    announced, content = connection.capabilities, transaction.content
    limit = announced.get("SIZE", "")
    if limit.isdecimal() and len(limit) < 20 and 0 < int(limit) < len(content):
        return Refused(refusals.PARTNER_SIZE_LIMIT, f"limit {limit} octets")
    if "8BITMIME" not in announced and not content.isascii():
        return Refused(refusals.EIGHT_BIT_UNSUPPORTED)
    if transaction.require_tls and REQUIRE_TLS not in announced:
        return Refused(refusals.REQUIRETLS_UNSUPPORTED)
    return None


def international(content: bytes) -> bool:
    """Whether the message's header is outside ASCII: an internationalized message (RFC 6532)."""
    end = content.find(b"\r\n\r\n")
    return not (content if end < 0 else content[:end]).isascii()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _name(domain: str) -> str:
    return destination_of(TargetKind.SMTP, f"@{domain}")


def check_message(message: Message) -> Refused | None:
    """What the next server could read as a command, or as the end of the message, is not sent (SMTP smuggling)."""
    if not is_address(message.recipient) or (message.sender and not is_address(message.sender)):
        return Refused(refusals.ADDRESS_INVALID)
    return None if crlf_only(message.content) else Refused(refusals.LINE_ENDINGS)


def notify_conditions(notify: str, origin: Origin) -> frozenset[str]:
    """When the sender wants to know (RFC 3461 §4.1): of failures, when nothing valid was said; a sending system, which
    cannot say, of all. Empty for `NEVER`."""
    if not valid_notify(notify):
        notify = "SUCCESS,FAILURE" if origin is Origin.MLLP else "FAILURE"
    return frozenset(notify.upper().split(",")) - {"NEVER"}


def awaits_receipt(message: Message) -> bool:
    """Whether its sender waits for word of the delivery, and is told when none comes; that only we asked for
    (`dsn_request`) is no promise to anybody."""
    conditions = notify_conditions(message.facts.get("dsn.notify", ""), message.origin)
    return bool(message.sender) and "SUCCESS" in conditions


_OWN = "x-relais-"
"""Address types by which we remember how a recipient was named; nobody else knows them."""


def dsn_request(message: Message) -> DsnRequest:
    """What to ask of the next server: the submitter's wishes; a sending system, which cannot say, wants to know all.
    For an ordinary mail program, which says nothing, we ask ourselves (ECO.2.3.1): what comes back stands in the trace,
    and is filed only when it is bad news (`mta.absorbing`)."""
    facts = message.facts
    if not message.sender:
        return DsnRequest()
    notify = facts.get("dsn.notify", "")
    if not notify and message.origin in (Origin.MLLP, Origin.SUBMISSION, Origin.LMTP):
        notify = "SUCCESS,FAILURE" if message.origin is Origin.MLLP else "SUCCESS,FAILURE,DELAY"
    envid, orcpt = facts.get("dsn.envid", ""), facts.get("dsn.orcpt", "")
    ret = facts.get("dsn.ret", "").upper()
    return DsnRequest(
        envid=envid if valid_envid(envid) else message.spool_id,
        ret=ret if ret in ("FULL", "HDRS") else "",
        notify=notify if valid_notify(notify) else "",
        orcpt=orcpt if valid_orcpt(orcpt) and not orcpt.startswith(_OWN) else f"rfc822;{xtext(message.recipient)}",
    )


def xtext(text: str) -> str:
    """RFC 3461 §4: printable ASCII but `+` and `=`, the rest as `+HH`; control characters, which none is to decode, as
    `?`."""
    octets = (63 if octet < 32 or octet == 127 else octet for octet in text.encode())
    return "".join(chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}" for octet in octets)


def tls_words(error: ssl.SSLError) -> str:
    """The library's reason only: never a name or an address."""
    said = getattr(error, "verify_message", "").partition(", certificate is not valid for")[0]
    return (said or error.reason or type(error).__name__)[:100]
