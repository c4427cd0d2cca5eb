"""Settles that meet trouble: Redis is away, the run is late, an error is nobody's."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from dev import stack
from tasks import Job
from tests.eventually import eventually
from tests.integration import probes
from tests.integration.held_batch import hold_batch
from tests.line import Line
from tests.workers import Worker, Workers
from worker.app import app
from worker.errors import JobFailed
from worker.records.broker import Broker

BATCH = 3

#: What a worker says when it meets the loss. A thread settles where it is; what a pool child did is read by the main
#: process, which connects anew first.
MEETS_IT = {"threads": "cannot be settled yet", "prefork": "onnection to broker lost"}


@pytest.fixture
def line(machine: stack.Started) -> Iterator[Line]:
    """Give a way to the broker that can be cut."""
    made = Line(machine.addresses["CELERY_BROKER_URL"])
    yield made
    made.close()


def apart(machine: stack.Started, line: Line) -> dict[str, str]:
    """Return the settings of a worker that alone, without its results and the test's marks, loses its broker."""
    straight = machine.addresses["CELERY_BROKER_URL"]
    return {
        "CELERY_BROKER_URL": line.url,
        "CELERY_RESULT_BACKEND": machine.addresses["CELERY_RESULT_BACKEND"],
        "PROBE_REDIS_URL": straight,
    }


def batching(workers: Workers, pool: str, **settings: str) -> Worker:
    """Start a worker of the embedding lane whose batches wait for the test."""
    declared = (workers.root / "queues.yaml").read_text(encoding="utf-8")
    lanes = workers.folder / "queues.yaml"
    lanes.write_text(declared.replace("task: tasks.embedding", "task: tests.integration.held_batch"), encoding="utf-8")
    return workers.probes(pool, queues="embedding,chat", FOREBAY_QUEUES=str(lanes), **settings)


def send_batch(**options: Any) -> list[Job]:
    """Send jobs that wait, so that a worker which comes later takes them as one batch."""
    sent = [
        hold_batch.apply_async(kwargs={"name": f"job {number}"}, queue="embedding", **options)
        for number in range(BATCH)
    ]
    return [Job(each.id) for each in sent]


def counter(broker: Broker, queue: str, what: str) -> int:
    return int(broker.redis.hget(broker.keys.stats(queue), what) or 0)


def batches(broker: Broker) -> list[list[str]]:
    """Return the batches that were begun: the names in each."""
    return [each.decode().split(",") for each in broker.redis.lrange("probe:holding", 0, -1)]


def waiting(broker: Broker) -> int:
    """Return how many runs wait to be let go on, as Redis itself knows: one may say that it holds before it waits."""
    return sum(client["cmd"] == "blmove" and "b" in client["flags"] for client in broker.redis.client_list())


def ran(broker: Broker) -> list[str]:
    return [each.decode() for each in broker.redis.lrange("probe:ran", 0, -1)]


