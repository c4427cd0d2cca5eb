"""The tables, as SQLAlchemy models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pgvector.sqlalchemy import Vector
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The root of all models: str is text, datetime knows its zone, every constraint has a name."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )
    type_annotation_map = {str: Text, datetime: DateTime(timezone=True), dict[str, Any]: JSONB}


#: Names of indexes that are made on demand, and that no model has.
ON_DEMAND = "ix_documents_nearest_"


def is_ours(_: object, name: str | None, kind: str, reflected: bool, other: object) -> bool:
    """Tell alembic whether the models answer for an object."""
    return not (kind == "index" and reflected and other is None and (name or "").startswith(ON_DEMAND))


class Conversation(Base):
    """A thread of messages; `language` is the one that its user prefers."""

    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str | None]
    tenant: Mapped[str | None]
    language: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Message(Base):
    """One message. A job writes at most one of each role, so that its second run adds nothing.

    With `notice` it stands in an answer's place until there is one, and says why there is none yet.
    """

    __tablename__ = "messages"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    conversation_id: Mapped[str] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"))
    role: Mapped[str]
    content: Mapped[str]
    job_id: Mapped[str | None]
    model: Mapped[str | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    details: Mapped[dict[str, object] | None] = mapped_column(JSONB)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    notice: Mapped[str | None]
    # A tsvector holds a megabyte at most; so much of a text always fits. Deferred: no reader of messages wants it.
    search: Mapped[str] = mapped_column(
        TSVECTOR, Computed("to_tsvector('english'::regconfig, left(content, 100000))", persisted=True), deferred=True
    )

    __table_args__ = (
        CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name="role"),
        CheckConstraint("notice IN ('busy', 'unavailable', 'failed', 'dead')", name="notice"),
        UniqueConstraint("job_id", "role"),
    )


# A user's conversations, the newest first.
Index("ix_conversations_user", Conversation.user_id, Conversation.created_at.desc(), Conversation.id.desc())
# The words of messages, of all users: an index by user as well would need a copy of the user in every message.
Index("ix_messages_search", Message.search, postgresql_using="gin")
# A conversation's latest messages, and any page before them, come straight off this index.
Index("ix_messages_history", Message.conversation_id, Message.created_at.desc(), Message.id.desc())


class Document(Base):
    """A text with the vector that a model made of it; while models change, it may have one of each.

    Indexes for the nearest are made on demand, one for each model and length (`vector_indexes`).
    """

    __tablename__ = "documents"

    key: Mapped[str] = mapped_column(primary_key=True)
    content: Mapped[str]
    embedding: Mapped[list[float]] = mapped_column(Vector())
    model: Mapped[str] = mapped_column(primary_key=True)
    dimensions: Mapped[int] = mapped_column(Computed("vector_dims(embedding)", persisted=True))
    job_id: Mapped[str | None]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Receipt(Base):
    """What a job did to the database, committed together with it."""

    __tablename__ = "receipts"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    result: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SlowStatement(Base):
    """The slow runs of statements that differ only in their values: see `slow_statements`."""

    __tablename__ = "slow_statements"

    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    statement: Mapped[str]
    calls: Mapped[int] = mapped_column(BigInteger)
    total_ms: Mapped[float] = mapped_column(Double)
    longest_ms: Mapped[float] = mapped_column(Double)
    failures: Mapped[int] = mapped_column(BigInteger)
    plan: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UnicodeCharacter(Base):
    """A named character; `character` is null where PostgreSQL cannot store it (surrogates, U+0000)."""

    __tablename__ = "unicode_characters"

    codepoint: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    character: Mapped[str | None]
    name: Mapped[str]
    category: Mapped[str | None]
    bidirectional: Mapped[str | None]
    combining: Mapped[int | None]
    mirrored: Mapped[bool | None]
    numeric: Mapped[float | None] = mapped_column(Double)
