"""Conversations and their messages; a job writes its question and its answer once each.

Until there is an answer, a notice may stand in its place: the model is never shown one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import models, text
from db.engine import transaction
from db.errors import ConversationError, ForeignConversationError

HISTORY_LIMIT = 1000

#: Why there is no answer yet: rate limited, no provider, any other error; or that there will be none.
Cause = Literal["busy", "unavailable", "failed", "dead"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation; `job_id` is the job that wrote it, `notice` says why this is no answer yet."""

    id: int
    role: str
    content: str
    job_id: str | None
    created_at: datetime
    notice: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the model answered in one job, with the tokens and whatever else the provider reported."""

    message_id: int
    conversation_id: str
    content: str
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    details: dict[str, object] | None = None


def store_user_message(
    job_id: str, conversation_id: str, content: str, user_id: str | None = None, tenant: str | None = None
) -> int:
    """Store a job's user message, making the conversation if need be, and return the message's id.

    A second run of the job stores nothing and returns the first one's message. `user_id` and `tenant` are
    kept with a new conversation only; who names others than these is refused, and who names none is trusted.
    Raises ForeignConversationError, and TextError naming the field that PostgreSQL cannot store.
    """
    text.check(job_id=job_id, conversation_id=conversation_id, content=content)
    text.check(user_id=user_id, tenant=tenant)
    conversation = insert(models.Conversation).values(id=conversation_id, user_id=user_id, tenant=tenant)
    with transaction() as session:
        session.execute(conversation.on_conflict_do_nothing(index_elements=[models.Conversation.id]))
        if user_id is not None or tenant is not None:
            _refuse_foreign(session, conversation_id, user_id, tenant)
        return _store_once(session, job_id, conversation_id, "user", content)


def _refuse_foreign(session: Session, conversation_id: str, user_id: str | None, tenant: str | None) -> None:
    """Keep out who could otherwise have the model tell what another user wrote."""
    owned = models.Conversation
    owner = session.execute(select(owned.user_id, owned.tenant).where(owned.id == conversation_id)).one()
    for field, given, kept in (("user", user_id, owner.user_id), ("tenant", tenant, owner.tenant)):
        if given is not None and kept is not None and given != kept:
            raise ForeignConversationError(
                f"{field}: {given!r} is not the one that conversation {conversation_id!r} belongs to; "
                f"give its {field}, or another conversation"
            )


def history(conversation_id: str, limit: int = 15) -> list[Message]:
    """Return the latest messages of a conversation, notices too, at most `limit`, the oldest of them first.

    An unknown conversation has none. Raises ConversationError for a limit outside 1 to 1000.
    """
    with transaction() as session:
        return _latest(session, models.Message.conversation_id == conversation_id, limit=limit)


def history_for(job_id: str, limit: int = 15) -> list[Message]:
    """Return what the model should see in this job: the latest messages up to and with the job's own.

    Messages that came later are left out, so that a second run sees the same as the first, and so are notices.
    The oldest comes first. Raises ConversationError when the job has stored no user message, or for a limit
    outside 1 to 1000.
    """
    message = models.Message
    with transaction() as session:
        asked = session.execute(
            select(message.conversation_id, message.created_at, message.id).where(
                message.job_id == job_id, message.role == "user"
            )
        ).one_or_none()
        if asked is None:
            raise ConversationError(f"job {job_id!r} has stored no user message: store it first")
        until = tuple_(message.created_at, message.id) <= tuple_(asked.created_at, asked.id)
        of_conversation = message.conversation_id == asked.conversation_id
        return _latest(session, of_conversation, until, message.notice.is_(None), limit=limit)


def store_answer(  # the columns of one message, in their order
    job_id: str,
    conversation_id: str,
    content: str,
    model: str | None = None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
    details: dict[str, object] | None = None,
) -> Answer:
    """Store a job's answer and return it; when an earlier run has stored one, return that instead.

    It takes the place of the job's notice, if there is one.

    Raises TextError naming the field that PostgreSQL cannot store.
    """
    text.check(job_id=job_id, conversation_id=conversation_id, content=content, model=model)
    with transaction() as session:
        _store_once(
            session,
            job_id,
            conversation_id,
            "assistant",
            content,
            model=model,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            details=details,
        )
        stored = _answer(session, job_id)
    if stored is None:
        raise ConversationError(f"the answer of job {job_id!r} was deleted while it was stored")
    return stored


def store_notice(job_id: str, conversation_id: str, cause: Cause, content: str) -> bool:
    """Put a notice where a job's answer will be, or change it; return False when the answer is there already.

    The conversation must be there. Raises TextError naming the field that PostgreSQL cannot store.
    """
    text.check(job_id=job_id, conversation_id=conversation_id, content=content)
    message = models.Message
    values = {"conversation_id": conversation_id, "job_id": job_id, "role": "assistant"}
    changed = {"content": content, "notice": cause}
    with transaction() as session:
        stored: int | None = session.scalar(
            insert(message)
            .values(values | changed)
            .on_conflict_do_update(
                index_elements=[message.job_id, message.role], set_=changed, where=message.notice.is_not(None)
            )
            .returning(message.id)
        )
    return stored is not None


def answer_of(job_id: str) -> Answer | None:
    """Return the answer that a job has stored, or None."""
    with transaction() as session:
        return _answer(session, job_id)


def _store_once(session: Session, job_id: str, conversation_id: str, role: str, content: str, **more: object) -> int:
    """Insert the job's message of this role, or find it; of two runs at once, one waits for the other.

    What stands there as a notice becomes the message and keeps its place.
    """
    message = models.Message
    values = {"conversation_id": conversation_id, "job_id": job_id, "role": role, "content": content}
    stored: int | None = session.scalar(
        insert(message)
        .values(values | more)
        .on_conflict_do_update(
            index_elements=[message.job_id, message.role],
            set_={"content": content, "notice": None, **more},
            where=message.notice.is_not(None),
        )
        .returning(message.id)
    )
    if stored is not None:
        return stored
    return session.scalars(select(message.id).where(message.job_id == job_id, message.role == role)).one()


def _latest(session: Session, *where: ColumnElement[bool], limit: int) -> list[Message]:
    if not 1 <= limit <= HISTORY_LIMIT:
        raise ConversationError(f"limit={limit}: a whole number from 1 to {HISTORY_LIMIT}")
    message = models.Message
    rows: Iterable[tuple[int, str, str, str | None, datetime, str | None]] = session.execute(
        select(message.id, message.role, message.content, message.job_id, message.created_at, message.notice)
        .where(*where)
        .order_by(message.created_at.desc(), message.id.desc())
        .limit(limit)
    )
    return [Message(*row) for row in rows][::-1]


def _answer(session: Session, job_id: str) -> Answer | None:
    message = models.Message
    row = session.execute(
        select(
            message.id,
            message.conversation_id,
            message.content,
            message.model,
            message.prompt_tokens,
            message.completion_tokens,
            message.details,
        ).where(message.job_id == job_id, message.role == "assistant", message.notice.is_(None))
    ).one_or_none()
    return None if row is None else Answer(*row)
