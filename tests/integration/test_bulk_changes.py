"""Bulk jobs other than plain inserts, and what becomes of the rows that the table refuses."""

import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from db.bulk import changes
from db.bulk.changes import Change
from db.engine import transaction
from tasks import Job, enqueue
from tasks.producer.enqueue import Options
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.payload import check
from tests.eventually import eventually
from tests.integration.test_jobs import run_again, scalar
from tests.workers import Workers
from worker.errors import JobFailed, JobRefused
from worker.records.broker import Broker

TABLE = "unicode_characters"
COUNT = "SELECT count(*) FROM unicode_characters"


def test_rows_are_upserted_updated_and_deleted_once(workers: Workers, broker: Broker) -> None:
    workers.start("bulk_insert")
    key = ["codepoint"]
    rows = [{"codepoint": number, "name": f"row {number}"} for number in range(1500)]
    enqueue.bulk_insert(TABLE, rows[:1000]).result(60)
    (first, second) = enqueue.bulk_insert(TABLE, rows, operation="upsert", key=key).jobs
    assert (first.result(60)["updated"], second.result(60)["inserted"]) == (1000, 500)
    (job,) = enqueue.bulk_insert(
        TABLE, [[1, "new"], [9999, "none"]], columns=["codepoint", "name"], operation="update", key=key
    ).jobs
    assert (job.result(60)["updated"], job.result(60)["skipped"]) == (1, 1)
    assert scalar("SELECT count(*) FROM unicode_characters WHERE codepoint = 1 AND name = 'new'") == 1
    (job,) = enqueue.bulk_insert(TABLE, [[1]], columns=key, operation="delete", key=key).jobs
    assert job.result(60)["deleted"] == 1
    enqueue.bulk_insert(TABLE, [[1, "later"]], columns=["codepoint", "name"]).result(60)
    kwargs: dict[str, object] = {"table": TABLE, "columns": key, "rows": [[1]], "operation": "delete", "key": key}
    run_again(broker, job.id, "tasks.bulk_insert", "bulk_insert", kwargs)
    eventually(lambda: job.record()["state"] == "succeeded")
    assert scalar(COUNT) == 1500


def test_refused_rows_become_one_dead_job_and_the_others_are_in(workers: Workers) -> None:
    workers.start("bulk_insert")
    rows = [[number if number % 10 else f"bad {number}", "x"] for number in range(1, 31)]
    (job,) = enqueue.bulk_insert(TABLE, rows, columns=["codepoint", "name"]).jobs
    result = job.result(60)
    assert result["rows"] == 27
    assert [(each["line"], each["column"]) for each in result["rejected"]] == [(n, "codepoint") for n in (10, 20, 30)]
    assert scalar(COUNT) == 27
    with pytest.raises(JobFailed, match="bad 10"):
        Job(result["rejected_job"]).result(60)


def test_refused_rows_of_a_run_that_was_cut_off_are_sent_on_by_its_repeat_in_a_batch(workers: Workers) -> None:
    columns = ("codepoint", "name")
    rows: list[list[object]] = [[1, "a"], ["bad", "b"], [3, "c"]]
    changes.apply(Change(TABLE, columns), rows, "cut-off")  # as a worker that was killed behind its commit
    jobs = [("cut-off", rows), ("other", [[4, "d"]])]
    orders = [
        (check(BulkInsert, table=TABLE, columns=list(columns), rows=some), Options(job_id=job_id))
        for job_id, some in jobs
    ]
    repeated, other = enqueue.many(orders)
    workers.start("bulk_insert")
    assert other.result(60) == {"rows": 1, "repeated": False}, "they did not go in one batch"
    result = repeated.result(60)
    assert (result["rows"], result["repeated"], [each["line"] for each in result["rejected"]]) == (2, True, [2])
    with pytest.raises(JobFailed, match="bad"):
        Job(result["rejected_job"]).result(60)
    assert scalar(COUNT) == 3


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"operation": "update"}, "key.*required"),
        ({"operation": "delete", "key": ["b"]}, "key.*among"),
        ({"operation": "upsert", "key": ["a"], "on_conflict": "skip"}, "on_conflict"),
        ({"operation": "truncate"}, "operation"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_sent(how: dict[str, object], said: str) -> None:
    with pytest.raises(JobRefused, match=said):
        check(BulkInsert, table=TABLE, columns=["a"], rows=[[1]], **how)


def test_bytes_are_refused_before_they_are_sent() -> None:
    with pytest.raises(JobRefused, match=r"rows\[1\], column codepoint: bytes; write them as text"):
        enqueue.bulk_insert(TABLE, [[1], [b"\\x41"]], columns=["codepoint"])


@pytest.mark.parametrize(
    ("type_", "given"),
    [
        ("interval", timedelta(days=400, microseconds=1)),
        ("interval", -timedelta(days=1, seconds=1.5)),
        ("timestamptz", datetime(1900, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))),  # +00:19:32
        ("timestamptz", datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))),
    ],
)
def test_times_arrive_as_they_were(database: None, type_: str, given: object) -> None:
    payload = check(BulkInsert, table=TABLE, columns=["codepoint", "at"], rows=[[1, given], [2, None]])
    with transaction() as session:
        session.execute(text(f"CREATE TABLE moments (codepoint int, at {type_})"))
    try:
        changes.apply(Change("moments", ("codepoint", "at")), json.loads(payload.to_json())["rows"])
        with transaction() as session:
            is_same = text("SELECT at = :given FROM moments ORDER BY codepoint")
            assert session.scalars(is_same, {"given": given}).all() == [True, None]
    finally:
        with transaction() as session:
            session.execute(text("DROP TABLE moments"))
