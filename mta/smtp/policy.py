"""What an SMTP session and its door say to each other: what is offered, what was said, and what the door decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Protocol

from mta.message import TargetKind
from mta.smtp.limits import Limits
from trust.refusals import Refused

if TYPE_CHECKING:
    from mta.smtp.session import DoorSession


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a door offers on one port."""

    hostname: str
    limits: Limits
    mechanisms: tuple[str, ...] = ()
    """Of `mta.smtp.sasl.MECHANISMS`; empty: nobody logs in here. EXTERNAL is offered to who showed a certificate."""
    implicit_tls: bool = False
    """TLS before everything (RFC 8314 §3.3) instead of STARTTLS."""
    requires_tls: bool = True
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """From there a header of the PROXY protocol comes first, and is believed."""


@dataclass(frozen=True, slots=True)
class RecipientRequest:
    """One accepted RCPT."""

    address: str
    target: TargetKind
    notify: str
    orcpt: str


@dataclass(slots=True)
class Transaction:
    """What was said since MAIL."""

    sender: str | None = None
    """None before MAIL; empty for the null reverse-path."""
    ret: str = ""
    envid: str = ""
    recipients: list[RecipientRequest] = field(default_factory=list)
    size: int = 0
    """Octets of content as declared (RFC 1870); 0: not said."""
    require_tls: bool = False
    """RFC 8689."""
    utf8: bool = False
    """Its header may be UTF-8 (RFC 6531)."""
    vouched: bool = False
    """Something else than the connection proved its author."""


Against = Callable[[Sequence[str]], Refused | None]
"""Why a content that was looked at cannot go to these addresses together. May block; never raises."""


class ContentJudge(Protocol):
    """What is said against the content of a mail before it is kept (`bridges` knows what is in it)."""

    def __call__(self, content: bytes) -> Against | Refused:
        """Looks at a content in CRLF lines, once for all who are to read it. Refused is what goes to nobody. May block;
        never raises on bad input."""
        ...


@dataclass(frozen=True, slots=True)
class SubmissionRules:
    """What a door for our own people knows besides who may send as whom. The functions may block."""

    judge: ContentJudge | None = None
    too_large: Callable[[str, int], Refused | None] = lambda address, octets: None
    """Why a mail of so many octets, which may be protected already, does not reach that address (`mta.sizes`)."""
    nearest: Callable[[str], str] = lambda address: ""
    """A sentence in French with the address that may have been meant, for one outside the trust space; empty for
    none."""


class Policy(Protocol):
    """What a door decides. All methods run on the event loop and take what blocks to threads."""

    async def admit(self, session: DoorSession) -> Refused | None:
        """Told of every connection once its client's address is known."""
        ...

    async def authenticate(self, session: DoorSession, login: str, password: str) -> Refused | None: ...

    async def authenticate_token(self, session: DoorSession, login: str, token: str) -> Refused | None:
        """`login` may be empty."""
        ...

    async def authenticate_certificate(self, session: DoorSession, login: str) -> Refused | None:
        """By the certificate of the TLS handshake; `login` may be empty."""
        ...

    async def check_sender(self, session: DoorSession, sender: str) -> Refused | None: ...

    async def check_recipient(self, session: DoorSession, recipient: str) -> TargetKind | Refused: ...

    def check_quota(self, session: DoorSession, recipients: int, octets: int) -> Refused | None:
        """Whether one more message of so many recipients and octets is within what the client may."""
        ...

    def holder(self, session: DoorSession) -> str:
        """Who hands over mail: the name under which its share of the memory is counted."""
        ...

    def charge(self, session: DoorSession, messages: int, recipients: int, octets: int) -> None:
        """So much was used."""
        ...

    async def accept(self, session: DoorSession, transaction: Transaction, content: bytes) -> str | Refused:
        """The positive reply to the final dot, only when the message is safely kept; or why it is not."""
        ...

    def words(self, refused: Refused) -> str:
        """The reply that says so to who is at the other end."""
        ...

    def refused(self, session: DoorSession, step: str, refused: Refused) -> float:
        """Told of every refusal of the catalogue, before the client is; `step` is the SMTP command. Returns the seconds
        the reply is to wait."""
        ...
