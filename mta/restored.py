"""What a spool has to know when its database was put back from a backup: which mails may arrive a second time.

What had not ended at the moment of the backup is delivered by the restored gateway, though the lost one may have done
it after that moment. Recipients' systems recognise most of it (the same Message-ID, delivery id and bytes); the trace
says it of each.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select, update

from mta.spool_reading import READY
from mta.tables import deliveries, steps

RESTORED = "restored"
"""Kind of the step."""


def mark_in_flight(connection: Connection, node: str, now: float, cut_at: str, *, hold: bool = False) -> int:
    """Note every delivery that has not ended, and free it: whoever held its lease is gone. With `hold` none is tried
    again before a person has released it (`mta.queue`). Returns how many."""
    waiting = connection.execute(
        select(deliveries.c.id, deliveries.c.spool_id).where(deliveries.c.state == READY)
    ).all()
    if not waiting:
        return 0
    held = (deliveries.c.state == READY, deliveries.c.lease.is_not(None))
    connection.execute(update(deliveries).where(*held).values(lease=None, due=now))
    if hold:
        free = (deliveries.c.state == READY, deliveries.c.held_at.is_(None))
        connection.execute(update(deliveries).where(*free).values(held_at=now))
    then = "held until a person releases it" if hold else "it may arrive a second time"
    detail = f"under way at the backup of {cut_at}: {then}"
    rows = [
        {"spool_id": row.spool_id, "delivery_id": row.id, "at": now, "node": node, "kind": RESTORED, "code": ""}
        | {"detail": detail}
        for row in waiting
    ]
    connection.execute(insert(steps), rows)
    return len(rows)
