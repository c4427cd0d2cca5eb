"""Workers that vanish, hang, stop or lose their jobs: what becomes of the jobs that they held."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tasks import Job
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.broker import Broker


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
    worker = workers.probes(pool, FOREBAY_CHAT_DRAIN_S="0.5")
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
