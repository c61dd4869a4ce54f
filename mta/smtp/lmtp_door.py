"""LMTP in (RFC 2033): a mail server of the house hands over its people's mail, and is answered for each recipient.

For a hospital whose own server all its mail goes through. It is trusted because the configuration says so and because
of where it is: on a Unix socket whose rights decide who may connect, or on this machine's loopback. It needs no
password and no TLS, and gets nothing else for free: it may write only as the mailboxes it was given, its mail is signed
and encrypted like everybody's, and a 250 is said only for what is committed. Nothing is promised for a recipient
against whom something is already known: each has a reply of its own.
"""

from __future__ import annotations

import asyncio
import grp
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from mta import refusals
from mta.loops import going_round
from mta.mailboxes.rules import MailboxRules
from mta.message import Origin
from mta.private_socket import private_socket
from mta.smtp.address import parse_path
from mta.smtp.data import Chunked, Dotted
from mta.smtp.door import DoorOptions, SubmissionDoor
from mta.smtp.limits import Limits
from mta.smtp.policy import SessionOptions, SubmissionRules, Transaction
from mta.smtp.session import DoorSession
from mta.spool import Spool
from smime.mime import MimeError, parse_entity
from trust.accounts import Accounts
from trust.refusals import Refused
from trust.tls import in_force

log = structlog.get_logger(__name__)

_NOT_LMTP = ("HELO", "EHLO", "STARTTLS", "AUTH", "BDAT")
_MANY = 1_000_000
"""No limit: a server hands over the mistakes of all its people."""


