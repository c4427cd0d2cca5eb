"""Build the indexes of a user's conversations and of the full-text search."""

from __future__ import annotations

from alembic import op

from db import index_builds

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_conversations_user": "ON conversations (user_id, created_at DESC, id DESC)",
    "ix_messages_search": "ON messages USING gin (search)",
}


def upgrade() -> None:
    """Build them one after the other; those that stand already are left alone."""
    with op.get_context().autocommit_block():
        for name, definition in INDEXES.items():
            index_builds.build(op.get_bind(), name, definition)


def downgrade() -> None:
    """Drop them."""
    with op.get_context().autocommit_block():
        for name in INDEXES:
            index_builds.drop(op.get_bind(), name)
