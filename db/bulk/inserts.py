"""Puts many rows into one table through COPY, once per job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from db import receipts, schema
from db.bulk import staging
from db.engine import transaction


@dataclass(frozen=True)
class Inserted:
    """How many rows the job put in, and whether an earlier run of it did that."""

    rows: int
    repeated: bool


def insert(job_id: str | None, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Inserted:
    """Insert the rows into an ordinary table of the schema public, all or none.

    The job's receipt commits in the same transaction, so a second run, also one at the same time, adds
    nothing and returns the count of the first. Without a job id every call inserts. What values may be:
    `copy_text.encode`.

    Raises TableError for an unknown table or column, RowError for a row that cannot be encoded or that the
    server refuses; `errors.fault_of` tells what any other error means.
    """
    return insert_all(table, columns, [(job_id, rows)])[0]


def insert_all(
    table: str, columns: Sequence[str], jobs: Sequence[tuple[str | None, Sequence[Sequence[object]]]]
) -> list[Inserted]:
    """Do `insert` for many jobs (id, rows) in one COPY and one transaction, all or none; return what each came to."""
    given = {job_id: {"rows": len(rows)} for job_id, rows in jobs if job_id is not None}
    with transaction() as session:
        # The receipts come first: a second run ends here, or waits here while the first one still runs.
        earlier = receipts.write_all(session, "bulk_insert", given) if given else {}
        new = [row for job_id, rows in jobs if job_id not in earlier for row in rows]
        found = schema.columns(session, table, columns)
        if new:
            staging.insert(session, table, found, new)
    return [
        Inserted(int(earlier[job_id].get("rows", 0)), repeated=True)
        if job_id is not None and job_id in earlier
        else Inserted(len(rows), repeated=False)
        for job_id, rows in jobs
    ]
