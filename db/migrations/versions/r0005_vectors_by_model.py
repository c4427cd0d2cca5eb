"""Let a document have a vector of each model, and keep when it came.

Workers of before this revision cannot store vectors after it: stop the embedding lane meanwhile.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from db import index_builds

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the new key's index beside the old one, then change over in one transaction."""
    with op.get_context().autocommit_block():
        index_builds.build(op.get_bind(), "ix_documents_key_model", "ON documents (key, model)", unique=True)
    op.drop_constraint("pk_documents", "documents")
    op.execute("ALTER TABLE documents ADD CONSTRAINT pk_documents PRIMARY KEY USING INDEX ix_documents_key_model")
    created = sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False)
    op.add_column("documents", created)
    op.execute("UPDATE documents SET created_at = updated_at")


def downgrade() -> None:
    """Keep of each document the vector that was written last."""
    op.execute("""
        DELETE FROM documents older USING documents newer
        WHERE older.key = newer.key AND (older.updated_at, older.model) < (newer.updated_at, newer.model)
    """)
    op.drop_constraint("pk_documents", "documents")
    op.create_primary_key("pk_documents", "documents", ["key"])
    op.drop_column("documents", "created_at")
