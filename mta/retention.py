"""How long the road keeps what it has carried, and the purge that ends it: small batches beside the traffic.

Four ends, each with its own period (`Periods`):

- the content of a message, as accepted and as sent, when every delivery has ended and was reported, no receipt of it is
  awaited and a while has passed: shorter when all were delivered than when one failed;
- a receipt that another operator promised and never sent is awaited no longer;
- the trace: deliveries with their addresses, steps, whatever hangs on a delivery. What stays of the message is when it
  came, its size, and the deduplication key with the sealed answer, so that a sender or a mailbox that repeats it even
  then is answered as the first time and nobody receives it twice; and a keyed pseudonym of each of its names, by which
  `relais trace` still says that it was here and when it was purged;
- the key, at last.

A delivery that is held (`mta.queue`, `mta.quarantine`) exempts its message from all of them. The journal is not the
road's: it is never purged here.

Rows first, then blobs: killed in between, the purge leaves blobs that no row names, which `trust.store.orphans` sweeps.
Every condition is asked again in the transaction that purges, so that whatever was opened again, held or awaited since
stays. An id begins with the milliseconds of its acceptance: the oldest are found by the primary key, without an index
of its own that every message would pay for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Column, Connection, and_, delete, exists, func, insert, or_, select, update

from mta.delivery import Step
from mta.message import DeliveryState
from mta.tables import awaited_receipts, deliveries, messages, purged_counts, purged_names, steps
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

DAY = 86_400.0
_WINDOW = 2_000
"""Messages looked at in one read."""
_ENDED = "ended:"


class What(Enum):
    """What is purged, and counted."""

    CONTENT = "content"
    """Messages whose content was."""
    AWAITED = "awaited"
    """Receipts that are awaited no longer."""
    TRACE = "trace"
    """Messages whose deliveries and steps were."""
    KEY = "key"
    """Messages of which nothing is left."""


@dataclass(frozen=True, slots=True)
class Periods:
    """Seconds since a message's acceptance."""

    content: float = 30 * DAY
    """Every recipient has it: the sender's own system is its archive, ours is the means to look into a complaint."""
    failed_content: float = 90 * DAY
    """Somebody has not: time to find out, and to send it again."""
    awaited: float = 90 * DAY
    trace: float = 183 * DAY
    """Six months, as the trust space recommends for functional traces."""
    key: float = 730 * DAY
    """Longer than any sender, archive job or collected mailbox goes on repeating itself."""

    def __post_init__(self) -> None:
        if not 0 < self.content <= self.failed_content <= self.trace <= self.key or not 0 < self.awaited <= self.trace:
            raise ValueError(
                "periods of retention: 0 < content <= failed content <= trace <= key, and awaited <= trace"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one turn of the purge did."""

    purged: int
    """Messages, or receipts."""
    more: bool
    """Whether this round has more to look at."""


class Retention:
    """The purge of one spool. Synchronous; one thread at a time. Raises what the database and the disk raise; asked
    again, it goes on where it was."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        periods: Periods,
        *,
        node: str,
        clock: Callable[[], float] = time.time,
        batch: int = 100,
    ) -> None:
        """`batch`: messages in one transaction; acceptance waits behind no longer one."""
        self._database = database
        self._blobs = blobs
        self._vault = vault
        self._periods = periods
        self._node = node
        self._clock = clock
        self._batch = batch
        self._steps = self._round()

    def turn(self) -> Batch:
        """The next batch. `more` is False once all was looked at; the turn after that begins again at the oldest."""
        try:
            purged = next(self._steps)
        except StopIteration:
            self._steps = self._round()
            return Batch(0, more=False)
        except BaseException:
            self._steps = self._round()
            raise
        return Batch(purged, more=True)

    def counts(self) -> dict[What, int]:
        """How much was purged since the beginning."""
        query = select(purged_counts.c.what, purged_counts.c.count)
        found = dict(self._database.read(lambda connection: [(w, n) for w, n in connection.execute(query)]))
        return {what: found.get(what.value, 0) for what in What}

    def _round(self) -> Iterator[int]:
        """Everything once, a batch at a time."""
        now, periods = self._clock(), self._periods
        yield from self._awaited(now - periods.awaited)
        yield from self._through(now - periods.content, self._content_ended(now), self._purge_content)
        yield from self._through(now - periods.trace, self._trace_ended(), self._purge_trace)
        yield from self._through(now - periods.key, messages.c.purged_at.is_not(None), self._purge_key)

    def _through(self, before: float, condition: Any, purge: Callable[[Sequence[str], Any], int]) -> Iterator[int]:
        """All messages accepted before, the oldest first, those that meet `condition` purged."""
        after, end = "", id_at(before)
        while True:
            window = select(messages.c.id).where(messages.c.id > after, messages.c.id < end)
            edge = select(func.max(window.order_by(messages.c.id).limit(_WINDOW).subquery().c.id))
            found_after = select(messages.c.id).where(messages.c.id > after, condition).order_by(messages.c.id)

            def read(
                connection: Connection, edge: Any = edge, found: Any = found_after
            ) -> tuple[str | None, list[str]]:
                last = connection.scalar(edge)
                return last, [] if last is None else list(connection.scalars(found.where(messages.c.id <= last)))

            last, found = self._database.read(read)
            if last is None:
                return
            for first in range(0, len(found), self._batch):
                yield purge(found[first : first + self._batch], condition)
            if not found:
                yield 0
            after = last

    # Conditions

    def _content_ended(self, now: float) -> Any:
        its = deliveries.c.spool_id == messages.c.id
        failed = deliveries.c.state.in_((DeliveryState.FAILED.value, DeliveryState.PARKED.value))
        late = and_(failed, messages.c.id >= id_at(now - self._periods.failed_content))
        awaited = exists().where(its, awaited_receipts.c.delivery_id == deliveries.c.id)
        return and_(messages.c.content_blob != "", _all_over(late), ~awaited)

    def _trace_ended(self) -> Any:
        return and_(messages.c.purged_at.is_(None), _all_over())

    # Purging, each in one transaction

    def _purge_content(self, ids: Sequence[str], condition: Any) -> int:
        gone: list[str] = []

        def write(connection: Connection) -> int:
            gone.clear()  # called again, it may find another
            now = self._clock()
            _lock(connection, ids)
            rows = connection.execute(
                select(messages.c.id, messages.c.content_blob).where(messages.c.id.in_(ids), condition)
            ).all()
            if not rows:
                return 0
            over = [row.id for row in rows]
            gone.extend(row.content_blob for row in rows)
            gone.extend(self._forget_prepared(connection, over))
            connection.execute(update(messages).where(messages.c.id.in_(over)).values(content_blob=""))
            connection.execute(insert(steps), [self._step(spool_id, "", now, What.CONTENT) for spool_id in over])
            _count(connection, What.CONTENT.value, len(over))
            return len(over)

        purged = self._database.transact(write)
        self._blobs.delete_all(gone)
        return purged

    def _purge_trace(self, ids: Sequence[str], condition: Any) -> int:
        gone: list[str] = []

        def write(connection: Connection) -> int:
            gone.clear()  # called again, it may find another
            now = self._clock()
            _lock(connection, ids)
            rows = connection.execute(
                select(messages.c.id, messages.c.content_blob, messages.c.external_id).where(
                    messages.c.id.in_(ids), condition
                )
            ).all()
            if not rows:
                return 0
            over = [row.id for row in rows]
            gone.extend(row.content_blob for row in rows if row.content_blob)
            gone.extend(self._forget_prepared(connection, over))
            names = {(row.external_id, row.id) for row in rows if row.external_id}
            its = deliveries.c.spool_id.in_(over)
            for message_id, spool_id in connection.execute(
                select(deliveries.c.message_id, deliveries.c.spool_id).where(its)
            ):
                names.add((message_id, spool_id))
            told = [{"name": name_of(self._vault, name), "spool_id": spool_id} for name, spool_id in sorted(names)]
            if told:
                connection.execute(insert(purged_names), told)
            ended = select(deliveries.c.state, func.count()).where(its).group_by(deliveries.c.state)
            for state, number in connection.execute(ended).all():
                _count(connection, _ENDED + state, number)
            its_ids = select(deliveries.c.id).where(its)
            for column in _HANGING_ON_DELIVERIES:
                connection.execute(delete(column.table).where(column.in_(its_ids)))
            connection.execute(delete(steps).where(steps.c.spool_id.in_(over)))
            connection.execute(delete(deliveries).where(its))
            blank = {"envelope": b"", "content_blob": "", "content_type": "", "external_id": "", "peer_pseudonym": ""}
            connection.execute(update(messages).where(messages.c.id.in_(over)).values(purged_at=now, **blank))
            _count(connection, What.TRACE.value, len(over))
            return len(over)

        purged = self._database.transact(write)
        self._blobs.delete_all(gone)
        return purged

    def _purge_key(self, ids: Sequence[str], condition: Any) -> int:
        def write(connection: Connection) -> int:
            over = list(connection.scalars(select(messages.c.id).where(messages.c.id.in_(ids), condition)))
            connection.execute(delete(purged_names).where(purged_names.c.spool_id.in_(over)))
            connection.execute(delete(steps).where(steps.c.spool_id.in_(over)))  # written while its trace was purged
            connection.execute(delete(messages).where(messages.c.id.in_(over)))
            _count(connection, What.KEY.value, len(over))
            return len(over)

        return self._database.transact(write)

    def _awaited(self, before: float) -> Iterator[int]:
        late = (
            select(awaited_receipts.c.delivery_id, deliveries.c.spool_id)
            .join_from(awaited_receipts, deliveries)
            .where(awaited_receipts.c.accepted_at < before, deliveries.c.held_at.is_(None))
            .order_by(awaited_receipts.c.accepted_at)
            .limit(self._batch)
        )

        def write(connection: Connection) -> int:
            now, rows = self._clock(), connection.execute(late).all()
            if rows:
                ids = [row.delivery_id for row in rows]
                connection.execute(delete(awaited_receipts).where(awaited_receipts.c.delivery_id.in_(ids)))
                told = [self._step(row.spool_id, row.delivery_id, now, What.AWAITED) for row in rows]
                connection.execute(insert(steps), told)
                _count(connection, What.AWAITED.value, len(rows))
            return len(rows)

        while self._database.read(lambda connection: connection.execute(late).first()) is not None:
            yield self._database.transact(write)

    def _forget_prepared(self, connection: Connection, spool_ids: Sequence[str]) -> list[str]:
        prepared = (deliveries.c.spool_id.in_(spool_ids), deliveries.c.prepared_blob.is_not(None))
        gone = list(connection.scalars(select(deliveries.c.prepared_blob).where(*prepared)))
        if gone:
            connection.execute(update(deliveries).where(*prepared).values(prepared_blob=None))
        return gone

    def _step(self, spool_id: str, delivery_id: str, at: float, what: What) -> dict[str, Any]:
        step = Step(at, self._node, delivery_id, "purged", "", what.value)
        return {"spool_id": spool_id, **{name: getattr(step, name) for name in Step.__dataclass_fields__}}


