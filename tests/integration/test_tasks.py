"""Tasks of plain Celery users on our workers: retries, failures, chains and exits end as jobs."""

import pytest
from celery import chain, chord, group

from tasks import Job
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.records.broker import Broker


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_celerys_own_workflows_run(workers: Workers, broker: Broker, pool: str) -> None:
    workers.probes(pool)
    assert probes.retry.apply_async().get(timeout=60) == 2
    assert probes.replace.apply_async().get(timeout=60) == 42
    assert probes.early.apply_async((5,)).get(timeout=60) == 5
    assert probes.replace_by_chain.apply_async().get(timeout=60) == 6
    assert chain(probes.add.s(1, 2), probes.add.s(3)).apply_async().get(timeout=60) == 6
    assert group(probes.add.s(number, 1) for number in range(10)).apply_async().get(timeout=60) == list(range(1, 11))
    assert chord([probes.add.s(1, 1), probes.add.s(2, 2)], probes.add.si(3, 4)).apply_async().get(timeout=60) == 7
    eventually(lambda: broker.redis.zcard(broker.keys.leased("chat")) == 0)
    assert broker.redis.zcard(broker.keys.dead()) == 0


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_every_failure_ends_as_a_dead_letter_and_the_worker_lives(workers: Workers, broker: Broker, pool: str) -> None:
    worker = workers.probes(pool)
    results = {task: task.apply_async() for task in (probes.fail, probes.hunger)}
    if pool == "threads":
        results[probes.leave] = probes.leave.apply_async()
    for result in results.values():
        eventually(lambda result=result: Job(result.id).status == "FAILURE")
    assert "this task always fails" in Job(results[probes.fail].id).record()["error"]
    assert probes.add.apply_async((1, 1)).get(timeout=60) == 2
    assert worker.process.poll() is None
    eventually(lambda: broker.redis.zcard(broker.keys.leased("chat")) == 0)


def test_a_job_that_ends_its_pool_child_is_tried_again_and_then_dead(workers: Workers, broker: Broker) -> None:
    workers.environment["FOREBAY_CHAT_RETRY_MAX_ATTEMPTS"] = "2"
    workers.environment["FOREBAY_CHAT_RETRY_BACKOFF_S"] = "0.1"
    workers.probes("prefork")
    result = probes.vanish.apply_async()
    eventually(lambda: Job(result.id).status == "FAILURE", timeout_s=60)
    record = Job(result.id).record()
    assert (record["reason"], record["attempts"]) == ("worker lost", "1")
    assert probes.add.apply_async((1, 1)).get(timeout=60) == 2


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_job_that_fails_in_each_of_its_attempts_says_so(workers: Workers, broker: Broker, pool: str) -> None:
    workers.environment["FOREBAY_CHAT_RETRY_MAX_ATTEMPTS"] = "2"
    workers.environment["FOREBAY_CHAT_RETRY_BACKOFF_S"] = "0.1"
    workers.probes(pool)
    result = probes.hope.apply_async()
    eventually(lambda: Job(result.id).status == "FAILURE")
    record = Job(result.id).record()
    assert (record["reason"], record["attempts"]) == ("attempts spent", "1")
    assert record["error"] == "ConnectionError: this never heals"
