"""One upstream mailbox as the operator describes it: where it is, how we sign in, what becomes of what we took."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from mta.smtp.address import is_address

_PRINTABLE = re.compile(r"[ -~]+")


class SignIn(Enum):
    """How we say who we are."""

    PASSWORD = "password"  # noqa: S105 - no password
    TOKEN = "token"  # noqa: S105
    """XOAUTH2 with an access token."""
    CERTIFICATE = "certificate"
    """SASL EXTERNAL (RFC 4422 appendix A), or nothing where the server greets us as known (PREAUTH)."""


class SecretUnavailableError(Exception):
    """There is no password or token now: a file cannot be read, or who gives tokens does not answer. The text is a
    short stable name."""


class After(Enum):
    """What is done upstream with a message we have."""

    FLAG = "flag"
    MOVE = "move"


class Stays(Enum):
    """What may stay upstream, marked or moved."""

    EVERYTHING = "everything"
    ENCRYPTED = "encrypted"
    """What only our key opens; nothing that can be read there but the header of such mail."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class CollectorOptions:
    """One upstream mailbox. Raises ValueError for what could not be said to a server safely."""

    name: str
    """Of this collection, stable: it is part of the dedup key."""
    host: str
    user: str
    """May be empty with a certificate: the server then knows from it alone."""
    password: str = field(repr=False)
    """What `secret` gives instead when that is set."""
    deliver_to: str
    """The local address that gets everything."""
    context: ssl.SSLContext
    """Must verify the server and its name; holds our certificate where the server wants one."""
    port: int = 993
    folder: str = "INBOX"
    after: After = After.FLAG
    move_to: str = "Relais"
    """Made when it is missing; for MOVE."""
    stays: Stays = Stays.EVERYTHING
    """What is left upstream of what we have; the rest is removed there, this is treated as `after` says."""
    to_folder: bool = False
    """Also a delivery to the folder of the practice software (`TargetKind.FOLDER`), on its own: neither waits for the
    other."""
    max_message_bytes: int = 25 * 1024 * 1024
    hops: int = 30
    trace_host: str = ""
    """Our own name in Received fields: what was here before for the same mailbox goes round. Empty: not looked for."""
    search_window: int = 100_000
    """Messages asked about at once."""
    idle_seconds: float = 540.0
    """IDLE is given again after this; servers and NAT forget silent connections (RFC 2177: at most 29 minutes)."""
    poll_seconds: float = 60.0
    """Between two looks where the server has no IDLE."""
    command_seconds: float = 60.0
    """Without any answer to a command."""
    message_seconds: float = 900.0
    """For one whole message, however slowly it trickles."""
    first_pause: float = 2.0
    longest_pause: float = 300.0
    login_pause: float = 900.0
    """After a refused login: asking more often would lock the account."""
    sign_in: SignIn = SignIn.PASSWORD
    secret: Callable[[], str] | None = field(default=None, repr=False)
    """Gives the password or token, anew for each login; may block; raises `SecretUnavailableError`."""

    def __post_init__(self) -> None:
        if self.context.verify_mode is not ssl.CERT_REQUIRED or not self.context.check_hostname:
            raise ValueError("the server's certificate and name must be verified")
        if not is_address(self.deliver_to):
            raise ValueError("deliver_to is no address")
        if not all(_PRINTABLE.fullmatch(text) for text in (self.name, self.folder, self.move_to)):
            raise ValueError("names and folders are printable ASCII")
        if not (self.user or self.sign_in is SignIn.CERTIFICATE):
            raise ValueError("a user must be named")
        if any(ord(c) < 32 for c in self.user + self.password):
            raise ValueError("user and password have no control characters")
        if self.search_window < 1:
            raise ValueError("a window has at least one message")
        if not 0 < self.idle_seconds < 29 * 60:
            raise ValueError("IDLE must be given again within 29 minutes")


@dataclass(frozen=True, slots=True)
class CollectorStatus:
    """What happened since the start, for metrics."""

    connected: bool = False
    collected: int = 0
    repeated: int = 0
    """Seen again and recognised."""
    removed: int = 0
    """Removed upstream, where they were not to stay."""
    oversized: int = 0
    refused: int = 0
    """Left upstream for another reason than size."""
    trouble: str = ""
    """Why it does not collect now: a short stable name."""
