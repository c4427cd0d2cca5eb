"""What Flower shows of every lane, read over HTTP."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from celery import Celery

from dev import ports, stack
from tasks import Embedding, Job, enqueue
from tests.eventually import eventually
from tests.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a text that nobody but the model is to see"


@pytest.fixture
def flower(machine: stack.Started, workers: Workers) -> Iterator[httpx2.Client]:
    """Run Flower as the Procfile does, with its API open for reading."""
    port = ports.free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "flower", "--port", str(port)],
        cwd=ROOT,
        env={**machine.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        eventually(lambda: client.get("/healthcheck").status_code == 200, timeout_s=60)
        yield client
    process.terminate()
    process.wait(timeout=30)


def test_queue_lengths_sum_the_priorities(flower: httpx2.Client) -> None:
    for priority in ("CRITICAL", "HIGH", "NORMAL", "LOW", "BATCH"):
        enqueue.chat("hello", priority=priority)
    enqueue.embedding("hello")
    lengths = {queue["name"]: queue["messages"] for queue in flower.get("/api/queues/length").json()["active_queues"]}
    assert lengths == {"chat": 5, "embedding": 1, "bulk_insert": 0}


def test_tasks_are_listed_without_what_they_carry(
    machine: stack.Started, flower: httpx2.Client, workers: Workers
) -> None:
    workers.start("embedding")
    jobs = enqueue.many([Embedding(text=f"{SECRET} {number}") for number in range(5)])
    plain = Celery("plain", broker=machine.addresses["CELERY_BROKER_URL"], set_as_current=False)
    sent = plain.send_task("tasks.embedding", kwargs={"text": f"{SECRET} of a plain producer"}, queue="embedding")
    jobs.append(Job(sent.id))
    for job in jobs:
        eventually(lambda job=job: job.status == "SUCCESS")  # type: ignore[misc]

    def listed() -> dict[str, Any]:
        tasks: dict[str, Any] = flower.get("/api/tasks").json()
        return tasks if all(tasks.get(job.id, {}).get("state") == "SUCCESS" for job in jobs) else {}

    tasks = eventually(listed)
    assert {tasks[job.id]["name"] for job in jobs} == {"tasks.embedding"}
    assert {tasks[job.id]["worker"].split("@")[0] for job in jobs} == {"embedding"}
    pages = [flower.get(f"/task/{job.id}").text for job in jobs]
    assert all(job.id in page for job, page in zip(jobs, pages, strict=True))
    assert SECRET not in str(tasks) + "".join(pages)


def test_every_lane_is_a_worker_of_its_own_name(flower: httpx2.Client, workers: Workers) -> None:
    for lane in ("chat", "bulk_insert"):
        workers.start(lane)

    def listed() -> dict[str, Any]:
        known: dict[str, Any] = flower.get("/api/workers?refresh=true").json()
        return known if len(known) >= 2 and all(each.get("active_queues") for each in known.values()) else {}

    served = {
        name.split("@")[0]: [queue["name"] for queue in each["active_queues"]]
        for name, each in eventually(listed).items()
    }
    assert served == {"chat": ["chat"], "bulk_insert": ["bulk_insert"]}
