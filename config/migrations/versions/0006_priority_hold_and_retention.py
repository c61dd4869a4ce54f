"""priority and hold of deliveries, held destinations, what is left of purged messages"""

from alembic import op
import sqlalchemy as sa

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_WAITING = sa.text("state = 'ready' AND held_at IS NULL")
_READY = sa.text("state = 'ready'")
_HELD = sa.text("held_at IS NOT NULL")
_TROUBLED = sa.text("code <> '' AND state <> 'delivered'")


def _index(name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, "mta_deliveries", columns, unique=False, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    # Columns are added, not tables copied: at once, however long the queue.
    op.add_column(
        "mta_deliveries",
        sa.Column(
            "priority", sa.Integer(), server_default=sa.text("1"), nullable=False, comment="`mta.priority.Priority`"
        ),
    )
    op.add_column(
        "mta_deliveries",
        sa.Column(
            "held_at",
            sa.Float(),
            nullable=True,
            comment="no attempt begins and nothing is purged until it is released (`mta.queue`)",
        ),
    )
    op.add_column(
        "mta_messages",
        sa.Column(
            "purged_at",
            sa.Float(),
            nullable=True,
            comment="when its trace was purged (`mta.retention`): what is left answers a repeat",
        ),
    )
    op.drop_index("ix_mta_deliveries_ready", table_name="mta_deliveries")
    _index("ix_mta_deliveries_ready", ["priority", "due", "destination"], _WAITING)
    _index("ix_mta_deliveries_lanes", ["destination", "priority", "due", "id"], _WAITING)
    _index("ix_mta_deliveries_held", ["destination", "id"], _HELD)
    _index("ix_mta_deliveries_troubled", ["state", "code", "id"], _TROUBLED)
    op.create_table(
        "mta_held_destinations",
        sa.Column("destination", sa.String(length=300), nullable=False),
        sa.Column("held_at", sa.Float(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False, comment="sealed JSON: by, reason"),
        sa.PrimaryKeyConstraint("destination", name=op.f("pk_mta_held_destinations")),
        comment="nothing is sent there until it is released (`mta.queue`)",
    )
    op.create_table(
        "mta_purged_names",
        sa.Column(
            "name", sa.String(length=64), nullable=False, comment="pseudonym of a Message-ID or an external identifier"
        ),
        sa.Column("spool_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["spool_id"], ["mta_messages.id"], name=op.f("fk_mta_purged_names_spool_id")),
        sa.PrimaryKeyConstraint("name", "spool_id", name=op.f("pk_mta_purged_names")),
        comment="by what a message whose trace was purged can still be asked for",
    )
    op.create_index(op.f("ix_mta_purged_names_spool_id"), "mta_purged_names", ["spool_id"], unique=False)
    op.create_table(
        "mta_purged_counts",
        sa.Column(
            "what", sa.String(length=32), nullable=False, comment="`mta.retention.What`, or `ended:` and a state"
        ),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_mta_purged_counts")),
        comment="how much was purged since the beginning",
    )


def downgrade() -> None:
    held = op.get_bind().scalar(
        sa.text(
            "SELECT (SELECT count(*) FROM mta_deliveries WHERE held_at IS NOT NULL AND state = 'ready')"
            " + (SELECT count(*) FROM mta_held_destinations)"
        )
    )
    if held:  # what a person has stopped would go
        raise RuntimeError(f"{held} deliveries and destinations are held: release or drop them before rolling back")
    for table in ("mta_purged_counts", "mta_purged_names", "mta_held_destinations"):
        op.drop_table(table)
    for index in ("troubled", "held", "lanes", "ready"):
        op.drop_index(f"ix_mta_deliveries_{index}", table_name="mta_deliveries")
    op.drop_column("mta_messages", "purged_at")
    op.drop_column("mta_deliveries", "held_at")
    op.drop_column("mta_deliveries", "priority")
    _index("ix_mta_deliveries_ready", ["due", "destination"], _READY)
