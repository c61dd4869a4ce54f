"""what senders want to know to be read"""

from alembic import op
import sqlalchemy as sa

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_DUE = sa.text("due IS NOT NULL")
_UNREAD = sa.text("read_at IS NULL")
_INSTEAD = sa.text("instead_of IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "mta_follow_ups",
        sa.Column("delivery_id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=64), nullable=False, comment="pseudonym of the sender"),
        sa.Column("accepted_at", sa.Float(), nullable=False),
        sa.Column("critical", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False, comment="`mta.follow_up.Reading`"),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column(
            "due",
            sa.Float(),
            nullable=True,
            comment="when something is to be done because nobody has read it; none: nothing more",
        ),
        sa.Column("look_at", sa.Float(), nullable=False, comment="when it is looked up next whether it was read"),
        sa.Column("read_at", sa.Float(), nullable=True, comment="none: nobody has read it, as far as is known"),
        sa.Column(
            "instead_of", sa.String(length=32), nullable=True, comment="the delivery whose reader did not read it"
        ),
        sa.Column("sealed", sa.LargeBinary(), nullable=True, comment="sealed JSON: by, reason"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["mta_deliveries.id"], name=op.f("fk_mta_follow_ups_delivery_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("delivery_id", name=op.f("pk_mta_follow_ups")),
        comment="what senders want to know to be read (`mta.follow_up`)",
    )
    op.create_index(
        "ix_mta_follow_ups_critical",
        "mta_follow_ups",
        ["state"],
        unique=False,
        sqlite_where=sa.text("critical = 1 AND read_at IS NULL"),
        postgresql_where=sa.text("critical AND read_at IS NULL"),
    )
    for name, columns, where in (
        ("due", ["due"], _DUE),
        ("unread", ["accepted_at", "service"], _UNREAD),
        ("look_at", ["look_at"], _UNREAD),
        ("instead_of", ["instead_of"], _INSTEAD),
    ):
        op.create_index(
            f"ix_mta_follow_ups_{name}",
            "mta_follow_ups",
            columns,
            unique=False,
            sqlite_where=where,
            postgresql_where=where,
        )


def downgrade() -> None:
    running = op.get_bind().scalar(sa.text("SELECT count(*) FROM mta_follow_ups WHERE due IS NOT NULL"))
    if running:  # nobody would be told any more that a critical result is unread
        raise RuntimeError(f"{running} critical results wait to be read: relais reading unread, before rolling back")
    for name in ("instead_of", "critical", "look_at", "unread", "due"):
        op.drop_index(f"ix_mta_follow_ups_{name}", table_name="mta_follow_ups")
    op.drop_table("mta_follow_ups")
