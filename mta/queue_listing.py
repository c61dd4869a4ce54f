"""The queue as an operator looks at it: how much waits where and why, a page at a time, at once however long it is.

A page is found by one index and goes on where the last one ended; what the index cannot tell is looked at row by row.
Nothing here names a person: recipients are shown one delivery at a time (`mta.queue.Queue.show`).
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, text, tuple_

from mta.claiming import WAITING
from mta.message import DeliveryState, TargetKind
from mta.priority import Priority
from mta.tables import deliveries, held_destinations, messages

WAITS = "waiting"
HELD = "held"
STATES = (WAITS, HELD, DeliveryState.FAILED.value, DeliveryState.PARKED.value, DeliveryState.DELIVERED.value)
"""What can be listed. A delivery that is held is not among the waiting; what waits for a held destination is."""
_TROUBLED = text("mta_deliveries.code <> '' AND mta_deliveries.state <> 'delivered'")
_IS_HELD = text("mta_deliveries.held_at IS NOT NULL")
_LONGEST_PAGE = 1000
_LOOK_BACK = 200_000


class CursorError(ValueError):
    """A page was asked for that no listing has led to."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which deliveries. Empty fields choose nothing."""

    state: str = WAITS
    """One of `STATES`."""
    destination: str = ""
    """`smtp:domain`, `mailbox`, `dossier`, `mllp:partner`."""
    code: str = ""
    """Catalogue code of the last refusal."""
    accepted_before: float | None = None
    """UNIX time, seconds."""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"a state is one of {', '.join(STATES)}")


@dataclass(frozen=True, slots=True)
class Listed:
    """One delivery in the list."""

    delivery_id: str
    spool_id: str
    target: TargetKind
    destination: str
    state: DeliveryState
    priority: Priority
    accepted_at: float
    """UNIX time of its message's acceptance, seconds."""
    attempts: int
    due: float
    """UNIX time of the next try; while an attempt is under way, the end of its lease."""
    under_way: bool
    held_at: float | None
    code: str
    message_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    deliveries: tuple[Listed, ...]
    following: str
    """What to ask for next; empty when this was the last page."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What waits for one destination."""

    destination: str
    waiting: int
    next_due: float
    held: bool


def page(connection: Connection, wanted: Wanted, limit: int = 50, after: str = "") -> Page:
    """At most `limit` deliveries and where the next page begins. Raises `CursorError`.

    What waits comes by destination, turn and next try; what is held by destination, the oldest first; what failed or
    was parked by its code, the oldest first; what was delivered the latest first, of the last 200,000 deliveries only.
    """
    order, condition, latest_first = _order(wanted)
    query = select(
        deliveries,
        messages.c.accepted_at.label("accepted_at"),
        messages.c.size.label("size"),
    ).join_from(deliveries, messages)
    ids = select(deliveries.c.id).where(*condition)
    begins = None
    if wanted.accepted_before is not None:
        # an id begins with the milliseconds of its acceptance
        begins = deliveries.c.id < f"{max(int(wanted.accepted_before * 1000), 0):012x}"
        ids = ids.where(begins)
    if after:
        here, there = tuple_(*order), tuple_(*_position(after, order))
        ids = ids.where(here < there if latest_first else here > there)
    if latest_first:
        ids = ids.where(deliveries.c.id > _recent(begins))
    limit = min(max(limit, 1), _LONGEST_PAGE)
    sorting = [column.desc() for column in order] if latest_first else list(order)
    chosen = list(connection.scalars(ids.order_by(*sorting).limit(limit + 1)))
    rows = connection.execute(query.where(deliveries.c.id.in_(chosen[:limit])).order_by(*sorting)).all()
    following = ""
    if len(chosen) > limit and rows:
        following = _cursor([rows[-1]._mapping[column.name] for column in order])
    return Page(tuple(listed(row) for row in rows), following)


