"""Insert rows through COPY, once per job, many jobs for one table at a time."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from db import bulk
from tasks import fault
from tasks.apart import apart
from tasks.payloads import BulkInsert, check
from worker.app import app
from worker.batching import Answer, BatchJob
from worker.outcome import Fault

One = tuple[str, BulkInsert]


class BulkInsertJob(BatchJob):
    """Rows and receipts commit together, so a second run adds nothing."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """Insert the rows of all jobs, in one transaction for each table and its columns.

        What fails for good is halved until the job at fault stands alone: only that job fails.
        """
        answers: dict[str, Answer] = {}
        asked: dict[tuple[str, tuple[str, ...]], list[One]] = defaultdict(list)
        for job_id, arguments in jobs:
            try:
                one = check(BulkInsert, **arguments)
            except Exception as error:  # a producer that does not check may send anything
                answers[job_id] = error
            else:
                asked[one.table, tuple(one.columns)].append((job_id, one))
        for (table, columns), ones in asked.items():
            answers.update(
                zip((job_id for job_id, _ in ones), apart(partial(_insert, table, columns), ones), strict=True)
            )
        return [answers[job_id] for job_id, _ in jobs]


@app.task(base=BulkInsertJob, bind=True, name=BulkInsert.task)  # type: ignore[untyped-decorator]
def bulk_insert(self: BulkInsertJob, table: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    """Insert the rows and return ``{"rows", "repeated"}``: a repeat gives the first run's count.

    The worker calls `BulkInsertJob.run_batch` instead; this is the call within one process.
    """
    inserted = bulk.insert(self.request.id, table, columns, rows)
    return {"rows": inserted.rows, "repeated": inserted.repeated}


def _insert(table: str, columns: Sequence[str], ones: Sequence[One]) -> list[dict[str, Any]]:
    inserted = bulk.insert_all(table, columns, [(job_id, one.rows) for job_id, one in ones])
    return [{"rows": each.rows, "repeated": each.repeated} for each in inserted]
