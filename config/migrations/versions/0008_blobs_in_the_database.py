"""small blobs beside the rows that name them"""

from alembic import op
import sqlalchemy as sa

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("id", sa.String(length=33), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False, comment="encrypted, as in a blob's file"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_blobs")),
        comment="those small enough to be committed with the rows that name them (`trust.store.blobs`)",
    )


def downgrade() -> None:
    kept = op.get_bind().scalar(sa.text("SELECT count(*) FROM blobs"))
    if kept:  # their names are bound into their encryption: only who holds the key could turn them into files
        raise RuntimeError(
            f"{kept} contents are kept here, which older versions cannot read: this rolls back no further"
        )
    op.drop_table("blobs")
