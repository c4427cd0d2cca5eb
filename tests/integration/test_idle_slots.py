"""A slot that a job frees is filled at once: the event loop hears of it, and does not wait for a timer."""

import sys

import pytest

from tasks import Embedding, enqueue
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.records.broker import Broker

JOBS = 300


def completed(broker: Broker, queue: str) -> int:
    return int(broker.redis.hget(broker.keys.stats(queue), "completed") or 0)


def observed(workers: Workers, queue: str, *options: str) -> None:
    command = f"-m celery -A tests.integration.polls:app worker -Q {queue} -c 4".split()
    workers.run([sys.executable, *command, *options])


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_no_poll_ends_by_the_timer_while_short_jobs_wait(pool: str, workers: Workers, broker: Broker) -> None:
    for _ in range(JOBS):
        probes.pause.apply_async((0.005,), queue="chat")
    observed(workers, "chat", "--pool", pool, "--prefetch-multiplier", "1")
    eventually(lambda: completed(broker, "chat") == JOBS)
    assert broker.redis.llen("probe:watched") == 1
    assert int(broker.redis.get("probe:ended_by_timer") or 0) == 0


def test_no_poll_ends_by_the_timer_while_batches_wait(workers: Workers, broker: Broker) -> None:
    enqueue.many([Embedding(text=f"text {number}") for number in range(JOBS)])
    observed(workers, "embedding", "--pool", "threads", "--prefetch-multiplier", "4")
    eventually(lambda: completed(broker, "embedding") == JOBS)
    assert broker.redis.llen("probe:watched") == 1
    assert int(broker.redis.get("probe:ended_by_timer") or 0) == 0
