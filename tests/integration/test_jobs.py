"""Each kind of job, end to end: real producers, workers, models and database."""

import pytest
from sqlalchemy import text

from db.conversations import turns
from db.engine import transaction
from db.vectors import neighbours
from tasks import Embedding, enqueue, notice
from tasks.producer.enqueue import Options
from tasks.provider import llm
from tests.eventually import eventually
from tests.workers import Workers
from worker.errors import JobFailed
from worker.records.broker import Broker

BRIEF = "You are a helpful assistant. Answer in one sentence."


def scalar(statement: str) -> int:
    with transaction() as session:
        return int(session.execute(text(statement)).scalar_one())


def test_a_chat_is_answered_and_kept_once(workers: Workers) -> None:
    workers.start("chat")
    job = enqueue.chat("What is the capital of France?", conversation="geo", system=BRIEF, temperature=0.0)
    answer = job.result(60)
    assert job.status == "SUCCESS"
    assert "Paris" in answer["text"]
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] > 0
    assert [(each.role, each.content) for each in turns.history("geo")] == [
        ("user", "What is the capital of France?"),
        ("assistant", answer["text"]),
    ]


def test_the_model_sees_the_conversation_so_far(workers: Workers) -> None:
    workers.start("chat")
    first = enqueue.chat("My name is Ada.", conversation="memory", max_tokens=8).result(60)
    second = enqueue.chat("What did I say?", conversation="memory", max_tokens=8).result(60)
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    assert len(turns.history("memory")) == 4


def test_a_second_run_of_a_chat_adds_nothing_and_says_the_same(workers: Workers, broker: Broker) -> None:
    workers.start("chat")
    job = enqueue.chat("Say a number.", conversation="twice", max_tokens=8, temperature=1.0)
    first = job.result(60)
    run_again(broker, job.id, "tasks.chat", "chat", {"message": "Say a number.", "conversation": "twice"})
    eventually(lambda: job.record().get("delivery") == "1" and job.status == "SUCCESS")
    assert job.result(60)["text"] == first["text"]
    assert len(turns.history("twice")) == 2


def run_again(broker: Broker, job_id: str, task: str, queue: str, kwargs: dict[str, object]) -> None:
    """Forget a job's record and push its message anew, as a producer would that lost its memory."""
    from worker.records import message

    broker.redis.delete(broker.keys.job(job_id))
    broker.redis.lpush(queue, message.write(task, job_id, queue, 0, kwargs))
    eventually(lambda: broker.redis.exists(broker.keys.job(job_id)))


def test_a_cancelled_or_expired_chat_keeps_the_users_message(workers: Workers) -> None:
    cancelled = enqueue.chat("cancelled question", conversation="kept")
    expired = enqueue.chat("expired question", conversation="kept", deadline=0.001)
    assert cancelled.cancel()
    workers.start("chat")
    for job, state in ((cancelled, "cancelled"), (expired, "expired")):
        eventually(lambda job=job, state=state: job.record()["state"] == state)
        assert job.status == "REVOKED"
    assert {each.content for each in turns.history("kept")} == {"cancelled question", "expired question"}


def test_a_chat_for_a_model_that_does_not_exist_is_dead_lettered(workers: Workers) -> None:
    workers.start("chat")
    job = enqueue.chat("hello", conversation="no model", model="no-such-model")
    with pytest.raises(JobFailed, match="no-such-model") as failed:
        job.result(60)
    assert failed.value.state == "dead"
    assert job.status == "FAILURE"
    assert [each.content for each in turns.history("no model")] == ["hello", notice.TEXTS["dead"]]


