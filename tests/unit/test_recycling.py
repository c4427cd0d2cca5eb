"""When a lane on threads starts anew."""

from collections import Counter
from collections.abc import Iterator

import pytest
from celery.worker import state

from worker.policy.queue import Queue
from worker.runtime.process.recycling import Recycler
from worker.runtime.request import wedged


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Give how many jobs this process did, by task."""
    counted: Counter[str] = Counter()
    monkeypatch.setattr(state, "total_count", counted)
    return counted


@pytest.fixture
def hung() -> Iterator[list[str]]:
    """Give the jobs that hang in this process."""
    wedged.clear()
    yield wedged
    wedged.clear()


def lane(**limits: int) -> Queue:
    return Queue(name="lane", task="tasks.chat", pool="threads", concurrency=4, **limits)


def test_a_lane_starts_anew_after_so_many_jobs(done: Counter[str]) -> None:
    recycler = Recycler(lane(max_tasks_per_worker=3))
    done.update({"tasks.chat": 1, "probe.add": 1})
    assert recycler.reason() == ""
    done["probe.add"] += 1
    assert recycler.reason() == "3 jobs done, max_tasks_per_worker is 3"


def test_a_lane_starts_anew_with_so_much_memory_but_not_before_it_did_a_job(done: Counter[str]) -> None:
    recycler = Recycler(lane(max_memory_mib=1))
    assert recycler.reason() == ""
    done["tasks.chat"] += 1
    assert recycler.reason().endswith(" MiB in use, max_memory_mib is 1")
    assert Recycler(lane(max_memory_mib=1_000_000)).reason() == ""
    assert Recycler(lane()).reason() == ""


def test_a_lane_starts_anew_when_half_of_its_threads_hang(done: Counter[str], hung: list[str]) -> None:
    recycler = Recycler(lane())
    hung.append("one")
    assert recycler.reason() == ""
    hung.append("another")
    assert recycler.reason() == "2 jobs hang in threads that nobody can end"
