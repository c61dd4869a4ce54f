"""Where deliveries to other operators end: SMTP under mutual TLS, to hosts the trust list vouches for.

Nothing is said to a server before its certificate's name has been found among the operators of the recipient's domain,
and nothing is ever sent in the clear. Connections are kept for a few seconds, for a laboratory's peak sends many
messages to few domains and a handshake costs more than a message.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from directory.records import Partner
from mta import refusals
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from mta.smtp.address import domain_of, is_address, valid_envid, valid_notify, valid_orcpt
from mta.smtp.client import ConnectionBrokenError, DsnRequest, SmtpConnection, Timeouts, TransactionResult
from mta.smtp.content import crlf_only
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.tls import Context, PeerJudge, in_force, peer_name


class Partners(Protocol):
    """What the target needs of `directory.partners.PartnerBook`."""

    def of(self, domain: str) -> Partner | None: ...


class Operators(Protocol):
    """What doors and targets need of `trust.trustlist.TrustList`."""

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]: ...

    def is_operator(self, name: DistinguishedName) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Idle:
    connection: SmtpConnection
    since: float


@dataclass(frozen=True, slots=True)
class SmtpTargetOptions:
    helo_name: str
    """Our name in EHLO, a fully qualified domain name."""
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    idle_seconds: float = 10.0
    """How long a connection is kept for the next message."""
    idle_per_host: int = 8


class SmtpTarget:
    """A `Target`. One per event loop; `close` at the end."""

    def __init__(
        self,
        partners: Partners,
        trust_list: Callable[[], Operators],
        context: Context,
        options: SmtpTargetOptions,
        judge: PeerJudge | None = None,
    ) -> None:
        """`trust_list` gives the list in force at each delivery; `context` is `trust.tls.operator_client_context`.

        `judge` is asked about the peer before each message, besides what the handshake checked.
        """
        self._partners = partners
        self._trust_list = trust_list
        self._context = context
        self._judge = judge
        self._options = options
        self._idle: defaultdict[tuple[str, int], list[_Idle]] = defaultdict(list)

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. The content must be prepared: CRLF lines, nothing that may not travel."""
        refused = check_message(message)
        if refused is not None:
            return Failed(refused)
        domain = domain_of(message.recipient)
        partner = self._partners.of(domain)
        if partner is None or not partner.host:
            return Deferred(Refused(refusals.NO_ROUTE, domain))
        if len(message.content) > partner.max_message_bytes:
            return Failed(Refused(refusals.PARTNER_SIZE_LIMIT, f"limit {partner.max_message_bytes} octets"))
        key = (partner.host, partner.port)
        reused = self._take_idle(key)
        if reused is not None:
            try:
                return await self._converse(reused, key, domain, message)
            except ConnectionBrokenError as error:
                if error.step not in ("MAIL", "TLS"):
                    return Deferred(Refused(refusals.CONNECTION_LOST, str(error)))
                # closed while idle: nothing of this message was taken, a fresh connection will tell
        opened = await self._open(partner)
        if not isinstance(opened, SmtpConnection):
            return opened
        try:
            return await self._converse(opened, key, domain, message)
        except ConnectionBrokenError as error:
            return Deferred(Refused(refusals.CONNECTION_LOST, str(error)))

    async def close(self) -> None:
        """Say goodbye to idle peers."""
        idle = [entry.connection for entries in self._idle.values() for entry in entries]
        self._idle.clear()
        await asyncio.gather(*(connection.quit() for connection in idle))

    async def _open(self, partner: Partner) -> SmtpConnection | Deferred:
        options = self._options
        try:
            connection = await SmtpConnection.open(partner.host, partner.port, options.timeouts)
        except ConnectionBrokenError as error:
            return Deferred(Refused(refusals.UNREACHABLE, str(error)))
        kept = False
        try:
            hello = await connection.hello(options.helo_name)
            if hello.code != 250:
                return Deferred(Refused(refusals.REMOTE_DEFERRED, hello.words))
            if "STARTTLS" not in connection.capabilities:
                return Deferred(Refused(refusals.TLS_UNAVAILABLE, "STARTTLS is not offered"))
            reply = await connection.start_tls(in_force(self._context), partner.host)
            if reply.code != 220:
                return Deferred(Refused(refusals.TLS_UNAVAILABLE, reply.words))
            hello = await connection.hello(options.helo_name)
            if hello.code != 250:
                return Deferred(Refused(refusals.REMOTE_DEFERRED, hello.words))
            kept = True
            return connection
        except ssl.SSLError as error:
            return Deferred(Refused(refusals.TLS_UNAVAILABLE, _tls_words(error)))
        except ConnectionBrokenError as error:
            # a server that dislikes our certificate closes without a word under TLS 1.3
            return Deferred(Refused(refusals.CONNECTION_LOST, str(error)))
        finally:
            if not kept:
                connection.abort()

    async def _converse(
        self, connection: SmtpConnection, key: tuple[str, int], domain: str, message: Message
    ) -> Outcome:
        """One message over an open connection. Raises `ConnectionBrokenError`, the connection then being closed."""
        finished = False
        try:
            session = connection.ssl_object
            name = None if session is None else peer_name(session)
            if name is None or name not in self._trust_list().operators_of(domain):
                return Deferred(Refused(refusals.PEER_NOT_OPERATOR, f"{domain}: {name or 'no name'}"))
            if self._judge is not None and session is not None:
                doubt = await asyncio.to_thread(self._judge, session)
                if doubt:
                    return Deferred(Refused(refusals.PEER_NOT_BELIEVED, f"{domain}: {doubt}"))
            outcome = await transact(connection, message, dsn_request(message))
            finished = True
            return outcome
        finally:
            if finished:
                self._keep_idle(key, connection)
            else:
                connection.abort()

    def _take_idle(self, key: tuple[str, int]) -> SmtpConnection | None:
        entries = self._idle.get(key, [])
        while entries:
            entry = entries.pop()
            fresh = time.monotonic() - entry.since < self._options.idle_seconds
            if fresh and entry.connection.usable:
                return entry.connection
            entry.connection.abort()
        return None

    def _keep_idle(self, key: tuple[str, int], connection: SmtpConnection) -> None:
        entries = self._idle[key]
        if not connection.usable or len(entries) >= self._options.idle_per_host:
            connection.abort()
            return
        entry = _Idle(connection, time.monotonic())
        entries.append(entry)
        asyncio.get_running_loop().call_later(self._options.idle_seconds, self._forget, key, entry)

    def _forget(self, key: tuple[str, int], entry: _Idle) -> None:
        entries = self._idle.get(key, [])
        if entry in entries:
            entries.remove(entry)
            entry.connection.abort()
        if not entries:
            self._idle.pop(key, None)


