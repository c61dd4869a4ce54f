"""The two SMTP doors: other operators on port 25 under mutual TLS, our own users on port 587 with a password.

A door says yes only after `Spool.accept` has returned. It refuses in the session whatever it can know there, so that no
receipt has to be sent to somebody who may not have written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from hashlib import sha256
from typing import TypeVar

import structlog

from mta import refusals
from mta.delivery import Accepted, NewDelivery, Submission
from mta.header import author_of, message_id_of, originators_of
from mta.message import DeliveryState, Origin, TargetKind
from mta.notifications import DispositionNotification, parse_notification
from mta.smtp.address import domain_of
from mta.smtp.session import DoorSession, Limits, Transaction
from mta.smtp.target import Operators
from mta.spool import Spool
from smime.mime import Entity, MimeError, parse_entity
from trust.accounts import Accounts, Identity, Service
from trust.refusals import Refused
from trust.tls import Context, PeerJudge, in_force

log = structlog.get_logger(__name__)

T = TypeVar("T")

_CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class DoorOptions:
    hostname: str
    """Our name in the greeting, and the domain of the Message-IDs made here."""
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    threads: int = 16
    """For what blocks: directory, accounts, spool. Accepts that wait together share one disk sync."""


@dataclass(frozen=True, slots=True)
class _Kept:
    spool_id: str
    new: bool
    """False: it was kept before."""


class _Door(ABC):
    """What both doors share: listening, counting sessions, keeping a message."""

    origin: Origin
    offers_authentication: bool
    offers_tokens = False

    def __init__(self, spool: Spool, context: Context, options: DoorOptions) -> None:
        self._spool = spool
        self._context = context
        self._options = options
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix=f"mta-{self.origin.value}")
        self._sessions: set[DoorSession] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port really used (for `port` 0). Raises OSError when the address is taken."""
        # create_server and not a socket of our own: asyncio sets TCP_NODELAY only on sockets made for IPPROTO_TCP
        self._server = await asyncio.get_running_loop().create_server(self._session, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Close the listening socket and every session; a message not yet answered is the client's to repeat."""
        if self._server is not None:
            self._server.close()
            for session in list(self._sessions):
                session.close()
            # from Python 3.12 on this waits for the peers' TLS goodbye as well, which some never say
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), _CLOSE_SECONDS)
        self._threads.shutdown(wait=False)

    def _session(self) -> DoorSession:
        return DoorSession(
            self,
            in_force(self._context),
            self._options.hostname,
            self._options.limits,
            offers_authentication=self.offers_authentication,
            on_open=self._opened,
            on_close=self._sessions.discard,
            offers_tokens=self.offers_tokens,
        )

    def _opened(self, session: DoorSession) -> bool:
        if len(self._sessions) >= self._options.limits.connections:
            log.warning("smtp.too-many-connections", door=self.origin.value)
            return False
        self._sessions.add(session)
        return True

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None:
        """Overridden where somebody can log in."""
        return Refused(refusals.SENDER_NOT_ALLOWED)

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        """Overridden where somebody can log in with a token."""
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

    def refused(self, session: DoorSession, step: str, refused: Refused) -> None:
        """See `mta.smtp.session.Policy`. A detail names no patient (`Refused.detail`); no address is logged."""
        log.warning(
            "smtp.refused",
            door=self.origin.value,
            step=step,
            code=refused.refusal.code,
            detail=refused.detail,
            peer=self._peer(session),
            client=session.client,
        )

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        """See `mta.smtp.session.Policy`."""
        peer = self._peer(session)  # now: a client that hangs up takes its certificate with it
        try:
            kept = await self._in_thread(self._keep, session, peer, transaction, content)
        except OSError as error:
            log.error("smtp.not-kept", door=self.origin.value, error=errno.errorcode.get(error.errno or 0, "unknown"))
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return Refused(refusals.STORAGE_FULL if full else refusals.SPOOL_UNAVAILABLE)
        except Exception as error:
            log.error("smtp.not-kept", door=self.origin.value, exc_info=error)
            return Refused(refusals.SPOOL_UNAVAILABLE)
        if isinstance(kept, Refused):
            return kept
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

    def _keep(self, session: DoorSession, peer: str, transaction: Transaction, content: bytes) -> _Kept | Refused:
        try:
            header = parse_entity(content)
        except MimeError:
            return Refused(refusals.HEADER_INVALID)
        if author_of(header) is None:
            return Refused(refusals.HEADER_INVALID)
        if len(header.values("received")) >= self._options.limits.hops:
            return Refused(refusals.TOO_MANY_HOPS)
        refused = self._judge(session, transaction, header, content)
        if refused is not None:
            return refused
        # without a Message-ID a repeat cannot be told from another message that happens to say the same
        dedup_key = _dedup_key(peer, transaction, content) if header.values("message-id") else secrets.token_hex(32)
        message_id, content = self._identified(header, content)
        submission = Submission(
            origin=self.origin,
            sender=transaction.sender or "",
            peer=peer,
            content=content,
            content_type="message/rfc822",
            deliveries=tuple(
                NewDelivery(each.address, each.target, notify=each.notify, original_recipient=each.orcpt)
                for each in transaction.recipients
            ),
            dedup_key=dedup_key,
            message_id_domain=self._options.hostname,
            envelope_id=transaction.envid,
            flags=(f"RET={transaction.ret}",) if transaction.ret else (),
            message_id=message_id,
        )
        while True:
            kept = self._spool.accept(submission)
            if isinstance(kept, Accepted):
                return _Kept(kept.spool_id, True)
            # Whom it failed to reach, and whose sender was told so, is meant when the same message comes again.
            failed = {
                each.recipient for each in self._spool.deliveries(kept.spool_id) if each.state is DeliveryState.FAILED
            }
            again = tuple(each for each in submission.deliveries if each.recipient in failed)
            if not again:
                return _Kept(kept.spool_id, False)
            key = sha256(f"{submission.dedup_key}:again:{kept.spool_id}".encode()).hexdigest()
            submission = replace(submission, deliveries=again, dedup_key=key)

    def _identified(self, header: Entity, content: bytes) -> tuple[str, bytes]:
        """Message-ID (empty: the spool makes one for the trace) and the content to keep."""
        return message_id_of(header), content


