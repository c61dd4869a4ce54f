"""The checkpoints a database keeps: how they are read back, in order and by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, inspect, select

from trust.journal_entry import decode_payload
from trust.signed_heads import SignedHead, head_digest
from trust.tables import journal_checkpoints

CHECKPOINT_ACTION = "journal.checkpoint"
"""What the entry says that records one."""
_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head that is kept."""

    number: int
    signed: SignedHead
    writer: str
    sequence: int
    """The entry that records it."""


def last_checkpoint(connection: Connection) -> Checkpoint | None:
    """The newest."""
    row = connection.execute(
        select(journal_checkpoints).order_by(journal_checkpoints.c.number.desc()).limit(1)
    ).one_or_none()
    return None if row is None else _checkpoint(row)


def checkpoints_after(connection: Connection, number: int, limit: int = 100) -> list[Checkpoint]:
    """Those with a greater number, in order."""
    query = select(journal_checkpoints).where(journal_checkpoints.c.number > number)
    return [_checkpoint(row) for row in connection.execute(query.order_by(journal_checkpoints.c.number).limit(limit))]


def checkpoints_numbered(connection: Connection, numbers: Sequence[int]) -> dict[int, Checkpoint]:
    """Those of these numbers that there are."""
    found: dict[int, Checkpoint] = {}
    for start in range(0, len(numbers), _AT_ONCE):
        query = select(journal_checkpoints).where(journal_checkpoints.c.number.in_(numbers[start : start + _AT_ONCE]))
        found |= {row.number: _checkpoint(row) for row in connection.execute(query)}
    return found


def all_checkpoints(connection: Connection) -> Iterator[Checkpoint]:
    """Every one, in order, with the memory of a few; none in a database from before there were any."""
    if not inspect(connection).has_table(journal_checkpoints.name):
        return
    number = 0
    while batch := checkpoints_after(connection, number, _AT_ONCE):
        yield from batch
        number = batch[-1].number


def is_record_of(payload: bytes, checkpoint: Checkpoint) -> bool:
    """Whether the entry with this payload (`Journal.payload`) is the one that records this very checkpoint."""
    try:
        entry = decode_payload(payload)
    except msgspec.DecodeError:
        return False
    wanted = (CHECKPOINT_ACTION, str(checkpoint.number), head_digest(checkpoint.signed.text))
    return (entry.action, entry.object_id, entry.details.get("sha256")) == wanted


def _checkpoint(row: Row[Any]) -> Checkpoint:
    return Checkpoint(row.number, SignedHead(row.head, row.signature, row.algorithm, row.key), row.writer, row.sequence)


def last_number(connection: Connection) -> int:
    return connection.scalar(select(func.max(journal_checkpoints.c.number))) or 0
