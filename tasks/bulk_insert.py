"""Insert rows through COPY, once per job."""

from typing import Any

from db import bulk
from tasks import fault
from tasks.payloads import BulkInsert
from worker.app import app
from worker.outcome import Fault
from worker.task import Job


class BulkInsertJob(Job):
    """Rows and receipt commit together, so a second run adds nothing."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)


@app.task(base=BulkInsertJob, bind=True, name=BulkInsert.task)  # type: ignore[untyped-decorator]
def bulk_insert(self: BulkInsertJob, table: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    """Insert the rows and return ``{"rows", "repeated"}``: a repeat gives the first run's count."""
    inserted = bulk.insert(self.request.id, table, columns, rows)
    return {"rows": inserted.rows, "repeated": inserted.repeated}
