"""Alembic's entry point: always online, on the connection `config.migrations.upgrade` hands over."""

from alembic import context

from config.migrations import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
