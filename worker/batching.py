"""Gather jobs into batches: many deliveries, one call, and for each job its own result, retry, event and settle.

A task that batches names `strategy` as its Celery strategy and has ``run_batch``. Requests wait in the worker's main
loop until there are enough of them or the first has waited long enough. A thread of the pool then runs the batch and,
for each job, Celery's own tracer with the job's share of the batch's answer: results, signals, links, chords, retries
and events are those of any other task.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from celery.app.trace import fast_trace_task, trace_task_ret
from celery.concurrency.thread import TaskPool
from celery.worker.strategy import default

from worker.policy import Batch
from worker.priority import FETCH_ORDER
from worker.request import Request
from worker.task import BodyFailed, Job

logger = logging.getLogger(__name__)

#: What a batch says about one of its jobs: a value, or the error that the job is to raise.
Answer = Any


class BatchJob(Job):
    """A task that does many jobs in one call. ``run_batch`` gets each job's keyword arguments and id."""

    abstract = True
    Strategy = "worker.batching:strategy"

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


class Timer(Protocol):
    """The part of the event loop's timer that gathering needs."""

    def call_after(self, secs: float, fun: Callable[[], None]) -> Any: ...


class Gatherer:
    """The requests of one task that wait for company.

    A batch is sent off when it is full, or when its first request has waited long enough, and a slot of the pool is
    free. It takes the most urgent requests: what is fetched first is not yet run first. Requests come from the main
    loop, ends of batches from the pool's threads.
    """

    def __init__(self, limits: Batch, slots: int, timer: Timer, send: Callable[[list[Request]], None]) -> None:
        self.limits = limits
        self.free = slots
        self.timer = timer
        self.send = send
        self.waiting: list[Request] = []
        self.overdue = False
        self._timing = False
        self._lock = threading.Lock()

    def add(self, request: Request) -> None:
        """Take a request in."""
        with self._lock:
            self.waiting.append(request)
            self._send_off()
            if self.waiting and not self._timing and not self.overdue:
                self._timing = True
                self.timer.call_after(self.limits.max_wait_s, self.waited)

    def waited(self) -> None:
        """Note that the first request has waited long enough."""
        with self._lock:
            self._timing = False
            self.overdue = bool(self.waiting)
            self._send_off()

    def ended(self) -> None:
        """Note that a batch has ended: its slot is free."""
        with self._lock:
            self.free += 1
            # who waited while every slot was taken waits no longer for company
            self.overdue = self.overdue or bool(self.waiting)
            self._send_off()

    def _send_off(self) -> None:
        while self.free and self.waiting and (self.overdue or len(self.waiting) >= self.limits.max_jobs):
            self.waiting.sort(key=_urgency)
            batch, self.waiting = self.waiting[: self.limits.max_jobs], self.waiting[self.limits.max_jobs :]
            self.overdue = self.overdue and bool(self.waiting)
            self.free -= 1
            self.send(batch)


def _urgency(request: Request) -> int:
    step = request._message.properties.get("priority") or 0  # anything at all, from a producer that does not check
    return FETCH_ORDER.index(step) if step in FETCH_ORDER else len(FETCH_ORDER)


def strategy(task: BatchJob, app: Any, consumer: Any) -> Any:
    """Return Celery's default message handler with the gatherer in the place of the pool."""
    queue, pool = task.lane, consumer.pool
    if queue is None or queue.batch is None or not isinstance(pool, TaskPool):  # each alone: a batch of one
        return default(task, app, consumer)

    def send(batch: list[Request]) -> None:
        pool.apply_async(run, (task, batch, gatherer.ended), callback=lambda _: None)

    gatherer = Gatherer(queue.batch, pool.limit, consumer.timer, send)
    one_by_one = consumer.on_task_request
    # default() binds the attribute once, when it makes the handler; there is no parameter for it
    consumer.on_task_request = gatherer.add
    try:
        return default(task, app, consumer)
    finally:
        consumer.on_task_request = one_by_one


def run(task: BatchJob, batch: list[Request], ended: Callable[[], None]) -> None:
    """Run a batch in a thread of the pool. A delivery that was given to another worker meanwhile is left out."""
    try:
        running = _started(task, batch)
        jobs = [(request.id, request.kwargs) for request in running]
        given = answers(task, jobs) if jobs else []
        for request, answer in zip(_still_held(running), given, strict=True):
            if request is not None:
                _finish(task, request, answer)
    except BaseException as error:  # whatever it is, no job of the batch may be left without an end
        for request in batch:
            if not request.acknowledged:
                request.break_off(error)
    finally:
        ended()


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


def _started(task: BatchJob, batch: list[Request]) -> list[Request]:
    """Begin the batch in its jobs' records and return those that run: the others are not to, or not here."""
    wanted = [request for request in batch if not request.revoked()]
    if not wanted:
        return []
    lease = wanted[0]._message.channel.lease
    queue = task.lane.name if task.lane else ""
    said = lease.broker.start_batch(queue, [request.delivery for request in wanted])
    running = []
    for request, word in zip(wanted, said, strict=True):
        if word == "started":
            request.announce_started()
            running.append(request)
        elif word in ("cancelled", "expired"):
            _finish(task, request, None)  # which asks again and keeps what must be kept
        else:
            request.let_pass()
    return running


def _still_held(running: list[Request]) -> list[Request | None]:
    """Return the requests with None in the place of those that another worker has by now."""
    if not running:
        return []
    said = running[0]._message.channel.lease.broker.confirm_batch([request.delivery for request in running])
    held: list[Request | None] = []
    for request, word in zip(running, said, strict=True):
        held.append(request if word == "held" else None)
        if word != "held":
            request.let_pass()
    return held


def _finish(task: BatchJob, request: Request, answer: list[Answer] | None) -> None:
    """Run Celery's tracer for one job, with its share of the batch's answer."""
    trace = fast_trace_task if task.app.use_fast_trace_task else trace_task_ret
    headers = {**request.request_dict, "forebay_answer": answer}
    message = request._message
    try:
        request.on_success(
            trace(task.name, request.id, headers, message.body, message.content_type, message.content_encoding)
        )
    except Exception as error:
        if request.acknowledged:
            logger.exception("job %s has ended, and what follows from it broke off", request.id)
        else:
            request.break_off(error)
