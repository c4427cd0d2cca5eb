"""The slow statements that were seen, grouped by what they have in common, as a table of the database keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from db.engine import transaction
from db.errors import UnknownStatementError
from db.models import SlowStatement

#: So many kinds of statements are kept; those that were not seen for the longest time go first.
MOST = 1000


@dataclass(frozen=True)
class Seen:
    """Some slow runs of one kind of statement: how many, their time, how many failed, the plan of the slowest."""

    fingerprint: str
    statement: str
    calls: int
    total_ms: float
    longest_ms: float
    failures: int
    plan: dict[str, Any] | None


@dataclass(frozen=True)
class Kept(Seen):
    """All slow runs of one kind of statement, and when the first and the last one ended."""

    first_at: datetime
    last_at: datetime

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.calls


def add(connection: Connection, seen: Sequence[Seen]) -> None:
    """Add runs to what is kept, in an order in which two processes cannot lock each other out."""
    rows = [vars(each) for each in sorted(seen, key=lambda each: each.fingerprint)]
    table = SlowStatement
    new = insert(table).values(rows)
    given = new.excluded
    connection.execute(
        new.on_conflict_do_update(
            index_elements=[table.fingerprint],
            set_={
                "calls": table.calls + given.calls,
                "total_ms": table.total_ms + given.total_ms,
                "longest_ms": func.greatest(table.longest_ms, given.longest_ms),
                "failures": table.failures + given.failures,
                "plan": func.coalesce(given.plan, table.plan),
                "last_at": func.now(),
            },
        )
    )
    beyond = select(table.fingerprint).order_by(table.last_at.desc(), table.fingerprint).offset(MOST)
    connection.execute(delete(table).where(table.fingerprint.in_(beyond)))


def listed(limit: int = 20, since: datetime | None = None) -> list[Kept]:
    """Return the kinds of statements that took the most time together, at most so many, seen since a moment."""
    found = select(SlowStatement).order_by(SlowStatement.total_ms.desc(), SlowStatement.fingerprint).limit(limit)
    if since is not None:
        found = found.where(SlowStatement.last_at >= since)
    with transaction() as session:
        return [_kept(each) for each in session.scalars(found)]


def one(fingerprint: str) -> Kept:
    """Return the kind of statement whose mark begins so. Raises `UnknownStatementError`."""
    with transaction() as session:
        found = session.scalars(
            select(SlowStatement).where(SlowStatement.fingerprint.startswith(fingerprint, autoescape=True)).limit(2)
        ).all()
    if len(found) != 1:
        why = "is that of several" if found else "is of no slow statement"
        raise UnknownStatementError(f"fingerprint {fingerprint!r} {why}; `./forebay queries slow` lists them")
    return _kept(found[0])


def forget() -> int:
    """Delete all that is kept; return how many kinds of statements that were."""
    with transaction() as session:
        return len(session.execute(delete(SlowStatement).returning(SlowStatement.fingerprint)).all())


def _kept(row: SlowStatement) -> Kept:
    return Kept(**{name: getattr(row, name) for name in Kept.__dataclass_fields__})
