"""Runs the revisions on the connection that db.migration hands over."""

from __future__ import annotations

from alembic import context

from db.models import Base, is_ours

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_server_default=True,
    include_object=is_ours,
    # One transaction each: a revision that must leave its transaction (CREATE INDEX CONCURRENTLY) then leaves
    # only its own, and what came before it stays applied if it fails.
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
