"""The two SMTP doors: other operators on port 25 under mutual TLS, our own users and machines on ports 587 and 465 with
a password, a token or a certificate.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial

from mta import refusals
from mta.authors import AuthorCheck
from mta.evaluation import connection_flags
from mta.header import author_of, originators_of
from mta.mailboxes.rules import MailboxRules
from mta.message import Origin, TargetKind
from mta.notifications import DispositionNotification, parse_notification
from mta.smtp.address import domain_of
from mta.smtp.limits import Quota
from mta.smtp.policy import SubmissionRules, Transaction
from mta.smtp.receiving import Door, DoorOptions, Shared
from mta.smtp.session import DoorSession
from mta.smtp.target import Operators
from mta.spool import Spool
from smime.mime import Entity
from trust.accounts import Accounts, Service
from trust.catalogue import CERTIFICATE_REFUSED
from trust.identities import CertificateSignIn, Identity
from trust.refusals import Refused
from trust.tls import Context, PeerJudge, presented

__all__ = ["DoorOptions", "OperatorDoor", "Shared", "SubmissionDoor"]


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
        mailboxes: MailboxRules | None = None,
    ) -> None:
        """`context` is `trust.tls.operator_server_context`: it lets nobody in without a certificate. `judge` is asked
        about every peer, each time, besides what the handshake checked: revocation comes between two messages.
        `authors` says whose From is not believed; None: it is not looked at. `mailboxes`, asked instead of `exists`,
        says which of ours take no mail, and why."""
        super().__init__(spool, context, options)
        self._mailboxes = mailboxes
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
        doubt = await self._in_thread(self._judge_peer, presented(connection))
        return Refused(refusals.OPERATOR_NOT_BELIEVED, doubt) if doubt else None

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        if self._mailboxes is not None:
            return await self._in_thread(self._mailboxes.receives, recipient.lower()) or TargetKind.MAILBOX
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
        mailboxes: MailboxRules | None = None,
        sent: Callable[[Identity, bytes], None] | None = None,
        rules: SubmissionRules | None = None,
    ) -> None:
        """`is_local` and `is_trusted` judge a lower-case domain; `context` is `trust.tls.service_server_context`.
        `tokens`, which may block, says whose an access token is, given the login (may be empty); None: none is taken.
        `certificates`, which may block, says whose the certificate of a connection is; None: none is taken.
        `mailboxes` says what our mailboxes allow, and is asked instead of `exists`; None: they allow everything. `sent`
        is told of each mail that was kept; it returns at once. `rules`: what else is said against a mail.
        """
        super().__init__(spool, context, options)
        self._accounts = accounts
        self._exists = exists
        self._is_local = is_local
        self._is_trusted = is_trusted
        self._tokens = tokens
        self._certificates = certificates
        self._mailboxes = mailboxes
        self._sent = sent
        self._rules = rules or SubmissionRules()

    @property
    def mechanisms(self) -> tuple[str, ...]:
        tokens = ("XOAUTH2", "OAUTHBEARER") if self._tokens else ()
        return ("PLAIN", "LOGIN", *tokens, *(("EXTERNAL",) if self._certificates else ()))

    async def authenticate_certificate(self, session: DoorSession, login: str) -> Refused | None:
        connection = session.tls
        if self._certificates is None or connection is None:
            return Refused(CERTIFICATE_REFUSED)
        found = await self._in_login_thread(self._certificates, presented(connection), login)
        return found if isinstance(found, Refused) else await self._enter_as(session, found, certified=True)

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        if self._tokens is None:
            return Refused(refusals.SENDER_NOT_ALLOWED)
        found = await self._in_login_thread(self._tokens, login, token)
        return found if isinstance(found, Refused) else await self._enter_as(session, found)

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None:
        found = await self._in_login_thread(
            self._accounts.authenticate, login, password, session.client, Service.SUBMISSION
        )
        return found if isinstance(found, Refused) else await self._enter_as(session, found)

    async def _enter_as(self, session: DoorSession, identity: Identity, *, certified: bool = False) -> Refused | None:
        """Who it is was proved; whether they may send anything at all is their mailboxes' affair."""
        if self._mailboxes is not None:
            enters = partial(self._mailboxes.enters, identity, certified=certified)
            if (refused := await self._in_thread(enters)) is not None:
                return refused
            session.machine = certified and await self._in_thread(self._mailboxes.is_machine, identity)
        session.identity, session.certified = identity, certified
        return None

    def _quotas(self, session: DoorSession) -> list[tuple[str, Quota]]:
        if session.machine:
            return [(f"holder {self._peer(session)}", self._limits.machine)]
        return super()._quotas(session)

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None:
        """An address the identity may use, or null for a receipt (RFC 8098 §3)."""
        if not sender:
            return None
        return await self._in_thread(self._against_sender, session, sender, self._may_use)

    def _against_sender(
        self, session: DoorSession, address: str, may: Callable[[DoorSession, str], bool]
    ) -> Refused | None:
        """Why nothing is sent in the name of that address."""
        if not may(session, address):
            return Refused(refusals.SENDER_NOT_ALLOWED)
        return None if self._mailboxes is None else self._mailboxes.sends(address, certified=self._certified(session))

    def _certified(self, session: DoorSession) -> bool:
        return session.certified

    def words(self, refused: Refused) -> str:
        """French: a mail program shows its user what it was told."""
        return refused.reply_fr

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        return await self._in_thread(self._reached, session, recipient.lower())

    def _reached(self, session: DoorSession, recipient: str) -> TargetKind | Refused:
        """How that address is, or why a mail as far as it is known by now does not go there."""
        found = self._route(recipient)
        if isinstance(found, Refused):
            return found
        too_large = self._rules.too_large(recipient, session.transaction.size)
        return too_large or self._patient_writes_to(session, recipient) or found

    def _route(self, recipient: str) -> TargetKind | Refused:
        domain = domain_of(recipient)
        if self._is_local(domain):
            if self._mailboxes is not None:
                return self._mailboxes.receives(recipient) or TargetKind.MAILBOX
            return TargetKind.MAILBOX if self._exists(recipient) else Refused(refusals.MAILBOX_UNKNOWN)
        if self._is_trusted(domain):
            return TargetKind.SMTP
        return Refused(refusals.RECIPIENT_NOT_TRUSTED, domain, advice=self._advice(recipient))

    def _advice(self, recipient: str) -> str:
        """For an author who reads the reply."""
        return self._rules.nearest(recipient)

    def _patient_writes_to(self, session: DoorSession, recipient: str) -> Refused | None:
        """A patient answers and never begins: told here, where a mail program shows it, as far as the envelope says."""
        rules, sender = self._mailboxes, session.transaction.sender or ""
        if rules is None:
            return None
        own = (sender.lower(),) if sender else self._own_addresses(session)
        refused = [rules.writes_to(each, recipient) for each in own if rules.is_patient(each)]
        return refused[0] if refused and all(refused) else None

    def _own_addresses(self, session: DoorSession) -> tuple[str, ...]:
        return _identity(session).addresses

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        reply = await super().accept(session, transaction, content)
        if self._sent is not None and isinstance(session.identity, Identity) and not isinstance(reply, Refused):
            self._sent(session.identity, content)
        return reply

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
        refused = self._against_sender(session, author, self._may_sign)
        for address in sorted(originators - {author}):
            refused = refused or self._against_sender(session, address, self._may_use)
        if refused is not None:
            return refused
        if not transaction.sender and not isinstance(parse_notification(content), DispositionNotification):
            return Refused(refusals.SENDER_NOT_ALLOWED)
        refused = self._patient_answers(transaction, header, content, {author, *originators})
        return refused or self._judge_content(transaction, content)

    def _patient_answers(
        self, transaction: Transaction, header: Entity, content: bytes, authors: set[str]
    ) -> Refused | None:
        rules, sender = self._mailboxes, transaction.sender or ""
        if rules is None:
            return None
        recipients = [each.address.lower() for each in transaction.recipients]
        for patient in sorted({each.lower() for each in (*authors, sender) if each}):
            refused = rules.answers(patient, header, content, recipients) if rules.is_patient(patient) else None
            if refused is not None:
                return refused
        return None

    def _judge_content(self, transaction: Transaction, content: bytes) -> Refused | None:
        if self._rules.judge is None:
            return None
        looked = self._rules.judge(content)
        return looked if isinstance(looked, Refused) else looked([each.address for each in transaction.recipients])

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
