"""One delivery in whatever state, and steps that others than the spool add to its trace.

What tells people about deliveries (`mta.dsn`, `mta.overdue`, `mta.quarantine`) looks at those that wait as well as at
those that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select

from mta.delivery import EndedDelivery, KeptDelivery
from mta.message import DeliveryState
from mta.spool_reading import SpoolReader, with_message
from mta.tables import deliveries, steps


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyDelivery(KeptDelivery):
    """A delivery, waiting or ended."""

    external_id: str
    state: DeliveryState
    code: str
    """Of the last refusal; `relayed` as in `mta.delivery.EndedDelivery`."""
    detail: str
    at: float
    """When it ended; when it was looked at, if it has not."""

    @classmethod
    def of(cls, ended: EndedDelivery) -> AnyDelivery:
        state = DeliveryState.DELIVERED if ended.delivered else DeliveryState.FAILED
        kept: dict[str, Any] = {name: getattr(ended, name) for name in KeptDelivery.__dataclass_fields__}
        more: dict[str, Any] = {
            "external_id": ended.external_id,
            "code": ended.code,
            "detail": ended.detail,
            "at": ended.ended_at,
        }
        return cls(**kept, **more, state=state)


class AnyReader:
    """Deliveries by id, by message or by any condition. Thread-safe; raises what the database raises."""

    def __init__(self, spool: SpoolReader) -> None:
        self._spool = spool

    def one(self, delivery_id: str) -> AnyDelivery | None:
        """None when there is none, or its envelope is damaged."""
        return next(iter(self.those(with_message().where(deliveries.c.id == delivery_id))), None)

    def of_message(self, spool_id: str) -> list[AnyDelivery]:
        """All deliveries of one message, in the order of its recipients."""
        return self.those(with_message().where(deliveries.c.spool_id == spool_id).order_by(deliveries.c.ordinal))

    def those(self, query: Select[Any]) -> list[AnyDelivery]:
        """What a query made from `mta.spool_reading.with_message` finds."""
        spool = self._spool  # the same package: what unseals an envelope stands there once
        rows: Sequence[Any] = spool._database.read(lambda connection: connection.execute(query).all())
        now = spool._clock()
        return [
            AnyDelivery(
                **kept,
                external_id=row.message_external_id,
                state=DeliveryState(row.state),
                code=row.code,
                detail=row.detail,
                at=now if row.ended_at is None else row.ended_at,
            )
            for row in rows
            if (kept := spool._kept(row)) is not None
        ]


def add_step(connection: Connection, node: str, delivery: KeptDelivery, kind: str, at: float, detail: str = "") -> None:
    """One more line of a delivery's trace, in the caller's transaction; `detail` names no person."""
    words = "".join(c if c.isprintable() else "?" for c in detail)[:500]
    row = {"spool_id": delivery.spool_id, "delivery_id": delivery.delivery_id, "at": at, "node": node}
    connection.execute(steps.insert(), [row | {"kind": kind, "code": "", "detail": words}])
