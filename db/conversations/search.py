"""Full-text search in one user's messages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal_column, select

from db import models, text
from db.conversations import paging
from db.engine import transaction
from db.errors import PageError

DEFAULT_LIMIT = 20
QUERY_LENGTH = 1000
_message: Any = models.Message
_conversation: Any = models.Conversation
# The marks come back as positions: a message may hold any markup, and whoever shows it has to escape it first.
_OPEN, _CLOSE = "\ue000", "\ue001"
_ENGLISH: Any = literal_column("'english'::regconfig")
_HEADLINE = f'StartSel={_OPEN}, StopSel={_CLOSE}, MaxFragments=2, MaxWords=20, MinWords=5, FragmentDelimiter=" ... "'


@dataclass(frozen=True)
class Found:
    """A message that matches; `headline` is its best part, and `marks` say from where to where its words are."""

    message_id: int
    conversation_id: str
    role: str
    created_at: datetime
    rank: float
    headline: str
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Results:
    """A page of what was found, the best first; go on with the next `offset`. `total` counts all, if asked for."""

    items: list[Found]
    has_prev: bool
    has_next: bool
    total: int | None = None


def messages(
    user_id: str,
    query: str,
    limit: int = DEFAULT_LIMIT,
    offset: int = 0,
    conversation_id: str | None = None,
    total: bool = False,
) -> Results:
    """Return a user's messages that match a query, the best first, and of equals the latest; notices are left out.

    `query` is as in a web search: all of its words, "a phrase", or, -without. Words are stemmed as English; those of
    other languages are found as they are written. A query of such words alone as "the" finds nothing. Only the first
    100,000 characters of a message are searched. Raises PageError for a limit outside 1 to PAGINATION_LIST_LIMIT (500)
    and for a query that is empty or longer than 1,000 characters.
    """
    text.check(user_id=user_id, query=query, conversation_id=conversation_id)
    limit = paging.checked(limit, paging.limits().lists, offset)
    if not query.strip() or len(query) > QUERY_LENGTH:
        given = f"query of {len(query)} characters" if query.strip() else f"query={query!r}"
        raise PageError(f"{given}: give a word or more, at most {QUERY_LENGTH} characters")
    asked = func.websearch_to_tsquery(_ENGLISH, query)
    wanted = [_conversation.user_id == user_id, _message.search.op("@@")(asked), _message.notice.is_(None)]
    if conversation_id is not None:
        wanted.append(_message.conversation_id == conversation_id)
    rank = func.ts_rank(_message.search, asked, 1)  # 1: long messages count less
    columns = (_message.id, _message.conversation_id, _message.role, _message.created_at, _message.content)
    matching = select(*columns, rank.label("rank")).join(_conversation, _conversation.id == _message.conversation_id)
    best = matching.where(*wanted).order_by(rank.desc(), _message.created_at.desc(), _message.id.desc())
    shown = best.offset(offset).limit(limit + 1).subquery("best")  # only these are read for a headline
    # The marks must be ours: what looks like one in the message goes.
    plain = func.translate(func.left(shown.c.content, 100_000), _OPEN + _CLOSE, "")
    headline = func.ts_headline(_ENGLISH, plain, asked, _HEADLINE)
    found = (shown.c.id, shown.c.conversation_id, shown.c.role, shown.c.created_at, shown.c.rank, headline)
    order = (shown.c.rank.desc(), shown.c.created_at.desc(), shown.c.id.desc())
    with transaction() as session:
        rows = session.execute(select(*found).order_by(*order)).all()
        count = session.scalar(select(func.count()).select_from(matching.where(*wanted).subquery())) if total else None
    items = [Found(*row[:5], *_marked(row[5])) for row in rows[:limit]]
    return Results(items, has_prev=offset > 0, has_next=len(rows) > limit, total=count)


def _marked(headline: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Take the marks out of a headline, and return where they were."""
    plain, marks = "", []
    for part in headline.split(_OPEN):
        word, closed, rest = part.partition(_CLOSE)
        if closed:
            marks.append((len(plain), len(plain) + len(word)))
        plain += word + rest
    return plain, tuple(marks)
