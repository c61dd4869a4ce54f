"""The road's tables: one row per accepted message, one per recipient, one per step for `trace`.

Addresses may hold a national health identity (a patient's mailbox is named after it), so sender, peer and recipient
are sealed by the vault; what must be found again is a Message-ID or an external identifier, neither of which names a
person. Subjects are never stored.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table, Text, text

from trust.store import metadata

messages = Table(
    "mta_messages",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("node", String(64), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("envelope", LargeBinary, nullable=False, comment="sealed JSON: sender, peer, envelope_id, flags"),
    Column("content_blob", String(128), nullable=False),
    Column("content_type", String(64), nullable=False),
    Column("size", Integer, nullable=False),
    Column("accepted_at", Float, nullable=False),
    Column("dedup_key", String(128), nullable=False, unique=True),
    Column("reply", LargeBinary, nullable=False, comment="sealed: what was answered, said again to a repeat"),
    Column("external_id", String(256), nullable=False),
    Column("peer_pseudonym", String(64), nullable=False, comment="scopes external_id"),
)
Index(
    "ix_mta_messages_external_id",
    messages.c.external_id,
    sqlite_where=text("external_id <> ''"),
    postgresql_where=text("external_id <> ''"),
)

deliveries = Table(
    "mta_deliveries",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("spool_id", String(32), ForeignKey("mta_messages.id"), nullable=False, index=True),
    Column("ordinal", Integer, nullable=False),
    Column("target", String(16), nullable=False),
    Column("destination", String(300), nullable=False, comment="what shares a concurrency limit: `smtp:domain`, ..."),
    Column("recipient", LargeBinary, nullable=False, comment="sealed JSON: recipient, notify, original_recipient"),
    Column("message_id", String(998), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("due", Float, nullable=False, comment="next try; while leased, the end of the lease"),
    Column("lease", String(100), comment="`node:token` of whoever works on it now"),
    Column("prepared_blob", String(128), comment="the bytes every attempt sends"),
    Column("facts", Text, nullable=False),
    Column("code", String(128), nullable=False, comment="catalogue code of the last refusal"),
    Column("detail", Text, nullable=False),
    Column("ended_at", Float),
    Column("reported", Boolean, nullable=False, comment="whoever had to be told how it ended has been told"),
)
Index(
    "ix_mta_deliveries_ready",
    deliveries.c.due,
    deliveries.c.destination,
    sqlite_where=text("state = 'ready'"),
    postgresql_where=text("state = 'ready'"),
)

Index(
    "ix_mta_deliveries_unreported",
    deliveries.c.ended_at,
    sqlite_where=text("NOT reported AND state <> 'ready'"),
    postgresql_where=text("NOT reported AND state <> 'ready'"),
)

steps = Table(
    "mta_steps",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("spool_id", String(32), ForeignKey("mta_messages.id"), nullable=False, index=True),
    Column("delivery_id", String(32), nullable=False),
    Column("at", Float, nullable=False),
    Column("node", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("code", String(128), nullable=False),
    Column("detail", Text, nullable=False),
)

awaited_receipts = Table(
    "mta_awaited_receipts",
    metadata,
    Column("delivery_id", String(32), ForeignKey("mta_deliveries.id"), primary_key=True),
    Column("accepted_at", Float, nullable=False, index=True, comment="of its message"),
    comment="delivered to an operator that reports in our place and has not done so yet",
)

breakdowns = Table(
    "mta_breakdowns",
    metadata,
    Column("delivery_id", String(32), ForeignKey("mta_deliveries.id"), primary_key=True),
    Column("times", Integer, nullable=False, comment="attempts in a row that broke down"),
    Column("crashes", Integer, nullable=False, comment="the last of them in a row that ended with the process"),
    comment="deliveries whose handling broke down at their last attempt",
)

correspondents = Table(
    "mta_correspondents",
    metadata,
    Column("address", String(64), primary_key=True, comment="pseudonym"),
    Column("capabilities", Text, nullable=False, comment="dotted OIDs, the preferred first"),
    Column("signed_at", Float, nullable=False),
)
