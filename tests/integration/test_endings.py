"""Workers that vanish, hang, stop or lose their jobs: what becomes of the jobs that they held."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tasks import Embedding, Job, enqueue
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.errors import BrokerUnavailable
from worker.records.broker import Broker


@pytest.fixture
def quick(workers: Workers) -> Workers:
    """Give workers that wait little before another try."""
    workers.environment.update(FOREBAY_CHAT_RETRY_BACKOFF_S="0.1", FOREBAY_CHAT_MAX_ORPHANED="3")
    return workers


def send(task: Any, *args: str, **options: Any) -> Job:
    return Job(task.apply_async(args, **options).id)


def ran(broker: Broker, name: str) -> int:
    return [each.decode() for each in broker.redis.lrange("probe:ran", 0, -1)].count(name)


def holds(broker: Broker, times: int = 1) -> Callable[[], bool]:
    return lambda: broker.redis.llen("probe:holding") >= times


def counter(broker: Broker, what: str) -> int:
    return int(broker.redis.hget(broker.keys.stats("chat"), what) or 0)


def test_a_job_that_kills_its_worker_buries_itself_alone(quick: Workers, broker: Broker) -> None:
    poison = send(probes.vanish)
    good = [send(probes.mark, f"good {number}") for number in range(30)]
    holding = [send(probes.hold, f"slow {number}") for number in range(4)]
    for number in range(4):
        for _ in range(3):
            broker.redis.rpush(f"probe:go:slow {number}", "go")
    worker = quick.probes("threads", 8)

    def over() -> bool:
        nonlocal worker
        if worker.process.poll() is not None:
            worker = quick.probes("threads", 8)
        return poison.status == "FAILURE"

    eventually(over, timeout_s=90)
    record = poison.record()
    assert (record["reason"], record["orphaned"]) == ("poison", "3")
    eventually(lambda: {each.status for each in [*good, *holding]} == {"SUCCESS"}, timeout_s=60)
    # twice among others at most, and then alone
    assert max(int(each.record().get("orphaned", "0")) for each in [*good, *holding]) <= 2
    assert counter(broker, "dead") == 1


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_the_late_end_of_a_stopped_worker_changes_nothing(workers: Workers, broker: Broker, pool: str) -> None:
    stopped = workers.probes(pool)
    result = send(probes.hold, "twice", link=probes.mark.si("linked"))
    eventually(holds(broker))
    os.killpg(stopped.process.pid, signal.SIGSTOP)
    workers.probes(pool)
    eventually(holds(broker, 2))  # the lease ran out, the other worker has it
    broker.redis.rpush("probe:go:twice", "go", "go")
    eventually(lambda: result.status == "SUCCESS")
    eventually(lambda: ran(broker, "linked") == 1)
    first = broker.redis.get(f"celery-task-meta-{result.id}")
    os.killpg(stopped.process.pid, signal.SIGCONT)
    eventually(lambda: ran(broker, "twice") == 2)
    stopped.terminate()
    assert counter(broker, "late") >= 1
    assert counter(broker, "completed") == 2  # the job and its link
    assert ran(broker, "linked") == 1
    assert broker.redis.get(f"celery-task-meta-{result.id}") == first


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_hung_job_holds_up_no_stop_and_spends_nothing(workers: Workers, broker: Broker, pool: str) -> None:
    worker = workers.probes(pool, FOREBAY_CHAT_DRAIN_S="3")
    hung = send(probes.hold, "hung")
    ends = send(probes.hold, "ends")
    waits = send(probes.mark, "waits")
    eventually(holds(broker, 2))
    worker.process.send_signal(signal.SIGTERM)
    broker.redis.rpush("probe:go:ends", "go")
    assert worker.process.wait(timeout=60) == 0
    assert ends.status == "SUCCESS"
    for each in (hung, waits):
        record = each.record()
        assert record["state"] == "queued"
        assert "attempts" not in record
        assert "orphaned" not in record
    assert counter(broker, "rescued") == 0


def test_a_cancelled_job_is_broken_off_in_its_pool_child(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork")
    result = send(probes.hold, "cancelled")
    eventually(holds(broker))
    assert result.cancel()
    eventually(lambda: result.status == "REVOKED")
    assert probes.add.apply_async((1, 1)).get(timeout=60) == 2
    assert worker.process.poll() is None
    assert ran(broker, "cancelled") == 0
    assert (counter(broker, "cancelled"), counter(broker, "dead")) == (1, 0)


@pytest.mark.parametrize("how", ["by its record", "by Celery's revoke"])
def test_a_cancelled_job_on_a_thread_lets_go(workers: Workers, broker: Broker, how: str) -> None:
    workers.probes("threads")
    result = send(probes.listen)
    eventually(holds(broker))
    if how == "by its record":
        assert result.cancel()
    else:
        probes.app.control.revoke(result.id, terminate=True)
    eventually(lambda: result.status == "REVOKED")
    assert probes.add.apply_async((1, 1)).get(timeout=60) == 2


def test_a_job_that_ended_first_is_not_cancelled(workers: Workers, broker: Broker) -> None:
    workers.probes("threads")
    result = send(probes.mark, "ended")
    eventually(lambda: result.status == "SUCCESS")
    assert not result.cancel()
    assert result.status == "SUCCESS"
    assert counter(broker, "cancelled") == 0


def test_running_children_outlive_a_sigterm_to_the_whole_group(workers: Workers, broker: Broker) -> None:
    worker = workers.probes("prefork")
    job = send(probes.hold, "drained")
    eventually(holds(broker))
    os.killpg(worker.process.pid, signal.SIGTERM)
    eventually(lambda: "Warm shutdown" in worker.said())
    broker.redis.rpush("probe:go:drained", "go")
    assert worker.process.wait(timeout=60) == 0
    assert job.status == "SUCCESS"
    assert job.record()["delivery"] == "1"


def test_a_lane_whose_threads_hang_starts_anew(workers: Workers, broker: Broker) -> None:
    lane = "import sys, tests.integration.probes; from cli.app import main; sys.argv[1:] = ['worker', 'chat']; main()"
    hung = [send(probes.hold, f"hung {number}") for number in range(2)]
    worker = workers.run(
        [sys.executable, "-c", lane],
        FOREBAY_CHAT_CONCURRENCY="2",
        FOREBAY_CHAT_TIME_LIMIT_S="0.5",
        FOREBAY_CHAT_WEDGED_AFTER_S="1",
        FOREBAY_CHAT_DRAIN_S="0.5",
    )
    eventually(holds(broker, 4))  # each was given up and runs again in the process that took its place
    assert worker.process.poll() is None
    assert "hang in threads" in worker.said()
    for job in hung:
        assert int(job.record()["orphaned"]) >= 1


def test_workers_start_and_drain_while_redis_is_out_of_memory(workers: Workers, broker: Broker) -> None:
    jobs = enqueue.many([Embedding(text=f"text {number}") for number in range(8)])
    used = int(broker.redis.info("memory")["used_memory"])
    broker.redis.config_set("maxmemory", used // 2)
    try:
        with pytest.raises(BrokerUnavailable, match="takes no jobs now"):
            enqueue.embedding("refused")
        workers.start("embedding")
        eventually(lambda: {job.status for job in jobs} == {"SUCCESS"}, timeout_s=60)
        assert jobs[0].result(5)["dimensions"] == 384
    finally:
        broker.redis.config_set("maxmemory", 0)
    assert int(broker.redis.hget(broker.keys.stats("embedding"), "batches")) >= 1


def test_what_cannot_be_kept_of_a_cancelled_job_does_not_bury_it(workers: Workers, broker: Broker) -> None:
    job = send(probes.forgetful)
    assert job.cancel()
    worker = workers.probes("threads")
    eventually(lambda: job.record()["state"] == "cancelled")
    assert not job.cancel(), "it has ended by now"
    assert "what was to be kept of it is not" in worker.said()
    assert counter(broker, "dead") == 0


def test_a_job_that_waits_for_a_thread_is_revoked(workers: Workers, broker: Broker) -> None:
    workers.probes("threads", 1, CELERY_WORKER_PREFETCH_MULTIPLIER="4")
    first = send(probes.hold, "first")
    waits = send(probes.mark, "waits")
    eventually(holds(broker))
    eventually(lambda: waits.record()["state"] == "leased")
    probes.app.control.revoke(waits.id, terminate=True)
    eventually(lambda: waits.status == "REVOKED")
    broker.redis.rpush("probe:go:first", "go")
    eventually(lambda: first.status == "SUCCESS")
    eventually(lambda: waits.record()["state"] == "cancelled")
    assert ran(broker, "waits") == 0


def test_a_task_that_is_no_job_is_refused_at_the_start(workers: Workers) -> None:
    stranger = (
        "import sys, celery, tests.integration.probes as p; p.app.task(base=celery.Task, name='stranger')(p.marks);"
        "p.app.worker_main(['worker', '-Q', 'chat', '--pool', 'solo'])"
    )
    with pytest.raises(AssertionError, match="stranger: must have no base"):
        workers.run([sys.executable, "-c", stranger])