class LmtpSession(DoorSession):
    """One connection."""

    protocol = "LMTP"

    def __init__(self, *arguments: object, **options: object) -> None:
        self._named: list[str] = []
        self._answered: list[str] = []
        self.outcomes: dict[str, Refused] = {}
        """Recipients, lower case, that are refused although the content is kept for the others."""
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        for verb in _NOT_LMTP:
            del self._smtp_methods[verb]

    async def smtp_LHLO(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        """RFC 2033 §4.1."""
        await self.smtp_EHLO(argument)

    def keywords(self) -> list[str]:
        words = [f"SIZE {self._limits.message_bytes}", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        return [*words, "DSN"]

    async def smtp_RCPT(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        """Each RCPT that is accepted has a reply of its own later, also one that was said before (§4.2)."""
        self._last = ""
        await super().smtp_RCPT(argument)
        path = parse_path(argument or "", "TO", postmaster_domain=self.hostname)
        if self._last.startswith("250") and path is not None:
            self._named.append(path.address.lower())

    async def push(self, status: str) -> None:  # type: ignore[override]
        self._last = status
        await super().push(status)

    def _set_post_data_state(self) -> None:
        super()._set_post_data_state()
        self._named = []

    async def _finish(self, step: str, incoming: Dotted | Chunked) -> None:
        self._answered, self.outcomes = self._named, {}
        await super()._finish(step, incoming)

    async def _answer(self, step: str, reply: str | Refused) -> None:
        for address in self._answered:
            await super()._answer(step, self.outcomes.get(address, reply))

    def _end_stranger(self) -> None:
        """Nobody is a stranger here."""


class LmtpDoor(SubmissionDoor):
    """One server's door. The functions may block."""

    origin = Origin.LMTP

    def __init__(
        self,
        name: str,
        spool: Spool,
        accounts: Accounts,
        may_send: Callable[[str], bool],
        exists: Callable[[str], bool],
        is_local: Callable[[str], bool],
        is_trusted: Callable[[str], bool],
        options: DoorOptions,
        mailboxes: MailboxRules | None = None,
        rules: SubmissionRules | None = None,
    ) -> None:
        """`name` of the server, as the spool keeps it and the log names it. `may_send`: whether it may write as a
        lower-case address. `exists`, `is_local`, `is_trusted`, `mailboxes` and `rules` as in `SubmissionDoor`."""
        options = replace(options, limits=_patient(options.limits))
        never = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # no command of LMTP starts TLS here
        super().__init__(
            spool, accounts, exists, is_local, is_trusted, never, options, mailboxes=mailboxes, rules=rules
        )
        self._name = name
        self._may_send = may_send

    async def start(self, host: str, port: int, *, implicit_tls: bool = False, reuse_port: bool = False) -> int:
        """Listen on a loopback address. Raises ValueError for another one, OSError when it is taken."""
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError("LMTP is spoken in clear and without a password: loopback addresses only")
        return await super().start(host, port, reuse_port=reuse_port)

    async def start_unix(self, path: Path, group: str = "") -> None:
        """Listen on a Unix socket that only this user may connect to, and the members of `group`.

        Raises ValueError when there is no such group, OSError when the socket cannot be made or given to it.
        """
        bound = _socket(path, group)
        self._servers.append(await asyncio.get_running_loop().create_unix_server(self._session, sock=bound))

    def reload(self, limits: Limits) -> None:
        super().reload(_patient(limits))

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return ()

    def _session(self, *, implicit_tls: bool = False) -> DoorSession:
        options = SessionOptions(self._options.hostname, self._limits, requires_tls=False)
        return LmtpSession(
            self, in_force(self._context), options, self._memory, on_open=self._opened, on_close=self._closed
        )

    async def admit(self, session: DoorSession) -> Refused | None:
        """Everybody behind it comes from one place: only connections are counted."""
        return None

    def words(self, refused: Refused) -> str:
        """English, to a server."""
        return refused.reply

    def check_quota(self, session: DoorSession, recipients: int, octets: int) -> Refused | None:
        return None

    def charge(self, session: DoorSession, messages: int, recipients: int, octets: int) -> None:
        pass

    def refused(self, session: DoorSession, step: str, refused: Refused) -> float:
        super().refused(session, step, refused)
        return 0.0

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        """Kept for those recipients nothing speaks against; why not for the others is theirs alone."""
        assert isinstance(session, LmtpSession)  # noqa: S101 - `_session` makes no other
        try:
            outcomes = await self._in_content_thread(self._against, transaction, content)
        except Exception as error:  # its text may quote the mail
            log.error("smtp.not-kept", door=self.origin.value, error=type(error).__name__)
            return Refused(refusals.SPOOL_UNAVAILABLE)
        session.outcomes = outcomes
        possible = [each for each in transaction.recipients if each.address.lower() not in outcomes]
        if not possible:
            return next(iter(outcomes.values()))
        transaction.recipients = possible
        return await super().accept(session, transaction, content)

    def _against(self, transaction: Transaction, content: bytes) -> dict[str, Refused]:
        """What speaks against single recipients."""
        recipients = [each.address.lower() for each in transaction.recipients]
        found: dict[str, Refused] = {}
        for address in recipients:
            too_large = self._rules.too_large(address, len(content))
            if too_large is not None:
                found[address] = too_large
        try:
            header = parse_entity(content)
        except MimeError:
            return found
        for address in going_round(header, self._options.hostname, recipients, self._recipients_of):
            found[address] = Refused(refusals.MAIL_LOOP)
        self._judge_each([each for each in recipients if each not in found], content, found)
        return found

    def _judge_each(self, recipients: list[str], content: bytes, found: dict[str, Refused]) -> None:
        """Each by himself, then those that remain together: patients who would see each other's address."""
        if self._rules.judge is None or not recipients:
            return
        against = self._rules.judge(content)
        if isinstance(against, Refused):
            found |= dict.fromkeys(recipients, against)
            return
        found |= {address: refused for address in recipients if (refused := against([address])) is not None}
        rest = [address for address in recipients if address not in found]
        if rest and (together := against(rest)) is not None:
            found |= dict.fromkeys(rest, together)

    def _advice(self, recipient: str) -> str:
        """No author reads this, and those who do need the searches."""
        return ""

    def _judge_content(self, transaction: Transaction, content: bytes) -> Refused | None:
        """That was said for each recipient."""
        return None

    def _may_use(self, session: DoorSession, address: str) -> bool:
        return self._may_send(address.lower())

    def _may_sign(self, session: DoorSession, address: str) -> bool:
        return self._may_send(address.lower())

    def _certified(self, session: DoorSession) -> bool:
        """As good as: the configuration says whose mail it hands over."""
        return True

    def _own_addresses(self, session: DoorSession) -> tuple[str, ...]:
        return ()

    def _peer(self, session: DoorSession) -> str:
        return f"lmtp:{self._name}"


def _patient(limits: Limits) -> Limits:
    return replace(limits, refused_recipients=_MANY, errors=_MANY, commands=_MANY)


def _socket(path: Path, group: str) -> socket.socket:
    try:
        group_id = grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise ValueError(f"there is no group {group}") from None
    bound = private_socket(path)
    try:
        if group:
            os.chown(path, -1, group_id)
            path.chmod(0o660)
    except OSError:
        bound.close()
        path.unlink(missing_ok=True)
        raise
    return bound
