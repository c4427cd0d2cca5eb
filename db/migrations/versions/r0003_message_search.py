"""Add messages.search: what full-text search looks at.

Adding a generated column writes the table anew, and nobody reads or writes it meanwhile (about 10 s for a million
messages): apply this one at a quiet time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, filled in every row."""
    search = sa.Computed("to_tsvector('english'::regconfig, left(content, 100000))", persisted=True)
    op.add_column("messages", sa.Column("search", TSVECTOR, search, nullable=False))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("messages", "search")
