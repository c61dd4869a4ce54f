"""The words of the road: what travels, to whom, and how it ended.

Contracts of the design live here as types: `Stage` (where content is enriched, protected, opened, screened) and
`Target` (where a message ends). `mta` itself never parses CDA, XDM or HL7: `bridges` implements the protocols and
`config/wiring.py` joins them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from trust.refusals import Refused

MAYBE_TAKEN = "it may have been taken all the same"
"""How the detail of a `Deferred` ends (with `mta.refusals.CONNECTION_LOST`) that was sent whole and never answered. The
spool counts these (`Message.unanswered`)."""


class Origin(Enum):
    """By which door a message came in."""

    MLLP = "mllp"
    SUBMISSION = "submission"
    OPERATOR = "operator"
    """Port 25 of the trust space: another operator, mutually authenticated."""
    LMTP = "lmtp"
    """A mail server on this machine or in the same house that hands over its people's mail."""
    COLLECTED = "collected"
    """An upstream mailbox we collect over IMAP; treated like what another operator hands over."""
    SYSTEM = "system"
    """Written by this gateway: receipts."""


class TargetKind(Enum):
    """Where one delivery ends."""

    SMTP = "smtp"
    MAILBOX = "mailbox"
    DOSSIER = "dossier"
    MLLP = "mllp"
    """A sending system's own listener, for acknowledgements; the recipient is the partner's name."""
    FOLDER = "folder"
    """A folder from which practice software takes what arrived, beside the recipient's mailbox."""


class DeliveryState(Enum):
    READY = "ready"
    """Waiting for its next attempt; under a lease while somebody works on it."""
    DELIVERED = "delivered"
    FAILED = "failed"
    PARKED = "parked"
    """Its handling broke down time and again (a bug, or a crash of the process): set aside for the operator to look at.
    An end like the others: the sender is told that it was not delivered."""


class Phase(Enum):
    """The steps between accept and route, in this order for each direction."""

    ENRICH = "enrich"
    PROTECT = "protect"
    OPEN = "open"
    SCREEN = "screen"


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery's content on its way through the stages."""

    message_id: str
    """RFC 5322 Message-ID with angle brackets, fixed at acceptance so that every retry and every node says the same."""
    spool_id: str
    delivery_id: str
    origin: Origin
    sender: str
    """Reverse-path (RFC 5321 §4.4), empty for a null sender."""
    recipient: str
    """Forward-path."""
    content: bytes
    content_type: str
    """`message/rfc822` (CRLF lines) or `application/hl7-v2`."""
    accepted_at: float
    """UNIX time of acceptance, seconds."""
    peer: str = ""
    """Who handed it over, as authenticated by the door: an operator's DN, an account, a partner's name."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What stages found out for the trace (`verdict`, `warning.*`); no clinical content, no identity."""
    flags: tuple[str, ...] = ()
    """What was said of the whole message when it was accepted (`mta.delivery.Submission.flags`)."""
    repeated: bool = False
    """An earlier attempt may have reached the destination without our knowing: look before delivering again."""
    unanswered: int = 0
    """Times that it was sent whole and never answered (`MAYBE_TAKEN`), whichever node sent it."""


class Stage(Protocol):
    """One job on a message's content. Idempotent: killed anywhere, it runs again from the accepted content."""

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """The message with new content, the same message when there is nothing to do, or why it cannot go on.

        Never raises on bad input. CPU work runs in threads or processes, never on the event loop.
        A `Refused` whose refusal is not permanent is tried again later.
        """
        ...


@dataclass(frozen=True, slots=True)
class Delivered:
    """The destination has taken responsibility."""

    detail: str = ""
    """The destination's own reply, kept for the trace."""
    reports: bool = False
    """The destination took over the duty to report (it speaks DSN, RFC 3461 §5.2.1): its receipt tells, not ours."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now: tried again when the schedule says."""

    reason: Refused
    tried: bool = True
    """False: nothing was asked of the destination, which is known to be down. No attempt is counted."""
    retry_after: float = 0.0
    """Seconds to wait at the least before the next attempt, whatever the schedule says; no more than
    `mta.schedule.LONGEST_ASKED`. Kept with the delivery: it holds after a restart and on every node."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Never: the sender is told."""

    reason: Refused


Outcome = Delivered | Deferred | Failed


class Target(Protocol):
    """Where a delivery ends."""

    async def deliver(self, message: Message) -> Outcome:
        """Hand over `message.content`. Never raises on what the destination does; a bug may raise, and is retried.

        Called again after a crash with exactly the same content and `delivery_id`: a target that can recognise the
        second call must not deliver twice.
        """
        ...


@runtime_checkable
class PacedTarget(Target, Protocol):
    """A target that knows which of its destinations are worth trying now."""

    def resting(self) -> Collection[str]:
        """Destinations (`mta.delivery.destination_of`) that are down and left alone: what there is for them stays on
        disk, and none of it counts an attempt."""
        ...

    def probing(self) -> Collection[str]:
        """Destinations that were down and rest no longer: one delivery at a time goes ahead."""
        ...

    def places(self, destination: str) -> int | None:
        """Deliveries that may be tried at the same time: 0 for one that rests, 1 for one that is being probed, None
        when the worker's own limit is enough."""
        ...
