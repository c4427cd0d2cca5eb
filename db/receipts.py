"""What a job did to the database, written once per job in the transaction that did it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy import text as statement
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db import text
from db.models import Receipt

_WRITE_ALL = statement("""
    INSERT INTO receipts (job_id, kind, result)
    SELECT job_id, :kind, result::jsonb
    FROM unnest(CAST(:job_ids AS text[]), CAST(:results AS text[])) AS given (job_id, result)
    ON CONFLICT (job_id) DO NOTHING
    RETURNING job_id
""")


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


def amend(session: Session, job_id: str, result: dict[str, Any]) -> None:
    """Set the result on a receipt that this transaction wrote."""
    session.execute(update(Receipt).where(Receipt.job_id == job_id).values(result=result))


def write_all(session: Session, kind: str, results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write the receipts of many jobs, by id, in one statement; return those that were there already.

    What `write` says of two runs at the same time holds for each job.
    """
    ordered = dict(sorted(results.items()))  # so that two batches with jobs in common cannot lock them crosswise
    for job_id in ordered:
        text.check(job_id=job_id, kind=kind)
    given = {"kind": kind, "job_ids": list(ordered), "results": [json.dumps(each) for each in ordered.values()]}
    earlier = ordered.keys() - session.scalars(_WRITE_ALL, given).all()
    if not earlier:
        return {}
    found = session.execute(select(Receipt.job_id, Receipt.result).where(Receipt.job_id.in_(earlier)))
    return {row.job_id: row.result for row in found}
