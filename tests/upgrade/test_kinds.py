"""A job that one release sent is run by the other, and what became of it is read by both."""

import pytest
from sqlalchemy import text

from db.engine import transaction
from dev.faulty.process import FaultyProvider
from tests.eventually import eventually
from tests.upgrade.release import Raised, Release

COLUMNS = ["codepoint", "name"]
Pair = tuple[Release, Release]


def rows(statement: str) -> list[tuple[object, ...]]:
    with transaction() as session:
        return [tuple(row) for row in session.execute(text(statement))]


def read_by_both(pair: Pair, job_id: str) -> dict[str, object]:
    """Return a job's result, which both releases must read alike: with `Job.result` and with Celery's own class."""
    answers = [each.producer(how, job_id) for each in pair for how in ("result", "result_by_celery")]
    assert answers == [answers[0]] * 4
    return dict(answers[0])


def test_chats(pair: Pair) -> None:
    sender, runner = pair
    runner.workers.start("chat")
    (first,) = sender.producer("send", "chat", "one", conversation="c", user="ada")
    assert read_by_both(pair, first)["text"] == "You said: one"
    (second,) = sender.producer("send", "chat", "two", conversation="c", user="ada", stream=True)
    assert [each.producer("streamed", second) for each in pair] == ["You said: two"] * 2
    read_by_both(pair, second)
    assert rows("SELECT role, content FROM messages ORDER BY id") == [
        ("user", "one"),
        ("assistant", "You said: one"),
        ("user", "two"),
        ("assistant", "You said: two"),
    ]


def test_a_job_that_failed_in_one_release_is_tried_again_in_the_other(pair: Pair, faulty: FaultyProvider) -> None:
    first, second = pair
    faulty.fault("server_error")
    settings = {"FOREBAY_CHAT_TIME_LIMIT_S": "1", "FOREBAY_CHAT_RETRY_MAX_ATTEMPTS": "4"}
    worker = first.workers.start("chat", **settings)
    (job,) = second.producer("send", "chat", "hello")
    eventually(lambda: second.producer("record", job).get("attempts") == "1")
    assert worker.terminate() == 0
    assert [each.producer("status", job) for each in pair] == ["RETRY"] * 2
    second.workers.start("chat", FOREBAY_CHAT_RETRY_BACKOFF_S="0.1", **settings)
    for each in pair:
        with pytest.raises(Raised, match="JobFailed"):
            each.producer("result", job)
    assert [each.producer("record", job)["attempts"] for each in pair] == ["3"] * 2, "those of both count together"


def test_embeddings_in_priority_order_delayed_and_repeated(pair: Pair) -> None:
    sender, runner = pair
    waiting = sender.producer("send_many", "Embedding", [{"text": str(number)} for number in range(40)])
    (last,) = sender.producer("send", "embedding", "no hurry", priority="BATCH")
    (urgent,) = sender.producer("send", "embedding", "urgent", priority="CRITICAL")
    once = {"key": "a document", "idempotency_key": "once"}
    (named,) = sender.producer("send", "embedding", "first", **once)
    assert runner.producer("send", "embedding", "first", **once) == [named]
    assert runner.producer("send", "embedding", "first", job_id=urgent) == [urgent]
    (delayed,) = sender.producer("send", "embedding", "later", delay=3.0)
    assert [each.producer("record", delayed)["state"] for each in pair] == ["delayed"] * 2
    runner.workers.start("embedding", FOREBAY_EMBEDDING_CONCURRENCY="1", FOREBAY_EMBEDDING_BATCH_MAX_JOBS="4")
    assert read_by_both(pair, named)["key"] == "a document"
    read_by_both(pair, delayed)
    jobs = [*waiting, urgent, named, last]
    for job in jobs:
        sender.producer("result", job)
    records = {job: runner.producer("record", job) for job in (*jobs, delayed)}
    began = {job: float(record["started_at"]) for job, record in records.items()}
    assert sum(began[job] < began[urgent] for job in jobs) < 4  # at most its own batch
    assert max(jobs, key=lambda job: began[job]) == last
    assert began[delayed] - float(records[delayed]["accepted_at"]) >= 3
    assert sender.producer("send", "embedding", "first", **once) == [named], "also after its end"
    assert rows("SELECT count(*) FROM documents") == [(44,)]


def test_rows_that_are_inserted_changed_and_deleted(pair: Pair) -> None:
    sender, runner = pair
    runner.workers.start("bulk_insert")
    steps = (
        ("bulk_insert", [[number, "inserted"] for number in range(1500)], {}),
        ("bulk_upsert", [[0, "upserted"], [5000, "upserted"]], {"key": ["codepoint"]}),
        ("bulk_update", [[1, "updated"]], {"key": ["codepoint"]}),
    )
    for kind, values, key in steps:
        for job in sender.producer("send", kind, "unicode_characters", values, columns=COLUMNS, **key):
            read_by_both(pair, job)
    (deleting,) = sender.producer("send", "bulk_delete", "unicode_characters", [{"codepoint": 2}], key=["codepoint"])
    assert read_by_both(pair, deleting)["deleted"] == 1
    assert rows("SELECT name, count(*) FROM unicode_characters GROUP BY name ORDER BY name") == [
        ("inserted", 1497),
        ("updated", 1),
        ("upserted", 2),
    ]
    (refused,) = sender.producer("send", "bulk_insert", "unicode_characters", [["no number", "x"]], columns=COLUMNS)
    for each in pair:
        with pytest.raises(Raised, match="JobFailed: .*no number"):
            each.producer("result", refused)
    audits = [each.audit()["bulk_insert"] for each in pair]
    assert audits[0] == audits[1]
    assert (audits[0]["accepted"], audits[0]["succeeded"], audits[0]["dead"]) == (6, 5, 1)
