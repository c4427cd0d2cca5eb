"""Gather jobs into batches: many deliveries, one call, and for each job its own result, retry, event and settle.

A task that batches names `strategy` as its Celery strategy and has ``run_batch``. The fetch script gathers a batch and
hands it over whole: see `worker.runtime.gathering`. A thread or a child of the pool runs it and, for each job, Celery's
own tracer with the job's share of the batch's answer: results, signals, links, chords, retries and events are those of
any other task.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import current_app
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.concurrency import prefork, thread
from celery.worker.strategy import default
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer

from worker.limits import gates
from worker.limits.gates import Charge, Meter
from worker.records.broker import Broker, Delivery
from worker.runtime import bodies, gathering, results
from worker.runtime.bodies import Triple, Unreadable
from worker.runtime.gathering import Gatherer
from worker.runtime.pools import children
from worker.runtime.request import AWAY, Request
from worker.runtime.task import BodyFailed, Job

logger = logging.getLogger(__name__)

#: How long a batch waits, twice, before it asks again whether it is to run; then all of its jobs wait in their queue.
START_PAUSES_S = (0.1, 0.5)
#: What a batch says about one of its jobs: a value, or the error that the job is to raise.
Answer = Any
#: Whose messages are read: what runs, and what Celery's tracer is to refuse.
TRACED = frozenset({"started", "cancelled", "expired"})
#: What Celery's tracer returns: whether it failed, the value as text or the error, the seconds it took.
Traced = tuple[int, Any, float]


@dataclass(frozen=True)
class Carried:
    """One job of a batch, as it travels into a pool child."""

    delivery: Delivery
    charge: str
    headers: dict[str, Any]
    body: Any
    content_type: str
    content_encoding: str

    @property
    def step(self) -> int:
        """The priority step that it was sent with."""
        given = (self.headers.get("delivery_info") or {}).get("priority")
        return given if isinstance(given, int) else 0


#: A job, what its message carries, and its share of the batch's answer.
Answered = tuple[Carried, Triple, list[Answer] | None]


class BatchJob(Job):
    """A task that does many jobs in one call. ``run_batch`` gets each job's keyword arguments and id."""

    abstract = True
    Strategy = "worker.runtime.batching:strategy"

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
        """Do all jobs in one call; return one answer for each, in order. What it raises, every job raises."""
        raise NotImplementedError

    def body(self, *args: Any, **kwargs: Any) -> Any:
        """Return this job's share of its batch; a job that comes alone is a batch of one."""
        answer = self.request.get("forebay_answer")
        if answer is None:
            (answer,) = answers(self, [(self.request.id, kwargs)])
        value = answer[0]
        if isinstance(value, Exception):
            raise value
        return value


def strategy(task: BatchJob, app: Any, consumer: Any) -> Any:
    """Return Celery's default message handler with the gatherer in the place of the pool."""
    queue, pool = task.lane, consumer.pool
    if queue is None or queue.batch is None or not isinstance(pool, thread.TaskPool | prefork.TaskPool):
        return default(task, app, consumer)  # each alone: a batch of one
    slots = pool.limit
    # what a gate has charged for is to run at once
    ahead = 0 if gates.is_limited(queue) else slots * max(0, queue.prefetch_multiplier - 1)
    send = partial(_send, task, pool, queue.name)
    # one for all connections: what was handed over before a reconnect still takes its slots
    gatherer = gathering.of_queue.setdefault(queue.name, Gatherer(task.name, slots, ahead, send))
    one_by_one = consumer.on_task_request
    # default() binds the attribute once, when it makes the handler; there is no parameter for it
    consumer.on_task_request = gatherer.add
    try:
        return default(task, app, consumer)
    finally:
        consumer.on_task_request = one_by_one


# In the worker's main process.


def _send(task: BatchJob, pool: Any, queue: str, batch: list[Request]) -> None:
    """Give a batch to the pool."""
    wanted = [request for request in batch if not request.revoked()]  # which settles one that is
    for request in wanted:
        request.in_company = len(wanted) > 1
    carried = [_carried(request) for request in wanted]
    flight = Flight(queue, wanted, batch[0]._message.channel)
    if not wanted:
        flight.ended()
    elif isinstance(pool, prefork.TaskPool):
        pool.apply_async(
            run_in_child,
            (task.name, carried),
            accept_callback=flight.began,
            callback=flight.landed,
            error_callback=flight,
            timeout=task.time_limit or task.app.conf.task_time_limit,
        )
    else:
        pool.apply_async(_run_in_thread, (task, carried, flight), callback=lambda _: None)


@dataclass
class Flight:
    """A batch on its way through the pool. It is called when its child died; what it is told comes once each."""

    queue: str
    batch: list[Request]
    channel: Any

    def began(self, *_: Any) -> None:
        """Say of each job that it started."""
        for request in self.batch:
            request.announce_started()

    def landed(self, traced: list[Traced | None]) -> None:
        """Settle each job by what its run in a child came to."""
        self.ended()
        self.settle(traced)

    def settle(self, traced: list[Traced | None]) -> None:
        """Settle each job by what its run came to."""
        with self.channel.lease.together():
            for request, each in zip(self.batch, traced, strict=True):
                _settle(request, each)

    def __call__(self, error: Any) -> None:
        self.ended()
        for request in self.batch:
            if not request.acknowledged:
                request.on_failure(error)

    def ended(self) -> None:
        """Free the slot. Enough when the pool never ran the batch: a lost connection gave its jobs back."""
        gathering.of_queue[self.queue].ended()
        self.channel.wake()


