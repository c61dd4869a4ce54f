"""correspondents"""

from alembic import op
import sqlalchemy as sa

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mta_correspondents",
        sa.Column("address", sa.String(length=64), nullable=False, comment="pseudonym"),
        sa.Column("capabilities", sa.Text(), nullable=False, comment="dotted OIDs, the preferred first"),
        sa.Column("signed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_mta_correspondents")),
    )


def downgrade() -> None:
    op.drop_table("mta_correspondents")
