"""awaited receipts and breakdowns"""

from alembic import op
import sqlalchemy as sa

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mta_awaited_receipts",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("accepted_at", sa.Float(), nullable=False, comment="of its message"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["mta_deliveries.id"], name=op.f("fk_mta_awaited_receipts_delivery_id")
        ),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_mta_awaited_receipts")),
        comment="delivered to an operator that reports in our place and has not done so yet",
    )
    with op.batch_alter_table("mta_awaited_receipts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_mta_awaited_receipts_accepted_at"), ["accepted_at"], unique=False)

    op.create_table(
        "mta_breakdowns",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False, comment="attempts in a row that broke down"),
        sa.Column(
            "crashes",
            sa.Integer(),
            nullable=False,
            comment="the last of them in a row that ended with the process",
        ),
        sa.ForeignKeyConstraint(["delivery_id"], ["mta_deliveries.id"], name=op.f("fk_mta_breakdowns_delivery_id")),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_mta_breakdowns")),
        comment="deliveries whose handling broke down at their last attempt",
    )


def downgrade() -> None:
    op.drop_table("mta_breakdowns")
    with op.batch_alter_table("mta_awaited_receipts", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_mta_awaited_receipts_accepted_at"))

    op.drop_table("mta_awaited_receipts")
