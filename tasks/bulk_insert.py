"""Change rows through COPY, once per job, and insert those of many jobs for one table at a time."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from db.bulk import changes, inserts
from db.bulk.changes import Change, Conflict, Operation
from tasks import fault
from tasks.bisect import apart, readable
from tasks.producer import enqueue
from tasks.producer.enqueue import Options
from tasks.producer.job import rejected_id
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.payload import check
from worker.app import app
from worker.runtime.batching import Answer, BatchJob
from worker.runtime.outcome import Fault

One = tuple[str, BulkInsert]


class BulkInsertJob(BatchJob):
    """Rows and receipts commit together, so a second run adds nothing."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """Insert the rows of all jobs, in one transaction for each table and its columns; change others one by one.

        What fails for good is halved until the job at fault stands alone: only its bad rows fail.
        """
        given, answers = readable(BulkInsert, jobs)
        asked: dict[tuple[object, ...], list[One]] = defaultdict(list)
        for job_id, one in given:
            alike = (one.table, tuple(one.columns)) if _is_plain(one) else (job_id,)
            asked[alike].append((job_id, one))
        for ones in asked.values():
            answers.update(zip((job_id for job_id, _ in ones), apart(_do, ones), strict=True))
        return [answers[job_id] for job_id, _ in jobs]


@app.task(base=BulkInsertJob, bind=True, name=BulkInsert.task)  # type: ignore[untyped-decorator]
def bulk_insert(self: BulkInsertJob, **arguments: Any) -> dict[str, Any]:
    """Change the rows and return ``{"rows", "repeated", "inserted", "updated", "skipped", "deleted", "rejected"}``.

    ``rows`` are those that were taken; a repeat gives the first run's counts. Jobs that are inserted together give
    ``rows`` and ``repeated`` alone. The worker calls `BulkInsertJob.run_batch` instead; this is the call within one
    process.
    """
    return _change(self.request.id, check(BulkInsert, **arguments))


def _do(ones: Sequence[One]) -> list[dict[str, Any]]:
    """Do jobs of one table, its columns and one way: plain inserts in one COPY, anything else job by job."""
    first = ones[0][1]
    if len(ones) == 1 or not _is_plain(first):
        return [_change(*ones[0])]
    inserted = inserts.insert_all(first.table, first.columns, [(job_id, one.rows) for job_id, one in ones])
    # What was done before may have been done alone, and its refused rows not yet be sent on.
    return [
        _change(job_id, one) if each.repeated else {"rows": each.rows, "repeated": False}
        for (job_id, one), each in zip(ones, inserted, strict=True)
    ]


def _is_plain(one: BulkInsert) -> bool:
    return one.operation in (None, "insert") and one.on_conflict in (None, "fail")


def _change(job_id: str, one: BulkInsert) -> dict[str, Any]:
    """Take the good rows; send those that were refused on as one job, which fails as a whole and can be edited."""
    change = Change(
        one.table,
        tuple(one.columns),
        Operation(one.operation or "insert"),
        tuple(one.key or ()),
        Conflict(one.on_conflict or "fail"),
    )
    changed = changes.apply(change, one.rows, job_id)
    told: dict[str, Any] = {
        "rows": len(one.rows) - len(changed.rejected),
        "repeated": changed.repeated,
        **asdict(changed.counts),
    }
    if changed.rejected:
        # Also by a repeat: the first run may have ended between its commit and this. The id makes it one job.
        rest = one.model_copy(update={"rows": [one.rows[each.line - 1] for each in changed.rejected]})
        (job,) = enqueue.many([(rest, Options(job_id=rejected_id(job_id)))])
        told |= {"rejected": [asdict(each) for each in changed.rejected], "rejected_job": job.id}
    return told
