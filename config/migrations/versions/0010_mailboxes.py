"""mailboxes"""

from alembic import op
import sqlalchemy as sa

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_UNPUBLISHED = sa.text("published < version")
_CLOSED = sa.text("closed_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "mta_mailboxes",
        sa.Column("address", sa.String(length=64), nullable=False, comment="pseudonym, as in identity_addresses"),
        sa.Column("sealed_address", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False, comment="`directory.records.MailboxKind`"),
        sa.Column(
            "guessed",
            sa.Boolean(),
            nullable=False,
            comment="nobody has said the kind yet: the directory or an operator may",
        ),
        sa.Column("state", sa.String(length=16), nullable=False, comment="`mta.mailboxes.records.MailboxState`"),
        sa.Column("quota_bytes", sa.BigInteger(), nullable=False, comment="0: the gateway's default"),
        sa.Column(
            "sealed", sa.LargeBinary(), nullable=False, comment="sealed JSON: label, reason, identifiers, preferences"
        ),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("closed_at", sa.Float(), nullable=True),
        sa.Column(
            "purged_at",
            sa.Float(),
            nullable=True,
            comment="when the mail of a closed one was deleted; its address stays taken",
        ),
        sa.Column("version", sa.Integer(), nullable=False, comment="grows with each change the directory is told of"),
        sa.Column("published", sa.Integer(), nullable=False, comment="the version the directory was told"),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_mta_mailboxes")),
    )
    op.create_index(
        "ix_mta_mailboxes_unpublished",
        "mta_mailboxes",
        ["address"],
        sqlite_where=_UNPUBLISHED,
        postgresql_where=_UNPUBLISHED,
    )
    op.create_index(
        "ix_mta_mailboxes_closed", "mta_mailboxes", ["closed_at"], sqlite_where=_CLOSED, postgresql_where=_CLOSED
    )
    op.create_table(
        "mta_patient_exchanges",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("patient", sa.String(length=64), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False, comment="of a professional's last mail in it"),
        sa.Column("ended_at", sa.Float(), nullable=True, comment="a professional has said that it is over"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mta_patient_exchanges")),
    )
    op.create_index(op.f("ix_mta_patient_exchanges_patient"), "mta_patient_exchanges", ["patient"])
    op.create_index(op.f("ix_mta_patient_exchanges_last_at"), "mta_patient_exchanges", ["last_at"])
    op.create_table(
        "mta_patient_exchange_people",
        sa.Column("exchange", sa.String(length=64), nullable=False),
        sa.Column("correspondent", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["exchange"],
            ["mta_patient_exchanges.id"],
            name=op.f("fk_mta_patient_exchange_people_exchange"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("exchange", "correspondent", name=op.f("pk_mta_patient_exchange_people")),
    )
    op.create_table(
        "mta_patient_exchange_mail",
        sa.Column(
            "message",
            sa.String(length=64),
            nullable=False,
            comment="of a Message-ID and the patient; or of their receipt",
        ),
        sa.Column("exchange", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["exchange"],
            ["mta_patient_exchanges.id"],
            name=op.f("fk_mta_patient_exchange_mail_exchange"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("message", name=op.f("pk_mta_patient_exchange_mail")),
    )
    op.create_index(op.f("ix_mta_patient_exchange_mail_exchange"), "mta_patient_exchange_mail", ["exchange"])


def downgrade() -> None:
    closed = op.get_bind().scalar(sa.text("SELECT count(*) FROM mta_mailboxes WHERE state <> 'active'"))
    if closed:
        raise RuntimeError(
            f"{closed} mailboxes are suspended or closed: an older version would let them read, send and receive again"
        )
    narrowed = op.get_bind().scalar(
        sa.text("""SELECT count(*) FROM address_grants WHERE "right" NOT IN ('use', 'sign')""")
    )
    if narrowed:
        raise RuntimeError(
            f"{narrowed} rights of members are narrower than an older version knows, which would take each for a right "
            "to do everything: take them away with relais mailbox members --remove"
        )
    for name in (
        "mta_patient_exchange_mail",
        "mta_patient_exchange_people",
        "mta_patient_exchanges",
        "mta_mailboxes",
    ):
        op.drop_table(name)
