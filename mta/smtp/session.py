"""Mail transactions of one SMTP server session: MAIL, RCPT, DATA and BDAT, their order, and what each is answered (RFC
5321, RFC 6409, RFC 3030).

The command loop is aiosmtpd's, octets are `mta.smtp.connection`'s, content `mta.smtp.data`'s, everything around
transactions `mta.smtp.conversation`'s.
Policy is the door's: who may come in, for whom, and what happens to the content.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from mta import refusals
from mta.smtp.address import PathCommand, original_recipient, parse_path, valid_envid, valid_notify
from mta.smtp.conversation import Conversation
from mta.smtp.data import Checked, Chunked, Dotted
from mta.smtp.limits import Limits, MemoryBudget, Share
from mta.smtp.policy import Policy, RecipientRequest, SessionOptions, Transaction
from mta.smtp.sasl import Claim, PasswordClaim, TokenClaim, bearer_of
from trust.refusals import Refused

__all__ = ["DoorSession", "Limits", "Policy", "RecipientRequest", "SessionOptions", "Transaction", "bearer_of"]

_UNDECLARED = 64 * 1024
"""Octets of memory taken at first for content whose size was not said."""
_FRAMING = 1024
"""Octets that content may have on the way beyond its declared size, besides one in 64 for dots that are doubled."""


class DoorSession(Conversation):
    """One connection."""

    def __init__(
        self,
        policy: Policy,
        context: ssl.SSLContext,
        options: SessionOptions,
        memory: MemoryBudget,
        on_open: Callable[[DoorSession], bool],
        on_close: Callable[[DoorSession], None],
    ) -> None:
        super().__init__(context, options)
        self.envelope: Any = None
        self._policy = policy
        self._on_open, self._on_close = on_open, on_close
        self._memory = memory
        self._share = Share()
        self._refused_recipients = 0
        self._incoming: Checked | None = None
        self._chunks: Chunked | None = None
        self._keeping = False

    @property
    def transaction(self) -> Transaction:
        """What aiosmtpd calls the envelope."""
        transaction: Transaction = self.envelope
        return transaction

    @property
    def busy(self) -> bool:
        return self._incoming is not None or self._chunks is not None or self._keeping

    @property
    def begun(self) -> bool:
        return self.transaction.sender is not None

    def _set_post_data_state(self) -> None:
        self.envelope = Transaction()
        self._chunks = None
        self.end_content()
        self._release()

    def opened(self) -> bool:
        return self._on_open(self)

    def closed(self) -> None:
        self._on_close(self)

    async def admitted(self) -> Refused | None:
        return await self._policy.admit(self)

    async def judge(self, claim: Claim) -> Refused | None:
        if isinstance(claim, PasswordClaim):
            return await self._policy.authenticate(self, claim.login, claim.password)
        if isinstance(claim, TokenClaim):
            return await self._policy.authenticate_token(self, claim.login, claim.token)
        return await self._policy.authenticate_certificate(self, claim.login)

    def words(self, refused: Refused) -> str:
        return self._policy.words(refused)

    def told(self, step: str, refused: Refused) -> float:
        return self._policy.refused(self, step, refused)

    # The envelope

    async def smtp_MAIL(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if await self.check_helo_needed():
            return
        if self._options.mechanisms and self.identity is None:
            await self._refuse("MAIL", Refused(refusals.AUTHENTICATION_REQUIRED))
            return
        if self.transaction.sender is not None:
            await self.push("503 5.5.1 A transaction is already open, use RSET")
            return
        path = parse_path(argument or "", "FROM")
        if path is None:
            await self.push("501 5.1.7 Syntax: MAIL FROM:<address> [parameters]")
            return
        wrong = self._mail_parameters(path) or _international(path, "SMTPUTF8" in path.parameters)
        if isinstance(wrong, Refused):
            await self._refuse("MAIL", wrong)
            return
        if wrong:
            await self.push(wrong)
            return
        declared = int(path.parameters.get("SIZE") or 0)
        refused = await self._policy.check_sender(self, path.address) or self._policy.check_quota(self, 1, declared)
        if refused is not None:
            await self._refuse("MAIL", refused)
            return
        self.envelope = Transaction(
            path.address,
            path.parameters.get("RET", "").upper(),
            path.parameters.get("ENVID", ""),
            size=declared,
            require_tls="REQUIRETLS" in path.parameters,
            utf8="SMTPUTF8" in path.parameters,
        )
        await self.push("250 2.1.0 Sender accepted")

    def _mail_parameters(self, path: PathCommand) -> str | Refused:
        """What refuses them, empty when they are right."""
        for name, value in path.parameters.items():
            match name:
                case "SIZE":
                    if not value.isdigit() or len(value) > 20:
                        return "501 5.5.4 SIZE takes a number"
                    if int(value) > self._limits.message_bytes:
                        return Refused(refusals.MESSAGE_TOO_LARGE)
                case "BODY":
                    if value.upper() not in ("7BIT", "8BITMIME"):
                        return "501 5.5.4 BODY is 7BIT or 8BITMIME"
                case "RET":
                    if value.upper() not in ("FULL", "HDRS"):
                        return "501 5.5.4 RET is FULL or HDRS"
                case "ENVID":
                    if not valid_envid(value):
                        return "501 5.5.4 ENVID is at most 100 characters of xtext"
                case "SMTPUTF8" | "REQUIRETLS":
                    if value:
                        return f"501 5.5.4 {name} takes no value"
                case "AUTH" if self._options.mechanisms:
                    pass  # RFC 4954 §5: a claim about somebody else, which we do not pass on
                case _:
                    return "555 5.5.4 Unknown MAIL parameter"
        return ""

    async def smtp_RCPT(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if self.transaction.sender is None:
            await self.push("503 5.5.1 MAIL first")
            return
        path = parse_path(argument or "", "TO", postmaster_domain=self.hostname)
        if path is None:
            await self.push("501 5.1.3 Syntax: RCPT TO:<address> [parameters]")
            return
        notify, said = path.parameters.pop("NOTIFY", None), path.parameters.pop("ORCPT", None)
        orcpt = None if said is None else original_recipient(said, utf8=self.transaction.utf8)
        if (notify is not None and not valid_notify(notify)) or (said is not None and orcpt is None):
            await self.push("501 5.5.4 Malformed NOTIFY or ORCPT")
            return
        if path.parameters:
            await self.push("555 5.5.4 Unknown RCPT parameter")
            return
        if self._chunks is not None:
            await self.push("503 5.5.1 The content has begun")
            return
        refused = self._recipient_limits() or _international(path, self.transaction.utf8)
        target = refused or await self._policy.check_recipient(self, path.address)
        if isinstance(target, Refused):
            if target.refusal.smtp >= 500:
                self._refused_recipients += 1
            await self._refuse("RCPT", target)
            if self._refused_recipients >= self._limits.refused_recipients:
                self.end("421 4.7.0 Too many refused recipients, closing the connection")
            return
        known = any(each.address.lower() == path.address.lower() for each in self.transaction.recipients)
        if not known:
            self.transaction.recipients.append(
                RecipientRequest(path.address, target, (notify or "").upper(), orcpt or "")
            )
        await self.push("250 2.1.5 Recipient accepted")

    def _recipient_limits(self) -> Refused | None:
        recipients = len(self.transaction.recipients)
        if recipients >= self._limits.recipients:
            return Refused(refusals.TOO_MANY_RECIPIENTS)
        return self._policy.check_quota(self, recipients + 1, self.transaction.size)

    # The content

    async def smtp_DATA(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        if self._chunks is not None:
            await self.push("503 5.5.1 Go on with BDAT")
            return
        if not self.transaction.recipients:
            await self.push("503 5.5.1 RCPT first")
            return
        if argument:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        refused = await self._may_send()
        if refused is not None:
            self.reset()
            await self._refuse("DATA", refused)
            return
        self.say("354 End data with <CR><LF>.<CR><LF>")
        content = Dotted(self._limits.message_bytes)
        await self._receive(content)
        await self._finish("DATA", content)

    async def smtp_BDAT(self, argument: str | None) -> None:  # noqa: N802 - aiosmtpd finds it by this name
        """RFC 3030, without BINARYMIME. A refused chunk is read all the same: its octets are no commands. With it the
        transaction ends, whatever chunks were to follow."""
        size, _, last = (argument or "").partition(" ")
        if not size.isdigit() or len(size) > 12 or last.upper() not in ("", "LAST"):
            self.end("501 5.5.4 Syntax: BDAT size [LAST]")  # where the next command begins is anybody's guess
        refused: Refused | None = None
        if self._chunks is None and self.transaction.recipients:
            refused = await self._may_send()
            if refused is None:
                self._chunks = Chunked(self._limits.message_bytes)
                self.begin_content()
        chunks = self._chunks or Chunked(0)
        chunks.expect(int(size))
        if int(size):
            await self._receive(chunks)
        if refused is not None:
            self.reset()
            await self._refuse("BDAT", refused)
        elif self._chunks is None:
            await self.push("503 5.5.1 RCPT first")
        elif last or chunks.refused:
            await self._finish("BDAT", chunks)
        else:
            await self.push(f"250 2.0.0 {int(size)} octets taken")

    async def _may_send(self) -> Refused | None:
        """Why no content can come in now; otherwise it is counted, and has its share of the memory."""
        transaction = self.transaction
        size, recipients = transaction.size, len(transaction.recipients)
        self._share.holder = self._policy.holder(self)
        if not await self._reserve(size + size // 64 + _FRAMING if size else _UNDECLARED):
            return Refused(refusals.BUSY)
        # together, after the wait: what others were charged meanwhile counts
        refused = self._policy.check_quota(self, recipients, size)
        if refused is None:
            self._policy.charge(self, 1, recipients, size)
        return refused

    async def _receive(self, content: Dotted | Chunked) -> None:
        self._incoming = content
        try:
            await self.fill(content)
            await self.proceed()
        finally:
            self._incoming = None

    async def _finish(self, step: str, incoming: Dotted | Chunked) -> None:
        """Keep what came in, and only then say so."""
        self._keeping = True
        try:
            content = incoming.content()
            transaction = self.transaction
            if isinstance(content, Refused):
                reply: str | Refused = content
            else:
                self._policy.charge(self, 0, 0, max(0, len(content) - transaction.size))
                reply = await self._policy.accept(self, transaction, content)
            del content
            self.reset()
            await self._answer(step, reply)
        finally:
            self._keeping = False
        if reply == Refused(refusals.LINE_ENDINGS):
            self.end()  # a client whose lines end as they like may not mean as commands what follows

    async def _answer(self, step: str, reply: str | Refused) -> None:
        """How one message ended."""
        if isinstance(reply, Refused):
            await self._refuse(step, reply)
        else:
            await self.push(reply)

    # Memory for content

    async def _reserve(self, octets: int) -> bool:
        return await self._memory.take(self._share, octets, self._limits.memory_seconds)

    def _release(self) -> None:
        if self._share.octets:
            self._memory.give_back(self._share)

    def block_taken(self) -> None:
        content = self._incoming
        if content is not None and (content.held > self._share.octets or (content.refused and self._share.octets)):
            self.stir()

    async def proceed(self) -> None:
        """Content that is larger than was said takes more memory, or waits for it; what is dropped needs none."""
        content = self._incoming
        if content is None:
            return
        while content.held > self._share.octets:
            if not await self._reserve(max(self._share.octets // 2, _UNDECLARED)):
                content.drop(refusals.BUSY)
        if content.refused:
            self._release()


def _international(path: PathCommand, allowed: bool) -> Refused | None:
    """RFC 6531 §3.5: an address outside ASCII that was not announced, or that no mailbox or next hop takes."""
    if path.international and not (allowed and path.deliverable):
        return Refused(refusals.ADDRESS_OUTSIDE_ASCII)
    return None
