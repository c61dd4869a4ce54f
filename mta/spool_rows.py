"""What every message makes the spool write, for as many messages at once as wait for the same commit.

Each function here is a `trust.store.database.Together`: it runs inside one transaction, on the items of many callers,
and may be called again when that transaction had to be given up. A statement serves all items where it can, and is
handed to the driver as it is (`trust.store.direct`): this is what the road costs per message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, bindparam, select, text, update

from mta import breakdowns as brake
from mta.delivery import Lease
from mta.tables import awaited_receipts, deliveries, held_destinations, messages, steps
from trust.store.blobs import BlobStore, Draft
from trust.store.direct import DirectStatement, insertion

Row = dict[str, Any]

REPEATED_EXTERNAL_ID = "the sender used this identifier before, for another content"
"""Detail of the step `accept`, so that the trace shows it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One submission, ready to be kept."""

    message: Row
    deliveries: list[Row]
    steps: list[Row]
    draft: Draft
    attempts: list[Row]
    """Steps of deliveries that begin at once: the rows that have a lease."""
    also: Callable[[Connection], None] | None


@dataclass(frozen=True, slots=True)
class Kept:
    """An entry is in the spool."""

    repeated_external_id: bool
    refused_leases: frozenset[str]
    """Deliveries that do not begin at once after all: nothing is sent to their destination now."""


@dataclass(frozen=True, slots=True)
class Known:
    """Its deduplication key was kept before."""

    spool_id: str
    reply: bytes
    """Sealed."""


@dataclass(frozen=True, slots=True)
class Change:
    """One delivery's row, as whoever holds its lease changes it."""

    lease: Lease
    values: Mapping[str, Any]
    step: Row
    broke: int = 0
    """Breakdowns in a row, this one included, when another attempt follows."""
    relayed: bool = False
    draft: Draft | None = None
    prepares: bool = False
    """It fixes what every attempt sends, which is done once only; the attempt goes on."""


_BY_KEY = DirectStatement(
    select(messages.c.id, messages.c.reply).where(messages.c.dedup_key == bindparam("dedup_key")).limit(1)
)
_BY_EXTERNAL_ID = DirectStatement(
    select(messages.c.id)
    .where(messages.c.external_id == bindparam("external_id"), text("mta_messages.external_id <> ''"))
    .where(messages.c.peer_pseudonym == bindparam("peer_pseudonym"))
    .limit(1)
)
"""By its partial index, which SQLite uses only when its condition is repeated."""
_HELD = DirectStatement(select(held_destinations.c.destination).limit(1))
_REPORTED = DirectStatement(
    update(deliveries).where(deliveries.c.id == bindparam("delivery_id")).values(reported=bindparam("yes"))
)
_INSERTIONS: dict[tuple[str, ...], DirectStatement] = {}
_CHANGES: dict[tuple[str, ...], DirectStatement] = {}


def lay(blobs: BlobStore, connection: Connection, entries: Sequence[Entry]) -> Sequence[Kept | Known]:
    """Keep submissions, but for those that are known."""
    answers: list[Kept | Known] = []
    new: list[Entry] = []
    met: dict[str, Entry] = {}
    named: set[tuple[str, str]] = set()
    held = _held_destinations(connection)
    for entry in entries:
        key = entry.message["dedup_key"]
        first = met.get(key)
        if first is not None:
            answers.append(Known(first.message["id"], first.message["reply"]))
            continue
        known = _BY_KEY.first(connection, {"dedup_key": key})
        if known is not None:
            answers.append(Known(known[0], bytes(known[1])))
            continue
        met[key] = entry
        name = (entry.message["external_id"], entry.message["peer_pseudonym"])
        repeated = bool(name[0]) and (name in named or _named_before(connection, *name))
        named.add(name)
        refused = frozenset(each["id"] for each in entry.deliveries if each["lease"] and each["destination"] in held)
        answers.append(Kept(repeated, refused))
        new.append(entry)
    kept = dict(zip(met, (each for each in answers if isinstance(each, Kept)), strict=True))
    _insert(connection, messages, [each.message for each in new])
    blobs.keep(connection, [each.draft for each in new])
    delivery_rows, step_rows = [], []
    for each in new:
        answer = kept[each.message["dedup_key"]]
        for row in each.deliveries:
            refused_now = row["id"] in answer.refused_leases
            delivery_rows.append({**row, "lease": None, "due": each.message["accepted_at"]} if refused_now else row)
        first_step, *others = each.steps
        step_rows.append({**first_step, "detail": REPEATED_EXTERNAL_ID} if answer.repeated_external_id else first_step)
        step_rows += others
        step_rows += [row for row in each.attempts if row["delivery_id"] not in answer.refused_leases]
    _insert(connection, deliveries, delivery_rows)
    _insert(connection, steps, step_rows)
    for each in new:
        if each.also is not None:
            each.also(connection)
    return answers


def change(blobs: BlobStore, connection: Connection, changes: Sequence[Change]) -> Sequence[bool]:
    """Write what attempts came to; False for each whose lease is stale, of which nothing is written."""
    done = [each for each in changes if _change(connection, each)]
    _insert(connection, steps, [each.step for each in done])
    blobs.keep(connection, [each.draft for each in done if each.draft is not None])
    for each in done:
        if each.lease.breakdowns and not each.prepares:
            brake.forget(connection, each.lease.delivery_id)
        if each.broke:
            brake.note(connection, each.lease.delivery_id, each.broke, crashes=0)
        if each.relayed:
            row = {"delivery_id": each.lease.delivery_id, "accepted_at": each.lease.accepted_at}
            _insert(connection, awaited_receipts, [row])
    made = set(map(id, done))
    return [id(each) in made for each in changes]


def report(connection: Connection, delivery_ids: Sequence[str]) -> Sequence[None]:
    """Everybody who had to be told of these was told."""
    _REPORTED.many(connection, [{"delivery_id": each, "yes": True} for each in delivery_ids])
    return [None] * len(delivery_ids)


def add_steps(connection: Connection, rows: Sequence[Row]) -> None:
    """Lines of the trace."""
    _insert(connection, steps, rows)


def _named_before(connection: Connection, external_id: str, peer_pseudonym: str) -> bool:
    values = {"external_id": external_id, "peer_pseudonym": peer_pseudonym}
    return _BY_EXTERNAL_ID.first(connection, values) is not None


def _held_destinations(connection: Connection) -> frozenset[str]:
    """Mostly none, which one look finds."""
    if _HELD.first(connection, {}) is None:
        return frozenset()
    return frozenset(connection.scalars(select(held_destinations.c.destination)))


def _change(connection: Connection, change: Change) -> bool:
    names = tuple(change.values)
    statement = _CHANGES.get(names)
    if statement is None:
        values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
        wanted = update(deliveries).where(
            deliveries.c.id == bindparam("delivery_id"), deliveries.c.lease == bindparam("token")
        )
        if change.prepares:
            wanted = wanted.where(deliveries.c.prepared_blob.is_(None))
        statement = _CHANGES.setdefault(names, DirectStatement(wanted.values(values)))
    row = {f"new_{name}": value for name, value in change.values.items()}
    row |= {"delivery_id": change.lease.delivery_id, "token": change.lease.token}
    return statement.run(connection, row) == 1


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    if not rows:
        return
    names = tuple(rows[0])
    statement = _INSERTIONS.get((table.name, *names))
    if statement is None:
        statement = _INSERTIONS.setdefault((table.name, *names), insertion(table, *names))
    statement.many(connection, rows)
