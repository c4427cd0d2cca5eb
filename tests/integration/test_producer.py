"""The producer API: what it refuses, what it promises, what it loads."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks import BulkInsert, Chat, Embedding, Job, enqueue
from tasks.producer.enqueue import Options
from tests.workers import Workers
from worker.errors import JobRefused, ResultTimeout, UnknownJob
from worker.policy.gate import Bucket, Gate
from worker.policy.policy import load as load_policy
from worker.records import message
from worker.records.broker import Broker


def test_importing_it_stays_thin() -> None:
    heavy = ("celery", "kombu", "redis", "sqlalchemy", "openai", "tasks.chat", "tasks.embedding", "tasks.bulk_insert")
    program = f"import sys; from tasks import enqueue; print([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_enqueueing_loads_neither_celery_nor_a_database(broker: Broker) -> None:
    heavy = ("celery", "sqlalchemy", "openai", "tasks.chat", "tasks.embedding", "tasks.bulk_insert")
    program = (
        "import sys; from tasks import enqueue; enqueue.chat('hello'); "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
    assert len(list(broker.redis.scan_iter(broker.keys.job("*")))) == 1


def bulk(value: object) -> Any:
    return enqueue.bulk_insert("unicode_characters", [{"codepoint": value}])


@pytest.mark.parametrize(
    ("call", "field", "words"),
    [
        (lambda: enqueue.chat(""), "message", "white space"),
        (lambda: enqueue.chat("  \n"), "message", "white space"),
        (lambda: enqueue.chat(7), "message", "string"),  # type: ignore[arg-type]
        (lambda: enqueue.chat("NUL \x00"), "message", "U+0000, as at position 4"),
        (lambda: enqueue.chat("half a pair \ud83d"), "message", "U+D83D, as at position 12"),
        (lambda: enqueue.chat("x" * 300_000), "payload", "takes at most 262144; send less or raise max_payload_bytes"),
        (lambda: enqueue.chat("hello", priority="urgnet"), "priority", "CRITICAL"),
        (lambda: enqueue.chat("hello", temperature=3.0), "temperature", "less than or equal to 2"),
        (lambda: enqueue.chat("hello", max_tokens=0), "max_tokens", "greater than or equal to 1"),
        (lambda: enqueue.chat("hello", colour="red"), "colour", "leave it out"),
        (lambda: enqueue.chat("hello", job_id=""), "job_id", "printable"),
        (lambda: enqueue.chat("hello", job_id="x" * 300), "job_id", "printable"),
        (lambda: enqueue.chat("hello", delay=-1), "delay", "between now"),
        (lambda: enqueue.chat("hello", delay="soon"), "delay", "seconds"),
        (lambda: enqueue.chat("hello", deadline=datetime(2030, 1, 1)), "deadline", "time zone"),  # noqa: DTZ001
        (lambda: enqueue.chat("hello", deadline=0), "deadline", "0 must be more than 0 seconds from now; leave it out"),
        (lambda: enqueue.chat("hello", deadline=timedelta(hours=-1)), "deadline", "more than 0 seconds from now"),
        (lambda: enqueue.chat("hello", deadline=float("nan")), "deadline", "between now"),
        (lambda: bulk(object()), "payload", "JSON"),
        (lambda: bulk(b"\xff"), "payload", "JSON"),
        (lambda: bulk(b"text"), "payload", "rows[0], column codepoint: bytes; write them as text"),
        (lambda: bulk("\ud800"), "payload", "JSON"),
        (lambda: bulk(float("nan")), "payload", "JSON"),
        (lambda: enqueue.embedding(""), "text", "white space"),
        (lambda: enqueue.embedding("text", key=""), "key", "at least 1"),
        (lambda: enqueue.bulk_insert("unicode_characters", []), "rows", "at least one"),
        (lambda: enqueue.bulk_insert("pg_class", [{"a": 1}]), "table", "not allowed"),
        (lambda: enqueue.bulk_insert("unicode_characters", [{"a": 1}, {"b": 1}]), r"rows[1]", "columns a"),
        (lambda: enqueue.bulk_insert("unicode_characters", [(1, 2)], columns=["a"]), r"rows[0]", "2 values"),
        (lambda: enqueue.bulk_insert("unicode_characters", [(1, 2)]), "columns", "required"),
        (lambda: enqueue.bulk_insert("unicode_characters", ["text"], columns=["a"]), r"rows[0]", "sequence"),
        (lambda: enqueue.bulk_insert("unicode_characters", [(1, 2)], columns=["a", "a"]), "columns", "differ"),
    ],
)
def test_refuses_what_is_wrong_and_sends_nothing(broker: Broker, call: Any, field: str, words: str) -> None:
    with pytest.raises(JobRefused) as refused:
        call()
    assert refused.value.field == field
    assert words in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not list(broker.redis.scan_iter("*"))


def test_a_payload_too_large_is_told_in_bytes_as_given_and_as_sent(broker: Broker) -> None:
    with pytest.raises(JobRefused) as refused:
        enqueue.embedding("é" * 70_000, key="k")
    given, sent = (int(number) for number in re.findall(r"(\d+) bytes", str(refused.value)))
    assert 140_000 < given < 140_100
    assert given < sent < given + 2000


def test_many_returns_ids_in_order(broker: Broker) -> None:
    payloads = [Embedding(text=f"text {number}") for number in range(1200)]
    jobs = enqueue.many([(payload, Options(job_id=f"job-{number}")) for number, payload in enumerate(payloads)])
    assert [job.id for job in jobs] == [f"job-{number}" for number in range(1200)]
    assert broker.redis.llen("embedding") == 1200


def test_many_checks_all_before_it_sends_the_first(broker: Broker) -> None:
    with pytest.raises(JobRefused):
        enqueue.many([Embedding(text="good"), (Embedding(text="bad"), Options(priority="no such"))])
    assert not list(broker.redis.scan_iter("*"))


def test_one_idempotency_key_makes_one_job_under_concurrent_producers(broker: Broker) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda _: enqueue.chat("hello", idempotency_key="once").id, range(200)))
    assert len(set(jobs)) == 1
    assert broker.redis.llen("chat\x06\x163") == 1


def test_concurrent_producer_processes_get_the_first_job(broker: Broker) -> None:
    program = "from tasks import enqueue; print(enqueue.chat('hello', idempotency_key='across').id)"
    started = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert broker.redis.hget(broker.keys.stats("chat"), "submitted") == b"1"


def test_each_kind_has_its_default_priority(broker: Broker) -> None:
    enqueue.chat("hello")
    enqueue.embedding("hello")
    enqueue.bulk_insert("unicode_characters", [{"codepoint": 1, "name": "one"}])
    assert broker.redis.llen("chat\x06\x163") == 1
    assert broker.redis.llen("embedding") == 1
    assert broker.redis.llen("bulk_insert\x06\x169") == 1


def test_an_unknown_job_is_told_apart_from_a_queued_one(broker: Broker) -> None:
    assert enqueue.chat("hello").status == "QUEUED"
    for ask in (lambda: Job("nobody").status, lambda: Job("nobody").result(1), Job("nobody").cancel):
        with pytest.raises(UnknownJob, match="nobody"):
            ask()


def test_waiting_for_a_result_ends_with_its_timeout(broker: Broker) -> None:
    job = enqueue.chat("hello")
    with pytest.raises(ResultTimeout, match="QUEUED"):
        job.result(timeout=0.05)


def test_a_queued_job_can_be_cancelled(broker: Broker) -> None:
    job = enqueue.chat("hello")
    assert job.cancel()
    assert job.status == "REVOKED"


def test_delay_and_deadline_take_seconds_timedeltas_and_moments(broker: Broker) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    for when in (86400, timedelta(days=1), tomorrow):
        record = enqueue.embedding("hello", delay=when, deadline=when).record()
        assert record["state"] == "delayed"
        assert "message" not in record, "what the job carries is for `dead show`"
        assert abs(float(record["deadline"]) - tomorrow.timestamp()) < 60


def test_a_large_input_becomes_one_group_of_jobs(broker: Broker) -> None:
    per_job = load_policy().queue("bulk_insert").rows_per_job or 0
    told: list[int] = []
    rows = ({"codepoint": number, "name": "row"} for number in range(2 * per_job + 1))
    group = enqueue.bulk_insert("unicode_characters", rows, idempotency_key="load", on_progress=told.append)
    assert told == [per_job, 2 * per_job, 2 * per_job + 1]
    assert len({job.id for job in group.jobs}) == 3
    assert group.progress() == {"QUEUED": 3}
    again = enqueue.bulk_insert(
        "unicode_characters", [{"codepoint": 0, "name": "row"}] * (2 * per_job + 1), idempotency_key="load"
    )
    assert [job.id for job in again.jobs] == [job.id for job in group.jobs]


def test_a_group_shows_failures_first_and_is_cancelled_whole(broker: Broker) -> None:
    per_job = load_policy().queue("bulk_insert").rows_per_job or 0
    group = enqueue.bulk_insert("unicode_characters", [{"codepoint": number} for number in range(3 * per_job)])
    done, failed, _ = broker.fetch("a worker", 60, ["bulk_insert"], 3)
    broker.start(done.delivery)
    assert (group.status, group.progress()) == ("STARTED", {"STARTED": 1, "QUEUED": 2})
    broker.done(done.delivery)
    assert group.status == "QUEUED"
    assert not group.cancel(), "one had ended"
    assert group.progress() == {"SUCCESS": 1, "REVOKED": 2}
    assert group.status == "REVOKED"
    broker.bury(failed.delivery, "failed", "ValueError: no")
    assert group.status == "FAILURE"


def test_synchronous_processing_runs_the_job_in_the_caller(
    broker: Broker, database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASYNC_PROCESSING_ENABLED", "false")
    rows = [{"codepoint": 65, "name": "LATIN CAPITAL LETTER A"}]
    group = enqueue.bulk_insert("unicode_characters", rows)
    assert group.status == "SUCCESS"
    assert group.result() == {"rows": 1}
    job = enqueue.embedding("a text", key="inline")
    assert job.status == "SUCCESS"
    assert job.result()["dimensions"] == 384
    assert not list(broker.redis.scan_iter("*"))


def test_a_job_s_cost_and_tenant_are_known_to_its_gate_and_its_conversation(broker: Broker) -> None:
    assert enqueue.embedding("x" * 400).record()["cost"] == "100"
    (rows,) = enqueue.bulk_insert("unicode_characters", [{"codepoint": number} for number in range(7)]).jobs
    assert rows.record()["cost"] == "7"
    chat = enqueue.chat("hello", tenant="acme", max_tokens=1000)
    assert int(chat.record()["cost"]) > 1000
    assert chat.record()["tenant"] == "acme"
    sent = message.read(broker.redis.lindex("chat\x06\x163", 0).decode())
    assert message.arguments(sent)[1]["tenant"] == "acme"


def test_a_job_that_its_gate_never_lets_through_is_refused(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_policy().model_copy(update={"gates": {"provider": Gate(tokens=Bucket(limit=1000, burst=100))}})
    monkeypatch.setattr(enqueue, "load_policy", lambda: small)
    assert enqueue.embedding("x" * 400).status == "QUEUED"
    with pytest.raises(JobRefused, match=r"more than gate provider ever lets through at once \(100\)") as refused:
        enqueue.embedding("x" * 404)
    assert (refused.value.field, refused.value.value) == ("cost", 101)


def test_payloads_are_frozen_and_shared_by_all_ways_in(broker: Broker) -> None:
    jobs = enqueue.many(
        [
            Chat(message="hello"),
            Embedding(text="hello"),
            BulkInsert(table="unicode_characters", columns=["codepoint", "name"], rows=[[1, "one"]]),
        ],
        options=Options(priority="low", tenant="acme"),
    )
    assert {job.record()["queue"] for job in jobs} == {"chat", "embedding", "bulk_insert"}
    assert {job.record()["tenant"] for job in jobs} == {"acme"}
    assert {job.record()["step"] for job in jobs} == {"6"}


def test_a_job_that_waits_for_another_attempt_is_in_retry(broker: Broker, workers: Workers) -> None:
    from tests.eventually import eventually

    job = enqueue.chat("hello", max_tokens=1)
    workers.start("chat", OPENAI_BASE_URL="http://127.0.0.1:9/v1", FOREBAY_CHAT_RETRY_BACKOFF_S="50")
    eventually(lambda: job.status == "RETRY", timeout_s=60)
    assert "no answer from the provider" in job.record()["error"]
