"""What we swear happened: an append-only journal, chained by hashes, written in the transaction it tells about.

Each writer (a node, a process) has its own chain, so that writers never wait for each other. An entry's hash covers the
one before it and a salted hash of its payload; the payload itself (who, what, about which patient) stands beside it,
sealed by the vault. It can thus be erased when the law asks, by an entry that says so, and the chain still holds.

The head of each chain is sealed with the vault's key: whoever can write to the database but does not hold that key
cannot rebuild a chain. Appending looks at that seal: behind a head that is not ours, or that is not the chain's end,
the work goes on, but no seal is given any more, so that our own key never covers up what somebody did.

Whoever holds that key too, or puts back an older state of a chain with the seal it had then, is found out by the signed
heads that `trust.checkpoints` makes and `trust.publishing` sends off the machine.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import deque
from collections.abc import Collection
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, func, insert, select, update

from trust.journal_chain import GENESIS, entry_hash, fields_of, place, prefix_of, stored_hash
from trust.journal_check import check
from trust.journal_entry import (
    SALT_BYTES,
    JournalEntry,
    JournalVerdict,
    Receipt,
    StoredEntry,
    decode_payload,
    head_is_sealed,
    head_seal,
    payload_context,
    unseal_payload,
)
from trust.kept_heads import CHECKPOINT_ACTION
from trust.store.database import deferred, settle
from trust.store.direct import DirectStatement
from trust.tables import journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault, VaultError

__all__ = ["ErasureError", "Journal", "JournalEntry", "JournalVerdict", "Receipt", "StoredEntry"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_SALTS_AT_ONCE = 256


# Compiled once: appending is on the road of every message.
_HEAD = DirectStatement(
    select(journal_heads.c.sequence, journal_heads.c.hash, journal_heads.c.seal)
    .where(journal_heads.c.writer == bindparam("of"))
    .with_for_update()
)
# Apart from it: PostgreSQL shows a statement that waited for the lock what was there before it waited.
_LAST = DirectStatement(select(func.max(journal_entries.c.sequence)).where(journal_entries.c.writer == bindparam("of")))
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


class ErasureError(ValueError):
    """A payload that may not be erased; the text says why, in a sentence."""


class _End(NamedTuple):
    """Where a chain ends, and what stands before that but is not in its tables yet."""

    sequence: int
    hash: bytes
    sound: bool
    """Whether the head it continues was ours and the chain's end; only then is it sealed again."""
    rows: tuple[Any, ...] | None = None
    """The newest row of `journal_entries` that waits, that of its payload, and the same of those before; None: no."""


