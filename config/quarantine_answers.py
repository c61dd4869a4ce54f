"""What is decided about the quarantine on a running gateway: the calls of `relais quarantine`, synchronous, off the
loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mta.quarantine import Held, Quarantine, Quarantined
from trust.refusals import Refused

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QuarantineAnswers:
    quarantine: Quarantine

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        return {
            "quarantine.list": self.list,
            "quarantine.show": self.show,
            "quarantine.release": self.release,
            "quarantine.drop": self.drop,
        }

    def list(self, request: Request) -> Any:
        return [_shown(each) for each in self.quarantine.list(None if request.get("every") else Held.HELD)]

    def show(self, request: Request) -> Any:
        found = self.quarantine.show(str(request["reference"]))
        return found if isinstance(found, Refused) else _shown(found)

    def release(self, request: Request) -> Any:
        released = self.quarantine.release(str(request["reference"]), str(request["by"]), str(request["reason"]))
        return released if isinstance(released, Refused) else {"spool_id": released}

    def drop(self, request: Request) -> Any:
        refused = self.quarantine.drop(str(request["reference"]), str(request["by"]), str(request["reason"]))
        return refused if refused is not None else {}


def _shown(each: Quarantined) -> dict[str, Any]:
    """For whoever may decide: addresses, nothing of the content."""
    delivery = each.delivery
    return {
        "reference": delivery.delivery_id,
        "spool_id": delivery.spool_id,
        "message_id": delivery.message_id,
        "origin": delivery.origin.value,
        "sender": delivery.sender,
        "recipient": delivery.recipient,
        "peer": delivery.peer,
        "accepted": _moment(delivery.accepted_at),
        "held": _moment(each.held_at),
        "code": delivery.code,
        "found": delivery.detail,
        "state": each.state.value,
        "decided": "" if each.decided_at is None else _moment(each.decided_at),
        "by": each.by,
        "reason": each.reason,
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
