"""The load of `./forebay chaos`: a producer that sends every kind of job and notes what it was told is accepted."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from cli.chaos.verdict import Accepted
from tasks import BulkInsert, Chat, Embedding, Job, enqueue
from tasks.producer.enqueue import Options
from worker.errors import BrokerUnavailable
from worker.records import message
from worker.records.broker import Broker, Submission

ROUND_EVERY_S = 0.2
#: Every so many rounds there is a job to cancel and one to let expire.
RARELY = 5
ROWS = 20
NEVER_S = 3600.0
#: What says that it is unknown whether a job was accepted: it is sent again under its id.
UNKNOWN = (BrokerUnavailable, OperationalError, RedisError)


@dataclass(frozen=True)
class Order:
    """A job that is to be accepted, and how to send it: under the same id however often."""

    job: Accepted
    send: Callable[[], object]


@dataclass
class Load:
    """A producer with a thread of its own. ``accepted`` holds what it was told, ``refusals`` why it was not."""

    broker: Broker
    name: str
    accepted: list[Accepted] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count(1)
        self._orders: list[Order] = []  # not accepted yet
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos load", daemon=True)

    def begin(self) -> None:
        """Send a round of jobs every moment from now on."""
        self._thread.start()

    def end(self) -> None:
        """Send no new jobs; what is not known to be accepted is still sent again."""
        self._ended.set()

    @property
    def unsent(self) -> int:
        """How many jobs are not known to be accepted."""
        return len(self._orders)

    @property
    def ended(self) -> bool:
        """Whether all that was to be sent is known to be accepted, or the thread broke off."""
        return not self._thread.is_alive()

    def new_id(self, kind: str) -> str:
        """Return an id that no other job of any run has."""
        return f"chaos-{self.name}-{kind}-{next(self._numbers)}".replace(" ", "-")

    def order(self, *orders: Order) -> None:
        """Have jobs sent with the next round."""
        with self._lock:
            self._orders += orders

    def task(self, name: str, arguments: dict[str, Any], queue: str = "effects", **how: Any) -> Order:
        """Return the order of one plain Celery task, sent as Celery itself sends; ``how`` is for `Accepted`."""
        job = Accepted(self.new_id("plain"), **{"kind": "plain", **how})

        def send() -> None:
            from worker.app import app

            app.send_task(name, kwargs=arguments, task_id=job.id, queue=queue, retry=False)

        return Order(job, send)

    def _run(self) -> None:
        rounds = itertools.count(1)
        while not self._ended.wait(ROUND_EVERY_S):
            self.order(*self._round(next(rounds)))
            self._send()
        while self.unsent:
            self._send()
            time.sleep(ROUND_EVERY_S)

    def _send(self) -> None:
        with self._lock:
            sending, self._orders = self._orders, []
        while sending:
            try:
                sending[0].send()
            except UNKNOWN as error:
                self.refusals.append(f"{type(error).__name__}: {error}")
                with self._lock:
                    self._orders = sending + self._orders
                return
            self.accepted.append(sending.pop(0).job)

    def _round(self, number: int) -> list[Order]:
        orders = [
            self._chat(),
            *(self._embedding() for _ in range(3)),
            self._bulk(),
            self._effect(),
            self.task("cli.chaos.tasks", {"seconds": 0.2}),
            self.task("cli.chaos.tasks", {"seconds": 0.2}, queue="bulk_insert"),
        ]
        return [*orders, self._cancelled(), self._expired()] if number % RARELY == 0 else orders

    def _chat(self) -> Order:
        job = Accepted(self.new_id("chat"), "chat")
        chat = Chat(message=f"This is {job.id}.", conversation=job.id)
        return Order(job, lambda: enqueue.many([chat], options=Options(job_id=job.id)))

    def _embedding(self) -> Order:
        job = Accepted(self.new_id("embedding"), "embedding")
        payload = Embedding(text=f"the text of {job.id}")
        options = Options(job_id=job.id, deadline=NEVER_S, delay=0.2)  # by the broker's clock, whatever a worker's says
        return Order(job, lambda: enqueue.many([payload], options=options))

    def _bulk(self) -> Order:
        job = Accepted(self.new_id("bulk"), "bulk insert", rows=ROWS)
        rows = BulkInsert(table="chaos_rows", columns=["job_id", "number"], rows=[[job.id, n] for n in range(ROWS)])
        return Order(job, lambda: enqueue.many([rows], options=Options(job_id=job.id, idempotency_key=job.id)))

    def _effect(self) -> Order:
        job = Accepted(self.new_id("plain"), "plain")
        return Order(job, lambda: self.broker.accept(submission(job.id)))

    def _cancelled(self) -> Order:
        """A job that waits for an hour, unless it is cancelled; cancelling is repeated like accepting."""
        job = Accepted(self.new_id("cancelled"), "question", ends=("cancelled",))
        chat = Chat(message="This is not to be answered.", conversation=job.id)

        def send() -> None:
            enqueue.many([chat], options=Options(job_id=job.id, delay=NEVER_S))
            Job(job.id).cancel()

        return Order(job, send)

    def _expired(self) -> Order:
        job = Accepted(self.new_id("expired"), "embedding", rows=0, ends=("expired",))
        payload = Embedding(text="This is not to be embedded.")
        options = Options(job_id=job.id, deadline=0.001, delay=0.5)
        return Order(job, lambda: enqueue.many([payload], options=options))


def submission(job_id: str) -> Submission:
    """Return the quickest of all jobs, as accept takes it."""
    text = message.write("cli.chaos.tasks", job_id, "effects", 0, {"seconds": 0.0})
    return Submission(job_id, "effects", 0, "cli.chaos.tasks", text)
