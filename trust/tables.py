"""The tables of trust: the journal, and who may log in with what.

Journal entries are only ever inserted; what may lawfully be erased later stands beside them in `journal_payloads`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
)

from trust.store import metadata

journal_entries = Table(
    "journal_entries",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, ... within the writer
    Column("at", BigInteger, nullable=False),  # microseconds since 1970, UTC
    Column("payload_hash", LargeBinary(32), nullable=False),
    Column("erases", String(96), nullable=False),  # `writer#sequence` of the payload this entry erased, mostly empty
    Column("hash", LargeBinary(32), nullable=False),
    Index(None, "at"),
)
Index(
    None,
    journal_entries.c.erases,
    sqlite_where=journal_entries.c.erases != "",
    postgresql_where=journal_entries.c.erases != "",
)

journal_payloads = Table(
    "journal_payloads",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("subject", String(128), nullable=False),  # a pseudonym, empty when no patient is concerned
    Column("sealed", LargeBinary, nullable=False),
    ForeignKeyConstraint(["writer", "sequence"], ["journal_entries.writer", "journal_entries.sequence"]),
    Index(None, "subject"),
)

journal_heads = Table(
    "journal_heads",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("seal", String(64), nullable=False),  # made with the vault's key, which the database does not hold
)

identities = Table(
    "identities",
    metadata,
    Column("id", String(64), primary_key=True),  # the pseudonym of its login, which may be a patient's address
    Column("sealed_login", LargeBinary, nullable=False),
    Column("failures", Integer, nullable=False, default=0),  # wrong passwords in a row
    Column("failed_at", Float, nullable=False, default=0.0),  # the last of them, UNIX seconds
    Column("locked_until", Float, nullable=False, default=0.0),  # UNIX seconds
)

identity_addresses = Table(
    "identity_addresses",
    metadata,
    Column("address", String(64), primary_key=True),  # its pseudonym
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("position", Integer, nullable=False),  # 0 is the main address
    Column("sealed", LargeBinary, nullable=False),  # the address itself, lower case
)

credentials = Table(
    "credentials",
    metadata,
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True),
    Column("password_hash", String(512), nullable=False),  # argon2id, PHC string
)
