"""what receipts said of each delivery, and the quarantine"""

from alembic import op
import sqlalchemy as sa

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_HELD = sa.text("state = 'held'")


def upgrade() -> None:
    op.create_table(
        "mta_notices",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("notice", sa.String(length=32), nullable=False, comment="delivery id of the mail that brought it"),
        sa.Column("said", sa.String(length=16), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["mta_deliveries.id"], name=op.f("fk_mta_notices_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("delivery_id", "notice", name=op.f("pk_mta_notices")),
        comment="what believed receipts said of each delivery (`mta.notices`)",
    )
    op.create_table(
        "mta_quarantine",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("held_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False, comment="`mta.quarantine.Held`"),
        sa.Column("decided_at", sa.Float(), nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=True, comment="sealed JSON: by, reason"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["mta_deliveries.id"], name=op.f("fk_mta_quarantine_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_mta_quarantine")),
        comment="deliveries whose content nobody may open until a person has decided",
    )
    op.create_index(
        "ix_mta_quarantine_held",
        "mta_quarantine",
        ["held_at"],
        unique=False,
        sqlite_where=_HELD,
        postgresql_where=_HELD,
    )


def downgrade() -> None:
    op.drop_index("ix_mta_quarantine_held", table_name="mta_quarantine")
    op.drop_table("mta_quarantine")
    op.drop_table("mta_notices")
