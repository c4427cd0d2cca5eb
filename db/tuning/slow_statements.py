"""The slow statements that were seen, grouped by what they have in common, as a table of the database keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, select

from db.engine import transaction
from db.errors import UnknownStatementError
from db.models import SlowStatement
from db.tuning.seen import Seen


@dataclass(frozen=True)
class Kept(Seen):
    """All slow runs of one kind of statement, and when the first and the last one ended."""

    first_at: datetime
    last_at: datetime

    @property
    def mean_ms(self) -> float:
        return self.total_ms / self.calls


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
