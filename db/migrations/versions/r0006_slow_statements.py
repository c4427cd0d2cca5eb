"""Add the table of slow statements."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "slow_statements",
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("total_ms", sa.Double, nullable=False),
        sa.Column("longest_ms", sa.Double, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("plan", JSONB),
        sa.Column("first_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_slow_statements")),
    )


def downgrade() -> None:
    """Drop the table with what it says."""
    op.drop_table("slow_statements")
