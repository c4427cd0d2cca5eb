"""What plain Celery producers and `Job.apply_async` send is shown nowhere: the workers' side of it, and our own."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from dev import stack
from tasks import Job
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.app import app
from worker.inspection import overview
from worker.records.broker import Broker

SECRET = "a text that nobody is to see"
WAYS = ["return", "retry", "fail", "replace"]
POOLS = ["threads", "prefork"]


class Events:
    """All events of a broker, as Flower and every other monitor gets them."""

    def __init__(self, monitor: Celery) -> None:
        self.heard: list[dict[str, Any]] = []
        self.is_ready = threading.Event()
        self._monitor = monitor
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def of(self, job_id: str) -> list[str]:
        """Return the types of a job's events."""
        return [event["type"] for event in self.heard if event.get("uuid") == job_id]

    def stop(self) -> None:
        self._receiver.should_stop = True
        self._thread.join(30)

    def _listen(self) -> None:
        with self._monitor.connection_for_read() as connection:
            self._receiver = self._monitor.events.Receiver(connection, handlers={"*": self.heard.append})
            with self._receiver.consumer_context():
                self.is_ready.set()
                for _ in self._receiver.consume(limit=None, timeout=None, wakeup=False):
                    pass


@pytest.fixture
def plain(machine: stack.Started) -> Celery:
    """Give the application of a user who knows nothing of Forebay: it writes arguments into the headers."""
    addresses = machine.addresses
    made = Celery(
        "plain",
        broker=addresses["CELERY_BROKER_URL"],
        backend=addresses["CELERY_RESULT_BACKEND"],
        set_as_current=False,
    )
    made.conf.update(task_default_queue="chat", broker_transport_options={"priority_steps": [0, 1, 3, 6, 9]})
    return made


@pytest.fixture
def events(broker: Broker, plain: Celery) -> Iterator[Events]:
    started = Events(plain)
    assert started.is_ready.wait(30)
    yield started
    started.stop()


def shown(broker: Broker, job_id: str) -> str:
    """Return all that is kept of an ended job but its message: its record, and its result as it lies in Redis."""
    record = broker.redis.hgetall(broker.keys.job(job_id))
    record.pop(b"message", None)
    return f"{record} {app.backend.client.get(app.backend.get_key_for_task(job_id))!r}"


@pytest.mark.parametrize("pool", POOLS)
def test_arguments_are_in_no_event_log_record_or_result(
    workers: Workers, broker: Broker, events: Events, plain: Celery, pool: str
) -> None:
    worker = workers.probes(pool)
    kwargs = {"word": SECRET}
    sent = {
        **{f"plain {way}": plain.send_task("probe.confide", (way, SECRET), kwargs, queue="chat").id for way in WAYS},
        **{f"ours {way}": probes.confide.apply_async((way, SECRET), kwargs).id for way in WAYS},
    }
    for name, job_id in sent.items():
        ended = "FAILURE" if name.endswith("fail") else "SUCCESS"
        eventually(lambda job_id=job_id, ended=ended: Job(job_id).status == ended)  # type: ignore[misc]
        last = "task-failed" if ended == "FAILURE" else "task-succeeded"
        eventually(lambda job_id=job_id, last=last: last in events.of(job_id))  # type: ignore[misc]
        assert SECRET not in shown(broker, job_id), name
    assert "task-retried" in events.of(sent["plain retry"])
    assert "task-sent" in events.of(sent["ours return"])
    assert SECRET in broker.redis.hget(broker.keys.job(sent["plain fail"]), "message").decode(), "it can be replayed"
    assert SECRET not in str(events.heard)
    assert "probe.confide" in worker.said()
    assert SECRET not in worker.said()


@pytest.mark.parametrize("pool", POOLS)
def test_arguments_are_in_no_answer_of_a_worker_that_is_asked_what_it_does(
    workers: Workers, broker: Broker, plain: Celery, pool: str
) -> None:
    workers.probes(pool, 1, CELERY_WORKER_PREFETCH_MULTIPLIER="2")
    kwargs = {"name": "it", "word": SECRET}
    running = plain.send_task("probe.confide_and_hold", (SECRET,), kwargs, queue="chat").id
    eventually(lambda: broker.redis.llen("probe:holding") == 1)
    waiting = plain.send_task("probe.confide_and_hold", (SECRET,), kwargs, queue="chat").id
    eventually(lambda: Job(waiting).record()["state"] == "leased")
    inspect = app.control.inspect([each.node for each in overview.workers(broker) if "@" in each.node], timeout=30)
    said = [inspect.active(), inspect.reserved(), inspect.query_task(running, waiting), inspect.scheduled()]
    assert running in str(said)
    assert waiting in str(said)
    assert SECRET not in str(said)
    broker.redis.rpush("probe:go:it", "go", "go")
    for job_id in (running, waiting):
        eventually(lambda job_id=job_id: Job(job_id).status == "SUCCESS")  # type: ignore[misc]
    broker.redis.delete("probe:holding", "probe:gone", "probe:ran")
