"""What we swear happened: an append-only journal, chained by hashes, written in the transaction it tells about.

Each writer (a node, a process) has its own chain, so that writers never wait for each other. An entry's hash covers the
one before it and a salted hash of its payload; the payload itself (who, what, about which patient) stands beside it,
sealed by the vault. It can thus be erased when the law asks, by an entry that says so, and the chain still holds.

The head of each chain is sealed with the vault's key: whoever can write to the database but does not hold that key
cannot rebuild a chain or cut its end. Putting back an older state of the whole database is not seen from inside; that
takes heads published off the machine.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, union, update

from trust.tables import journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault, VaultError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_GENESIS = bytes(32)
_SALT_BYTES = 16
_ROWS_IN_MEMORY = 1000


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One thing that happened. Codes and pseudonyms only, no clinical content and no patient identity.

    Strings are valid Unicode: whoever names a thing after a partner's bytes has decoded them first.
    """

    actor: str
    """Who did it: an identity, a mailbox, a component."""
    action: str
    """Stable dotted name: `dossier.read`."""
    outcome: str
    """`done`, `refused`, ..."""
    subject: str = ""
    """Pseudonym of the patient concerned (`KeyVault.pseudonym`)."""
    object_id: str = ""
    reason: str = ""
    purpose: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an entry stands; `hash` vouches for it and all before it in its chain."""

    writer: str
    sequence: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry read back."""

    writer: str
    sequence: int
    at: datetime
    entry: JournalEntry | None
    """None when its payload was erased, or is damaged (`verify` tells)."""


@dataclass(frozen=True, slots=True)
class JournalVerdict:
    ok: bool
    entries: int
    """How many were examined."""
    problem: str = ""
    """The first thing that does not hold, empty when all is well."""