class OperatorDoor(_Door):
    """Port 25 of the trust space. `exists` says whether a mailbox is ours; it may block."""

    origin = Origin.OPERATOR
    offers_authentication = False

    def __init__(
        self,
        spool: Spool,
        trust_list: Callable[[], Operators],
        exists: Callable[[str], bool],
        context: Context,
        options: DoorOptions,
        judge: PeerJudge | None = None,
    ) -> None:
        """`context` is `trust.tls.operator_server_context`: it lets nobody in without a certificate. `judge` is asked
        about every peer, each time, besides what the handshake checked: revocation comes between two messages."""
        super().__init__(spool, context, options)
        self._judge_peer = judge
        self._trust_list = trust_list
        self._exists = exists

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None:
        """The peer must be listed for the sender's domain; for a null sender, be any listed operator."""
        name = session.certificate_name()
        trust_list = self._trust_list()
        if name is None:
            return Refused(refusals.OPERATOR_NOT_LISTED)
        listed = name in trust_list.operators_of(domain_of(sender)) if sender else trust_list.is_operator(name)
        if not listed:
            return Refused(refusals.OPERATOR_NOT_LISTED, domain_of(sender))
        connection = session.tls
        if self._judge_peer is None or connection is None:
            return None
        doubt = await self._in_thread(self._judge_peer, connection)
        return Refused(refusals.OPERATOR_NOT_BELIEVED, doubt) if doubt else None

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        if await self._in_thread(self._exists, recipient.lower()):
            return TargetKind.MAILBOX
        return Refused(refusals.MAILBOX_UNKNOWN)

    def _peer(self, session: DoorSession) -> str:
        name = session.certificate_name()
        return "" if name is None else str(name)