def lanes(connection: Connection, limit: int = 20) -> list[Lane]:
    """The destinations most waits for, the fullest first; held ones too when nothing waits for them."""
    waiting = func.count().label("waiting")
    query = (
        select(deliveries.c.destination, waiting, func.min(deliveries.c.due).label("due"))
        .where(WAITING)
        .group_by(deliveries.c.destination)
        .order_by(waiting.desc(), deliveries.c.destination)
        .limit(limit)
    )
    held = set(connection.scalars(select(held_destinations.c.destination)))
    found = [Lane(row.destination, row.waiting, row.due, row.destination in held) for row in connection.execute(query)]
    others = sorted(held - {lane.destination for lane in found})
    return found + [Lane(name, _waiting(connection, name), 0.0, held=True) for name in others]


def held_counts(connection: Connection) -> tuple[int, int]:
    """Deliveries that wait for a person to release them, and destinations."""
    ready = deliveries.c.state == DeliveryState.READY.value
    number = select(func.count()).select_from(deliveries).where(_IS_HELD, ready)
    places = select(func.count()).select_from(held_destinations)
    return connection.scalar(number) or 0, connection.scalar(places) or 0


def counts(connection: Connection) -> dict[str, int]:
    """How many deliveries are in each of `STATES` but the delivered, whose number says nothing about the queue."""
    number = select(func.count()).select_from(deliveries)
    found = {WAITS: connection.scalar(number.where(WAITING)) or 0, HELD: held_counts(connection)[0]}
    for state in (DeliveryState.FAILED.value, DeliveryState.PARKED.value):
        found[state] = connection.scalar(number.where(_TROUBLED, deliveries.c.state == state)) or 0
    return found


def listed(row: Row[Any]) -> Listed:
    """From a row of `mta_deliveries` with its message's `accepted_at` and `size`."""
    return Listed(
        delivery_id=row.id,
        spool_id=row.spool_id,
        target=TargetKind(row.target),
        destination=row.destination,
        state=DeliveryState(row.state),
        priority=Priority(row.priority),
        accepted_at=row.accepted_at,
        attempts=row.attempts,
        due=row.due,
        under_way=row.lease is not None and row.state == DeliveryState.READY.value,
        held_at=row.held_at,
        code=row.code,
        message_id=row.message_id,
        size=row.size,
    )


def _waiting(connection: Connection, destination: str) -> int:
    query: Select[Any] = select(func.count()).select_from(deliveries)
    return connection.scalar(query.where(WAITING, deliveries.c.destination == destination)) or 0


def _recent(newest: Any) -> Any:
    """The id behind which nobody looks for what was delivered: there may be years of it. `relais trace` finds any."""
    ids = select(deliveries.c.id).order_by(deliveries.c.id.desc()).limit(1).offset(_LOOK_BACK)
    return func.coalesce((ids if newest is None else ids.where(newest)).scalar_subquery(), "")


def _order(wanted: Wanted) -> tuple[Sequence[Any], list[Any], bool]:
    """Columns of the index that leads through what is wanted, its conditions, whether it is walked backwards."""
    table = deliveries.c
    fixed = [table.destination == wanted.destination] if wanted.destination else []
    by_destination = () if wanted.destination else (table.destination,)
    by_code = () if wanted.code else (table.code,)
    if wanted.code:
        fixed.append(table.code == wanted.code)
    if wanted.state == HELD:
        return (*by_destination, table.id), [_IS_HELD, *fixed], False
    if wanted.state == WAITS:
        if wanted.code:  # few of those that wait have ever been refused
            return (table.id,), [_TROUBLED, WAITING, *fixed], False
        return (*by_destination, table.priority, table.due, table.id), [WAITING, *fixed], False
    fixed.append(table.state == wanted.state)
    if wanted.state == DeliveryState.DELIVERED.value:
        return (table.id,), fixed, True
    return (*by_code, table.id), [_TROUBLED, *fixed], False


def _cursor(position: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode("ascii")


def _position(cursor: str, order: Sequence[Any]) -> list[Any]:
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, RecursionError) as error:
        raise CursorError(cursor) from error
    if not isinstance(position, list) or len(position) != len(order):
        raise CursorError(cursor)
    if not all(_fits(value, column) for value, column in zip(position, order, strict=True)):
        raise CursorError(cursor)
    return position


def _fits(value: Any, column: Any) -> bool:
    """Whether both databases can compare them."""
    kind = column.type.python_type
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) and abs(value) < 2**31 if kind is int else math.isfinite(value) and abs(value) < 1e15