def kept(broker: Broker, jobs: list[Job]) -> list[bytes | None]:
    return list(broker.redis.mget([f"celery-task-meta-{job.id}" for job in jobs]))


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_run_that_ends_while_redis_is_away_settles_later(
    machine: stack.Started, workers: Workers, broker: Broker, line: Line, pool: str
) -> None:
    worker = workers.probes(pool, **apart(machine, line))
    job = Job(probes.hold.apply_async(("alone",)).id)
    eventually(lambda: broker.redis.llen("probe:holding") == 1)
    line.cut()
    broker.redis.rpush("probe:go:alone", "go")
    eventually(lambda: ran(broker) == ["alone"])
    eventually(lambda: MEETS_IT[pool] in worker.said())
    assert job.record()["state"] == "started"
    line.mend()
    eventually(lambda: job.record()["state"] == "succeeded")
    assert job.record()["delivery"] == "1"
    assert (counter(broker, "chat", "completed"), counter(broker, "chat", "rescued")) == (1, 0)
    assert ran(broker) == ["alone"]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_batch_that_ends_while_redis_is_away_settles_later(
    machine: stack.Started, workers: Workers, broker: Broker, line: Line, pool: str
) -> None:
    jobs = send_batch()
    worker = batching(workers, pool, **apart(machine, line))
    eventually(lambda: [len(each) for each in batches(broker)] == [BATCH])
    line.cut()
    broker.redis.rpush("probe:go:batch", "go")
    eventually(lambda: len(ran(broker)) == BATCH)
    eventually(lambda: MEETS_IT[pool] in worker.said())
    line.mend()
    eventually(lambda: {job.record()["state"] for job in jobs} == {"succeeded"})
    assert {job.record()["delivery"] for job in jobs} == {"1"}
    assert (counter(broker, "embedding", "completed"), counter(broker, "embedding", "rescued")) == (BATCH, 0)
    assert len(ran(broker)) == BATCH


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_stale_copy_in_the_pools_queue_is_not_run(
    machine: stack.Started, workers: Workers, broker: Broker, line: Line, pool: str
) -> None:
    workers.probes(pool, 1, CELERY_WORKER_PREFETCH_MULTIPLIER="4", **apart(machine, line))
    runs = Job(probes.hold.apply_async(("runs",)).id)
    eventually(lambda: broker.redis.llen("probe:holding") == 1)
    waits = Job(probes.mark.apply_async(("waits",)).id)
    eventually(lambda: waits.record()["state"] == "leased")
    line.cut()
    line.mend()
    eventually(lambda: (waits.record()["delivery"], waits.record()["state"]) == ("2", "leased"))  # given back, fetched
    broker.redis.rpush("probe:go:runs", "go")
    eventually(lambda: {runs.status, waits.status} == {"SUCCESS"})
    last = Job(probes.mark.apply_async(("last",)).id)
    eventually(lambda: last.status == "SUCCESS")
    assert ran(broker) == ["runs", "waits", "last"]
    assert runs.record()["delivery"] == "1"


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_the_late_end_of_a_batch_changes_nothing(workers: Workers, broker: Broker, pool: str) -> None:
    jobs = send_batch(link=probes.mark.si("linked"))
    stopped = batching(workers, pool)
    eventually(lambda: waiting(broker) == 1)
    os.killpg(stopped.process.pid, signal.SIGSTOP)
    batching(workers, pool)
    eventually(lambda: sum(map(len, batches(broker))) == 2 * BATCH)  # the lease ran out, the other worker has them
    broker.redis.rpush("probe:go:batch", "go")  # who has waited longest gets it: the worker that was stopped
    os.killpg(stopped.process.pid, signal.SIGCONT)
    eventually(lambda: counter(broker, "embedding", "late") == BATCH)
    assert stopped.terminate() == 0
    assert kept(broker, jobs) == [None] * BATCH  # no result, and nothing that follows from one
    assert "linked" not in ran(broker)
    assert {job.record()["state"] for job in jobs} == {"started"}
    broker.redis.rpush("probe:go:batch", *["go"] * BATCH)
    eventually(lambda: {job.status for job in jobs} == {"SUCCESS"})
    eventually(lambda: ran(broker).count("linked") == BATCH)
    assert {job.record()["delivery"] for job in jobs} == {"2"}
    assert (counter(broker, "embedding", "late"), counter(broker, "embedding", "completed")) == (BATCH, BATCH)


def test_an_error_behind_a_run_on_a_thread_settles_its_job(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("threads", FOREBAY_CHAT_RETRY_MAX_ATTEMPTS="2", FOREBAY_CHAT_RETRY_BACKOFF_S="0.1")
    job = Job(probes.breaking.apply_async(("once and again",)).id)
    eventually(lambda: job.status == "FAILURE")
    record = job.record()
    assert (record["reason"], record["attempts"], record["delivery"]) == ("worker lost", "1", "2")
    assert "behind the run" in record["error"]
    assert worker.process.poll() is None
    assert broker.redis.zcard(broker.keys.leased("chat")) == 0


def test_a_job_that_a_rescue_buries_raises_where_its_result_is_awaited(workers: Workers, broker: Broker) -> None:
    result = probes.hold.apply_async(("poison",))
    (fetched,) = broker.fetch("elsewhere:1:vanished", 60, ["chat"], 1)
    assert broker.start(fetched.delivery) == "started"
    broker.redis.hset(broker.keys.job(result.id), "orphaned", 2)
    broker.redis.zadd(broker.keys.owners(), {"elsewhere:1:vanished": 1})
    workers.probes("threads", FOREBAY_CHAT_MAX_ORPHANED="3")
    with pytest.raises(JobFailed, match="its worker vanished or hung"):
        app.AsyncResult(result.id).get(timeout=60)
    record = Job(result.id).record()
    assert (record["state"], record["reason"]) == ("dead", "poison")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_tasks_own_redis_error_is_not_taken_for_the_brokers(workers: Workers, broker: Broker, pool: str) -> None:
    workers.probes(pool)
    job = Job(probes.own_redis.apply_async().id)
    eventually(lambda: job.status == "FAILURE")  # it would wait for a Redis that is there, again and again
    assert "only this task uses" in job.record()["error"]
    assert counter(broker, "chat", "retries") == 0


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_rejected_job_is_dead_and_a_requeued_one_runs_again(workers: Workers, broker: Broker, pool: str) -> None:
    workers.probes(pool)
    dead = Job(probes.reject.apply_async((False,)).id)
    eventually(lambda: dead.record()["state"] == "dead")
    assert dead.record()["reason"] == "rejected"
    broker.redis.delete("probe:ran")
    again = probes.reject.apply_async((True,))
    assert again.get(timeout=60) == "ran"
    eventually(lambda: Job(again.id).record()["state"] == "succeeded")
    assert Job(again.id).record()["delivery"] == "2"
    assert "attempts" not in Job(again.id).record()
