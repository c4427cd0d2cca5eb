"""Kill workers, cut connections, restart the broker: every accepted job still ends, and its effect is there once."""

import random
import signal

from sqlalchemy import text

from db.engine import transaction
from tasks import Embedding, enqueue
from tests.eventually import eventually
from tests.workers import Workers
from worker.records.broker import Broker

KILLS = 8
SEED = 20


def completed(broker: Broker, queue: str) -> int:
    return int(broker.redis.hget(broker.keys.stats(queue), "completed") or 0)


def rows(table: str) -> int:
    with transaction() as session:
        return int(session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_kill_after_kill_of_a_loaded_worker_loses_and_doubles_nothing(workers: Workers, broker: Broker) -> None:
    dice = random.Random(SEED)
    payloads = [[number, f"row {number}"] for number in range(12_000)]
    group = enqueue.bulk_insert("unicode_characters", payloads, columns=["codepoint", "name"])
    small = [
        enqueue.bulk_insert("unicode_characters", [[100_000 + number, "single"]], columns=["codepoint", "name"])
        for number in range(600)
    ]
    jobs = [*group.jobs, *(each.jobs[0] for each in small)]
    for _ in range(KILLS):
        before = completed(broker, "bulk_insert")
        worker = workers.start("bulk_insert")
        wanted = before + dice.randint(1, 12)
        eventually(lambda wanted=wanted: completed(broker, "bulk_insert") >= min(wanted, len(jobs)))
        worker.kill()
    workers.start("bulk_insert")
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"}, timeout_s=60)
    assert rows("unicode_characters") == 12_600
    assert rows("receipts") == len(jobs)
    assert completed(broker, "bulk_insert") == len(jobs)
    assert broker.redis.zcard(broker.keys.leased("bulk_insert")) == 0


def test_a_killed_batching_worker_loses_no_gathered_job(workers: Workers, broker: Broker) -> None:
    jobs = enqueue.many([Embedding(text=f"text {number}", key=f"key {number}") for number in range(200)])
    for _ in range(2):
        worker = workers.start("embedding")
        before = completed(broker, "embedding")
        eventually(lambda before=before: completed(broker, "embedding") > before)
        worker.kill()
    workers.start("embedding")
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"}, timeout_s=90)
    assert rows("documents") == 200


def test_cut_connections_start_no_job_twice(workers: Workers, broker: Broker) -> None:
    worker = workers.start("bulk_insert")
    group = enqueue.bulk_insert(
        "unicode_characters", [[number, "row"] for number in range(20_000)], columns=["codepoint", "name"]
    )
    for _ in range(5):
        before = completed(broker, "bulk_insert")
        broker.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        eventually(lambda before=before: completed(broker, "bulk_insert") > before or group.status == "SUCCESS")
    assert group.result(60) == {"rows": 20_000}
    assert rows("unicode_characters") == 20_000
    assert not any(job.result(5)["repeated"] for job in group.jobs)
    assert broker.redis.hget(broker.keys.stats("bulk_insert"), "rescued") is None
    assert worker.process.poll() is None


def test_a_worker_that_is_asked_to_stop_gives_back_what_has_not_started(workers: Workers, broker: Broker) -> None:
    one_by_one = {"FOREBAY_BULK_INSERT_BATCH_MAX_JOBS": "1", "FOREBAY_BULK_INSERT_CONCURRENCY": "1"}
    worker = workers.start("bulk_insert", **one_by_one)
    with transaction() as session:
        session.execute(text("LOCK TABLE unicode_characters IN EXCLUSIVE MODE"))
        jobs = [
            enqueue.bulk_insert("unicode_characters", [[number, "row"]], columns=["codepoint", "name"]).jobs[0]
            for number in range(3)
        ]
        eventually(lambda: [job.record()["state"] for job in jobs] == ["started", "leased", "queued"])
        worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: [job.record()["state"] for job in jobs] == ["started", "queued", "queued"])
    assert worker.process.wait(timeout=60) == 0
    assert [job.status for job in jobs] == ["SUCCESS", "QUEUED", "QUEUED"]
    assert rows("unicode_characters") == 1
    assert broker.redis.zcard(broker.keys.leased("bulk_insert")) == 0
    workers.start("bulk_insert")
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"})
    assert [job.record()["delivery"] for job in jobs] == ["1", "2", "1"]
    assert "attempts" not in jobs[1].record()
    assert broker.redis.hget(broker.keys.stats("bulk_insert"), "rescued") is None


def test_a_lane_on_threads_recycles_in_place_and_loses_nothing(workers: Workers, broker: Broker) -> None:
    jobs = enqueue.many([Embedding(text=f"text {number}") for number in range(400)])
    worker = workers.start("embedding", FOREBAY_EMBEDDING_MAX_TASKS_PER_WORKER="100")
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"}, timeout_s=90)
    eventually(lambda: worker.said().count(" ready.") >= 2)  # the recycler looks once a second
    assert "recycling: " in worker.said()
    assert worker.process.poll() is None
    assert completed(broker, "embedding") == len(jobs)
    assert broker.redis.hget(broker.keys.stats("embedding"), "rescued") is None
    assert enqueue.embedding("for the next").result(60)["dimensions"] == 384
