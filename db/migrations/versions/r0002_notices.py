"""Add messages.notice: what stands in an answer's place until there is one, and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, empty in every row."""
    op.add_column("messages", sa.Column("notice", sa.Text))
    op.create_check_constraint(
        op.f("ck_messages_notice"), "messages", "notice IN ('busy', 'unavailable', 'failed', 'dead')"
    )


def downgrade() -> None:
    """Drop the column; without it the notices would be taken for answers, so they go too."""
    op.execute("DELETE FROM messages WHERE notice IS NOT NULL")
    op.drop_constraint(op.f("ck_messages_notice"), "messages")
    op.drop_column("messages", "notice")
