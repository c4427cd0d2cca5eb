"""Settle one delivery: Celery's request, whose acknowledgement says how the run ended."""

import os
import random
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import BackendStoreError, Ignore, Reject, Retry
from celery.worker import request
from redis.exceptions import RedisError

from worker import message, outcome
from worker.broker import Broker, Delivery
from worker.lease import Settle
from worker.outcome import Fault
from worker.policy import Retry as RetryPolicy
from worker.policy import load as load_policy
from worker.task import ONCE, Again

TEXT = 10_000


class Request(request.Request):  # type: ignore[misc]
    """One delivery of a job in this worker. Each callback of Celery's notes the settle before it acknowledges."""

    acknowledged: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = self._kwargsrepr = message.HIDDEN  # also for jobs of producers that show what they carry

    _settle: Settle = staticmethod(Broker.done)

    @property
    def delivery(self) -> Delivery:
        """The number and the job that every settle carries."""
        return Delivery.of_tag(self._message.delivery_tag)

    @property
    def verdict(self) -> str:
        """``cancelled`` or ``expired`` for a job that is not to be run, else empty."""
        return str(self._request_dict.get("forebay_verdict") or "")

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        self._message.channel.lease.settle(self.delivery, Broker.start)
        super().on_accepted(pid, time_accepted)

    def announce_started(self) -> None:
        """Say that the run began, for a batch that has noted it in the job's record already."""
        super().on_accepted(os.getpid(), monotonic())

    def on_timeout(self, soft: bool, timeout: float) -> None:
        if not soft:
            self._settle = _bury("time limit", f"ran for longer than {timeout} s", "")
        super().on_timeout(soft, timeout)

    def on_retry(self, exc_info: ExceptionInfo) -> None:
        again = _unwrapped(exc_info)
        if isinstance(again, Again):
            self._settle = self._reschedule(float(again.when), again.spent, str(again.exc))
        super().on_retry(exc_info)

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        error = _unwrapped(exc_info)
        if isinstance(error, Ignore) and self.verdict:
            return self._announce_revoked(self.verdict, False, None, self.verdict == "expired")
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt):
            self._settle = self._after_loss(error, exc_info)
        elif isinstance(error, RedisError | BackendStoreError):  # the run may be good, but its result was not kept
            self._settle = self._snooze(error)
        elif not isinstance(error, Retry | Ignore | Reject):
            self._settle = _bury("failed", f"{type(error).__name__}: {error}", str(exc_info.traceback))
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        verdict = "expired" if expired else "cancelled"
        self._settle = lambda broker, delivery: broker.drop(delivery, verdict)
        super()._announce_revoked(reason, terminated, signum, expired)

    def acknowledge(self) -> None:
        """Settle the delivery as the callback before noted, at once and in the calling thread."""
        if not self.acknowledged:
            self._message.channel.qos.settle(self._message.delivery_tag, self._settle)
            self.acknowledged = True

    def reject(self, requeue: bool = False) -> None:
        """Give the job back, or bury it. A noted settle wins: a lost pool child is neither."""
        if self._settle is Broker.done:
            self._settle = Broker.release if requeue else _bury("rejected", "the task rejected its message", "")
        self.acknowledge()
        self.send_event("task-rejected", requeue=requeue)

    def _reschedule(self, after_s: float, spent: int, error: str) -> Settle:
        later = message.next_run(self._message._raw, spent)
        return lambda broker, delivery: broker.reschedule(delivery, later, f"+{after_s:.6f}", spent, error[:TEXT])

    def _snooze(self, error: BaseException) -> Settle:
        match outcome.decide(Fault.AWAY, 0, self._policy(), random.random()):
            case outcome.Snooze(after_s) | outcome.Retry(after_s):
                return self._reschedule(after_s, 0, f"{type(error).__name__}: {error}")
            case outcome.Dead(reason):
                return _bury(reason, f"{type(error).__name__}: {error}", "")

    def _policy(self) -> RetryPolicy:
        lane = load_policy().queues.get(self.delivery_info.get("routing_key"))
        return lane.retry if lane else ONCE

    def _after_loss(self, error: BaseException, exc_info: ExceptionInfo) -> Settle:
        """Decide about a job whose pool child died under it: it may be what kills them."""
        task = self._task
        attempts = int(self._request_dict.get("retries") or 0)
        match outcome.decide(Fault.PASSING, attempts, self._policy(), random.random()):
            case outcome.Retry(after_s) | outcome.Snooze(after_s):
                return self._reschedule(after_s, 1, f"{type(error).__name__}: {error}")
            case outcome.Dead():
                task.backend.mark_as_failure(self.id, error, request=self._context, store_result=self.store_errors)
                return _bury("worker lost", f"{type(error).__name__}: {error}", str(exc_info.traceback))


def _bury(reason: str, error: str, traceback: str) -> Settle:
    return lambda broker, delivery: broker.bury(delivery, reason, error[:TEXT], traceback[-TEXT:])


def _unwrapped(exc_info: ExceptionInfo) -> BaseException:
    error = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error  # type: ignore[no-any-return]
