"""Create conversations, messages, documents, receipts and unicode_characters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import Vector
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the extension and the first tables."""
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "conversations",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("tenant", sa.Text),
        sa.Column("language", sa.Text),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"),
    )
    op.create_table(
        "messages",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("conversation_id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("job_id", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("details", JSONB),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name="fk_messages_conversation_id",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint("job_id", "role", name="uq_messages_job_id_role"),
        sa.CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name=op.f("ck_messages_role")),
    )
    op.create_index(
        "ix_messages_history",
        "messages",
        ["conversation_id", sa.text("created_at DESC"), sa.text("id DESC")],
    )
    op.create_table(
        "documents",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("embedding", Vector(), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("dimensions", sa.Integer, sa.Computed("vector_dims(embedding)", persisted=True), nullable=False),
        sa.Column("job_id", sa.Text),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("key", name="pk_documents"),
    )
    op.create_table(
        "receipts",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("result", JSONB, nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("job_id", name="pk_receipts"),
    )
    op.create_table(
        "unicode_characters",
        sa.Column("codepoint", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("character", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("category", sa.Text),
        sa.Column("bidirectional", sa.Text),
        sa.Column("combining", sa.Integer),
        sa.Column("mirrored", sa.Boolean),
        sa.Column("numeric", sa.Double),
        sa.PrimaryKeyConstraint("codepoint", name="pk_unicode_characters"),
    )


def downgrade() -> None:
    """Drop the tables; the extension stays, because others may use it."""
    for table in ("unicode_characters", "receipts", "documents", "messages", "conversations"):
        op.drop_table(table)


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
