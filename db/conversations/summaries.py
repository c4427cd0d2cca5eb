"""Lists of one user's conversations, each with its count of messages, in one statement."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, null, select, true, update

from db import models, text
from db.conversations import paging
from db.conversations.paging import Page, Place, Way
from db.engine import transaction
from db.errors import ConversationError, UnknownConversationError

TITLE_LENGTH = 80
_LIST = "conversations"
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")
_message: Any = models.Message
_conversation: Any = models.Conversation
_AT, _ID = _conversation.created_at, _conversation.id


@dataclass(frozen=True)
class Summary:
    """A conversation: `title` is the first words of its user, `message_count` counts notices too."""

    id: str
    title: str
    language: str | None
    created_at: datetime
    message_count: int
    last_message_at: datetime | None


def page(user_id: str, limit: int | None = None, cursor: str | None = None, total: bool = False) -> Page[Summary]:
    """Return a user's conversations, the newest first: next are older ones.

    One statement, whatever the limit. Raises PageError for a limit outside 1 to PAGINATION_LIST_LIMIT (500) and for a
    cursor of another list.
    """
    text.check(user_id=user_id)
    limit = paging.checked(limit, paging.limits().lists)
    place = None if cursor is None else paging.read_cursor(cursor, _LIST, str)
    is_forward = place is not None and place.is_forward
    order = (_AT, _ID) if is_forward else (_AT.desc(), _ID.desc())
    listed = _summaries(user_id).order_by(*order).limit(limit + 1)
    others: ColumnElement[Any] = false()
    if place is not None:
        listed = listed.where(place.where(_AT, _ID))
        beyond = select(_ID).where(_conversation.user_id == user_id, place.turned().where(_AT, _ID))
        others = beyond.order_by(_AT, _ID).limit(1).scalar_subquery().is_not(None)
    count = select(func.count()).select_from(_conversation).where(_conversation.user_id == user_id).scalar_subquery()
    about = select(others.label("others"), (count if total else null()).label("total")).subquery("about")
    found = listed.lateral("found")
    again = (found.c.created_at, found.c.id)
    statement = select(about, found).select_from(about).outerjoin(found, true())
    with transaction() as session:
        rows: Any = session.execute(
            statement.order_by(*(again if is_forward else (column.desc() for column in again)))
        ).all()
    items = [_summary(*row[2:]) for row in rows if row[2] is not None]
    return paging.page_of(items, limit, place, bool(rows[0][0]), _place_of, total=rows[0][1], newest_first=True)


def of(user_id: str, conversation_id: str) -> Summary:
    """Return one of a user's conversations. Raises UnknownConversationError when the user has none of this id."""
    text.check(user_id=user_id, conversation_id=conversation_id)
    with transaction() as session:
        row: Any = session.execute(_summaries(user_id).where(conversation_id == _ID)).one_or_none()
    if row is None:
        raise _unknown(user_id, conversation_id)
    return _summary(*row)


def set_language(user_id: str, conversation_id: str, language: str | None) -> None:
    """Keep the language that a conversation's user prefers, as "en" or "pt-BR"; None forgets it.

    Raises UnknownConversationError as `of`, and ConversationError for what names no language.
    """
    text.check(user_id=user_id, conversation_id=conversation_id)
    if language is not None and not _LANGUAGE.fullmatch(language):
        raise ConversationError(f"language={language!r}: a language's tag, such as en or pt-BR; None forgets it")
    where = (conversation_id == _ID, _conversation.user_id == user_id)
    with transaction() as session:
        changed = session.scalar(update(_conversation).where(*where).values(language=language).returning(_ID))
    if changed is None:
        raise _unknown(user_id, conversation_id)


def _summaries(user_id: str) -> Select[Any]:
    """Select a user's conversations. A count walks its part of the index alone; first and last are one step in it."""
    of_it = _message.conversation_id == _conversation.id
    order = (_message.created_at, _message.id)
    count = select(func.count()).select_from(_message).where(of_it).scalar_subquery()
    last = select(func.max(_message.created_at)).where(of_it).scalar_subquery()
    begins = func.left(_message.content, 4 * TITLE_LENGTH)
    first = select(begins).where(of_it, _message.role == "user").order_by(*order).limit(1).scalar_subquery()
    columns = (_ID, first.label("title"), _conversation.language, _AT, count.label("count"), last.label("last"))
    return select(*columns).where(_conversation.user_id == user_id)


def _summary(id_: str, begins: str | None, language: str | None, at: datetime, count: int, last: datetime) -> Summary:
    title = textwrap.shorten(begins or "", TITLE_LENGTH, placeholder=" ...")
    if begins and title == " ...".strip():  # one word, longer than a title
        title = begins.split()[0][: TITLE_LENGTH - 4] + " ..."
    return Summary(id_, title, language, at, count, last)


def _place_of(summary: Summary, way: Way) -> Place:
    return Place(_LIST, way, summary.created_at, summary.id)


def _unknown(user_id: str, conversation_id: str) -> UnknownConversationError:
    return UnknownConversationError(f"user {user_id!r} has no conversation {conversation_id!r}")
