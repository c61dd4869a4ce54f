"""What every SMTP door does: listen, count its sessions, hold them to their quotas, keep a message, and end decently.

A door says yes only after the spool has kept the message. It refuses in the session whatever it can know there, so that
no receipt has to be sent to somebody who may not have written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

import structlog

from mta import refusals
from mta.delivery import Accepted, Duplicate, NewDelivery, Submission
from mta.header import author_of, message_id_of
from mta.loops import going_round
from mta.message import DeliveryState, Origin, TargetKind
from mta.returns import LOOP_BYTES, Returns
from mta.smtp.limits import Limits, MemoryBudget, Meter, Quota, network_of
from mta.smtp.policy import SessionOptions, Transaction
from mta.smtp.session import DoorSession
from mta.spool import Spool
from smime.mime import Entity, MimeError, parse_entity
from trust import digests
from trust.refusals import Refused
from trust.tls import Context, in_force

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CLOSE_SECONDS = 2.0
_FREE_FAILURES_AN_HOUR = 100
"""Wrong passwords from one address; behind it may be a whole hospital."""
_KEEP_SECONDS = 20.0
"""For messages that are being kept when the doors close: their senders are told."""


UTF8 = "SMTPUTF8"
"""Flag of a message whose header may be UTF-8; beside it `REQUIRETLS`, and `RET=`."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all doors of a process share, for they share the machine."""

    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(256 * 1024 * 1024))
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True, slots=True)
class DoorOptions:
    hostname: str
    """Our name in the greeting, and the domain of the Message-IDs made here."""
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    threads: int = 16
    """For what blocks: directory, accounts, spool; as many for contents, as many for logins. Accepts that wait share
    one disk sync."""
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Load balancers that speak the PROXY protocol, and whose word on clients' addresses is taken."""
    shared: Shared = field(default_factory=Shared)


@dataclass(frozen=True, slots=True)
class _Kept:
    spool_id: str
    new: bool
    """False: it was kept before."""