class Journal:
    """One writer's chain, and a reader of all chains. `writer` is its own name, 1 to 64 characters, no `#`."""

    def __init__(self, vault: KeyVault, writer: str) -> None:
        if not 1 <= len(writer) <= 64 or "#" in writer:
            raise ValueError("a journal writer's name has 1 to 64 characters and no #")
        self._vault = vault
        self._writer = writer
        self._prefix = prefix_of(writer)
        self._salts: deque[bytes] = deque()

    @property
    def writer(self) -> str:
        """The name of the chain this journal appends to."""
        return self._writer

    def append(self, connection: Connection, entry: JournalEntry, at: datetime | None = None) -> Receipt:
        """Add an entry in the caller's transaction: it stands if and only if that transaction does. `at` is aware.

        Not inside of `begin_nested`, whose rollback would not undo it: raises RuntimeError.
        """
        return self._append(connection, entry, at, erases="")

    def erase(
        self, connection: Connection, writer: str, sequence: int, entry: JournalEntry, at: datetime | None = None
    ) -> Receipt:
        """Destroy one entry's payload, of any writer, and append `entry`, which says who ordered it and why.

        Destroying what is already gone is only recorded again. Raises `ErasureError` when there is no such entry, when
        it records an erasure or a checkpoint, which vouch for others, or when its payload was altered: then the
        erasure would hide that.
        """
        settle(connection)
        self._may_erase(connection, writer, sequence)
        connection.execute(
            delete(journal_payloads).where(journal_payloads.c.writer == writer, journal_payloads.c.sequence == sequence)
        )
        return self._append(connection, entry, at, erases=place(writer, sequence))

    def entries(self, connection: Connection, *, subject: str | None = None, limit: int = 100) -> list[StoredEntry]:
        """The latest entries of all writers, newest first; those about one patient when `subject` is given."""
        settle(connection)
        query = _ENTRIES_AND_PAYLOADS.order_by(
            journal_entries.c.at.desc(), journal_entries.c.writer, journal_entries.c.sequence.desc()
        ).limit(limit)
        if subject is not None:
            query = query.where(journal_payloads.c.subject == subject)
        return [
            StoredEntry(row.writer, row.sequence, _moment(row.at), self._open(row)) for row in connection.execute(query)
        ]

    def ends(self, connection: Connection) -> dict[str, tuple[int, bool]]:
        """Of every writer: how many entries its head counts, and whether that head is one we wrote."""
        settle(connection)
        return {
            row.writer: (row.sequence, head_is_sealed(self._vault, row.writer, row.sequence, row.hash, row.seal))
            for row in connection.execute(select(journal_heads))
        }

    def verify(self, connection: Connection, *, payloads: bool = True, keys: Collection[bytes] = ()) -> JournalVerdict:
        """Walk every chain, every checkpoint and every payload; see `trust.journal_check.check`."""
        settle(connection)
        return check(connection, self._vault, payloads=payloads, keys=keys)

    def payload(self, connection: Connection, writer: str, sequence: int) -> bytes | None:
        """Salt and JSON of one entry, whose SHA-256 is its `payload_hash`; None when erased. Raises `VaultError`."""
        settle(connection)
        sealed = connection.scalar(
            select(journal_payloads.c.sealed).where(
                journal_payloads.c.writer == writer, journal_payloads.c.sequence == sequence
            )
        )
        return None if sealed is None else unseal_payload(self._vault, writer, sequence, sealed)

    def _may_erase(self, connection: Connection, writer: str, sequence: int) -> None:
        where = place(writer, sequence)
        row = connection.execute(
            select(journal_entries.c.payload_hash, journal_entries.c.erases).where(
                journal_entries.c.writer == writer, journal_entries.c.sequence == sequence
            )
        ).one_or_none()
        if row is None:
            raise ErasureError(f"there is no entry {where}")
        if row.erases:
            raise ErasureError(f"{where} records an erasure: who ordered it and why stays")
        try:
            payload = self.payload(connection, writer, sequence)
            kept = payload is not None and decode_payload(payload).action == CHECKPOINT_ACTION
        except (VaultError, msgspec.DecodeError, TypeError):
            raise ErasureError(f"the payload of {where} was altered: `relais journal verify` first") from None
        if payload is not None and hashlib.sha256(payload).digest() != row.payload_hash:
            raise ErasureError(f"the payload of {where} is not the one that was written: `relais journal verify` first")
        if kept:
            raise ErasureError(f"{where} records a signed head, and names nobody")

    def _append(self, connection: Connection, entry: JournalEntry, at: datetime | None, erases: str) -> Receipt:
        microseconds = time.time_ns() // 1000 if at is None else (at - _EPOCH) // _MICROSECOND
        if connection.in_nested_transaction():
            raise RuntimeError("an entry cannot be appended inside a nested transaction")
        waiting = deferred(connection)
        key = (Journal, self._writer)
        end: _End = waiting[key][1] if waiting is not None and key in waiting else self._end(connection)
        sequence = end.sequence + 1
        # Salted: an erased payload must not be guessed from the hash that stays.
        payload = self._salt() + _encoded(entry)
        payload_hash = hashlib.sha256(payload).digest()
        hash_ = entry_hash(end.hash, fields_of(self._prefix, sequence, microseconds, payload_hash, erases))
        sealed = self._vault.seal(payload, payload_context(self._writer, sequence))
        # In the order of the tables' columns.
        row = (self._writer, sequence, microseconds, payload_hash, erases, hash_)
        payload_row = (self._writer, sequence, _valid(entry.subject), sealed)
        end = _End(sequence, hash_, end.sound, (row, payload_row, end.rows))
        if waiting is None:
            self._write(connection, end)
        else:  # once for all that is committed together
            waiting[key] = (self._write, end)
        return Receipt(self._writer, sequence, hash_)

    def _salt(self) -> bytes:
        """Drawn many at once: the system's generator gives up the interpreter's lock, and a hundred threads want it."""
        try:
            return self._salts.popleft()
        except IndexError:
            drawn = secrets.token_bytes(_SALTS_AT_ONCE * SALT_BYTES)
            self._salts.extend(drawn[start : start + SALT_BYTES] for start in range(SALT_BYTES, len(drawn), SALT_BYTES))
            return drawn[:SALT_BYTES]

    def _end(self, connection: Connection) -> _End:
        """Where the chain ends as the database has it, locked for us; a new one begins here."""
        head = _HEAD.first(connection, {"of": self._writer})
        last = (_LAST.first(connection, {"of": self._writer}) or (None,))[0] or 0
        if head is None:
            sound = last == 0
            hash_ = GENESIS if sound else stored_hash(connection, self._writer, last)
            seal = head_seal(self._vault, self._writer, 0, GENESIS) if sound else ""
            _ADD_HEAD.run(connection, {"writer": self._writer, "sequence": last, "hash": hash_, "seal": seal})
            return _End(last, hash_, sound)
        sequence, hash_, seal = head
        sound = sequence == last and head_is_sealed(self._vault, self._writer, sequence, hash_, seal)
        if last > sequence:
            sequence, hash_ = last, stored_hash(connection, self._writer, last)
        return _End(sequence, hash_, sound)

    def _write(self, connection: Connection, end: _End) -> _End:
        """Write what waits; what is left then."""
        if end.rows is None:
            return end
        entries, payloads = [], []
        rows: tuple[Any, ...] | None = end.rows
        while rows is not None:
            entry, payload, rows = rows
            entries.append(entry)
            payloads.append(payload)
        _ADD_ENTRY.insert_all(connection, entries[::-1])
        _ADD_PAYLOAD.insert_all(connection, payloads[::-1])
        seal = head_seal(self._vault, self._writer, end.sequence, end.hash) if end.sound else ""
        moved = {"new_sequence": end.sequence, "new_hash": end.hash, "new_seal": seal, "of": self._writer}
        _MOVE_HEAD.run(connection, moved)
        return end._replace(rows=None)

    def _open(self, row: Row[tuple[object, ...]]) -> JournalEntry | None:
        if row.sealed is None:
            return None
        try:
            return decode_payload(unseal_payload(self._vault, row.writer, row.sequence, row.sealed))
        except (VaultError, msgspec.DecodeError, TypeError):
            return None


def _encoded(entry: JournalEntry) -> bytes:
    """JSON. What is not valid Unicode, which JSON cannot hold, is written as question marks."""
    try:
        return msgspec.json.encode(entry)
    except UnicodeEncodeError:
        texts = {each.name: _valid(getattr(entry, each.name)) for each in fields(entry) if each.name != "details"}
        details = {_valid(name): _valid(value) for name, value in entry.details.items()}
        return msgspec.json.encode(JournalEntry(**texts, details=details))


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _moment(microseconds: Any) -> datetime:
    """When an entry was made; 1970 when somebody made that nonsense, as `verify` tells."""
    try:
        moment: datetime = _EPOCH + microseconds * _MICROSECOND
    except (TypeError, OverflowError):
        return _EPOCH
    return moment
