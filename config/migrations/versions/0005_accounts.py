"""locks by network, application passwords, client certificates, OpenID subjects, grants and teams"""

from alembic import op
import sqlalchemy as sa

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_CREDENTIALS = ("application_passwords", "client_certificates", "oidc_subjects")


def _identity(table: str, column: str = "identity_id") -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["identities.id"], name=op.f(f"fk_{table}_{column}"), ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "login_sources",
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("failed_at", sa.Float(), nullable=False),
        sa.Column("locked_until", sa.Float(), nullable=False),
        sa.Column("locks", sa.Integer(), nullable=False),
        sa.Column("wrong", sa.LargeBinary(), nullable=False),
        sa.Column("good_at", sa.Float(), nullable=False),
        _identity("login_sources"),
        sa.PrimaryKeyConstraint("identity_id", "source", name=op.f("pk_login_sources")),
    )
    op.create_table(
        "identity_locks",
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        _identity("identity_locks"),
        sa.PrimaryKeyConstraint("identity_id", name=op.f("pk_identity_locks")),
    )
    op.create_table(
        "application_passwords",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("verifier", sa.String(length=64), nullable=False),
        sa.Column("sealed_name", sa.LargeBinary(), nullable=False),
        sa.Column("services", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_used", sa.Integer(), nullable=True),
        _identity("application_passwords"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_application_passwords")),
        sa.UniqueConstraint("verifier", name=op.f("uq_application_passwords_verifier")),
    )
    op.create_table(
        "client_certificates",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("match", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_used", sa.Integer(), nullable=True),
        _identity("client_certificates"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client_certificates")),
        sa.UniqueConstraint("match", name=op.f("uq_client_certificates_match")),
    )
    op.create_table(
        "oidc_subjects",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("match", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("last_used", sa.Integer(), nullable=True),
        _identity("oidc_subjects"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oidc_subjects")),
        sa.UniqueConstraint("match", name=op.f("uq_oidc_subjects_match")),
    )
    for table in _CREDENTIALS:
        op.create_index(op.f(f"ix_{table}_identity_id"), table, ["identity_id"], unique=False)
    op.create_table(
        "address_grants",
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("identity_id", sa.String(length=64), nullable=False),
        sa.Column("right", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(
            ["address"], ["identity_addresses.address"], name=op.f("fk_address_grants_address"), ondelete="CASCADE"
        ),
        _identity("address_grants"),
        sa.PrimaryKeyConstraint("address", "identity_id", name=op.f("pk_address_grants")),
    )
    op.create_index(op.f("ix_address_grants_identity_id"), "address_grants", ["identity_id"], unique=False)
    op.create_table(
        "team_members",
        sa.Column("team_id", sa.String(length=64), nullable=False),
        sa.Column("member_id", sa.String(length=64), nullable=False),
        _identity("team_members", "team_id"),
        _identity("team_members", "member_id"),
        sa.PrimaryKeyConstraint("team_id", "member_id", name=op.f("pk_team_members")),
    )
    op.create_index(op.f("ix_team_members_member_id"), "team_members", ["member_id"], unique=False)


def downgrade() -> None:
    for table in ("team_members", "address_grants", *_CREDENTIALS, "identity_locks", "login_sources"):
        op.drop_table(table)
