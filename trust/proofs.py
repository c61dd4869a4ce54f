"""Proofs that hold without us: that an entry is covered by a signed head, that one head continues another.

A proof is one JSON document with everything a verifier needs but the published head to compare it with; how to check
it is in docs/journal.md, and docs/check_journal.py does. Making one reads the writer's entries once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from trust.journal_chain import GENESIS, entry_hash, fields_of, prefix_of, stored_hash
from trust.kept_heads import Checkpoint, checkpoints_numbered, last_number
from trust.merkle import Range, consistency_ranges, inclusion_ranges, roots_of_ranges
from trust.signed_heads import WriterHead, parse_head
from trust.store.direct import DirectStatement
from trust.tables import journal_entries

_HASHES = DirectStatement(
    select(journal_entries.c.hash)
    .where(journal_entries.c.writer == bindparam("of"))
    .order_by(journal_entries.c.sequence)
)


class ProofError(ValueError):
    """There is no such proof; the text says why, in a sentence."""


def prove_inclusion(
    connection: Connection, writer: str, sequence: int, number: int | None = None, payload: bytes | None = None
) -> dict[str, Any]:
    """That entry `writer#sequence` is covered by checkpoint `number`, the newest by default. Raises `ProofError`.

    With `payload` (`Journal.payload`) the document also shows what the entry says.
    """
    checkpoint, head = _head(connection, writer, number)
    row = connection.execute(
        select(journal_entries).where(journal_entries.c.writer == writer, journal_entries.c.sequence == sequence)
    ).one_or_none()
    if row is None:
        raise ProofError(f"there is no entry {writer}#{sequence}")
    if sequence > head.size:
        raise ProofError(
            f"checkpoint {checkpoint.number} does not cover {writer}#{sequence} yet: ask again after the next"
        )
    previous = GENESIS if sequence == 1 else stored_hash(connection, writer, sequence - 1)
    path = _path(connection, writer, inclusion_ranges(sequence - 1, head.size))
    try:
        fields = fields_of(prefix_of(writer), sequence, row.at, row.payload_hash, row.erases)
        holds = entry_hash(previous, fields) == row.hash
    except (TypeError, AttributeError):  # SQLite keeps any kind of value in any column
        holds = False
    if not holds:
        raise ProofError(f"entry {writer}#{sequence} or the one before it was altered")
    document: dict[str, Any] = {
        "proof": "inclusion",
        "writer": writer,
        "sequence": sequence,
        "entry": {"previous": previous.hex(), "fields": fields.decode(), "hash": row.hash.hex()},
        "path": [each.hex() for each in path],
        "head": checkpoint.signed.line(),
    }
    if payload is not None:
        document["payload"] = base64.b64encode(payload).decode()
    return document


def prove_consistency(connection: Connection, writer: str, old: int, new: int | None = None) -> dict[str, Any]:
    """That checkpoint `new` (the newest by default) continues the chain as `old` had it. Raises `ProofError`."""
    first, first_head = _head(connection, writer, old)
    second, second_head = _head(connection, writer, new)
    try:
        ranges = consistency_ranges(first_head.size, second_head.size)
    except ValueError as error:
        raise ProofError(f"checkpoint {first.number} is not older than {second.number}") from error
    path = _path(connection, writer, ranges)
    return {
        "proof": "consistency",
        "writer": writer,
        "path": [each.hex() for each in path],
        "old": first.signed.line(),
        "head": second.signed.line(),
    }


def _head(connection: Connection, writer: str, number: int | None) -> tuple[Checkpoint, WriterHead]:
    wanted = last_number(connection) if number is None else number
    checkpoint = checkpoints_numbered(connection, [wanted]).get(wanted)
    if checkpoint is None:
        raise ProofError("there is no checkpoint yet" if number is None else f"there is no checkpoint {wanted}")
    head = parse_head(checkpoint.signed.text)
    for each in head.heads if head else ():
        if each.writer == writer:
            return checkpoint, each
    raise ProofError(f"checkpoint {wanted} covers no entry of {writer}")


def _path(connection: Connection, writer: str, ranges: Sequence[Range]) -> list[bytes]:
    try:
        return roots_of_ranges(_leaves(connection, writer), ranges)
    except (ValueError, TypeError) as error:  # fewer entries than were signed, or no hashes at all
        raise ProofError(f"the chain of {writer} is broken: `relais journal verify` says where") from error


def _leaves(connection: Connection, writer: str) -> Iterator[bytes]:
    for rows in _HASHES.batches(connection, {"of": writer}):
        for row in rows:
            yield row[0]
