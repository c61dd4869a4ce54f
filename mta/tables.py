"""The road's tables: one row per accepted message, one per recipient, one per step for `trace`.

Addresses may hold a national health identity (a patient's mailbox is named after it), so sender, peer and recipient
are sealed by the vault; what must be found again is a Message-ID or an external identifier, neither of which names a
person. Subjects are never stored.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    text,
)

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
    Column("purged_at", Float, comment="when its trace was purged (`mta.retention`): what is left answers a repeat"),
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
    Column("priority", Integer, nullable=False, server_default=text("1"), comment="`mta.priority.Priority`"),
    Column("held_at", Float, comment="no attempt begins and nothing is purged until it is released (`mta.queue`)"),
)
# What waits for its next attempt: by its turn, and by its destination (`mta.claiming`).
Index(
    "ix_mta_deliveries_ready",
    deliveries.c.priority,
    deliveries.c.due,
    deliveries.c.destination,
    sqlite_where=text("state = 'ready' AND held_at IS NULL"),
    postgresql_where=text("state = 'ready' AND held_at IS NULL"),
)
Index(
    "ix_mta_deliveries_lanes",
    deliveries.c.destination,
    deliveries.c.priority,
    deliveries.c.due,
    deliveries.c.id,
    sqlite_where=text("state = 'ready' AND held_at IS NULL"),
    postgresql_where=text("state = 'ready' AND held_at IS NULL"),
)
Index(
    "ix_mta_deliveries_held",
    deliveries.c.destination,
    deliveries.c.id,
    sqlite_where=text("held_at IS NOT NULL"),
    postgresql_where=text("held_at IS NOT NULL"),
)
Index(
    "ix_mta_deliveries_troubled",
    deliveries.c.state,
    deliveries.c.code,
    deliveries.c.id,
    sqlite_where=text("code <> '' AND state <> 'delivered'"),
    postgresql_where=text("code <> '' AND state <> 'delivered'"),
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
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
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

held_destinations = Table(
    "mta_held_destinations",
    metadata,
    Column("destination", String(300), primary_key=True),
    Column("held_at", Float, nullable=False),
    Column("sealed", LargeBinary, nullable=False, comment="sealed JSON: by, reason"),
    comment="nothing is sent there until it is released (`mta.queue`)",
)

purged_names = Table(
    "mta_purged_names",
    metadata,
    Column("name", String(64), primary_key=True, comment="pseudonym of a Message-ID or an external identifier"),
    Column("spool_id", String(32), ForeignKey("mta_messages.id"), primary_key=True, index=True),
    comment="by what a message whose trace was purged can still be asked for",
)

purged_counts = Table(
    "mta_purged_counts",
    metadata,
    Column("what", String(32), primary_key=True, comment="`mta.retention.What`, or `ended:` and a state"),
    Column("count", Integer, nullable=False),
    comment="how much was purged since the beginning",
)

notices = Table(
    "mta_notices",
    metadata,
    Column("delivery_id", String(32), ForeignKey("mta_deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("notice", String(32), primary_key=True, comment="delivery id of the mail that brought it"),
    Column("said", String(16), nullable=False),
    Column("at", Float, nullable=False),
    comment="what believed receipts said of each delivery (`mta.notices`)",
)

quarantine = Table(
    "mta_quarantine",
    metadata,
    Column("delivery_id", String(32), ForeignKey("mta_deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("held_at", Float, nullable=False),
    Column("state", String(16), nullable=False, comment="`mta.quarantine.Held`"),
    Column("decided_at", Float),
    Column("sealed", LargeBinary, comment="sealed JSON: by, reason"),
    comment="deliveries whose content nobody may open until a person has decided",
)
Index(
    "ix_mta_quarantine_held",
    quarantine.c.held_at,
    sqlite_where=text("state = 'held'"),
    postgresql_where=text("state = 'held'"),
)

follow_ups = Table(
    "mta_follow_ups",
    metadata,
    Column("delivery_id", String(32), ForeignKey("mta_deliveries.id", ondelete="CASCADE"), primary_key=True),
    Column("service", String(64), nullable=False, comment="pseudonym of the sender"),
    Column("accepted_at", Float, nullable=False),
    Column("critical", Boolean, nullable=False),
    Column("state", String(16), nullable=False, comment="`mta.follow_up.Reading`"),
    Column("changed_at", Float, nullable=False),
    Column("due", Float, comment="when something is to be done because nobody has read it; none: nothing more"),
    Column("look_at", Float, nullable=False, comment="when it is looked up next whether it was read"),
    Column("read_at", Float, comment="none: nobody has read it, as far as is known"),
    Column("instead_of", String(32), comment="the delivery whose reader did not read it"),
    Column("sealed", LargeBinary, comment="sealed JSON: by, reason"),
    comment="what senders want to know to be read (`mta.follow_up`)",
)
Index(
    "ix_mta_follow_ups_due",
    follow_ups.c.due,
    sqlite_where=text("due IS NOT NULL"),
    postgresql_where=text("due IS NOT NULL"),
)
Index(
    "ix_mta_follow_ups_unread",
    follow_ups.c.accepted_at,
    follow_ups.c.service,
    sqlite_where=text("read_at IS NULL"),
    postgresql_where=text("read_at IS NULL"),
)
Index(
    "ix_mta_follow_ups_look_at",
    follow_ups.c.look_at,
    sqlite_where=text("read_at IS NULL"),
    postgresql_where=text("read_at IS NULL"),
)
Index(
    "ix_mta_follow_ups_critical",
    follow_ups.c.state,
    sqlite_where=text("critical = 1 AND read_at IS NULL"),
    postgresql_where=text("critical AND read_at IS NULL"),
)
Index(
    "ix_mta_follow_ups_instead_of",
    follow_ups.c.instead_of,
    sqlite_where=text("instead_of IS NOT NULL"),
    postgresql_where=text("instead_of IS NOT NULL"),
)
