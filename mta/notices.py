"""What receipts have said of each delivery: what is news in another, what repeats it, what contradicts it.

Operators' receipts come late, twice, or in the wrong order; some announce a failure for a mail that arrived. Each that
may be believed is written down beside the delivery it is about. The mail that repeats what its reader has been told is
not filed a second time; one that says the contrary is, and says so, in its header and in the trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import Connection, func, insert, select

from mta.any_delivery import AnyDelivery, add_step
from mta.dsn_conditions import action_of
from mta.tables import notices
from trust.store.database import Database


class Said(Enum):
    """What a receipt says: an action (RFC 3464 §2.3.3) or a disposition (RFC 8098 §3.2.6)."""

    DELAYED = "delayed"
    RELAYED = "relayed"
    """Or expanded: to where no receipts come from."""
    DELIVERED = "delivered"
    FAILED = "failed"
    DISPLAYED = "displayed"
    PROCESSED = "processed"
    NOT_PROCESSED = "not-processed"
    """A disposition with an error."""


class Weight(Enum):
    """What a receipt adds to those before it."""

    NEWS = "news"
    REPEATED = "repeated"
    CONTRADICTS = "contradicts"


_OPPOSITE = {
    Said.DELIVERED: (Said.FAILED,),
    Said.RELAYED: (Said.FAILED,),
    Said.FAILED: (Said.DELIVERED,),
    Said.PROCESSED: (Said.NOT_PROCESSED,),
    Said.NOT_PROCESSED: (Said.PROCESSED,),
}
_COVERED_BY = {
    Said.DELAYED: (Said.DELAYED, Said.RELAYED, Said.DELIVERED, Said.FAILED),
    Said.RELAYED: (Said.RELAYED, Said.DELIVERED),
    Said.DELIVERED: (Said.DELIVERED,),
    Said.FAILED: (Said.FAILED,),
    Said.DISPLAYED: (Said.DISPLAYED,),
    Said.PROCESSED: (Said.PROCESSED,),
    Said.NOT_PROCESSED: (Said.NOT_PROCESSED,),
}
"""What is no news after one of these."""


_STEPS = {Weight.NEWS: "heard", Weight.REPEATED: "repeated", Weight.CONTRADICTS: "contradicted"}
"""Kinds of `mta.delivery.Step`."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One receipt about one delivery."""

    weight: Weight
    before: Said | None = None
    """What it contradicts."""


def weigh(before: Sequence[Said], said: Said) -> Heard:
    """`before`: what was said until now, the oldest first. The last word on a thing is what counts."""
    for earlier in reversed(before):
        if earlier in _OPPOSITE.get(said, ()):
            return Heard(Weight.CONTRADICTS, earlier)
        if earlier in _COVERED_BY[said]:
            return Heard(Weight.REPEATED)
    return Heard(Weight.NEWS)


class Notices:
    """Thread-safe; raises what the database raises."""

    def __init__(self, database: Database, node: str, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._node = node
        self._clock = clock

    def hear(self, about: AnyDelivery, notice: str, said: Said, words: str = "") -> Heard:
        """Write down what a believed receipt says, once, also in the trace: a message's life goes on after it left.
        `notice` is the delivery id of the mail that brings it, `words` its reason, naming no person.

        Asked again for the same mail it answers the same.
        """
        now = self._clock()
        ours = [Said(action) for action in (action_of(about),) if action]

        def write(connection: Connection) -> Heard:
            mine = (notices.c.delivery_id == about.delivery_id) & (notices.c.notice == notice)
            at = connection.scalar(select(notices.c.at).where(mine))
            if at is None:
                last = connection.scalar(
                    select(func.max(notices.c.at)).where(notices.c.delivery_id == about.delivery_id)
                )
                at = now if last is None else max(now, last + 0.001)
                row = {"delivery_id": about.delivery_id, "notice": notice, "said": said.value, "at": at}
                connection.execute(insert(notices), row)
                first = True
            else:
                first = False
            heard = weigh(ours + self._said(connection, about.delivery_id, at), said)
            if first:
                what = said.value if heard.before is None else f"{said.value} after {heard.before.value}"
                what = what if heard.weight is Weight.REPEATED else f"{what} {words}".strip()
                add_step(connection, self._node, about, _STEPS[heard.weight], now, what)
            return heard

        return self._database.transact(write)

    def latest(self, delivery_id: str) -> Said | None:
        """The last word of other operators on whether it arrived; None when there is none."""
        found = self._database.read(lambda connection: self._said(connection, delivery_id))
        return next((each for each in reversed(found) if each in (Said.DELIVERED, Said.FAILED)), None)

    def _said(self, connection: Connection, delivery_id: str, before: float | None = None) -> list[Said]:
        query = select(notices.c.said).where(notices.c.delivery_id == delivery_id).order_by(notices.c.at)
        if before is not None:
            query = query.where(notices.c.at < before)
        return [Said(value) for value in connection.scalars(query)]
