"""The lives of workers and of their pool children: how they end, and what their end costs the jobs."""

import signal
import sys
from typing import Any

import psutil
import pytest

from tasks import Job
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Worker, Workers
from worker.records.broker import Broker

LANE = "import sys, tests.integration.probes; from cli.app import main; sys.argv[1:] = ['worker', 'chat']; main()"


def send(task: Any, *args: str) -> Job:
    return Job(task.apply_async(args).id)


def held(broker: Broker, times: int = 1) -> bool:
    return int(broker.redis.llen("probe:holding")) >= times


def children(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children()


def counter(broker: Broker, what: str) -> int:
    return int(broker.redis.hget(broker.keys.stats("chat"), what) or 0)


def test_pool_children_end_with_their_killed_worker(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork")
    job = send(probes.hold, "in a child")
    eventually(lambda: held(broker))
    pool = children(worker)
    assert len(pool) == 2
    worker.process.kill()  # the main process alone, as the kernel does that runs out of memory
    worker.process.wait()
    try:
        gone, alive = psutil.wait_procs(pool, timeout=20)
        assert (len(gone), alive) == (2, [])
    finally:
        for child in pool:
            if child.is_running():
                child.kill()
    assert job.record()["state"] == "started"


def test_a_child_that_is_lost_while_its_worker_stops_spends_no_attempt(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork")
    job = send(probes.hold, "stopping")
    eventually(lambda: held(broker))
    pool = children(worker)
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.said())
    for child in pool:
        child.kill()
    assert worker.process.wait(timeout=60) == 0
    record = job.record()
    assert record["state"] == "queued"
    assert "attempts" not in record
    assert "orphaned" not in record
    assert (counter(broker, "retries"), counter(broker, "rescued")) == (0, 0)


def test_a_child_that_is_lost_while_its_worker_goes_on_spends_one(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork", FOREBAY_CHAT_RETRY_BACKOFF_S="0.1")
    job = send(probes.hold, "lost")
    eventually(lambda: held(broker))
    for child in children(worker):
        child.kill()
    eventually(lambda: held(broker, 2))
    assert (job.record()["attempts"], job.record()["delivery"]) == ("1", "2")
    broker.redis.rpush("probe:go:lost", "go", "go")  # who died may still be waited for
    eventually(lambda: job.status == "SUCCESS")


def test_a_remote_shutdown_ends_over_a_hung_job(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("threads", FOREBAY_CHAT_DRAIN_S="0.5")
    hung = send(probes.hold, "hung")
    eventually(lambda: held(broker))
    probes.app.control.shutdown()
    assert worker.process.wait(timeout=45) == 0
    assert hung.record()["state"] == "queued"
    assert "attempts" not in hung.record()


def test_a_lane_that_recycles_stays_ended_when_it_is_asked_to_stop(workers: Workers, broker: Broker) -> None:
    worker = workers.run([sys.executable, "-c", LANE], FOREBAY_CHAT_MAX_TASKS_PER_WORKER="1")
    job = send(probes.hold, "drains")
    eventually(lambda: held(broker))
    send(probes.mark, "the limit")
    eventually(lambda: "recycling: " in worker.said())
    worker.process.send_signal(signal.SIGTERM)
    broker.redis.rpush("probe:go:drains", "go")
    assert worker.process.wait(timeout=45) == 0
    assert job.status == "SUCCESS"
    assert worker.said().count(" ready.") == 1


def test_a_lane_that_recycles_over_a_hung_job_stays_ended_when_it_is_asked_to_stop(
    workers: Workers, broker: Broker
) -> None:
    worker = workers.run([sys.executable, "-c", LANE], FOREBAY_CHAT_MAX_TASKS_PER_WORKER="1", FOREBAY_CHAT_DRAIN_S="5")
    hung = send(probes.hold, "hung")
    eventually(lambda: held(broker))
    send(probes.mark, "the limit")
    eventually(lambda: "recycling: " in worker.said())
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=45) == 0
    assert hung.record()["state"] == "queued"
    assert "attempts" not in hung.record()


def test_a_lane_recycles_in_place_and_finishes_what_runs(workers: Workers, broker: Broker) -> None:
    worker = workers.run([sys.executable, "-c", LANE], FOREBAY_CHAT_MAX_TASKS_PER_WORKER="1")
    job = send(probes.hold, "drains")
    eventually(lambda: held(broker))
    send(probes.mark, "the limit")
    eventually(lambda: "recycling: " in worker.said())
    waits = send(probes.mark, "for the next")
    broker.redis.rpush("probe:go:drains", "go")
    eventually(lambda: (job.status, waits.status) == ("SUCCESS", "SUCCESS"))
    assert worker.process.poll() is None
    assert worker.said().count(" ready.") >= 2
    assert job.record()["delivery"] == "1"
    assert counter(broker, "rescued") == 0


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_stops_leaves_no_lease_behind(workers: Workers, broker: Broker, pool: str) -> None:
    worker = workers.probes(pool)
    assert broker.redis.zcard(broker.keys.owners()) == 1
    assert worker.terminate() == 0
    assert broker.redis.zcard(broker.keys.owners()) == 0


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_what_has_not_started_goes_back_at_once_when_its_worker_stops(
    workers: Workers, broker: Broker, pool: str
) -> None:
    worker = workers.probes(pool, 1, CELERY_WORKER_PREFETCH_MULTIPLIER="4")
    runs = send(probes.hold, "runs")
    eventually(lambda: held(broker))
    waits = send(probes.mark, "waits")
    eventually(lambda: waits.record()["state"] == "leased")
    worker.process.send_signal(signal.SIGTERM)
    eventually(lambda: waits.record()["state"] == "queued")
    assert runs.record()["state"] == "started"
    broker.redis.rpush("probe:go:runs", "go")
    assert worker.process.wait(timeout=60) == 0
    assert runs.status == "SUCCESS"
    assert broker.redis.lrange("probe:ran", 0, -1) == [b"runs"]  # the pool's own copy of the other was not run
    assert (counter(broker, "late"), counter(broker, "rescued")) == (0, 0)
    workers.probes(pool, 1)
    eventually(lambda: waits.status == "SUCCESS")
    assert waits.record()["delivery"] == "2"
    assert "attempts" not in waits.record()


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_cold_shutdown_waits_for_no_job_and_gives_back_what_runs(workers: Workers, broker: Broker, pool: str) -> None:
    worker = workers.probes(pool, FOREBAY_CHAT_DRAIN_S="1")
    job = send(probes.hold, "cold")
    eventually(lambda: held(broker))
    worker.process.send_signal(signal.SIGQUIT)
    worker.process.wait(timeout=45)
    record = job.record()
    assert record["state"] == "queued"
    assert "attempts" not in record
    assert "orphaned" not in record
    assert (counter(broker, "dead"), counter(broker, "cancelled"), counter(broker, "rescued")) == (0, 0, 0)
    workers.probes(pool)
    broker.redis.rpush("probe:go:cold", *["go"] * 3)  # who ended may still be waited for
    eventually(lambda: job.status == "SUCCESS")


def test_a_hung_job_is_taken_from_its_pool_child_and_the_child_is_ended(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork", 1, FOREBAY_CHAT_TIME_LIMIT_S="0.5", FOREBAY_CHAT_WEDGED_AFTER_S="1")
    job = send(probes.hold, "hung")
    eventually(lambda: held(broker))
    (child,) = children(worker)
    eventually(lambda: held(broker, 2))  # in the only slot: the first run is over
    assert not child.is_running()
    assert int(job.record()["orphaned"]) >= 1
    assert worker.process.poll() is None


def test_a_job_past_its_hard_time_limit_is_dead_and_its_slot_is_free(workers: Workers, broker: Broker) -> None:
    workers.probes("prefork", 1)
    job = Job(probes.hold.apply_async(("too long",), time_limit=1).id)
    eventually(lambda: job.status == "FAILURE")
    assert job.record()["reason"] == "time limit"
    assert probes.add.apply_async((1, 1)).get(timeout=60) == 2
    assert counter(broker, "dead") == 1


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_celery_sees_that_a_job_has_started_and_where(workers: Workers, broker: Broker, pool: str) -> None:
    worker = workers.probes(pool)
    result = probes.hold.apply_async(("seen",))
    eventually(lambda: held(broker))
    eventually(lambda: result.state == "STARTED")
    runs_in = {worker.process.pid} if pool == "threads" else {child.pid for child in children(worker)}
    assert result.info["pid"] in runs_in
    broker.redis.rpush("probe:go:seen", "go")
    assert result.get(timeout=60) == "seen"