# Compiled once: appending is on the road of every message.
_HEAD = (
    select(journal_heads.c.sequence, journal_heads.c.hash)
    .where(journal_heads.c.writer == bindparam("of"))
    .with_for_update()
)
_ADD_HEAD = insert(journal_heads)
_MOVE_HEAD = update(journal_heads).where(journal_heads.c.writer == bindparam("of"))
_ADD_ENTRY = insert(journal_entries)
_ADD_PAYLOAD = insert(journal_payloads)
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
        return self._append(connection, entry, at, erases=_place(writer, sequence))

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

    def verify(self, connection: Connection) -> JournalVerdict:
        """Walk every chain of every writer; stops at the first problem. Memory does not grow with the journal.

        Sees entries edited, removed, inserted or reordered, a cut end, payloads edited, moved or removed without an
        entry that erased them.
        """
        examined = 0
        writers = union(select(journal_entries.c.writer), select(journal_heads.c.writer)).order_by("writer")
        for writer in connection.scalars(writers).all():
            verdict = self._verify_chain(connection, writer)
            examined += verdict.entries
            if not verdict.ok:
                return JournalVerdict(False, examined, verdict.problem)
        return JournalVerdict(True, examined)

    def _append(self, connection: Connection, entry: JournalEntry, at: datetime | None, erases: str) -> Receipt:
        microseconds = ((at or datetime.now(UTC)) - _EPOCH) // _MICROSECOND
        head = connection.execute(_HEAD, {"of": self._writer}).one_or_none()
        previous, sequence = (head.hash, head.sequence + 1) if head else (_GENESIS, 1)
        # Salted: an erased payload must not be guessed from the hash that stays.
        payload = secrets.token_bytes(_SALT_BYTES) + msgspec.json.encode(entry)
        payload_hash = hashlib.sha256(payload).digest()
        entry_hash = _chain(previous, self._writer, sequence, microseconds, payload_hash, erases)
        key = {"writer": self._writer, "sequence": sequence}
        connection.execute(
            _ADD_ENTRY,
            key | {"at": microseconds, "payload_hash": payload_hash, "erases": erases, "hash": entry_hash},
        )
        sealed = self._vault.seal(payload, _context(self._writer, sequence))
        connection.execute(_ADD_PAYLOAD, key | {"subject": entry.subject, "sealed": sealed})
        new_head = {
            "sequence": sequence,
            "hash": entry_hash,
            "seal": self._head_seal(self._writer, sequence, entry_hash),
        }
        if head:
            connection.execute(_MOVE_HEAD, new_head | {"of": self._writer})
        else:
            connection.execute(_ADD_HEAD, new_head | {"writer": self._writer})
        return Receipt(self._writer, sequence, entry_hash)

    def _verify_chain(self, connection: Connection, writer: str) -> JournalVerdict:
        previous = _GENESIS
        sequence = 0
        rows = connection.execute(
            _ENTRIES_AND_PAYLOADS.where(journal_entries.c.writer == writer).order_by(journal_entries.c.sequence),
            execution_options={"yield_per": _ROWS_IN_MEMORY},
        )
        with rows:
            for row in rows:
                sequence += 1
                if row.sequence != sequence:
                    return JournalVerdict(False, sequence - 1, f"entry {_place(writer, sequence)} is missing")
                expected = _chain(previous, writer, sequence, row.at, row.payload_hash, row.erases)
                if row.hash != expected:
                    return JournalVerdict(
                        False, sequence, f"entry {_place(writer, sequence)} or one before it was altered"
                    )
                if problem := self._payload_problem(connection, row):
                    return JournalVerdict(False, sequence, f"the payload of {_place(writer, sequence)} {problem}")
                previous = expected
        head = connection.execute(select(journal_heads).where(journal_heads.c.writer == writer)).one_or_none()
        if head is None or not hmac.compare_digest(head.seal, self._head_seal(writer, head.sequence, head.hash)):
            return JournalVerdict(False, sequence, f"the head of {writer} is missing or altered")
        if (head.sequence, head.hash) != (sequence, previous):
            return JournalVerdict(False, sequence, f"the chain of {writer} does not end where its head says")
        return JournalVerdict(True, sequence)

    def _payload_problem(self, connection: Connection, row: Row[tuple[object, ...]]) -> str:
        if row.sealed is None:
            erasure = select(journal_entries.c.sequence).where(
                journal_entries.c.erases == _place(row.writer, row.sequence), journal_entries.c.erases != ""
            )
            return "" if connection.execute(erasure.limit(1)).first() else "was removed without an entry that erased it"
        try:
            payload = self._vault.unseal(row.sealed, _context(row.writer, row.sequence))
        except VaultError:
            return "was altered"
        if hashlib.sha256(payload).digest() != row.payload_hash:
            return "is not the one that was written"
        if _decode(payload).subject != row.subject:
            return "is filed under another subject"
        return ""

    def _open(self, row: Row[tuple[object, ...]]) -> JournalEntry | None:
        if row.sealed is None:
            return None
        try:
            return _decode(self._vault.unseal(row.sealed, _context(row.writer, row.sequence)))
        except VaultError:
            return None

    def _head_seal(self, writer: str, sequence: int, entry_hash: bytes) -> str:
        return self._vault.pseudonym("journal head", writer, str(sequence), entry_hash.hex())


def _chain(previous: bytes, writer: str, sequence: int, at: int, payload_hash: bytes, erases: str) -> bytes:
    """SHA-256 of the previous hash, then a JSON array: anybody can recompute it without us."""
    fields = msgspec.json.encode([writer, sequence, at, payload_hash.hex(), erases])
    return hashlib.sha256(previous + fields).digest()


def _decode(payload: bytes) -> JournalEntry:
    return msgspec.json.decode(payload[_SALT_BYTES:], type=JournalEntry)


def _context(writer: str, sequence: int) -> bytes:
    return f"journal:{_place(writer, sequence)}".encode()


def _place(writer: str, sequence: int) -> str:
    return f"{writer}#{sequence}"
