"""Batches: many small jobs become one COPY, each keeps its own end, and none of them costs its worker a slot."""

import psutil
from sqlalchemy import text

from db.engine import transaction
from dev.faulty.process import FaultyProvider
from tasks import Job, enqueue
from tasks.producer.kinds.bulk_insert import BulkInsert
from tests.eventually import eventually
from tests.workers import Workers
from worker.app import app
from worker.records.broker import Broker

COLUMNS = ["codepoint", "name"]


def small(*numbers: int) -> list[Job]:
    rows = [BulkInsert(table="unicode_characters", columns=COLUMNS, rows=[[n, f"row {n}"]]) for n in numbers]
    return enqueue.many(rows)


def stored() -> int:
    with transaction() as session:
        return int(session.scalar(text("SELECT count(*) FROM unicode_characters")) or 0)


def counted(broker: Broker, what: str) -> int:
    return int(broker.redis.hget(broker.keys.stats("bulk_insert"), what) or 0)


def test_many_small_jobs_become_few_copies_and_a_bad_row_is_dead_alone(workers: Workers, broker: Broker) -> None:
    good = small(*range(150))
    (bad,) = enqueue.many([BulkInsert(table="unicode_characters", columns=COLUMNS, rows=[["no number", "bad"]])])
    good += small(*range(150, 300))
    workers.start("bulk_insert")
    eventually(lambda: {job.status for job in good} == {"SUCCESS"} and bad.status == "FAILURE")
    assert stored() == 300
    assert {job.result(5)["rows"] for job in good} == {1}
    assert "no number" in bad.record()["error"]
    assert counted(broker, "batches") <= 5
    assert counted(broker, "dead") == 1


def test_a_batch_whose_child_is_killed_runs_again_job_by_job(workers: Workers, broker: Broker) -> None:
    worker = workers.start(
        "bulk_insert", FOREBAY_BULK_INSERT_RETRY_BACKOFF_S="0.1", FOREBAY_BULK_INSERT_CONCURRENCY="1"
    )
    with transaction() as session:
        session.execute(text("LOCK TABLE unicode_characters IN EXCLUSIVE MODE"))
        jobs = small(*range(5))
        eventually(lambda: {job.record()["state"] for job in jobs} == {"started"})
        for child in psutil.Process(worker.process.pid).children():
            child.kill()
        eventually(lambda: all("attempts" in job.record() for job in jobs))
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"})
    assert stored() == 5
    assert counted(broker, "batches") == 6  # one of five, then each alone: one of them may have ended the child
    (after,) = small(6)
    assert after.result(20)["rows"] == 1  # no slot is lost


def test_a_cancelled_job_of_a_batch_is_not_run_and_the_others_are(workers: Workers, broker: Broker) -> None:
    jobs = small(1, 2, 3)
    jobs[1].cancel()
    workers.start("bulk_insert")
    eventually(lambda: [job.status for job in jobs] == ["SUCCESS", "REVOKED", "SUCCESS"])
    assert stored() == 2
    eventually(lambda: counted(broker, "cancelled") == 1)


def test_a_batch_that_is_revoked_while_it_waits_for_a_slot_holds_up_nothing(
    workers: Workers, faulty: FaultyProvider
) -> None:
    one_by_one = {"FOREBAY_EMBEDDING_BATCH_MAX_JOBS": "1", "FOREBAY_EMBEDDING_CONCURRENCY": "1"}
    workers.start("embedding", OPENAI_BASE_URL=faulty.base_url, **one_by_one)
    faulty.set(embedding_s=4)
    runs, waits = enqueue.embedding("it runs"), enqueue.embedding("it waits")
    eventually(lambda: (runs.record()["state"], waits.record()["state"]) == ("started", "leased"))
    eventually(lambda: app.control.revoke(waits.id, reply=True))  # by Celery's own remote control
    faulty.set(embedding_s=0)
    eventually(lambda: waits.status == "REVOKED")
    assert enqueue.embedding("the next").result(timeout=30)
