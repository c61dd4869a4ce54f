"""What goes into the spool and what comes out of it.

A `Submission` becomes one message and one delivery per recipient; a worker gets a delivery as a `Lease`; `trace` reads
`DeliveryRecord` and `Step`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mta.message import DeliveryState, Origin, TargetKind
from mta.priority import Priority
from trust.refusals import Refused


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """One recipient of a submission."""

    recipient: str
    target: TargetKind
    refused: Refused | None = None
    """Already known to be impossible: stored as failed at once, so that the trace and the receipt can say why."""
    notify: str = ""
    """DSN conditions asked for, RFC 3461 §4.1: `NEVER` or a list of `SUCCESS,FAILURE,DELAY`; empty: not said."""
    original_recipient: str = ""
    """ORCPT as received, `rfc822;` and xtext (RFC 3461 §4.2)."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One message as a door accepts it."""

    origin: Origin
    sender: str
    peer: str
    content: bytes
    content_type: str
    deliveries: tuple[NewDelivery, ...]
    dedup_key: str
    """At most 128 characters; the same key is the same submission, for ever."""
    message_id_domain: str
    reply: bytes = b""
    """What the sender is answered, said again to a repeat."""
    external_id: str = ""
    """The sender's own identifier (MSH-10), scoped by `peer`."""
    envelope_id: str = ""
    """ENVID as received, xtext (RFC 3461 §4.4)."""
    flags: tuple[str, ...] = ()
    message_id: str = ""
    """Message-ID with angle brackets when the content already has one; else one is made for each delivery."""
    priority: Priority | None = None
    """None: what `mta.priority` finds in the content and the number of recipients."""


@dataclass(frozen=True, slots=True)
class Accepted:
    spool_id: str
    message_ids: tuple[str, ...]
    """One per delivery, in the order of the submission."""
    repeated_external_id: bool
    """The peer used this identifier before, for another content."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    spool_id: str
    reply: bytes
    """What was answered the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDelivery:
    """What was kept of one recipient and of its message, whatever happens to it."""

    delivery_id: str
    spool_id: str
    message_id: str
    origin: Origin
    target: TargetKind
    sender: str
    recipient: str
    peer: str
    content_type: str
    accepted_at: float
    content_blob: str
    prepared_blob: str | None
    envelope_id: str
    notify: str
    original_recipient: str
    flags: tuple[str, ...]
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(KeptDelivery):
    """The right to work on one delivery until `expires`."""

    token: str
    destination: str
    attempts: int
    """Attempts made before this one."""
    counts_from: float
    """From when on its time runs: acceptance, or the last time that an operator gave it another chance."""
    breakdowns: int
    """Attempts in a row, up to now, that broke down: the process died with them, or a bug ended them."""
    unanswered: int = 0
    """Attempts that sent it whole and were never answered (`mta.message.MAYBE_TAKEN`)."""
    expires: float
    """UNIX time, seconds."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened, for `trace`. Names no person."""

    at: float
    node: str
    delivery_id: str
    """Empty when the step concerns the whole message."""
    kind: str
    """accept, attempt, prepare, release, interrupted, delivered, deferred, failed, parked or answered; of an operator
    (`mta.queue`): held, freed, hurried, reopened, redirected; of the purge job (`mta.retention`): purged; of what is
    told to senders (`mta.dsn`, `mta.overdue`): told, untold, warned, missing; of what other operators and readers say
    (`mta.notices`): heard, repeated, contradicted; of the quarantine: quarantined, released, dropped; of the follow-up
    (`mta.follow_up`): unread, handed-on, untold, displayed, seen, removed, acknowledged."""
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """What is known of one delivery."""

    delivery_id: str
    spool_id: str
    target: TargetKind
    recipient: str
    message_id: str
    state: DeliveryState
    attempts: int
    due: float
    code: str
    detail: str
    facts: Mapping[str, str]
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedDelivery(KeptDelivery):
    """A delivery that has come to its end (`mta.reporting`)."""

    external_id: str
    ended_at: float
    delivered: bool
    """False when it failed or was parked: it will not be delivered."""
    code: str
    """Catalogue code of the refusal; `relayed` when it was delivered to a next hop that reports in our place."""
    detail: str


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """What is known of one accepted message as a whole."""

    spool_id: str
    origin: Origin
    content_type: str
    size: int
    """Bytes accepted."""
    accepted_at: float
    external_id: str
    flags: tuple[str, ...]
    purged_at: float | None = None
    """When its trace was purged (`mta.retention`): deliveries and steps are gone."""


def destination_of(target: TargetKind, recipient: str) -> str:
    """What deliveries share when one being slow says something about the others; it stands in the clear."""
    if target is TargetKind.SMTP:
        return f"smtp:{recipient.rpartition('@')[2].lower()}"[:300]
    if target is TargetKind.MLLP:
        return f"mllp:{recipient}"[:300]
    return str(target.value)