def test_embedding_jobs_share_calls_and_keep_their_own_results(workers: Workers, broker: Broker) -> None:
    workers.start("embedding")
    texts = {"cat": "A cat sleeps on the sofa.", "dog": "A dog barks.", "sql": "SELECT rows FROM a table."}
    texts |= {f"filler {number}": f"filler text number {number}" for number in range(97)}
    jobs = enqueue.many([Embedding(text=value, key=key) for key, value in texts.items()])
    results = [job.result(60) for job in jobs]
    assert [result["key"] for result in results] == list(texts)
    assert {result["dimensions"] for result in results} == {384}
    counters = {k.decode(): int(v) for k, v in broker.redis.hgetall(broker.keys.stats("embedding")).items()}
    assert counters["completed"] == 100
    assert counters["batches"] < 20
    question = llm.embed(["a sleeping kitten"], timeout_s=60)
    assert neighbours.nearest(question.vectors[0], limit=1, model=question.model)[0].key == "cat"


def test_the_same_key_is_embedded_anew_not_twice(workers: Workers) -> None:
    workers.start("embedding")
    enqueue.embedding("first text", key="same").result(60)
    enqueue.embedding("second text", key="same").result(60)
    assert scalar("SELECT count(*) FROM documents") == 1
    assert scalar("SELECT count(*) FROM documents WHERE content = 'second text'") == 1


def test_one_rejected_text_does_not_fail_its_batch(workers: Workers) -> None:
    workers.start("embedding")
    jobs = enqueue.many(
        [Embedding(text=f"text {number}", model="no-such-model" if number == 3 else None) for number in range(8)]
    )
    outcomes = []
    for job in jobs:
        try:
            job.result(60)
            outcomes.append("ok")
        except JobFailed:
            outcomes.append("dead")
    assert outcomes == ["ok", "ok", "ok", "dead", "ok", "ok", "ok", "ok"]


def test_bulk_insert_reports_its_rows_and_repeats_nothing(workers: Workers, broker: Broker) -> None:
    workers.start("bulk_insert")
    rows = [{"codepoint": number, "name": f"row {number}"} for number in range(2500)]
    group = enqueue.bulk_insert("unicode_characters", rows, job_id="load")
    assert group.result(60) == {"rows": 2500}
    assert group.progress() == {"SUCCESS": 3}
    kwargs: dict[str, object] = {
        "table": "unicode_characters",
        "columns": ["codepoint", "name"],
        "rows": [[0, "row 0"]],
    }
    run_again(broker, "load.0", "tasks.bulk_insert", "bulk_insert", kwargs)
    assert group.jobs[0].result(60)["rows"] == 1000
    assert scalar("SELECT count(*) FROM unicode_characters") == 2500


def test_a_row_that_the_table_refuses_is_dead_lettered_with_the_reason(workers: Workers) -> None:
    workers.start("bulk_insert")
    group = enqueue.bulk_insert("unicode_characters", [{"codepoint": "not a number", "name": "x"}])
    with pytest.raises(JobFailed, match="not a number"):
        group.result(60)
    assert group.status == "FAILURE"


def test_a_delayed_job_runs_once_it_is_due(workers: Workers) -> None:
    workers.start("embedding")
    job = enqueue.embedding("later", delay=1.0)
    assert job.record()["state"] == "delayed"
    job.result(60)
    record = job.record()
    assert float(record["started_at"]) - float(record["accepted_at"]) >= 1.0


def test_an_urgent_job_passes_500_that_wait(workers: Workers, broker: Broker) -> None:
    waiting = enqueue.many(
        [(Embedding(text=f"waiting {number}"), Options(job_id=f"w{number}")) for number in range(500)]
    )
    urgent = enqueue.embedding("urgent", priority="CRITICAL")
    low = enqueue.embedding("no hurry", priority="BATCH")
    workers.start("embedding", FOREBAY_EMBEDDING_CONCURRENCY="1", FOREBAY_EMBEDDING_BATCH_MAX_JOBS="4")
    for job in (*waiting, urgent, low):
        job.result(90)
    started = {job.id: float(job.record()["started_at"]) for job in (*waiting, urgent, low)}
    assert sum(moment < started[urgent.id] for moment in started.values()) <= 4  # at most its own batch
    assert max(started, key=lambda job_id: started[job_id]) == low.id