class Door(ABC):
    """What both doors share: listening, counting sessions, keeping a message."""

    origin: Origin

    def __init__(self, spool: Spool, context: Context, options: DoorOptions) -> None:
        self._spool = spool
        self._context = context
        self._options = options
        self._limits = options.limits
        self._memory, self._meter = options.shared.memory, options.shared.meter
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix=f"mta-{self.origin.value}")
        # apart, or a few large mails that are looked into keep every command of the others waiting
        self._content_threads = ThreadPoolExecutor(options.threads, thread_name_prefix=f"content-{self.origin.value}")
        # apart, or whoever guesses passwords, each of which costs a hash, keeps everybody's mail waiting
        self._login_threads = ThreadPoolExecutor(options.threads, thread_name_prefix=f"login-{self.origin.value}")
        self._sessions: set[DoorSession] = set()
        self._counted: dict[DoorSession, list[str]] = {}
        self._returns: Returns | None = None
        self._judges_at_once = False
        """Judging a small message blocks nowhere and takes less time than handing it to a thread."""
        self._servers: list[asyncio.Server] = []
        self.told: Counter[str] = Counter()
        """How often each answer was given: `accepted`, `duplicate`, or the code of a refusal."""

    @property
    def connections(self) -> int:
        """Open now."""
        return len(self._sessions)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """By which somebody can log in."""
        return ()

    def reload(self, limits: Limits) -> None:
        """New connections get these limits; those that are open keep theirs, but quotas count for all at once."""
        self._limits = limits

    async def start(self, host: str, port: int, *, implicit_tls: bool = False, reuse_port: bool = False) -> int:
        """Listen, on one more port if called again; returns the port really used (for `port` 0).

        Raises OSError when the address is taken.
        """
        # create_server and not a socket of our own: asyncio sets TCP_NODELAY only on sockets made for IPPROTO_TCP
        server = await asyncio.get_running_loop().create_server(
            self._secure_session if implicit_tls else self._session, host, port, reuse_port=reuse_port or None
        )
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new connections, end idle sessions with 421, and let content that is coming in come for so long.

        Then nobody is cut off without 421 either. What was kept has been told; the rest is the client's to repeat.
        """
        for server in self._servers:
            server.close()
        for session in list(self._sessions):
            session.drain()
        await self._ended(drain_seconds)
        for session in list(self._sessions):
            session.cut()
        await self._ended(_KEEP_SECONDS)
        for server in self._servers:
            # from Python 3.12 on this waits for the peers' TLS goodbye as well, which some never say
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _CLOSE_SECONDS)
        self._threads.shutdown(wait=False)
        self._content_threads.shutdown(wait=False)
        self._login_threads.shutdown(wait=False)

    async def _ended(self, seconds: float) -> None:
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await asyncio.gather(*(session.ended() for session in self._sessions))

    def _session(self, *, implicit_tls: bool = False) -> DoorSession:
        return DoorSession(
            self,
            in_force(self._context),
            SessionOptions(
                self._options.hostname,
                self._limits,
                self.mechanisms,
                implicit_tls=implicit_tls,
                proxies=self._options.proxies,
            ),
            self._memory,
            on_open=self._opened,
            on_close=self._closed,
        )

    def _secure_session(self) -> DoorSession:
        return self._session(implicit_tls=True)

    def _opened(self, session: DoorSession) -> bool:
        if len(self._sessions) >= self._limits.connections:
            log.warning("smtp.too-many-connections", door=self.origin.value)
            self.told[refusals.TOO_MANY_CONNECTIONS.code] += 1
            return False
        self._sessions.add(session)
        return True

    def _closed(self, session: DoorSession) -> None:
        self._sessions.discard(session)
        for name in self._counted.pop(session, ()):
            self._meter.leave(name)

    # Quotas

    async def admit(self, session: DoorSession) -> Refused | None:
        """See `mta.smtp.policy.Policy`."""
        refused = self._enter(session, _client_name(session), self._limits.client)
        if refused is not None:
            self.refused(session, "CONNECT", refused)
        return refused

    def _enter(self, session: DoorSession, name: str, quota: Quota) -> Refused | None:
        entered = self._counted.setdefault(session, [])
        if name in entered:
            return None
        if not self._meter.enter(name, quota):
            return Refused(refusals.TOO_MANY_CONNECTIONS, name.partition(" ")[0])
        entered.append(name)
        return None

    def _quotas(self, session: DoorSession) -> list[tuple[str, Quota]]:
        holder = self._peer(session)
        quotas = [(_client_name(session), self._limits.client)]
        return [*quotas, (f"holder {holder}", self._limits.holder)] if holder else quotas

    def check_quota(self, session: DoorSession, recipients: int, octets: int) -> Refused | None:
        """See `mta.smtp.policy.Policy`."""
        for name, quota in self._quotas(session):
            refused = self._enter(session, name, quota)
            if refused is not None:
                return refused
            if not self._meter.allows(name, quota, 1, recipients, octets):
                return Refused(refusals.RATE_EXCEEDED, name.partition(" ")[0])
        return None

    def holder(self, session: DoorSession) -> str:
        """See `mta.smtp.policy.Policy`."""
        return self._peer(session)

    def charge(self, session: DoorSession, messages: int, recipients: int, octets: int) -> None:
        """See `mta.smtp.policy.Policy`."""
        for name, _ in self._quotas(session):
            self._meter.charge(name, messages, recipients, octets)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def _in_content_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._content_threads, function, *arguments)

    async def _in_login_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._login_threads, function, *arguments)

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None:
        """Overridden where somebody can log in."""
        return Refused(refusals.SENDER_NOT_ALLOWED)

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        """Overridden where somebody can log in with a token."""
        return Refused(refusals.SENDER_NOT_ALLOWED)

    async def authenticate_certificate(self, session: DoorSession, login: str) -> Refused | None:
        """Overridden where somebody can log in with a certificate."""
        return Refused(refusals.SENDER_NOT_ALLOWED)

    @abstractmethod
    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None: ...

    @abstractmethod
    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused: ...

    def _judge(self, session: DoorSession, transaction: Transaction, header: Entity, content: bytes) -> Refused | None:
        """More reasons to refuse the content; may block."""
        return None

    @abstractmethod
    def _peer(self, session: DoorSession) -> str:
        """Who hands the message over, as the spool keeps it and the log names it; empty for nobody yet."""

    def words(self, refused: Refused) -> str:
        """See `mta.smtp.policy.Policy`: English, between servers."""
        return refused.reply

    def refused(self, session: DoorSession, step: str, refused: Refused) -> float:
        """See `mta.smtp.policy.Policy`. A detail names no patient (`Refused.detail`); no address is logged."""
        log.warning(
            "smtp.refused",
            door=self.origin.value,
            step=step,
            code=refused.refusal.code,
            detail=refused.detail,
            peer=self._peer(session),
            client=session.client,
        )
        self.told[refused.refusal.code] += 1
        limits = self._limits
        if refused.refusal.smtp < 500:
            return 0.0
        lately = self._meter.failed(_client_name(session)) if step == "AUTH" else 0
        guessing = session.refusals > limits.free_failures or lately > _FREE_FAILURES_AN_HOUR
        return limits.tarpit_seconds if guessing else 0.0

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        """See `mta.smtp.policy.Policy`."""
        peer = self._peer(session)  # now: a client that hangs up takes its certificate with it
        try:
            kept = await self._keep(session, peer, transaction, content)
        except OSError as error:
            log.error("smtp.not-kept", door=self.origin.value, error=errno.errorcode.get(error.errno or 0, "unknown"))
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return Refused(refusals.STORAGE_FULL if full else refusals.SPOOL_UNAVAILABLE)
        except Exception as error:
            log.error("smtp.not-kept", door=self.origin.value, exc_info=error)
            return Refused(refusals.SPOOL_UNAVAILABLE)
        if isinstance(kept, Refused):
            return kept
        self.told["accepted" if kept.new else "duplicate"] += 1
        log.info(
            "smtp.accepted" if kept.new else "smtp.duplicate",
            door=self.origin.value,
            spool_id=kept.spool_id,
            peer=peer,
            client=session.client,
            recipients=len(transaction.recipients),
            size=len(content),
        )
        return f"250 2.6.0 {kept.spool_id} kept"

    async def _keep(self, session: DoorSession, peer: str, transaction: Transaction, content: bytes) -> _Kept | Refused:
        work = partial(self._begin, session, peer, transaction, content)
        begun = work() if self._judges_at_once and len(content) <= LOOP_BYTES else await self._in_content_thread(work)
        if isinstance(begun, Refused):
            return begun
        submission, keeping = begun
        if self._returns is None:
            self._returns = Returns()
        kept = await self._returns.of(keeping)
        return (
            _Kept(kept.spool_id, True)
            if isinstance(kept, Accepted)
            else await self._in_thread(self._keep_again, submission, kept)
        )

    def _begin(
        self, session: DoorSession, peer: str, transaction: Transaction, content: bytes
    ) -> tuple[Submission, Future[Accepted | Duplicate]] | Refused:
        submission = self._submission(session, peer, transaction, content)
        return submission if isinstance(submission, Refused) else (submission, self._spool.begin_accept(submission))

    def _submission(
        self, session: DoorSession, peer: str, transaction: Transaction, content: bytes
    ) -> Submission | Refused:
        try:
            header = parse_entity(content)
        except MimeError:
            return Refused(refusals.HEADER_INVALID)
        if author_of(header) is None:
            return Refused(refusals.HEADER_INVALID)
        if len(header.values("received")) >= self._limits.hops:
            return Refused(refusals.TOO_MANY_HOPS)
        recipients = {each.address.lower() for each in transaction.recipients}
        round_again = going_round(header, self._options.hostname, recipients, self._recipients_of)
        if round_again == recipients:
            return Refused(refusals.MAIL_LOOP)
        refused = self._judge(session, transaction, header, content)
        if refused is not None:
            return refused
        # without a Message-ID a repeat cannot be told from another message that happens to say the same
        dedup_key = _dedup_key(peer, transaction, content) if header.values("message-id") else secrets.token_hex(32)
        message_id, content = self._identified(header, content)
        return Submission(
            origin=self.origin,
            sender=transaction.sender or "",
            peer=peer,
            content=content,
            content_type="message/rfc822",
            deliveries=tuple(
                NewDelivery(
                    each.address,
                    each.target,
                    Refused(refusals.MAIL_LOOP) if each.address.lower() in round_again else None,
                    notify=each.notify,
                    original_recipient=each.orcpt,
                )
                for each in transaction.recipients
            ),
            dedup_key=dedup_key,
            message_id_domain=self._options.hostname,
            envelope_id=transaction.envid,
            flags=self._flags(session, transaction),
            message_id=message_id,
        )

    def _keep_again(self, submission: Submission, kept: Accepted | Duplicate) -> _Kept:
        """The same was kept before. Whom it failed to reach, and whose sender was told so, is meant when the same
        message comes again."""
        while not isinstance(kept, Accepted):
            failed = {
                each.recipient for each in self._spool.deliveries(kept.spool_id) if each.state is DeliveryState.FAILED
            }
            again = tuple(each for each in submission.deliveries if each.recipient in failed)
            if not again:
                return _Kept(kept.spool_id, False)
            key = sha256(f"{submission.dedup_key}:again:{kept.spool_id}".encode()).hexdigest()
            submission = replace(submission, deliveries=again, dedup_key=key)
            kept = self._spool.accept(submission)
        return _Kept(kept.spool_id, True)

    def _recipients_of(self, spool_id: str) -> list[str]:
        return [each.recipient for each in self._spool.deliveries(spool_id)]

    def _flags(self, session: DoorSession, transaction: Transaction) -> tuple[str, ...]:
        """What is kept beside the envelope."""
        said = (
            (f"RET={transaction.ret}", transaction.ret),
            ("REQUIRETLS", transaction.require_tls),
            (UTF8, transaction.utf8),
        )
        return tuple(flag for flag, given in said if given)

    def _identified(self, header: Entity, content: bytes) -> tuple[str, bytes]:
        """Message-ID (empty: the spool makes one for the trace) and the content to keep."""
        return message_id_of(header), content


def _client_name(session: DoorSession) -> str:
    return _client_of(session.client)


@lru_cache(maxsize=4096)  # asked several times for every message
def _client_of(address: str) -> str:
    return f"client {network_of(address)}"


def _dedup_key(peer: str, transaction: Transaction, content: bytes) -> str:
    """The same peer sending the same content from and to the same addresses again: a lost reply, not a new message."""
    digest = sha256()
    for part in (peer, transaction.sender or "", *sorted(each.address for each in transaction.recipients)):
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    digest.update(digests.digest("sha256", content))
    return digest.hexdigest()
