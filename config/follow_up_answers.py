"""What is asked and said about reading on a running gateway: the calls of `relais reading`, synchronous, off the
loop, and what monitoring asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from mta.follow_up import FollowUp, Unread
from trust.refusals import Refused

log = structlog.get_logger(__name__)

Request = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FollowUpAnswers:
    follow: FollowUp

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        return {"reading.unread": self.unread, "reading.acknowledge": self.acknowledge}

    def unread(self, request: Request) -> Any:
        days = request.get("days")
        sender = str(request.get("sender") or "")
        listed = self.follow.unread(sender, None if days is None else float(days))
        return {
            "unread": [_shown(each) for each in listed.found],
            "more": listed.more,
            "followed": not sender or sender.lower() in self.follow.senders,
        }

    def acknowledge(self, request: Request) -> Any:
        done = self.follow.acknowledge(str(request["reference"]), str(request["by"]), str(request["reason"]))
        if isinstance(done, Refused):
            return done
        return {"reference": done, "by": self.follow.acknowledged_by(done)}


class FollowUpCollector(Collector):
    """Critical results that nobody has read; read anew at every scrape."""

    def __init__(self, follow: FollowUp) -> None:
        self._follow = follow

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: registering must not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            overdue = self._follow.overdue()
        except SQLAlchemyError as error:
            log.error("metrics.follow-up", exc_info=error)
            return
        yield GaugeMetricFamily(
            "relais_critical_unread",
            "Critical results unread past their deadline, whose sender was told.",
            value=overdue,
        )


def _shown(each: Unread) -> dict[str, Any]:
    """For the service that sent it: addresses, nothing of the content."""
    delivery = each.delivery
    return {
        "reference": delivery.delivery_id,
        "message_id": delivery.message_id,
        "external_id": delivery.external_id,
        "sender": delivery.sender,
        "recipient": delivery.recipient,
        "sent": _moment(delivery.accepted_at),
        "delivery": delivery.state.value,
        "critical": each.critical,
        "reading": each.reading.value,
        "due": "" if each.due is None else _moment(each.due),
    }


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
