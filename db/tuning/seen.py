"""What was seen of slow statements, and the step that adds it to the table that keeps it. Needs no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

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
