"""The tables of trust: small blobs, the journal, and who may log in with what.

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
    Text,
)

from trust.store import metadata

blobs = Table(
    "blobs",
    metadata,
    Column("id", String(33), primary_key=True),
    Column("content", LargeBinary, nullable=False, comment="encrypted, as in a blob's file"),
    comment="those small enough to be committed with the rows that name them (`trust.store.blobs`)",
)

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

journal_checkpoints = Table(
    "journal_checkpoints",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3, ...
    Column("head", Text, nullable=False),  # JSON, the very characters that are signed and published
    Column("signature", LargeBinary, nullable=False),
    Column("algorithm", String(32), nullable=False),
    Column("key", LargeBinary, nullable=False),  # SubjectPublicKeyInfo, DER
    Column("writer", String(64), nullable=False),  # which entry records the checkpoint
    Column("sequence", BigInteger, nullable=False),
)

journal_trees = Table(
    "journal_trees",
    metadata,
    Column("writer", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("peaks", LargeBinary, nullable=False),  # what the tree needs to grow; remade when it is lost or damaged
)

journal_publications = Table(
    "journal_publications",
    metadata,
    Column("destination", String(64), primary_key=True),  # a hash of node and address
    Column("number", BigInteger, nullable=False),  # the last checkpoint it was given
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

# The columns `failures`, `failed_at` and `locked_until` of `identities` count guesses from networks that are not
# familiar; what each network did is here.
login_sources = Table(
    "login_sources",
    metadata,
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True),
    Column("source", String(64), primary_key=True),  # pseudonym of a network
    Column("failures", Integer, nullable=False),  # wrong passwords in a row
    Column("failed_at", Float, nullable=False),  # the last of them, UNIX seconds
    Column("locked_until", Float, nullable=False),  # UNIX seconds
    Column("locks", Integer, nullable=False),  # in a row
    Column("wrong", LargeBinary, nullable=False),  # keyed digests of the last wrong passwords, the newest first
    Column("good_at", Float, nullable=False),  # the last right password, 0 for never
)

identity_locks = Table(
    "identity_locks",
    metadata,
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True),
    Column("at", Float, nullable=False),  # since when an administrator keeps it out
)

application_passwords = Table(
    "application_passwords",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("verifier", String(64), nullable=False, unique=True),  # keyed hash of the secret
    Column("sealed_name", LargeBinary, nullable=False),
    Column("services", String(64), nullable=False),  # space separated, empty for all
    Column("created_at", Float, nullable=False),
    Column("last_used", Integer),  # days since 1970
)

client_certificates = Table(
    "client_certificates",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("match", String(64), nullable=False, unique=True),  # pseudonym of kind and what must be the same
    Column("kind", String(16), nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # the certificate, DER
    Column("created_at", Float, nullable=False),
    Column("last_used", Integer),  # days since 1970
)

oidc_subjects = Table(
    "oidc_subjects",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("match", String(64), nullable=False, unique=True),  # pseudonym of issuer, claim and value
    Column("sealed", LargeBinary, nullable=False),  # the same as JSON
    Column("created_at", Float, nullable=False),
    Column("last_used", Integer),  # days since 1970
)

address_grants = Table(
    "address_grants",
    metadata,
    Column("address", ForeignKey("identity_addresses.address", ondelete="CASCADE"), primary_key=True),
    Column("identity_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True, index=True),
    Column("right", String(8), nullable=False),  # `use`, or `sign` which includes it
)

team_members = Table(
    "team_members",
    metadata,
    Column("team_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True),
    Column("member_id", ForeignKey("identities.id", ondelete="CASCADE"), primary_key=True, index=True),
)

# One row for each process that lives; see `trust.store.nodes`.
nodes = Table(
    "nodes",
    metadata,
    Column("holder", String(64), primary_key=True),  # under this name it leases deliveries
    Column("name", String(64), nullable=False),
    Column("since", Float, nullable=False),  # UNIX seconds, by its own clock
    Column("beats", BigInteger, nullable=False),
)
