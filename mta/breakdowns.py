"""The brake on a message that breaks its own handling: by a bug that stops every attempt, or by taking the process
along.

A breakdown is counted until an attempt ends in good order; after `BREAKDOWNS` in a row the delivery is parked. A
process may be killed for any reason, and whatever was in hand is then a suspect like the one to blame: from the second
crash running on, suspects are handled one at a time, so that only the one that kills goes on counting.

Everything here runs inside the spool's transactions.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, select

from mta.message import DeliveryState
from mta.tables import breakdowns, deliveries

BREAKDOWNS = 8
"""In a row, after which a delivery is parked: about three hours of bugs with the schedule's own pauses, or 20 minutes
of crashes, each of which stops the whole gateway."""

_SUSPECT_CRASHES = 2


def suspects(connection: Connection) -> list[str]:
    """Delivery ids of those that were in hand at each of the last crashes."""
    return list(connection.scalars(select(breakdowns.c.delivery_id).where(breakdowns.c.crashes >= _SUSPECT_CRASHES)))


def in_hand(connection: Connection, suspected: Collection[str], now: float, holding: Collection[str]) -> bool:
    """Whether somebody works on one of these deliveries; `holding`: ids the caller works on."""
    if not set(suspected).isdisjoint(holding):
        return True
    leased = select(deliveries.c.id).where(
        deliveries.c.id.in_(suspected),
        deliveries.c.state == DeliveryState.READY.value,
        deliveries.c.lease.is_not(None),
        deliveries.c.due > now,
    )
    return connection.execute(leased.limit(1)).first() is not None


def note(connection: Connection, delivery_id: str, times: int, crashes: int) -> None:
    """So many breakdowns in a row, of which the last `crashes` ended the process."""
    forget(connection, delivery_id)
    connection.execute(breakdowns.insert(), {"delivery_id": delivery_id, "times": times, "crashes": crashes})


def forget(connection: Connection, delivery_id: str) -> None:
    """An attempt ended in good order, or the delivery did."""
    connection.execute(delete(breakdowns).where(breakdowns.c.delivery_id == delivery_id))


def pause_after(crashes: int) -> float:
    """Seconds until what was in hand at so many crashes running is tried again: 0, 1, 4, 16, ..."""
    return 0.0 if crashes < _SUSPECT_CRASHES else 4.0 ** (crashes - _SUSPECT_CRASHES)
