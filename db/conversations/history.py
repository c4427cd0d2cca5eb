"""Pages of the messages of one user's conversation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, false, func, null, select, true
from sqlalchemy.orm import Session, aliased

from db import models, text
from db.conversations import paging
from db.conversations.paging import Page, Place, Way
from db.conversations.turns import Message
from db.engine import transaction
from db.errors import PageError, UnknownConversationError

_LIST = "messages"
_TIE = 2**63 - 1  # after every message of one moment
_message: Any = models.Message
_conversation: Any = models.Conversation
_AT, _ID = _message.created_at, _message.id
_COLUMNS = (_ID, _message.role, _message.content, _message.job_id, _AT, _message.notice)


@dataclass(frozen=True)
class _Wanted:
    """What is to be read: from a place on, or `offset` messages from the latest."""

    limit: int
    place: Place | None
    offset: int
    total: bool

    @property
    def is_forward(self) -> bool:
        return self.place is not None and self.place.is_forward


def page(
    user_id: str,
    conversation_id: str,
    limit: int | None = None,
    *,
    offset: int | None = None,
    cursor: str | None = None,
    before: int | datetime | None = None,
    after: int | datetime | None = None,
    total: bool = False,
) -> Page[Message]:
    """Return messages of a user's conversation, notices too, the oldest first; without more the latest ones.

    `offset` leaves out so many of the latest. `before` and `after` are a message's id or a time with its zone.
    `cursor` is one of another page. Whichever is given, one statement reads the page (one more finds a message by its
    id), and all but `offset` and `total` cost the same wherever the page is.

    Messages are ordered by the beginning of the transaction that wrote them: one that took long may appear among those
    that were read before.

    Raises UnknownConversationError when the user has no such conversation, whoever else may have it, and PageError for
    a limit outside 1 to PAGINATION_MESSAGES_LIMIT (1000) and for a place that is none.
    """
    text.check(user_id=user_id, conversation_id=conversation_id)
    limit = paging.checked(limit, paging.limits().messages, offset)
    paging.check_one(offset=offset, cursor=cursor, before=before, after=after)
    with transaction() as session:
        place = None
        if cursor is not None:
            place = paging.read_cursor(cursor, _LIST, int)
        elif before is not None:
            place = _place(session, user_id, conversation_id, "before", before)
        elif after is not None:
            place = _place(session, user_id, conversation_id, "after", after)
        wanted = _Wanted(limit, place, offset or 0, total)
        rows: Any = session.execute(_statement(user_id, conversation_id, wanted)).all()
    if not rows:
        raise UnknownConversationError(f"user {user_id!r} has no conversation {conversation_id!r}")
    _, others, count = rows[0][:3]
    found = [Message(*row[3:]) for row in rows if row[3] is not None]
    return paging.page_of(found, limit, place, bool(others), _place_of, total=count)


def _place_of(message: Message, way: Way) -> Place:
    return Place(_LIST, way, message.created_at, message.id)


def _statement(user_id: str, conversation_id: str, wanted: _Wanted) -> Select[Any]:
    """Select (conversation, whether it goes on the other way, total, *message); without messages one row of nulls."""
    of_conversation = _message.conversation_id == conversation_id
    messages = _messages(of_conversation, wanted)
    others: ColumnElement[bool] = false()
    if wanted.place is not None or wanted.offset:
        beyond = (
            of_conversation if wanted.place is None else and_(of_conversation, wanted.place.turned().where(_AT, _ID))
        )
        # Not EXISTS: for a long conversation that reads the table from its beginning until it meets a message of it.
        one = select(_ID).where(beyond).order_by(_AT, _ID).limit(1)
        others = one.scalar_subquery().is_not(None)
    # By the outer row, not by the value: knowing the value of a large one, the planner reads the whole table.
    count = select(func.count()).select_from(_message).where(_message.conversation_id == _conversation.id)
    ordered = (messages.c.created_at, messages.c.id)
    return (
        select(_conversation.id, others, count.scalar_subquery() if wanted.total else null(), *messages.c)
        .select_from(_conversation)
        .outerjoin(messages, true())
        .where(_conversation.id == conversation_id, _conversation.user_id == user_id)
        .order_by(*(ordered if wanted.is_forward else (column.desc() for column in ordered)))
    )


def _messages(of_conversation: ColumnElement[bool], wanted: _Wanted) -> Any:
    order = (_AT, _ID) if wanted.is_forward else (_AT.desc(), _ID.desc())
    where = of_conversation if wanted.place is None else and_(of_conversation, wanted.place.where(_AT, _ID))
    if not wanted.offset:
        return select(*_COLUMNS).where(where).order_by(*order).limit(wanted.limit + 1).lateral()
    # What is left out is passed by in the index alone; only what is shown is read from the table.
    there = select(_ID).where(where).order_by(*order).offset(wanted.offset).limit(wanted.limit + 1).lateral()
    shown = aliased(_message)
    columns = [getattr(shown, column.key) for column in _COLUMNS]
    return select(*columns).join_from(there, shown, shown.id == there.c.id).lateral()


def _place(session: Session, user_id: str, conversation_id: str, way: Way, given: int | datetime) -> Place:
    if isinstance(given, datetime):
        if given.tzinfo is None:
            raise PageError(
                f"{way}={given.isoformat()}: a time without its zone; give one, as {given.isoformat()}+00:00"
            )
        return Place(_LIST, way, given, 0 if way == "before" else _TIE)
    moment = None
    if not isinstance(given, int):
        raise PageError(f"{way}={given!r}: give a message's id as a number, or a time as a datetime with its zone")
    if 0 < given < _TIE:
        moment = session.scalar(
            select(_AT)
            .join(_conversation, _conversation.id == _message.conversation_id)
            .where(given == _ID, _conversation.id == conversation_id, _conversation.user_id == user_id)
        )
    if moment is None:
        raise PageError(f"{way}={given}: no message of this conversation; give the id of one, or a time")
    return Place(_LIST, way, moment, given)
