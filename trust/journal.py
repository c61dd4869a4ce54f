"""What we swear happened: an append-only journal, chained by hashes, written in the transaction it tells about.

Each writer (a node, a process) has its own chain, so that writers never wait for each other. An entry's hash covers the
one before it and a salted hash of its payload; the payload itself (who, what, about which patient) stands beside it,
sealed by the vault. It can thus be erased when the law asks, by an entry that says so, and the chain still holds.

The head of each chain is sealed with the vault's key: whoever can write to the database but does not hold that key
cannot rebuild a chain or cut its end. Whoever holds that key too, or puts back an older state of the whole database, is
found out by the signed heads that `trust.checkpoints` makes and `trust.publishing` sends off the machine.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update

from trust.journal_chain import GENESIS, entry_hash, fields_of, place, prefix_of
from trust.journal_check import check
from trust.journal_entry import (
    SALT_BYTES,
    JournalEntry,
    JournalVerdict,
    Receipt,
    StoredEntry,
    decode_payload,
    head_seal,
    payload_context,
    unseal_payload,
)
from trust.store.database import deferred, settle
from trust.store.direct import DirectStatement
from trust.tables import journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault, VaultError

__all__ = ["Journal", "JournalEntry", "JournalVerdict", "Receipt", "StoredEntry"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


# Compiled once: appending is on the road of every message.
_HEAD = DirectStatement(
    select(journal_heads.c.sequence, journal_heads.c.hash)
    .where(journal_heads.c.writer == bindparam("of"))
    .with_for_update()
)
_ADD_HEAD = DirectStatement(insert(journal_heads))
_MOVE_HEAD = DirectStatement(
    update(journal_heads)
    .where(journal_heads.c.writer == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in ("sequence", "hash", "seal")})
)
_ADD_ENTRY = DirectStatement(insert(journal_entries))
_ADD_PAYLOAD = DirectStatement(insert(journal_payloads))
_ENTRIES_AND_PAYLOADS = select(journal_entries, journal_payloads.c.subject, journal_payloads.c.sealed).outerjoin_from(
    journal_entries,
    journal_payloads,
    and_(
        journal_payloads.c.writer == journal_entries.c.writer,
        journal_payloads.c.sequence == journal_entries.c.sequence,
    ),
)


class Journal:
    """One writer's chain, and a reader of all chains. `writer` is its own name, 1 to 64 characters, no `#`."""

    def __init__(self, vault: KeyVault, writer: str) -> None:
        if not 1 <= len(writer) <= 64 or "#" in writer:
            raise ValueError("a journal writer's name has 1 to 64 characters and no #")
        self._vault = vault
        self._writer = writer
        self._prefix = prefix_of(writer)

    @property
    def writer(self) -> str:
        """The name of the chain this journal appends to."""
        return self._writer

    def append(self, connection: Connection, entry: JournalEntry, at: datetime | None = None) -> Receipt:
        """Add an entry in the caller's transaction: it stands if and only if that transaction does. `at` is aware."""
        return self._append(connection, entry, at, erases="")

    def erase(
        self, connection: Connection, writer: str, sequence: int, entry: JournalEntry, at: datetime | None = None
    ) -> Receipt:
        """Destroy one entry's payload, of any writer, and append `entry`, which says who ordered it and why.

        Destroying what is already gone is only recorded again.
        """
        connection.execute(
            delete(journal_payloads).where(journal_payloads.c.writer == writer, journal_payloads.c.sequence == sequence)
        )
        return self._append(connection, entry, at, erases=place(writer, sequence))

    def entries(self, connection: Connection, *, subject: str | None = None, limit: int = 100) -> list[StoredEntry]:
        """The latest entries of all writers, newest first; those about one patient when `subject` is given."""
        query = _ENTRIES_AND_PAYLOADS.order_by(
            journal_entries.c.at.desc(), journal_entries.c.writer, journal_entries.c.sequence.desc()
        ).limit(limit)
        if subject is not None:
            query = query.where(journal_payloads.c.subject == subject)
        return [
            StoredEntry(row.writer, row.sequence, _EPOCH + row.at * _MICROSECOND, self._open(row))
            for row in connection.execute(query)
        ]

    def verify(self, connection: Connection, *, payloads: bool = True, keys: Collection[bytes] = ()) -> JournalVerdict:
        """Walk every chain, every checkpoint and every payload; see `trust.journal_check.check`."""
        settle(connection)
        return check(connection, self._vault, payloads=payloads, keys=keys)

    def payload(self, connection: Connection, writer: str, sequence: int) -> bytes | None:
        """Salt and JSON of one entry, whose SHA-256 is its `payload_hash`; None when erased. Raises `VaultError`."""
        sealed = connection.scalar(
            select(journal_payloads.c.sealed).where(
                journal_payloads.c.writer == writer, journal_payloads.c.sequence == sequence
            )
        )
        return None if sealed is None else unseal_payload(self._vault, writer, sequence, sealed)

    def _append(self, connection: Connection, entry: JournalEntry, at: datetime | None, erases: str) -> Receipt:
        microseconds = ((at or datetime.now(UTC)) - _EPOCH) // _MICROSECOND
        waiting = deferred(connection)
        place_of_head = (Journal, self._writer)
        head: Sequence[Any] | None
        if waiting is not None and place_of_head in waiting:
            head = waiting[place_of_head][1]
        else:
            head = _HEAD.first(connection, {"of": self._writer})
        previous, sequence = (head[1], head[0] + 1) if head else (GENESIS, 1)
        # Salted: an erased payload must not be guessed from the hash that stays.
        payload = secrets.token_bytes(SALT_BYTES) + msgspec.json.encode(entry)
        payload_hash = hashlib.sha256(payload).digest()
        hash_ = entry_hash(previous, fields_of(self._prefix, sequence, microseconds, payload_hash, erases))
        key = {"writer": self._writer, "sequence": sequence}
        _ADD_ENTRY.run(
            connection, key | {"at": microseconds, "payload_hash": payload_hash, "erases": erases, "hash": hash_}
        )
        sealed = self._vault.seal(payload, payload_context(self._writer, sequence))
        _ADD_PAYLOAD.run(connection, key | {"subject": entry.subject, "sealed": sealed})
        if waiting is None or head is None:
            self._write_head(connection, (sequence, hash_), new=head is None)
        if waiting is not None:  # once for all that is committed together
            waiting[place_of_head] = (self._write_head, (sequence, hash_))
        return Receipt(self._writer, sequence, hash_)

    def _write_head(self, connection: Connection, end: tuple[int, bytes], *, new: bool = False) -> None:
        sequence, hash_ = end
        seal = head_seal(self._vault, self._writer, sequence, hash_)
        if new:
            _ADD_HEAD.run(connection, {"writer": self._writer, "sequence": sequence, "hash": hash_, "seal": seal})
        else:
            _MOVE_HEAD.run(
                connection, {"new_sequence": sequence, "new_hash": hash_, "new_seal": seal, "of": self._writer}
            )

    def _open(self, row: Row[tuple[object, ...]]) -> JournalEntry | None:
        if row.sealed is None:
            return None
        try:
            return decode_payload(unseal_payload(self._vault, row.writer, row.sequence, row.sealed))
        except (VaultError, msgspec.DecodeError, TypeError):
            return None