def _run_in_thread(task: BatchJob, carried: list[Carried], flight: Flight) -> None:
    try:
        flight.began()
        flight.settle(work(task, carried))
    except BaseException as error:  # whatever it is, no job of the batch may be left without an end
        for request in flight.batch:
            if not request.acknowledged:
                request.break_off(error)
    finally:
        flight.ended()


def _settle(request: Request, traced: Traced | None) -> None:
    if traced is None:
        request.let_pass()
        return
    try:
        request.on_success(traced)
    except Exception as error:
        if request.acknowledged:
            logger.exception("job %s has ended, and what follows from it broke off", request.id)
        else:
            request.break_off(error)


def _carried(request: Request) -> Carried:
    message = request._message
    return Carried(
        request.delivery,
        request.charge,
        request.request_dict,
        message.body,
        message.content_type,
        message.content_encoding,
    )


# In the thread or the child.


def run_in_child(name: str, batch: list[Carried]) -> list[Traced | None]:
    """Run a batch in a pool child."""
    with children.shielded(), children.uncollected():
        return work(current_app.tasks[name], batch)


def work(task: BatchJob, batch: list[Carried]) -> list[Traced | None]:
    """Run a batch; return for each job what Celery's tracer returned, None for one that another worker has by now."""
    records = task.records()
    said = _started(task, records, batch)
    read = [_read(task, records, each) if word in TRACED else None for each, word in zip(batch, said, strict=True)]
    running = [
        (each, parts) for each, parts, word in zip(batch, read, said, strict=True) if parts and word == "started"
    ]
    jobs = [(each.delivery.id, kwargs) for each, (_, kwargs, _) in running]
    with gates.metered(_meter(task, records, batch)):
        given = answers(task, jobs) if jobs else []
    held = _held(records, [each for each, _ in running])
    shares = {each.delivery: one for (each, _), one, word in zip(running, given, held, strict=True) if word == "held"}
    # without an answer the tracer asks again whether to run, and keeps what must be kept
    return _traced(
        task,
        [
            (each, parts, shares.get(each.delivery))
            if parts and (word != "started" or each.delivery in shares)
            else None
            for each, parts, word in zip(batch, read, said, strict=True)
        ],
    )


def answers(task: BatchJob, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[Answer]:
    """Return one answer in a list of its own for each job; an error of the call is every job's answer."""
    try:
        given = task.run_batch(jobs)
        if len(given) != len(jobs):
            raise RuntimeError(f"{task.name} gave {len(given)} answers to {len(jobs)} jobs")
    except (SystemExit, KeyboardInterrupt, MemoryError) as error:
        if len(jobs) > 1:  # one of them is to blame
            return [answers(task, [job])[0] for job in jobs]
        given = [BodyFailed(f"the run broke off: {error!r}")]
    except Exception as error:
        given = [error] * len(jobs)
    return [[answer] for answer in given]


def _started(task: BatchJob, records: Broker, batch: list[Carried]) -> list[str]:
    """Begin the batch in its jobs' records; return what is said of each. A connection that was cut is replaced."""
    queue, deliveries = task.lane.name if task.lane else "", [each.delivery for each in batch]
    for pause_s in START_PAUSES_S:
        try:
            return records.start_batch(queue, deliveries)
        except (NotConnected, NoAnswer):
            time.sleep(pause_s)
    return records.start_batch(queue, deliveries)


def _read(task: BatchJob, records: Broker, job: Carried) -> Triple | None:
    """Return what a job's message carries; a job whose message cannot be read is dead."""
    try:
        return bodies.read(job.body, job.content_type, job.content_encoding, task.app.conf.accept_content)
    except Unreadable as error:
        records.bury(job.delivery, error.reason, str(error))
        return None


def _held(records: Broker, running: list[Carried]) -> list[str]:
    """Return of each job whether this worker still holds it."""
    try:
        return records.confirm_batch([each.delivery for each in running]) if running else []
    except RedisError as error:  # what was done is done; the settles wait for Redis
        logger.warning("a batch of %d jobs ended while the broker is away: %s", len(running), error)
        return ["held"] * len(running)


def _meter(task: BatchJob, records: Broker, batch: list[Carried]) -> Meter:
    """Return the meter of a batch's one call, which was charged with its jobs."""
    charges = [charge for each in batch if (charge := Charge.of(each.charge))]
    whole = Charge(sum(each.calls for each in charges), sum(each.cost for each in charges))
    return Meter(records, task.lane, batch[0].step, whole)


def _traced(task: BatchJob, answered: Sequence[Answered | None]) -> list[Traced | None]:
    """Trace each job and keep all results together; if those cannot be kept, each job is to run again."""
    traced: list[Traced | None] = []
    try:
        with results.together(task.backend, [each[0].delivery.id for each in answered if each]):
            traced.extend(each and _trace(task, *each) for each in answered)
    except AWAY as error:
        logger.warning("the results of %d jobs cannot be kept: %s", len(answered), error)
        raised = ExceptionInfo((type(error), error, error.__traceback__))
        return [each and (1, raised, 0.0) for each in answered]
    return traced


def _trace(task: BatchJob, job: Carried, parts: Triple, answer: list[Answer] | None) -> Traced:
    """Run Celery's tracer for one job, with its share of the batch's answer."""
    trace = fast_trace_task if task.app.use_fast_trace_task else trace_task_ret
    headers = {**job.headers, "forebay_answer": answer}
    traced: Traced = trace(task.name, job.delivery.id, headers, parts, None, None)  # no content type: it is read
    return traced
