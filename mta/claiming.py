"""Whose turn it is: which of the waiting deliveries a worker may take now.

What a question costs never grows with the queue. The urgent come first, in the order they are due, yet every eighth
claim begins with bulk and two of eight with what is neither: nobody's mail waits for ever behind somebody else's.
A destination that is held, or has all its places taken, is stepped over: as long as the next `_NEAR` in line are not
all its own by reading on, else by asking each other destination for its first in line (a walk over the index from
destination to destination, so it costs as much as there are destinations).

Everything here runs inside the spool's transactions, with SQLite and PostgreSQL alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Select, column, func, select, text, values

from mta import breakdowns as brake
from mta.priority import Priority
from mta.tables import deliveries, held_destinations

WAITING = text("mta_deliveries.state = 'ready' AND mta_deliveries.held_at IS NULL")
"""Word for word the condition of two partial indexes: SQLite uses them for nothing else."""
_NEAR = 200
_URGENT_FIRST = (Priority.URGENT, Priority.NORMAL, Priority.BULK)
_NORMAL_FIRST = (Priority.NORMAL, Priority.URGENT, Priority.BULK)
_BULK_FIRST = (Priority.BULK, Priority.URGENT, Priority.NORMAL)
_TURNS = (
    _URGENT_FIRST,
    _URGENT_FIRST,
    _NORMAL_FIRST,
    _URGENT_FIRST,
    _URGENT_FIRST,
    _NORMAL_FIRST,
    _URGENT_FIRST,
    _BULK_FIRST,
)


def claimable(
    connection: Connection,
    now: float,
    limit: int,
    skip: Collection[str],
    holding: Collection[str],
    turn: int,
    once: Collection[str] = (),
) -> list[str]:
    """Ids of at most `limit` due deliveries, locked; among them one suspect at most (`mta.breakdowns`), and none while
    another is in hand; and one at most for each destination in `once`.

    `skip`: destinations; `holding`: ids the caller works on. `turn` counts the caller's claims.
    """
    closed = {*skip, *held(connection)}
    suspects = brake.suspects(connection)
    chosen: list[str] = []
    probed = set(once) - closed
    if suspects and not brake.in_hand(connection, suspects, now, holding):
        first = _due(now, holding).add_columns(deliveries.c.destination)
        first = first.where(deliveries.c.id.in_(suspects), deliveries.c.destination.not_in(sorted(closed)))
        for delivery_id, destination in connection.execute(first.order_by(deliveries.c.due).limit(1)):
            chosen.append(delivery_id)
            probed.discard(destination)
    without = {*holding, *suspects}
    if probed:  # those that work must not wait behind those that may
        chosen += _one_each(connection, now, max(limit // 2, 1), sorted(probed), without)
    apart = sorted({*closed, *once})
    for priority in _TURNS[turn % len(_TURNS)]:
        missing = limit - len(chosen)
        if missing <= 0:
            break
        chosen += _of_class(connection, priority, now, missing, apart, without)
    return chosen


def next_due(connection: Connection, now: float, skip: Collection[str], holding: Collection[str]) -> float | None:
    """UNIX time at which `claimable` finds the next one; None when it finds none however long one waits."""
    apart = sorted({*skip, *held(connection)})
    suspects = brake.suspects(connection)
    without = set(holding)
    if suspects and brake.in_hand(connection, suspects, now, holding):
        without |= set(suspects)
    return min(
        (due for priority in Priority if (due := _first_due(connection, priority, apart, without)) is not None),
        default=None,
    )


def held(connection: Connection) -> list[str]:
    """Destinations to which nothing is sent."""
    return list(connection.scalars(select(held_destinations.c.destination)))


def _due(now: float, without: Collection[str]) -> Select[Any]:
    due = select(deliveries.c.id).where(WAITING, deliveries.c.due <= now)
    if without:
        due = due.where(deliveries.c.id.not_in(sorted(without)))
    return due.with_for_update(skip_locked=True)


def _of_class(
    connection: Connection, priority: Priority, now: float, limit: int, apart: Sequence[str], without: Collection[str]
) -> list[str]:
    of_class = deliveries.c.priority == priority.value
    if not apart:
        due = _due(now, without).where(of_class).order_by(deliveries.c.due).limit(limit)
        return list(connection.scalars(due))
    near = _near(priority).where(deliveries.c.due <= now).subquery()
    beside = select(near.c.id).where(near.c.destination.not_in(apart))
    if without:
        beside = beside.where(near.c.id.not_in(sorted(without)))
    # More than are wanted, because another node may have locked some.
    found = list(connection.scalars(beside.order_by(near.c.due).limit(4 * limit)))
    chosen = _locked(connection, found, now, limit, without)
    if len(chosen) < limit and _beyond(connection, priority, now):
        chosen += _across(connection, priority, now, limit - len(chosen), apart, {*without, *chosen})
    return chosen


def _locked(connection: Connection, ids: Sequence[str], now: float, limit: int, without: Collection[str]) -> list[str]:
    if not ids:
        return []
    still = _due(now, without).where(deliveries.c.id.in_(ids)).order_by(deliveries.c.due).limit(limit)
    return list(connection.scalars(still))


def _one_each(
    connection: Connection, now: float, limit: int, names: Sequence[str], without: Collection[str]
) -> list[str]:
    """The first in line of each of these destinations, of at most `limit` of them."""
    places = values(column("name", deliveries.c.destination.type), name="probed").data([(name,) for name in names])
    probed = places.cte("probed")
    heads = [_head(probed, priority, now, without) for priority in _URGENT_FIRST]
    first = (
        select(func.coalesce(*(head.scalar_subquery() for head in heads)).label("id")).select_from(probed).subquery()
    )
    found = connection.scalars(select(first.c.id).where(first.c.id.is_not(None)).limit(limit)).all()
    return _locked(connection, found, now, limit, without)


def _head(places: Any, priority: Priority, now: float, without: Collection[str]) -> Select[Any]:
    head = (
        select(deliveries.c.id)
        .where(WAITING, deliveries.c.destination == places.c.name, deliveries.c.priority == priority.value)
        .where(deliveries.c.due <= now)
    )
    if without:
        head = head.where(deliveries.c.id.not_in(sorted(without)))
    return head.order_by(deliveries.c.due).limit(1).correlate(places)


def _across(
    connection: Connection, priority: Priority, now: float, limit: int, apart: Sequence[str], without: Collection[str]
) -> list[str]:
    """From every destination but those `apart` in turn."""
    places = _places()
    own = (
        select(deliveries.c.due)
        .where(WAITING, deliveries.c.destination == places.c.name, deliveries.c.priority == priority.value)
        .order_by(deliveries.c.due)
        .limit(1)
        .correlate(places)
    )
    head = own.with_only_columns(deliveries.c.id).scalar_subquery()
    heads = select(places.c.name, own.scalar_subquery().label("due"), head.label("id"))
    first = heads.where(places.c.name.not_in(apart)).subquery()
    query = select(first.c.name, first.c.id).where(first.c.due <= now).order_by(first.c.due).limit(limit)
    found = connection.execute(query).all()
    if len(found) == limit:
        return _locked(connection, [row.id for row in found], now, limit, without)
    chosen: list[str] = []
    for place, (name, _) in enumerate(found):
        share = -(-(limit - len(chosen)) // (len(found) - place))
        lane = _due(now, without).where(deliveries.c.destination == name, deliveries.c.priority == priority.value)
        chosen += connection.scalars(lane.order_by(deliveries.c.due).limit(share))
    return chosen


def _first_due(
    connection: Connection, priority: Priority, apart: Sequence[str], without: Collection[str]
) -> float | None:
    of_class = deliveries.c.priority == priority.value
    near = _near(priority).subquery() if apart else deliveries
    query = select(near.c.due).order_by(near.c.due).limit(1)
    query = query.where(near.c.destination.not_in(apart)) if apart else query.where(WAITING, of_class)
    if without:
        query = query.where(near.c.id.not_in(sorted(without)))
    due: float | None = connection.scalar(query)
    if due is not None or not apart or not _beyond(connection, priority, None):
        return due
    places = _places()
    own = select(func.min(deliveries.c.due)).where(WAITING, deliveries.c.destination == places.c.name, of_class)
    if without:
        own = own.where(deliveries.c.id.not_in(sorted(without)))
    first = select(own.correlate(places).scalar_subquery().label("due")).where(places.c.name.not_in(apart)).subquery()
    across: float | None = connection.scalar(select(func.min(first.c.due)))
    return across


def _near(priority: Priority) -> Select[Any]:
    """The next in line of one class, whatever their destination."""
    return (
        select(deliveries.c.id, deliveries.c.destination, deliveries.c.due)
        .where(WAITING, deliveries.c.priority == priority.value)
        .order_by(deliveries.c.due)
        .limit(_NEAR)
    )


def _beyond(connection: Connection, priority: Priority, now: float | None) -> bool:
    """Whether `_near` does not see all."""
    query = select(deliveries.c.due).where(WAITING, deliveries.c.priority == priority.value)
    if now is not None:
        query = query.where(deliveries.c.due <= now)
    return connection.execute(query.order_by(deliveries.c.due).limit(1).offset(_NEAR)).first() is not None


def _places() -> Any:
    """Every destination something waits for, found by stepping from one to the next; the last row is null."""
    places = select(func.min(deliveries.c.destination).label("name")).where(WAITING).cte("places", recursive=True)
    following = (
        select(func.min(deliveries.c.destination))
        .where(WAITING, deliveries.c.destination > places.c.name)
        .correlate(places)
        .scalar_subquery()
    )
    return places.union_all(select(following).where(places.c.name.is_not(None)))