async def transact(connection: SmtpConnection, message: Message, dsn: DsnRequest) -> Outcome:
    """One transaction and its outcome, over SMTP or LMTP. Raises `ConnectionBrokenError`."""
    announced = connection.capabilities
    limit = announced.get("SIZE", "")
    if limit.isdigit() and 0 < int(limit) < len(message.content):
        return Failed(Refused(refusals.PARTNER_SIZE_LIMIT, f"limit {limit} octets"))
    if "8BITMIME" not in announced and not message.content.isascii():
        return Failed(Refused(refusals.EIGHT_BIT_UNSUPPORTED))
    result = await connection.transaction(message.sender, message.recipient, message.content, dsn)
    # RFC 3461 §5.2.1: who was passed the wish for a receipt answers it
    return outcome_of(result, reports="DSN" in announced and "SUCCESS" in dsn.notify.upper())


def outcome_of(result: TransactionResult, *, reports: bool = False) -> Outcome:
    """What a deciding reply means for the delivery; the peer's words are kept without addresses."""
    if result.delivered:
        return Delivered(result.reply.words, reports=reports)
    words = f"{result.step}: {result.reply.words}"
    if result.reply.permanent:
        return Failed(Refused(refusals.REMOTE_REFUSED, words))
    return Deferred(Refused(refusals.REMOTE_DEFERRED, words))


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


def dsn_request(message: Message) -> DsnRequest:
    """What to ask of the next server: the submitter's wishes; a sending system, which cannot say, wants to know all."""
    facts = message.facts
    if not message.sender:
        return DsnRequest()
    notify = facts.get("dsn.notify", "")
    if not notify and message.origin is Origin.MLLP:
        notify = "SUCCESS,FAILURE"
    envid, orcpt = facts.get("dsn.envid", ""), facts.get("dsn.orcpt", "")
    return DsnRequest(
        envid=envid if valid_envid(envid) else message.spool_id,
        ret=facts.get("dsn.ret", ""),
        notify=notify if valid_notify(notify) else "",
        orcpt=orcpt if valid_orcpt(orcpt) else f"rfc822;{xtext(message.recipient)}",
    )


def xtext(text: str) -> str:
    """RFC 3461 §4: printable ASCII but `+` and `=`, the rest as `+HH`."""
    return "".join(
        chr(octet) if 33 <= octet <= 126 and octet not in b"+=" else f"+{octet:02X}" for octet in text.encode()
    )


def _tls_words(error: ssl.SSLError) -> str:
    """The library's reason only: never a name or an address."""
    return (getattr(error, "verify_message", "") or error.reason or type(error).__name__)[:100]
