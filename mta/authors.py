"""Whether a message is from whom its From field says: what the trust space demands, and what happens otherwise.

Inside the trust space an operator's certificate says for which domains it speaks, and MAIL FROM is held to that at
once. The From field, which is all a reader sees, must be proved as well, by one of three: the operator that hands the
mail over is listed for the author's domain; the author's domain signed it with DKIM (exactly that domain: everybody's
lie below one parent here); or the author signed it with S/MIME. Anything else could be written by any operator in
anybody's name, so it is refused, or marked where the configuration says so. Never refused is a delivery notification of
a mail system, whose host need not be a domain of the list: losing it would hide a failure, and it is believed for
nothing else.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum

from mta import refusals
from mta.evaluation import Evaluator, Signed
from mta.header import author_of
from mta.message import Message, Origin
from mta.smtp.address import domain_of
from smime import MessageVerdict, SignatureResult
from smime.mime import Entity, MimeError
from trust.refusals import Refused

_MAY_BE_SMIME = re.compile(rb"pkcs-?7|\.p7[a-z]|tnef|winmail", re.IGNORECASE)
_MAIL_SYSTEM = re.compile(r"(?:postmaster|mailer-daemon|microsoftexchange[0-9a-f]{32})@", re.IGNORECASE)
"""RFC 5321 §4.5.1 reserves the first, custom the others."""


class Proof(Enum):
    """What proves the author."""

    ACCOUNT = "account"
    """One of our own people, logged in, or this gateway."""
    OPERATOR = "operator"
    SMIME = "smime"
    DKIM = "dkim"
    NONE = "none"


class AuthorCheck:
    """For the operators' door and for the open stage. Thread-safe but for `signed`."""

    def __init__(
        self, speaks_for: Callable[[str, str], bool], evaluator: Evaluator, *, refuse_unproven: bool = True
    ) -> None:
        """`speaks_for(peer, domain)`: whether the operator of that name, as the spool keeps it, is listed for that
        lower-case domain; may block."""
        self._speaks_for = speaks_for
        self._evaluator = evaluator
        self._refuse = refuse_unproven
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """Mails from outside that were opened, by the proof of their author, or `refused`."""

    def doubt(self, peer: str, sender: str, header: Entity, content: bytes) -> Refused | None:
        """At the door, before anything was decrypted: why this author cannot be believed, unless DKIM proves it
        (`signed`). None also for what may be S/MIME, which is judged when it is opened. May block."""
        author = author_of(header)
        if not self._refuse or author is None or self._speaks_for(peer, domain_of(author)):
            return None
        if _is_mail_system(sender, author, header) or _MAY_BE_SMIME.search(content):
            return None
        return Refused(refusals.AUTHOR_UNPROVEN, domain_of(author))

    async def signed(self, content: bytes) -> Refused | None:
        """What remains of a `doubt` once DKIM has been asked: None, the doubt, or "not now"."""
        match await self._evaluator.signed_by_author(content, datetime.now(UTC)):
            case Signed.YES:
                return None
            case Signed.UNKNOWN:
                return Refused(refusals.AUTHOR_UNKNOWN_NOW)
            case Signed.NO:
                return Refused(refusals.AUTHOR_UNPROVEN)

    def judge(
        self, message: Message, verdict: MessageVerdict, header: Entity, wire_author: str, signed: Signed
    ) -> Proof | Refused:
        """When the message is open: `header` is what will be read, `wire_author` what DKIM signed. May block."""
        if message.origin not in (Origin.OPERATOR, Origin.COLLECTED):
            return Proof.ACCOUNT
        judged = self._judge(message, verdict, header, wire_author, signed)
        with self._lock:
            self.counts["refused" if isinstance(judged, Refused) else judged.value] += 1
        return judged

    def _judge(
        self, message: Message, verdict: MessageVerdict, header: Entity, wire_author: str, signed: Signed
    ) -> Proof | Refused:
        author = author_of(header)
        if author is not None:
            if message.origin is Origin.OPERATOR and self._speaks_for(message.peer, domain_of(author)):
                return Proof.OPERATOR
            if verdict.signature is SignatureResult.VALID:
                return Proof.SMIME
            if wire_author == author and signed is Signed.YES:
                return Proof.DKIM
        if message.origin is Origin.COLLECTED or not self._refuse:
            return Proof.NONE
        if author is not None and _is_mail_system(message.sender, author, header):
            return Proof.NONE
        if author is not None and wire_author == author and signed is Signed.UNKNOWN:
            return Refused(refusals.AUTHOR_UNKNOWN_NOW, domain_of(author))
        return Refused(refusals.AUTHOR_UNPROVEN, "" if author is None else domain_of(author))


def _is_mail_system(sender: str, author: str, header: Entity) -> bool:
    if sender or _MAIL_SYSTEM.match(author) is None:
        return False
    try:
        return header.content_type().media_type == "multipart/report"
    except MimeError:
        return False
