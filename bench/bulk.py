"""Single-row inserts: many jobs in one COPY, against one transaction each."""

import time
from collections.abc import Iterator

from bench.line import Line
from bench.stage import Stage, execute, rows, until
from tasks import BulkInsert, enqueue

JOBS = 4000


def run(stage: Stage) -> Iterator[Line]:
    """Insert as many rows, a job each, in four ways."""
    rate = {}
    with stage.plain("prefork", 2) as (app, _):
        execute("TRUNCATE bench_rows")
        began = time.monotonic()
        for number in range(JOBS):
            app.send_task("plain.insert", (number, "x" * 20), ignore_result=True)
        rate["plain"] = JOBS / (until(rows, JOBS, "rows") - began)
    for name, batch in (("alone", "1"), ("batched", "200")):
        execute("TRUNCATE bench_rows")
        jobs = [BulkInsert(table="bench_rows", columns=["number", "text"], rows=[[n, "x" * 20]]) for n in range(JOBS)]
        with stage.workers("bulk_insert", settings={"FOREBAY_BULK_INSERT_BATCH_MAX_JOBS": batch}):
            before, began = stage.completed("bulk_insert"), time.monotonic()
            enqueue.many(jobs)
            rate[name] = JOBS / (until(lambda: stage.completed("bulk_insert"), before + JOBS, "jobs") - began)
    unit = "jobs/s"
    yield Line("bulk", "one-row jobs in batches", rate["batched"], rate["alone"], unit, "one transaction each", aim=5)
    yield Line(
        "bulk", "one-row jobs in batches", rate["batched"], rate["plain"], unit, "plain Celery, a transaction each"
    )
    yield Line("bulk", "one-row jobs, a transaction each", rate["alone"], rate["plain"], unit, "plain Celery")