class SubmissionDoor(_Door):
    """Port 587. `exists`, `is_local` and `is_trusted` may block."""

    origin = Origin.SUBMISSION
    offers_authentication = True

    def __init__(
        self,
        spool: Spool,
        accounts: Accounts,
        exists: Callable[[str], bool],
        is_local: Callable[[str], bool],
        is_trusted: Callable[[str], bool],
        context: Context,
        options: DoorOptions,
        tokens: Callable[[str, str], Identity | Refused] | None = None,
    ) -> None:
        """`is_local` and `is_trusted` judge a lower-case domain; `context` is `trust.tls.service_server_context`.
        `tokens`, which may block, says whose an access token is, given the login (may be empty); None: none is taken.
        """
        super().__init__(spool, context, options)
        self._accounts = accounts
        self._exists = exists
        self._is_local = is_local
        self._is_trusted = is_trusted
        self._tokens = tokens
        self.offers_tokens = tokens is not None

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        if self._tokens is None:
            return Refused(refusals.SENDER_NOT_ALLOWED)
        found = await self._in_thread(self._tokens, login, token)
        if isinstance(found, Refused):
            return found
        session.identity = found
        return None

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None:
        found = await self._in_thread(self._accounts.authenticate, login, password, session.client, Service.SUBMISSION)
        if isinstance(found, Refused):
            return found
        session.identity = found
        return None

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None:
        """An address the identity may use, or null for a receipt (RFC 8098 §3)."""
        if not sender or await self._in_thread(self._may_use, session, sender):
            return None
        return Refused(refusals.SENDER_NOT_ALLOWED)

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        return await self._in_thread(self._route, recipient.lower())

    def _route(self, recipient: str) -> TargetKind | Refused:
        domain = domain_of(recipient)
        if self._is_local(domain):
            return TargetKind.MAILBOX if self._exists(recipient) else Refused(refusals.MAILBOX_UNKNOWN)
        return TargetKind.SMTP if self._is_trusted(domain) else Refused(refusals.RECIPIENT_NOT_TRUSTED, domain)

    def _judge(self, session: DoorSession, transaction: Transaction, header: Entity, content: bytes) -> Refused | None:
        """Everybody the header says wrote or sent it is somebody this identity may be, and the author, whose key signs
        the mail, somebody it may sign as; under a null reverse-path it is a read receipt.

        Sending systems believe a delivery notification because only servers send with a null reverse-path: nobody who
        logs in may write one.
        """
        originators = originators_of(header)
        if originators is None:
            return Refused(refusals.HEADER_INVALID)
        author = author_of(header) or ""
        if not self._may_sign(session, author):
            return Refused(refusals.SENDER_NOT_ALLOWED)
        if not all(self._may_use(session, address) for address in originators - {author}):
            return Refused(refusals.SENDER_NOT_ALLOWED)
        if not transaction.sender and not isinstance(parse_notification(content), DispositionNotification):
            return Refused(refusals.SENDER_NOT_ALLOWED)
        return None

    def _may_use(self, session: DoorSession, address: str) -> bool:
        return self._accounts.may_use(_identity(session), address)

    def _may_sign(self, session: DoorSession, address: str) -> bool:
        return self._accounts.may_sign_as(_identity(session), address)

    def _peer(self, session: DoorSession) -> str:
        return _identity(session).id if session.identity is not None else ""

    def _identified(self, header: Entity, content: bytes) -> tuple[str, bytes]:
        """A submission server adds what a poor client forgot (RFC 6409 §8)."""
        message_id, content = super()._identified(header, content)
        missing = ""
        if not header.values("message-id"):
            message_id = f"<{secrets.token_hex(16)}@{self._options.hostname}>"
            missing += f"Message-ID: {message_id}\r\n"
        if not header.values("date"):
            missing += f"Date: {format_datetime(datetime.now(UTC))}\r\n"
        return message_id, missing.encode() + content


def _identity(session: DoorSession) -> Identity:
    assert isinstance(session.identity, Identity)  # noqa: S101 - MAIL is refused before AUTH
    return session.identity


def _dedup_key(peer: str, transaction: Transaction, content: bytes) -> str:
    """The same peer sending the same content from and to the same addresses again: a lost reply, not a new message."""
    digest = sha256()
    for part in (peer, transaction.sender or "", *sorted(each.address for each in transaction.recipients)):
        digest.update(len(part.encode()).to_bytes(4, "big") + part.encode())
    digest.update(sha256(content).digest())
    return digest.hexdigest()
