"""How the entries of one writer hang together: what is hashed, in which order, and how a chain is walked.

An entry's hash is SHA-256 over the hash before it (32 zero octets for the first) and a JSON array of what stands in the
clear: writer, sequence, time, hash of the payload, place of a payload it erased. Anybody can recompute it without us;
docs/journal.md says how.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select

from trust.store.direct import DirectStatement
from trust.tables import journal_entries

GENESIS = bytes(32)
"""Stands before the first entry of every chain."""

_ENTRIES = DirectStatement(
    select(
        journal_entries.c.sequence,
        journal_entries.c.at,
        journal_entries.c.payload_hash,
        journal_entries.c.erases,
        journal_entries.c.hash,
    )
    .where(journal_entries.c.writer == bindparam("of"), journal_entries.c.sequence > bindparam("after"))
    .order_by(journal_entries.c.sequence)
)


def prefix_of(writer: str) -> str:
    """The beginning of the array each entry of this writer hashes."""
    return msgspec.json.encode([writer]).decode().removesuffix("]") + ","


def fields_of(prefix: str, sequence: int, at: int, payload_hash: bytes, erases: str) -> bytes:
    """The JSON array one entry hashes, UTF-8, without spaces: `at` is microseconds since 1970."""
    erased = msgspec.json.encode(erases).decode() if erases else '""'
    return f'{prefix}{sequence},{at},"{payload_hash.hex()}",{erased}]'.encode()


def entry_hash(previous: bytes, fields: bytes) -> bytes:
    return hashlib.sha256(previous + fields).digest()


def place(writer: str, sequence: int) -> str:
    """How people and erasures name an entry."""
    return f"{writer}#{sequence}"


def parse_place(text: str) -> tuple[str, int] | None:
    """Writer and sequence, None when it names no place."""
    writer, mark, number = text.rpartition("#")
    if not mark or not (number.isascii() and number.isdigit()) or len(number) > 18:
        return None
    return writer, int(number)


@dataclass(slots=True)
class ChainWalk:
    """One way along a chain, from an entry whose hash is known. Iterate `steps`; read the rest after each step."""

    connection: Connection
    writer: str
    sequence: int = 0
    """The last entry that holds."""
    hash: bytes = GENESIS
    """Its hash."""
    problem: str = ""
    """What does not hold, empty when all does."""
    latest: int = 0
    """The greatest time met, microseconds; entries of an earlier one came after it when `backwards` counts them."""
    backwards: int = 0
    erasures: list[tuple[int, str]] = field(default_factory=list)
    """Of the last step: entries that erased a payload, and which."""

    def steps(self) -> Iterator[list[bytes]]:
        """The hashes of the entries, some thousands at a time, up to the end or to what does not hold."""
        prefix = prefix_of(self.writer)
        sha256 = hashlib.sha256
        values = {"of": self.writer, "after": self.sequence}
        for rows in _ENTRIES.batches(self.connection, values):
            hashes: list[bytes] = []
            self.erasures = []
            try:
                for sequence, at, payload_hash, erases, stored in rows:
                    if sequence != self.sequence + 1:
                        self.problem = f"entry {place(self.writer, self.sequence + 1)} is missing"
                        break
                    if erases:
                        fields = fields_of(prefix, sequence, at, payload_hash, erases)
                        self.erasures.append((sequence, erases))
                    else:  # as in `fields_of`; this line is most of the work
                        fields = f'{prefix}{sequence},{at},"{payload_hash.hex()}",""]'.encode()
                    computed = sha256(self.hash + fields).digest()
                    if computed != stored:
                        raise ValueError
                    if at < self.latest:
                        self.backwards += 1
                    else:
                        self.latest = at
                    self.hash = computed
                    self.sequence = sequence
                    hashes.append(computed)
            except (ValueError, TypeError, AttributeError):  # SQLite keeps any kind of value in any column
                self.problem = f"entry {place(self.writer, self.sequence + 1)} or one before it was altered"
            yield hashes
            if self.problem:
                return


def stored_hash(connection: Connection, writer: str, sequence: int) -> Any:
    """The hash column of one entry, None when there is no such entry."""
    return connection.scalar(
        select(journal_entries.c.hash).where(journal_entries.c.writer == writer, journal_entries.c.sequence == sequence)
    )
