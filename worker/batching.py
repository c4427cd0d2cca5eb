"""Gather jobs into batches: many deliveries, one call, and for each job its own result, retry, event and settle.

A task that batches names `strategy` as its Celery strategy and has ``run_batch``. The fetch script gathers a batch and
hands it over whole: see `worker.gathering`. A thread of the pool runs it and, for each job, Celery's own tracer with
the job's share of the batch's answer: results, signals, links, chords, retries and events are those of any other task.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from celery.app.trace import fast_trace_task, trace_task_ret
from celery.concurrency.thread import TaskPool
from celery.worker.strategy import default

from worker import gates, gathering
from worker.gates import Charge, Meter
from worker.gathering import Gatherer
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


def strategy(task: BatchJob, app: Any, consumer: Any) -> Any:
    """Return Celery's default message handler with the gatherer in the place of the pool."""
    queue, pool = task.lane, consumer.pool
    if queue is None or queue.batch is None or not isinstance(pool, TaskPool):  # each alone: a batch of one
        return default(task, app, consumer)

    def send(batch: list[Request]) -> None:
        pool.apply_async(run, (task, batch, gatherer.ended), callback=lambda _: None)

    # what a gate has charged for is to run at once
    ahead = 0 if gates.is_limited(queue) else pool.limit * max(0, queue.prefetch_multiplier - 1)
    # one for all connections: what was handed over before a reconnect still takes its slots
    gatherer = gathering.of_queue.setdefault(queue.name, Gatherer(pool.limit, ahead, send))
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
        with gates.metered(_meter(task, batch)):
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
        batch[0]._message.channel.wake()


def _meter(task: BatchJob, batch: list[Request]) -> Meter:
    """Return the meter of a batch's one call, which was charged with its jobs."""
    charges = [charge for request in batch if (charge := Charge.of(request.charge))]
    first = batch[0]._message
    whole = Charge(sum(each.calls for each in charges), sum(each.cost for each in charges))
    return Meter(first.channel.broker, task.lane, int(first.properties.get("priority") or 0), whole)


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
