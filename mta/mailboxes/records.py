"""One mailbox of ours: its kind, whether it is open, who may do what in it, how mail is made ready for it.

Who signs in with what is `trust.accounts`; where it is listed is `directory`; where its mail lies is Dovecot's. This
record joins them, and `MailboxRegistry` is how the rooms above ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Protocol

from directory.records import MailboxKind


class MailboxState(Enum):
    """The life of a mailbox. Its address and kind never change (TRE_R257)."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    """Mail still comes in; nobody reads or sends until it is opened again."""
    CLOSED = "closed"
    """Mail is refused with the reason (5.2.1); what it holds is kept for the retention period, and read by nobody but
    an operator's named act."""


class Custody(Enum):
    """Who opens protected mail."""

    GATEWAY = "gateway"
    """The gateway opens it, says what it found, and files it readable (encrypted at rest by the mailbox's key)."""
    HOLDER = "holder"
    """The holder has the key (card or own certificate): protected mail is filed octet by octet as it came, and nothing
    is added to it but header fields outside what is signed."""


class MemberRight(Flag):
    """What a member of a team's mailbox may do."""

    READ = auto()
    WRITE = auto()
    """Move, flag, delete, file a draft."""
    SEND = auto()
    """Send in the mailbox's name."""


@dataclass(frozen=True, slots=True)
class Member:
    login: str
    """Of a person's account."""
    rights: MemberRight


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPreferences:
    """How arriving mail is made ready for this mailbox. With `Custody.HOLDER` only `flags` and `filing` apply."""

    custody: Custody = Custody.GATEWAY
    verdict_line: bool = True
    """One line before the text that says who signed, and whether that was verified."""
    summary: bool = True
    """A report's results as text, abnormal and critical ones first."""
    flags: bool = True
    """IMAP keywords, and `\\Flagged` on a critical result."""
    filing: bool = False
    """File by type of document (Sieve) instead of everything into INBOX."""
    hprim: bool = False
    """Attach the report as HPRIM too, for practice software that reads only that."""
    receipts_as_mail: bool = False
    """Read receipts are put into the mailbox too; they are in `relais trace` always."""
    seen_per_member: bool = False
    """Of a team: each member has a `\\Seen` of his own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxRecord:
    """One mailbox. Times are UNIX seconds."""

    address: str
    """Lower-case addr-spec."""
    kind: MailboxKind
    label: str
    """What the From label is made of: `Titre Prénom NOM` of a person, functional name of a team, practice or machine;
    empty for a patient."""
    state: MailboxState = MailboxState.ACTIVE
    reason: str = ""
    """Why it is suspended or closed: told to whoever writes to a closed one, so never a patient's or clinical word."""
    quota_bytes: int = 0
    """0: the gateway's default."""
    id_nat: str = ""
    """IdNat_PP of a person, IdNat_Struct of a team, practice or machine."""
    organisation: str = ""
    preferences: ReadingPreferences = ReadingPreferences()
    created_at: float = 0.0
    closed_at: float | None = None


class MailboxRegistry(Protocol):
    """Synchronous and thread-safe; cheap enough to be asked for each message."""

    def find(self, address: str) -> MailboxRecord | None:
        """None: no mailbox of ours has that address."""
        ...

    def members(self, address: str) -> tuple[Member, ...]:
        """Of a team's or practice's mailbox; empty for the others."""
        ...

    def shared_with(self, login: str) -> tuple[tuple[str, MemberRight], ...]:
        """Addresses of the mailboxes that account is a member of."""
        ...
