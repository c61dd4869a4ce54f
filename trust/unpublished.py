"""Since when something the journal says is covered by no head that has left the machine.

Until then whoever takes the machine can still make it unsaid; see `trust.publishing`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, exists, select

from trust.kept_heads import checkpoints_after, checkpoints_numbered
from trust.signed_heads import parse_head
from trust.tables import journal_checkpoints, journal_entries, journal_heads


def unpublished_since(connection: Connection, published: int) -> float | None:
    """UNIX time of the oldest entry or head after head number `published` (0: none was); None when there is none.

    The entry that records a head is not counted: it always comes after what it records.
    """
    checkpoint = checkpoints_numbered(connection, [published]).get(published)
    head = parse_head(checkpoint.signed.text) if checkpoint else None
    covered = {each.writer: each.size for each in head.heads} if head else {}
    found: list[float] = []
    for writer in connection.scalars(select(journal_heads.c.writer)).all():
        records_a_head = exists().where(
            journal_checkpoints.c.number >= published,  # by its index: there may be hundreds of thousands
            journal_checkpoints.c.writer == journal_entries.c.writer,
            journal_checkpoints.c.sequence == journal_entries.c.sequence,
        )
        first = connection.scalar(
            select(journal_entries.c.at)
            .where(
                journal_entries.c.writer == writer,
                journal_entries.c.sequence > covered.get(writer, 0),
                ~records_a_head,
            )
            .order_by(journal_entries.c.sequence)
            .limit(1)
        )
        if first is not None:
            found.append(first / 1_000_000)
    for waiting in checkpoints_after(connection, published, 1):
        unsent = parse_head(waiting.signed.text)
        if unsent is not None:
            found.append(datetime.fromisoformat(unsent.at).timestamp())
    return min(found, default=None)
