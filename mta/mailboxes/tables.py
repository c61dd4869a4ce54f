"""The tables of our mailboxes: one row each, and the exchanges in which patients may answer.

An address may be a matricule: it is found by its pseudonym, the one `trust.identities` knows it by, and kept sealed.
Who may do what in a team's mailbox stands where all such rights stand, in `trust.tables.address_grants`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, LargeBinary, String, Table

from trust.store import metadata

mailboxes = Table(
    "mta_mailboxes",
    metadata,
    Column("address", String(64), primary_key=True, comment="pseudonym, as in identity_addresses"),
    Column("sealed_address", LargeBinary, nullable=False),
    Column("kind", String(8), nullable=False, comment="`directory.records.MailboxKind`"),
    Column(
        "guessed", Boolean, nullable=False, comment="nobody has said the kind yet: the directory or an operator may"
    ),
    Column("state", String(16), nullable=False, comment="`mta.mailboxes.records.MailboxState`"),
    Column("quota_bytes", BigInteger, nullable=False, comment="0: the gateway's default"),
    Column("sealed", LargeBinary, nullable=False, comment="sealed JSON: label, reason, identifiers, preferences"),
    Column("created_at", Float, nullable=False),
    Column("closed_at", Float),
    Column("purged_at", Float, comment="when the mail of a closed one was deleted; its address stays taken"),
    Column("version", Integer, nullable=False, comment="grows with each change the directory is told of"),
    Column("published", Integer, nullable=False, comment="the version the directory was told"),
)
Index(
    "ix_mta_mailboxes_unpublished",
    mailboxes.c.address,
    sqlite_where=mailboxes.c.published < mailboxes.c.version,
    postgresql_where=mailboxes.c.published < mailboxes.c.version,
)
Index(
    "ix_mta_mailboxes_closed",
    mailboxes.c.closed_at,
    sqlite_where=mailboxes.c.closed_at.is_not(None),
    postgresql_where=mailboxes.c.closed_at.is_not(None),
)

# What professionals write to patients (`mta.mailboxes.exchanges`); every name in it is a pseudonym.
patient_exchanges = Table(
    "mta_patient_exchanges",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("patient", String(64), nullable=False, index=True),
    Column("last_at", Float, nullable=False, index=True, comment="of a professional's last mail in it"),
    Column("ended_at", Float, comment="a professional has said that it is over"),
)
patient_exchange_people = Table(
    "mta_patient_exchange_people",
    metadata,
    Column("exchange", ForeignKey("mta_patient_exchanges.id", ondelete="CASCADE"), primary_key=True),
    Column("correspondent", String(64), primary_key=True),
)
patient_exchange_mail = Table(
    "mta_patient_exchange_mail",
    metadata,
    Column("message", String(64), primary_key=True, comment="of a Message-ID and the patient; or of their receipt"),
    Column("exchange", ForeignKey("mta_patient_exchanges.id", ondelete="CASCADE"), nullable=False, index=True),
)
