"""The two SMTP doors: other operators on port 25 under mutual TLS, our own users and machines on ports 587 and 465 with
a password, a token or a certificate.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime

from mta import refusals
from mta.authors import AuthorCheck
from mta.evaluation import connection_flags
from mta.header import author_of, originators_of
from mta.message import Origin, TargetKind
from mta.notifications import DispositionNotification, parse_notification
from mta.smtp.address import domain_of
from mta.smtp.policy import SubmissionRules, Transaction
from mta.smtp.receiving import Door, DoorOptions, Shared
from mta.smtp.session import DoorSession
from mta.smtp.target import Operators
from mta.spool import Spool
from smime.mime import Entity
from trust.accounts import Accounts, Identity, Service
from trust.catalogue import CERTIFICATE_REFUSED
from trust.refusals import Refused
from trust.tls import Context, PeerJudge

__all__ = ["CertificateSignIn", "DoorOptions", "OperatorDoor", "Shared", "SubmissionDoor"]

CertificateSignIn = Callable[[ssl.SSLObject, str], Identity | Refused]
"""Whose the certificate of this connection is; the login, when not empty, must be theirs."""


class OperatorDoor(Door):
    """Port 25 of the trust space. `exists` says whether a mailbox is ours; it may block."""

    origin = Origin.OPERATOR

    def __init__(
        self,
        spool: Spool,
        trust_list: Callable[[], Operators],
        exists: Callable[[str], bool],
        context: Context,
        options: DoorOptions,
        judge: PeerJudge | None = None,
        authors: AuthorCheck | None = None,
    ) -> None:
        """`context` is `trust.tls.operator_server_context`: it lets nobody in without a certificate. `judge` is asked
        about every peer, each time, besides what the handshake checked: revocation comes between two messages.
        `authors` says whose From is not believed; None: it is not looked at."""
        super().__init__(spool, context, options)
        self._authors = authors
        self._judges_at_once = authors is None
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

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        reply = await super().accept(session, transaction, content)
        doubted = isinstance(reply, Refused) and reply.refusal is refusals.AUTHOR_UNPROVEN
        if not doubted or self._authors is None:
            return reply
        remains = await self._authors.signed(content)
        if remains is not None:
            return reply if remains.refusal is refusals.AUTHOR_UNPROVEN else remains
        transaction.vouched = True
        return await super().accept(session, transaction, content)

    def _judge(self, session: DoorSession, transaction: Transaction, header: Entity, content: bytes) -> Refused | None:
        peer = self._peer(session)
        if self._authors is None or transaction.vouched or not peer:  # who hung up is judged when the mail is opened
            return None
        return self._authors.doubt(peer, transaction.sender or "", header, content)

    def _flags(self, session: DoorSession, transaction: Transaction) -> tuple[str, ...]:
        return (*super()._flags(session, transaction), *connection_flags(session.client, session.helo))

    def _peer(self, session: DoorSession) -> str:
        name = session.certificate_name()
        return "" if name is None else str(name)


class SubmissionDoor(Door):
    """Ports 587 and 465. `exists`, `is_local` and `is_trusted` may block."""

    origin = Origin.SUBMISSION

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
        certificates: CertificateSignIn | None = None,
        rules: SubmissionRules | None = None,
    ) -> None:
        """`is_local` and `is_trusted` judge a lower-case domain; `context` is `trust.tls.service_server_context`.
        `tokens`, which may block, says whose an access token is, given the login (may be empty); None: none is taken.
        `certificates`, which may block, says whose the certificate of a connection is; None: none is taken. `rules`:
        what else is said against a mail.
        """
        super().__init__(spool, context, options)
        self._accounts = accounts
        self._exists = exists
        self._is_local = is_local
        self._is_trusted = is_trusted
        self._tokens = tokens
        self._certificates = certificates
        self._rules = rules or SubmissionRules()

    @property
    def mechanisms(self) -> tuple[str, ...]:
        tokens = ("XOAUTH2", "OAUTHBEARER") if self._tokens else ()
        return ("PLAIN", "LOGIN", *tokens, *(("EXTERNAL",) if self._certificates else ()))

    async def authenticate_certificate(self, session: DoorSession, login: str) -> Refused | None:
        connection = session.tls
        if self._certificates is None or connection is None:
            return Refused(CERTIFICATE_REFUSED)
        found = await self._in_login_thread(self._certificates, connection, login)
        if isinstance(found, Refused):
            return found
        session.identity = found
        return None

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        if self._tokens is None:
            return Refused(refusals.SENDER_NOT_ALLOWED)
        found = await self._in_login_thread(self._tokens, login, token)
        if isinstance(found, Refused):
            return found
        session.identity = found
        return None

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None:
        found = await self._in_login_thread(
            self._accounts.authenticate, login, password, session.client, Service.SUBMISSION
        )
        if isinstance(found, Refused):
            return found
        session.identity = found
        return None

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None:
        """An address the identity may use, or null for a receipt (RFC 8098 §3)."""
        if not sender or await self._in_thread(self._may_use, session, sender):
            return None
        return Refused(refusals.SENDER_NOT_ALLOWED)

    def words(self, refused: Refused) -> str:
        """French: a mail program shows its user what it was told."""
        return refused.reply_fr

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        route = await self._in_thread(self._route, recipient.lower())
        return (
            route if isinstance(route, Refused) else self._rules.too_large(recipient, session.transaction.size) or route
        )

    def _route(self, recipient: str) -> TargetKind | Refused:
        domain = domain_of(recipient)
        if self._is_local(domain):
            return TargetKind.MAILBOX if self._exists(recipient) else Refused(refusals.MAILBOX_UNKNOWN)
        if self._is_trusted(domain):
            return TargetKind.SMTP
        return Refused(refusals.RECIPIENT_NOT_TRUSTED, domain, advice=self._rules.nearest(recipient))

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
        return self._judge_content(transaction, content)

    def _judge_content(self, transaction: Transaction, content: bytes) -> Refused | None:
        judge = self._rules.judge
        return judge([each.address for each in transaction.recipients], content) if judge is not None else None

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
