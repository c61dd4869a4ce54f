"""What one entry of the journal is, and how its payload and the head of its chain are sealed.

Shared by whoever appends (`trust.journal`) and whoever checks (`trust.journal_check`).
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from trust.journal_chain import place
from trust.vault import KeyVault

SALT_BYTES = 16
"""Stand before the JSON in every payload, so that an erased one cannot be guessed from its hash."""


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
    checkpoints: int = 0
    """How many signed heads were examined."""
    unchecked: tuple[str, ...] = ()
    """What was not looked at, a sentence each."""
    notes: tuple[str, ...] = ()
    """What a person should know and proves nothing, a sentence each."""


def decode_payload(payload: bytes) -> JournalEntry:
    """Raises msgspec.DecodeError when it is no entry."""
    return msgspec.json.decode(payload[SALT_BYTES:], type=JournalEntry)


def payload_context(writer: str, sequence: int) -> bytes:
    """What the vault binds a payload to: moved to another entry it does not open."""
    return f"journal:{place(writer, sequence)}".encode()


def unseal_payload(vault: KeyVault, writer: str, sequence: int, sealed: bytes) -> bytes:
    """Salt and JSON. Raises `VaultError` when it was altered or belongs elsewhere."""
    return vault.unseal(sealed, payload_context(writer, sequence))


def head_seal(vault: KeyVault, writer: str, sequence: int, entry_hash: bytes) -> str:
    """Vouches for the end of a chain towards those who hold the database but not the vault."""
    return vault.pseudonym("journal head", writer, str(sequence), entry_hash.hex())


def head_is_sealed(vault: KeyVault, writer: str, sequence: Any, entry_hash: Any, seal: Any) -> bool:
    """Whether this row of `journal_heads` is one we wrote; False for values of any wrong kind."""
    try:
        return hmac.compare_digest(seal, head_seal(vault, writer, sequence, entry_hash))
    except (TypeError, AttributeError):
        return False
