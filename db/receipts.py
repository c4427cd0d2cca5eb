"""What a job did to the database, written once per job in the transaction that did it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import text
from db.models import Receipt


def of(session: Session, job_id: str) -> dict[str, Any] | None:
    """Return the result on the job's receipt, or None when no run of it has committed."""
    return session.scalar(select(Receipt.result).where(Receipt.job_id == job_id))


def write(session: Session, job_id: str, kind: str, result: dict[str, Any]) -> bool:
    """Write the job's receipt; return False when there is one already.

    Of two runs at the same time the second one waits here until the first has committed (False) or rolled
    back (True). So write the receipt first and do the work after it in the same transaction: a late run
    does none.
    """
    text.check(job_id=job_id, kind=kind)
    statement = (
        insert(Receipt)
        .values(job_id=job_id, kind=kind, result=result)
        .on_conflict_do_nothing(index_elements=[Receipt.job_id])
        .returning(Receipt.job_id)
    )
    return session.scalar(statement) is not None
