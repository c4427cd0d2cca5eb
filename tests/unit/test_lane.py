"""The arguments of Celery's worker command, read as Celery reads them."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.bin.worker import worker
from kombu.common import PREFETCH_COUNT_MAX

from worker.app import app
from worker.policy.policy import load as load_policy
from worker.policy.queue import Batch, Queue
from worker.runtime.process import lane


def queue(pool: Any = "threads", **more: Any) -> Queue:
    return Queue(name="chat", task="tasks.chat", pool=pool, **more)


def as_celery_reads(arguments: list[str]) -> dict[str, Any]:
    assert arguments[0] == "worker"
    context = worker.make_context("worker", arguments[1:], obj=SimpleNamespace(app=app))
    assert not context.args, "arguments that Celery does not know"
    return dict(context.params)


@pytest.mark.parametrize(
    ("pool", "more", "own"),
    [
        ("threads", {"max_tasks_per_worker": 5, "max_memory_mib": 64}, []),
        ("solo", {}, []),
        (
            "prefork",
            {"max_tasks_per_child": 9, "max_memory_per_child_mib": 2},
            ["--max-tasks-per-child=9", "--max-memory-per-child=2048"],
        ),
        ("prefork", {"max_tasks_per_child": None}, []),
    ],
)
def test_the_arguments_of_each_pool(pool: str, more: dict[str, Any], own: list[str]) -> None:
    assert lane.command(queue(pool, **more)) == [
        "worker",
        "--queues=chat",
        "--hostname=chat@%h",
        f"--pool={pool}",
        "--concurrency=1",
        "--prefetch-multiplier=1",
        "--without-mingle",
        "--without-gossip",
        "--task-events",
        "--loglevel=INFO",
        *own,
    ]


def test_a_lane_on_threads_starts_as_declared() -> None:
    given = as_celery_reads(lane.command(queue(concurrency=32, prefetch_multiplier=3), loglevel="WARNING"))
    assert given["queues"] == ["chat"]
    assert given["hostname"].startswith("chat@")
    assert given["pool"].__module__ == "worker.runtime.pools.threads"
    assert int(given["concurrency"]) == 32
    assert given["prefetch_multiplier"] == 3
    assert given["without_mingle"]
    assert given["without_gossip"]
    assert given["task_events"]
    assert given["max_tasks_per_child"] is None
    assert given["max_memory_per_child"] is None


def test_a_prefork_lane_recycles_its_children_by_tasks_and_by_kib() -> None:
    given = as_celery_reads(lane.command(queue("prefork", max_tasks_per_child=7, max_memory_per_child_mib=512)))
    assert given["pool"].__module__ == "worker.runtime.pools.prefork"
    assert given["max_tasks_per_child"] == 7
    assert given["max_memory_per_child"] == 512 * 1024


def test_a_solo_lane_starts() -> None:
    assert as_celery_reads(lane.command(queue("solo")))["pool"].__module__ == "celery.concurrency.solo"


@pytest.mark.parametrize("name", load_policy().queues)
def test_each_declared_lane_starts(name: str) -> None:
    declared = load_policy().queue(name)
    given = as_celery_reads(lane.command(declared))
    assert given["queues"] == [name]
    assert int(given["concurrency"]) == declared.concurrency


def test_a_batching_lane_has_whole_batches_in_hand() -> None:
    batching = queue(concurrency=4, prefetch_multiplier=2, batch=Batch(max_jobs=64))
    given = as_celery_reads(lane.command(batching))
    assert given["prefetch_multiplier"] * 4 == 2 * 64 * 4


@pytest.mark.parametrize("concurrency", [1, 3, 32, 4096])
@pytest.mark.parametrize("batch", [None, Batch(max_jobs=64)])
def test_no_limit_reaches_celery_as_no_limit(concurrency: int, batch: Batch | None) -> None:
    limitless = queue(concurrency=concurrency, prefetch_multiplier=0, batch=batch)
    given = as_celery_reads(lane.command(limitless))
    assert given["prefetch_multiplier"] * concurrency > PREFETCH_COUNT_MAX


@pytest.mark.parametrize("concurrency", [1, 3, 32, 4096])
def test_a_limit_stays_a_limit_however_large(concurrency: int) -> None:
    large = queue(concurrency=concurrency, prefetch_multiplier=1000, batch=Batch(max_jobs=2048))
    given = as_celery_reads(lane.command(large))
    assert PREFETCH_COUNT_MAX - concurrency < given["prefetch_multiplier"] * concurrency <= PREFETCH_COUNT_MAX