def id_at(at: float) -> str:
    """What the ids of messages accepted from that UNIX time on are not less than."""
    return f"{max(int(at * 1000), 0):012x}"


def name_of(vault: KeyVault, name: str) -> str:
    """Stands for a Message-ID or an external identifier once its trace was purged."""
    return vault.pseudonym("purged name", name)


def ended_before(connection: Connection) -> dict[str, int]:
    """Deliveries whose trace was purged, by the state they had ended in."""
    query = select(purged_counts.c.what, purged_counts.c.count).where(purged_counts.c.what.startswith(_ENDED))
    return {what.removeprefix(_ENDED): count for what, count in connection.execute(query)}


def _all_over(*reasons: Any) -> Any:
    """No delivery waits, is unreported, is held, or gives one of `reasons` to keep the message."""
    open_ = (deliveries.c.state == DeliveryState.READY.value, deliveries.c.reported.is_(False))
    kept = or_(*open_, deliveries.c.held_at.is_not(None), *reasons)
    return ~exists().where(deliveries.c.spool_id == messages.c.id, kept)


def _lock(connection: Connection, ids: Sequence[str]) -> None:
    """Against whoever opens or holds a delivery of these on another node (`mta.queue`). Apart from the question
    whether they are over: PostgreSQL answers one that waited for the lock as of before it waited."""
    connection.execute(
        select(messages.c.id).where(messages.c.id.in_(ids)).order_by(messages.c.id).with_for_update()
    ).all()


def _count(connection: Connection, what: str, number: int) -> None:
    more = update(purged_counts).where(purged_counts.c.what == what).values(count=purged_counts.c.count + number)
    if connection.execute(more).rowcount == 0:
        connection.execute(insert(purged_counts), {"what": what, "count": number})


def _hanging_on(column: Column[Any]) -> tuple[Column[Any], ...]:
    """Columns anywhere that refer to this one."""
    return tuple(
        each
        for table in metadata.sorted_tables
        for each in table.columns
        if any(key.column is column for key in each.foreign_keys)
    )


_HANGING_ON_DELIVERIES = _hanging_on(deliveries.c.id)
