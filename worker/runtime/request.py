"""Settle one delivery: Celery's request, whose acknowledgement says how the run ended."""

import logging
import random
from concurrent.futures import Future
from signal import SIGKILL
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.concurrency import prefork
from celery.concurrency.base import BasePool
from celery.exceptions import BackendStoreError, Ignore, Reject, Retry
from celery.worker import request, state
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.errors import BrokerUnavailable, QueueFull
from worker.policy.policy import load as load_policy
from worker.policy.queue import Retry as RetryPolicy
from worker.records import message
from worker.records.broker import Broker, Delivery
from worker.records.reason import Reason
from worker.runtime import bodies, cancellation, outcome
from worker.runtime.lease import Settle
from worker.runtime.outcome import Fault
from worker.runtime.task import ONCE, Again, NotHeld, NotRun

logger = logging.getLogger(__name__)

TEXT = 10_000

#: What Celery itself meets around a run when the broker or the result backend is away or full: no fault of the job.
AWAY = (RedisError, BackendStoreError, OperationalError, QueueFull, BrokerUnavailable)


class Request(request.Request):  # type: ignore[misc]
    """One delivery of a job in this worker. Each callback of Celery's notes the settle before it acknowledges."""

    acknowledged: bool
    in_company = False  # runs in a batch with others

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = self._kwargsrepr = message.HIDDEN  # also for jobs of producers that show what they carry
        self._request_dict["forebay_delivery"] = self._message.delivery_tag
        self._request_dict["forebay_charge"] = self.charge
        self._ending = False

    _settle: Settle = staticmethod(Broker.done)

    @property
    def _payload(self) -> Any:
        """What Celery reads callbacks from, for a job whose end it tells itself."""
        if self._message.payload is bodies.UNREAD:
            return self._message._decode()
        return super()._payload

    @property
    def delivery(self) -> Delivery:
        """The number and the job that every settle carries."""
        return Delivery.of_tag(self._message.delivery_tag)

    @property
    def charge(self) -> str:
        """What a gate charged for this delivery: see `worker.limits.gates.Charge`."""
        return str((self._message.delivery_info or {}).get("charge", ""))

    def info(self, safe: bool = True) -> Any:
        """Return what remote control says of the job, and Flower's page of a worker: never what it carries."""
        return super().info(safe=True)

    # Running.

    def ended(self, future: "Future[Any]") -> None:
        """Settle a run on a thread whose error left Celery's own code, where nobody else would hear of it."""
        error = None if future.cancelled() else future.exception()
        if error is not None and not self.acknowledged:
            self.break_off(error)

    def break_off(self, error: BaseException) -> None:
        """Settle a run that ended in none of Celery's callbacks: the job waits, or runs again while attempts last."""
        logger.error("job %s broke off: %r", self.id, error, exc_info=error)
        self._settle = self._snooze(error) if isinstance(error, AWAY) else self._after_loss(error, "")
        state.task_ready(self)
        self.acknowledge()

    def announce_started(self) -> None:
        """Say that the run began, for a batch, which notes it in the job's record itself."""
        state.task_accepted(self)
        self.send_event("task-started")

    def terminate(self, pool: BasePool, signal: Any = None) -> None:
        """End the run: a pool child is killed, a thread's job is told to let go. One that waits is not started."""
        self._ending = True
        if isinstance(pool, prefork.TaskPool) and not self.in_company:
            super().terminate(pool, signal)
        elif not cancellation.cancel(self.id):  # it has yet to start, and will not
            self._message.channel.lease.broker.cancel(self.id)

    def cancel(self, pool: BasePool, signal: Any = None, emit_retry: bool = True) -> None:
        """Give the job back for a cold shutdown, and kill its pool child: a child that runs a job heeds no SIGTERM."""
        self.give_back()
        super().cancel(pool, signal or "KILL", emit_retry)

    # What Celery says of the end.

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            self._settle = _bury(Reason.TIME_LIMIT, f"ran for longer than {timeout} s", "")
            self.acknowledge()
        super().on_timeout(soft, timeout)

    def on_retry(self, exc_info: ExceptionInfo) -> None:
        again = _unwrapped(exc_info)
        if isinstance(again, Again):
            self._settle = self._reschedule(float(again.when), again.spent, str(again.exc))
        super().on_retry(exc_info)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = _unwrapped(exc_info)
        if isinstance(error, NotRun):
            return self._announce_revoked(error.verdict, False, None, error.verdict == "expired")
        if isinstance(error, NotHeld):
            return self.let_pass()
        if isinstance(error, Terminated) and not self._ending:  # by a cold shutdown, not because somebody cancelled it
            return self.give_back()
        away = error.reason if isinstance(error, Reject) else error
        if isinstance(away, AWAY):  # the run may be good, but its result or what follows from it was not kept
            return self._wait_for(away)
        self._settle = self._settle_after(error, str(exc_info.traceback))
        if isinstance(error, Reject) and not error.requeue:
            self.reject()  # before Celery stores the failure: the backend may be away
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _settle_after(self, error: BaseException, traceback: str) -> Settle:
        match error:
            case Retry() | Ignore() | Reject() | Terminated():
                return self._settle
            case TimeLimitExceeded() if not self.in_company:
                return _bury(Reason.TIME_LIMIT, str(error), "")
            case WorkerLostError() if state.should_stop is not None or state.should_terminate is not None:
                return Broker.release  # whoever stops the worker may end its children too
            case WorkerLostError() | SystemExit() | KeyboardInterrupt() | TimeLimitExceeded():
                return self._settle if self._success_was_stored() else self._after_loss(error, traceback)
            case _:
                return _bury(self._reason_of_failure(), f"{type(error).__name__}: {error}", traceback)

    def _wait_for(self, away: BaseException) -> None:
        self._settle = self._snooze(away)
        state.task_ready(self)
        self.acknowledge()
        self.send_event("task-retried", exception=repr(away)[:TEXT], traceback="")

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        verdict = "expired" if expired else "cancelled"
        self._settle = lambda broker, delivery: broker.drop(delivery, verdict)
        self.acknowledge()  # before Celery stores the result: the backend may be away
        super()._announce_revoked(reason, terminated, signum, expired)

    # Settling.

    def acknowledge(self) -> None:
        """Settle the delivery as the callback before noted, at once and in the calling thread."""
        self.acknowledged = self.acknowledged or self._acknowledge(self._settle)

    def reject(self, requeue: bool = False) -> None:
        """Give the job back, or bury it. A noted settle wins: a lost pool child is neither."""
        if self._settle is Broker.done:
            self._settle = Broker.release if requeue else _bury(Reason.REJECTED, "the task rejected its message", "")
        if not self.acknowledged:
            self.acknowledge()
            self.send_event("task-rejected", requeue=requeue)

    def give_back(self) -> None:
        """Let the job run again elsewhere; it spends no attempt. What this run still does changes nothing."""
        state.task_ready(self)
        self._settle = Broker.release
        self.acknowledge()

    def let_pass(self) -> None:
        """Settle nothing: the job is another delivery's by now. This frees the place in the prefetch window."""
        logger.warning("job %s was given to another worker meanwhile; this run changes nothing", self.id)
        state.task_ready(self)
        self.acknowledged = self.acknowledged or self._acknowledge(_nothing)

    def _acknowledge(self, settle: Settle) -> bool:
        self._message.channel.qos.settle(self._message.delivery_tag, settle)
        return True

    def _reschedule(self, after_s: float, spent: int, error: str) -> Settle:
        later = message.next_run(self._message._raw, spent)
        return lambda broker, delivery: broker.reschedule(delivery, later, f"+{after_s:.6f}", spent, error[:TEXT])

    def _snooze(self, error: BaseException) -> Settle:
        return self._decided(Fault.AWAY, error, Reason.FAILED, "")

    def _after_loss(self, error: BaseException, traceback: str) -> Settle:
        """Decide about a job whose pool child died under it: it may be what kills them."""
        return self._decided(Fault.PASSING, error, Reason.WORKER_LOST, traceback)

    def _decided(self, fault: Fault, error: BaseException, reason: Reason, traceback: str) -> Settle:
        text = f"{type(error).__name__}: {error}"
        attempts = int(self._request_dict.get("retries") or 0)
        match outcome.decide(fault, attempts, self._policy(), random.random()):
            case outcome.Retry(after_s):
                return self._reschedule(after_s, 1, text)
            case outcome.Snooze(after_s):
                return self._reschedule(after_s, 0, text)
            case outcome.Dead():
                return _bury(reason, text, traceback)

    def _policy(self) -> RetryPolicy:
        lane = load_policy().lane_of(str(self.delivery_info.get("routing_key")), self.name)
        return lane.retry if lane else ONCE

    def _reason_of_failure(self) -> Reason:
        """Tell a failure that ended a series of attempts from one that no attempt would have healed."""
        attempts = int(self._request_dict.get("retries") or 0)
        is_last = attempts > 0 and attempts + 1 >= self._policy().max_attempts
        return Reason.ATTEMPTS_SPENT if is_last else Reason.FAILED


#: How many jobs were taken from this process because they hang; on threads each has cost a slot.
wedged: list[str] = []


def heed(pool: BasePool, what: str, job_id: str) -> None:
    """Do what the broker says of a job that this worker has: break off one that was cancelled, let go of a hung one."""
    running = state.requests.get(job_id)
    if running is None:
        return
    if what == "cancel":
        logger.info("job %s was cancelled and is broken off", job_id)
        running.terminate(pool, "KILL")
        return
    logger.error("job %s ran for longer than wedged_after_s and was given up", job_id)
    if not isinstance(pool, prefork.TaskPool):
        wedged.append(job_id)
    elif running.worker_pid:
        pool.terminate_job(running.worker_pid, SIGKILL)


def _nothing(_broker: Broker, _delivery: Delivery) -> str:
    return "settled"


def _bury(reason: Reason, error: str, traceback: str) -> Settle:
    return lambda broker, delivery: broker.bury(delivery, reason, error[:TEXT], traceback[-TEXT:])


def _unwrapped(exc_info: ExceptionInfo) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error  # type: ignore[no-any-return]
