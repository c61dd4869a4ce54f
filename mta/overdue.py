"""What takes too long: senders are warned once of a mail that waits, and told once of a receipt that was promised and
did not come; what nobody decided about in quarantine ends there.

Nothing is remembered but the notices themselves, whose deduplication keys make each unique: a place in memory only says
from where to look, so that a turn costs what has become due since the last, however long the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Exists, func, literal, select, tuple_
from sqlalchemy.exc import SQLAlchemyError

from mta.any_delivery import AnyDelivery, AnyReader, add_step
from mta.bell import Repeating
from mta.dsn import SILENT, DsnConsumer
from mta.dsn_conditions import DELAYED, wants_warning
from mta.message import DeliveryState
from mta.quarantine import Quarantine
from mta.smtp.address import domain_of
from mta.spool import Spool
from mta.spool_reading import with_message
from mta.tables import awaited_receipts, deliveries, messages
from trust.store.database import Database, StoreUnavailableError

_log = logging.getLogger("relais.mta.overdue")

_STORE_FAILURES = (StoreUnavailableError, SQLAlchemyError, OSError)
_BATCH = 200
_DAY = 86_400.0
_LONGEST_HELD = 30 * _DAY
"""An operator holds mail for no longer, as far as receipts go."""
_LAST_ID = "g"
"""Behind every id."""
_DESTINATIONS = 20


@dataclass(frozen=True, slots=True)
class OverdueOptions:
    warning_seconds: float = 4 * 3600.0
    """After which the sender of a mail that still waits is told; 0: never."""
    receipt_seconds: float = 24 * 3600.0
    """Since it was relayed, after which a promised receipt is missing and the sender is told; 0: never."""
    quarantine_seconds: float = 30 * _DAY
    """After which what is in quarantine is dropped; 0: never."""
    lifetime: float = 5 * _DAY
    """The longest a delivery waits."""
    poll_seconds: float = 60.0


class Overdue(Repeating):
    """A turn tells of one batch."""

    def __init__(
        self,
        spool: Spool,
        database: Database,
        dsn: DsnConsumer,
        quarantine: Quarantine | None,
        options: OverdueOptions,
        *,
        node: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._database = database
        self._deliveries = AnyReader(spool)
        self._dsn = dsn
        self._quarantine = quarantine
        self._options = options
        self._node = node
        self._clock = clock
        self._warned_to = ""
        """Delivery id up to which nobody is left to warn."""
        self._missed_to = (0.0, "")
        """When it was relayed, and its delivery id, up to which every missing receipt has been told of."""
        self._cleaned_at: float | None = None

    async def _turn(self) -> float:
        try:
            more = await asyncio.to_thread(self.look)
        except Exception as error:  # its text may quote an address
            _log.error("who waits too long cannot be looked up: %s", type(error).__name__)
            more = False
        return 0.0 if more else self._options.poll_seconds

    def look(self) -> bool:
        """Tell whoever is to be told now. True: there is more. From one thread; raises what the store raises."""
        more = self._warn() if self._options.warning_seconds else False
        if self._options.receipt_seconds:
            more |= self._miss()
        return more | self._clean()

    def _clean(self) -> bool:
        """Once a day. What cannot be dropped now is not asked for again at once."""
        now = self._clock()
        patience = self._options.quarantine_seconds
        clean = self._cleaned_at is not None and 0 <= now - self._cleaned_at < _DAY
        if self._quarantine is None or clean:
            return False
        if patience and self._quarantine.expire(now - patience):
            return True
        self._quarantine.sweep(now - self._options.lifetime - _LONGEST_HELD)
        self._cleaned_at = now
        return False

    def _warn(self) -> bool:
        """Ids begin with the time of acceptance (`mta.spool`): those that wait are found without reading others."""
        now = self._clock()
        until = _id_at(now - self._options.warning_seconds)
        start = _id_at(now - self._options.warning_seconds - self._options.lifetime - _DAY)
        if not start <= self._warned_to <= until:  # the first look, or a clock that was set
            self._warned_to = start
        query = (
            select(deliveries.c.id)
            .where(deliveries.c.id > self._warned_to, deliveries.c.id < until)
            .where(deliveries.c.state == DeliveryState.READY.value, ~_told(DELAYED))
            .order_by(deliveries.c.id)
            .limit(_BATCH)
        )
        ids = self._database.read(lambda connection: list(connection.scalars(query)))
        for each in self._whole(ids):
            if wants_warning(each):
                self._tell(each, DELAYED, "warned", each.code)
        more = len(ids) == _BATCH
        self._warned_to = ids[-1] if more else until
        return more

    def _miss(self) -> bool:
        """Counted from when it was relayed: what waited here for days is not late the moment it leaves."""
        until = self._clock() - self._options.receipt_seconds
        since, after = self._missed_to
        if since > until:
            since, after = 0.0, ""
        # the history of those told long ago is read at the first look only
        oldest = since - max(self._options.lifetime + _DAY, _LONGEST_HELD)
        query = (
            select(deliveries.c.ended_at, deliveries.c.id)
            .join_from(awaited_receipts, deliveries)
            .where(awaited_receipts.c.accepted_at > oldest, deliveries.c.ended_at <= until)
            .where(tuple_(deliveries.c.ended_at, deliveries.c.id) > tuple_(literal(since), literal(after)))
            .where(~_told(SILENT))
            .order_by(deliveries.c.ended_at, deliveries.c.id)
            .limit(_BATCH)
        )
        rows = self._database.read(lambda connection: connection.execute(query).all())
        for each in self._whole([row.id for row in rows]):
            self._tell(each, SILENT, "missing", f"no delivery receipt from {domain_of(each.recipient)}")
        more = len(rows) == _BATCH
        self._missed_to = (rows[-1].ended_at, rows[-1].id) if more else (until, _LAST_ID)
        return more

    def _whole(self, ids: Sequence[str]) -> list[AnyDelivery]:
        """In the order of the ids; without those whose envelope is damaged, which must not hide what is behind them."""
        if not ids:
            return []
        found = {
            each.delivery_id: each for each in self._deliveries.those(with_message().where(deliveries.c.id.in_(ids)))
        }
        return [found[each] for each in ids if each in found]

    def _tell(self, delivery: AnyDelivery, action: str, kind: str, detail: str) -> None:
        """One that cannot be written about (its content is damaged) must not hide the others."""

        def note(connection: Connection) -> None:
            add_step(connection, self._node, delivery, kind, self._clock(), detail)

        try:
            self._dsn.warn(delivery, action, note)
        except _STORE_FAILURES:
            raise
        except Exception as error:
            _log.error("the sender of delivery %s cannot be told: %s", delivery.delivery_id, type(error).__name__)

    def missing(self) -> Sequence[tuple[str, int]]:
        """How many promised receipts are missing, by destination; the most first."""
        if not self._options.receipt_seconds:
            return ()
        query = (
            select(deliveries.c.destination, func.count())
            .join_from(awaited_receipts, deliveries)
            .where(deliveries.c.ended_at <= self._clock() - self._options.receipt_seconds)
            .group_by(deliveries.c.destination)
            .order_by(func.count().desc())
            .limit(_DESTINATIONS)
        )
        return self._database.read(lambda connection: [(name, count) for name, count in connection.execute(query)])


def _id_at(at: float) -> str:
    """What ids made from that moment on begin with."""
    return f"{max(0, int(at * 1000)):012x}"


def _told(action: str) -> Exists:
    """Whether the notice stands in the spool, under the key that `mta.system_mail` gives it."""
    key = literal("dsn:") + deliveries.c.id + literal(f":{action}")
    return select(messages.c.id).where(messages.c.dedup_key == key).correlate(deliveries).exists()
