"""Where mail leaves through somebody else: submitted to the sender's own operator as a client of it (RFC 6409), under
TLS, with the account's password, token or certificate.

The practice connector has no other way out: it never writes to a recipient's operator itself. Each account is one
destination with connections of its own, so that an operator that is down holds up no other. What the operator refuses
about a message ends that delivery; what it refuses about the account (its password, say) makes all of the account's
mail wait, and is not asked again until the secret has changed or some time has passed: asking more often would lock
the account.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from mta import refusals
from mta.collecting_options import SecretUnavailableError, SignIn
from mta.header import author_of
from mta.message import Deferred, Failed, Message, Origin, Outcome
from mta.smtp.client import Answered, ConnectionBrokenError, DsnRequest, SmtpConnection, Timeouts, Transaction
from mta.smtp.gate import GateOptions
from mta.smtp.pool import Counts, Job, NotOpenedError, Pool, PoolOptions, delivered
from mta.smtp.target import (
    REQUIRE_TLS,
    UTF8,
    admissible,
    awaits_receipt,
    check_message,
    dsn_request,
    international,
    tls_words,
)
from smime.mime import MimeError, parse_entity
from trust.refusals import Refused


@dataclass(frozen=True, slots=True)
class RelayAccount:
    """One mailbox at another operator, and how mail is submitted in its name. Raises ValueError for what could not be
    said to a server safely."""

    name: str
    """Of this account, unique."""
    address: str
    """Whose mail goes this way, as reverse-path or author; lower case."""
    host: str
    port: int
    context: ssl.SSLContext
    """Must verify the server and its name; holds our certificate where the server wants one."""
    implicit_tls: bool = True
    """TLS from the first octet (RFC 8314 §3.3); False: STARTTLS, which is demanded."""
    sign_in: SignIn = SignIn.PASSWORD
    user: str = ""
    secret: Callable[[], str] | None = field(default=None, repr=False)
    """Gives the password or token, anew for each sign-in; may block; raises `SecretUnavailableError`."""

    def __post_init__(self) -> None:
        if self.context.verify_mode is not ssl.CERT_REQUIRED or not self.context.check_hostname:
            raise ValueError("the server's certificate and name must be verified")
        if self.sign_in is not SignIn.CERTIFICATE and (self.secret is None or not self.user):
            raise ValueError("a user and what it signs in with must be named")
        if any(ord(c) < 32 for c in self.user):
            raise ValueError("a user has no control characters")


@dataclass(frozen=True, slots=True)
class RelayOptions:
    helo_name: str
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    pool: PoolOptions = PoolOptions(GateOptions(2, 1, first_rest_seconds=5.0, longest_rest_seconds=60.0))  # noqa: RUF009
    """Few connections, and back soon: what is usually down is the practice's own line."""
    sign_in_pause: float = 900.0
    """Seconds a secret that was refused is not said again."""
    unanswered_pauses: tuple[float, ...] = (0.0, 3600.0, 14400.0, 57600.0)
    """As `mta.smtp.target.SmtpTargetOptions.unanswered_pauses`."""


