"""When the sender of a mail is told what became of it (RFC 3461 §4.1, §5.2)."""

from __future__ import annotations

from mta.any_delivery import AnyDelivery
from mta.delivery import EndedDelivery
from mta.message import DeliveryState, Origin, TargetKind
from mta.smtp.address import valid_notify
from mta.smtp.target import notify_conditions
from mta.spool import RELAYED

FAILED, DELIVERED, RELAYED_ON, DELAYED = "failed", "delivered", "relayed", "delayed"
"""Actions of RFC 3464 §2.3.3 that we report."""
_MAIL = (TargetKind.MAILBOX, TargetKind.SMTP)
_FOR_A_READER = (TargetKind.MAILBOX, TargetKind.FOLDER)


def action_of(delivery: EndedDelivery | AnyDelivery) -> str | None:
    """What the sender is to be told at its end, None for nothing."""
    if isinstance(delivery, EndedDelivery):
        delivery = AnyDelivery.of(delivery)
    if delivery.state is DeliveryState.READY or not _can_be_told(delivery):
        return None
    asked = notify_conditions(delivery.notify, delivery.origin)
    if delivery.state is not DeliveryState.DELIVERED:
        return FAILED if "FAILURE" in asked else None
    if "SUCCESS" not in asked or delivery.code == RELAYED:
        return None
    return DELIVERED if delivery.target is TargetKind.MAILBOX else RELAYED_ON


def concerns_its_reader(delivery: EndedDelivery) -> bool:
    """Whether a collected mail did not get where its reader, or the reader's software, finds it. Nobody else can be
    told: no operator vouches for who sent it."""
    return delivery.origin is Origin.COLLECTED and not delivery.delivered and delivery.target in _FOR_A_READER


def wants_warning(delivery: AnyDelivery) -> bool:
    """Whether the sender may be told that it takes long: unless conditions were named and DELAY was not among them, or
    nobody knows who the sender really is (`mta.dsn`)."""
    if delivery.origin is Origin.COLLECTED or not _can_be_told(delivery):
        return False
    return not valid_notify(delivery.notify) or "DELAY" in delivery.notify.upper().split(",")


def _can_be_told(delivery: AnyDelivery) -> bool:
    return bool(delivery.sender) and delivery.origin is not Origin.SYSTEM and delivery.target in _MAIL