class RelayTarget:
    """A `mta.message.Target`. One per event loop; `close` at the end."""

    def __init__(self, accounts: Sequence[RelayAccount], options: RelayOptions, unusable: Collection[str] = ()) -> None:
        """`unusable`: addresses whose accounts are not known now; what they send waits."""
        self._unusable = frozenset(unusable)
        self._accounts = {account.address: account for account in accounts}
        self._options = options
        self._pool = Pool(options.pool)
        self._refused: dict[str, _RefusedSecret] = {}
        """By account: the secret its operator last refused."""

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. The content must be prepared: CRLF lines, protected for its recipient."""
        if message.origin is Origin.SYSTEM:  # ours stay here, where they need no protection (`mta.practice`)
            return Failed(Refused(refusals.NO_ROUTE))
        refused = check_message(message)
        if refused is not None:
            return Failed(refused)
        whose = (message.sender or _author(message.content)).lower()
        account = self._accounts.get(whose)
        if account is None and whose in self._unusable:
            return Deferred(Refused(refusals.SIGN_IN_REFUSED, "the account cannot be used: see the log"))
        if account is None:
            return Failed(Refused(refusals.SENDER_NOT_ALLOWED))
        # The operator cannot see that what is encrypted is a reading receipt, and lets nobody else write with a null
        # reverse-path; that nothing answers it (RFC 8098 §3), NEVER says as well.
        dsn = dsn_request(message) if message.sender else DsnRequest(notify="NEVER")
        transaction = Transaction(
            message.sender or account.address,
            message.recipient,
            message.content,
            dsn,
            require_tls=REQUIRE_TLS in message.flags,
            utf8=UTF8 in message.flags and international(message.content),
        )
        wanted = awaits_receipt(message)

        def conclude(connection: SmtpConnection, answered: Answered) -> Outcome:
            # RFC 3461 §5.2.1: who was passed the wish for a receipt answers it
            return delivered(answered, reports=wanted and "DSN" in connection.capabilities)

        job = Job(transaction, lambda connection: _admit(connection, transaction), conclude)
        destination = self._pool.to(account.name, lambda: self._open(account))
        outcome = await destination.deliver(job)
        if not isinstance(outcome, Deferred):
            return outcome
        pauses = self._options.unanswered_pauses
        wait = pauses[min(message.unanswered, len(pauses) - 1)] if job.unknown else 0.0
        if not outcome.tried:
            # the worker knows destinations by the recipient's domain, which says nothing of the way we go
            wait = max(wait, destination.gate.until - asyncio.get_running_loop().time())
        return replace(outcome, tried=True, retry_after=max(outcome.retry_after, wait))

    @property
    def counts(self) -> Counts:
        """Since the beginning."""
        return self._pool.counts

    @property
    def at_rest(self) -> int:
        """How many operators are left alone now. From any thread."""
        return self._pool.resting(time.monotonic())

    @property
    def connections(self) -> int:
        """Open, or being opened."""
        return self._pool.connections

    def try_now(self) -> None:
        """Let no operator rest any longer, and say again what was refused. From the event loop."""
        self._refused.clear()
        self._pool.forgive()

    async def close(self) -> None:
        """Say goodbye."""
        await self._pool.close()

    async def _open(self, account: RelayAccount) -> SmtpConnection:
        """Greeted, secured and signed in. Raises `NotOpenedError`."""
        secret = await self._secret(account)
        timeouts = self._options.timeouts
        try:
            connection = await SmtpConnection.open(
                account.host,
                account.port,
                timeouts,
                context=account.context if account.implicit_tls else None,
                server_hostname=account.host,
            )
        except ssl.SSLError as error:
            raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, tls_words(error))) from None
        except ConnectionBrokenError as error:
            raise NotOpenedError(Refused(refusals.UNREACHABLE, str(error))) from None
        kept = False
        try:
            await self._hello(connection)
            if not account.implicit_tls:
                await self._start_tls(account, connection)
                await self._hello(connection)
            await self._sign_in(account, connection, secret)
            kept = True
            return connection
        except ssl.SSLError as error:
            raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, tls_words(error))) from None
        except ConnectionBrokenError as error:
            raise NotOpenedError(Refused(refusals.CONNECTION_LOST, str(error))) from None
        finally:
            if not kept:
                connection.abort()

    async def _hello(self, connection: SmtpConnection) -> None:
        hello = await connection.hello(self._options.helo_name)
        if hello.code != 250:
            raise NotOpenedError(Refused(refusals.REMOTE_DEFERRED, hello.words))

    async def _start_tls(self, account: RelayAccount, connection: SmtpConnection) -> None:
        if "STARTTLS" not in connection.capabilities:
            raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, "STARTTLS is not offered"))
        reply = await connection.start_tls(account.context, account.host)
        if reply.code != 220:
            raise NotOpenedError(Refused(refusals.TLS_UNAVAILABLE, reply.words))

    async def _secret(self, account: RelayAccount) -> str:
        """What to sign in with, empty with a certificate. Raises `NotOpenedError` when there is none, or when the
        operator has refused it lately."""
        if account.sign_in is SignIn.CERTIFICATE or account.secret is None:
            secret = ""
        else:
            try:
                secret = await asyncio.to_thread(account.secret)
            except SecretUnavailableError as error:
                raise NotOpenedError(Refused(refusals.SIGN_IN_REFUSED, str(error))) from None
            if not secret or any(ord(c) < 32 for c in secret):
                raise NotOpenedError(Refused(refusals.SIGN_IN_REFUSED, "secret-unusable"))
        refused = self._refused.get(account.name)
        if refused is not None:
            now = asyncio.get_running_loop().time()
            if refused.digest == _digest(secret) and now < refused.until:
                raise NotOpenedError(Refused(refusals.SIGN_IN_REFUSED, "refused lately"))
            del self._refused[account.name]
        return secret

    async def _sign_in(self, account: RelayAccount, connection: SmtpConnection, secret: str) -> None:
        """Raises `NotOpenedError`: with the operator's code only, for its words may repeat what was said."""
        offered = connection.capabilities.get("AUTH", "").upper().split()
        match account.sign_in:
            case SignIn.PASSWORD:
                mechanism, response = "PLAIN", f"\0{account.user}\0{secret}"
            case SignIn.TOKEN:
                mechanism, response = "XOAUTH2", f"user={account.user}\x01auth=Bearer {secret}\x01\x01"
            case SignIn.CERTIFICATE:
                mechanism, response = "EXTERNAL", account.user
        if mechanism not in offered:
            raise NotOpenedError(Refused(refusals.SIGN_IN_REFUSED, f"{mechanism} is not offered"))
        reply = await connection.authenticate(mechanism, response.encode())
        if reply.code == 235:
            return
        detail = f"AUTH: {reply.code}"
        if not reply.permanent:  # a server that has its own trouble
            raise NotOpenedError(Refused(refusals.REMOTE_DEFERRED, detail))
        until = asyncio.get_running_loop().time() + self._options.sign_in_pause
        self._refused[account.name] = _RefusedSecret(_digest(secret), until)
        raise NotOpenedError(Refused(refusals.SIGN_IN_REFUSED, detail))


@dataclass(frozen=True, slots=True)
class _RefusedSecret:
    digest: bytes
    until: float
    """Time of the event loop."""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _author(content: bytes) -> str:
    """Who wrote it: whose receipt with a null reverse-path it is."""
    try:
        return author_of(parse_entity(content)) or ""
    except MimeError:
        return ""


def _admit(connection: SmtpConnection, transaction: Transaction) -> Refused | None:
    refused = admissible(connection, transaction)
    if refused is None and transaction.utf8 and UTF8 not in connection.capabilities:
        return Refused(refusals.SMTPUTF8_UNSUPPORTED)
    return refused
