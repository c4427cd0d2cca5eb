"""Run one job: the base class of every task, which turns errors into outcomes."""

import logging
import os
import random
from contextlib import suppress
from typing import Any, NoReturn

from billiard.process import current_process
from celery import Task
from celery.canvas import Signature
from celery.exceptions import Ignore, Reject, Retry
from redis.exceptions import RedisError

from worker.errors import BrokerUnavailable
from worker.limits import gates
from worker.limits.gates import Charge, Meter
from worker.policy.policy import load as load_policy
from worker.policy.queue import Queue
from worker.policy.queue import Retry as RetryPolicy
from worker.records import broker
from worker.records.broker import Broker, Delivery
from worker.records.message import HIDDEN
from worker.runtime import cancellation, outcome
from worker.runtime.outcome import Fault
from worker.runtime.pools import children

logger = logging.getLogger(__name__)

#: For tasks of no declared queue: fail at once, as Celery does.
ONCE = RetryPolicy(max_attempts=1)


class AttemptFailed(Exception):
    """Why a job runs again, as text: any process can read it, whatever the error's own class needs."""


class Again(Retry):  # type: ignore[misc]
    """Tell the worker to run the job again after ``when`` seconds, and whether that spends an attempt."""

    spent = 1


class Snoozed(Again):
    """An `Again` that spends no attempt."""

    spent = 0


class NotRun(Ignore):  # type: ignore[misc]
    """The job is not run, or was broken off: it was ``cancelled`` or has ``expired``."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class NotHeld(Ignore):  # type: ignore[misc]
    """The job is another delivery's by now: this run starts nothing, writes nothing and settles nothing."""


class BodyFailed(RuntimeError):
    """A task's Redis error or SystemExit, told apart from those of the result backend and of the pool."""


class OutOfMemory(RuntimeError):
    """A task's MemoryError. Celery ends the whole worker on the original."""


class Job(Task):  # type: ignore[misc]
    """A task whose failures are decided by its queue's retry policy.

    A subclass says what its errors mean (`classify`, `wait_s`). It may load what runs need (`prepare`) and keep
    something of an attempt that failed (`failed`) and of a job that is never run (`abandoned`).
    """

    abstract = True
    Request = "worker.runtime.request:Request"
    resultrepr_maxsize = 1  # results hold answers: events, Flower and logs show only their kind

    @classmethod
    def on_bound(cls, _app: Any) -> None:
        """Set what a task may not choose.

        It is acknowledged late: before it has run, it would be lost with its worker. And Celery does not say that it
        started, for that would be before `start` has said that it may.
        """
        cls.acks_late = True
        cls.track_started = False

    @property
    def lane(self) -> Queue | None:
        """The declared queue that this run came through, or else the one that declares this task, or None."""
        return load_policy().lane_of(str((self.request.delivery_info or {}).get("routing_key")), self.name)

    @property
    def _policy(self) -> RetryPolicy:
        return self.lane.retry if self.lane else ONCE

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish as Celery does, without showing in events what the job carries."""
        return super().apply_async(args, kwargs, **{"argsrepr": HIDDEN, "kwargsrepr": HIDDEN, **options})

    def prepare(self) -> None:
        """Load what a run needs, before the worker fetches its first job."""

    def classify(self, error: Exception) -> Fault:
        """Say whether trying again may help."""
        return Fault.FATAL

    def wait_s(self, error: Exception) -> float | None:
        """Return in how many seconds a service that is away may be back, None when it is not known."""
        return None

    def failed(self, error: Exception, is_dead: bool, *args: Any, **kwargs: Any) -> None:
        """Keep what is to be known of an attempt that failed; ``is_dead`` when no other follows.

        It is called before the job is settled, and not for a run that was cancelled or broken off by its worker. What
        it raises is logged and changes nothing.
        """

    def abandoned(self, *args: Any, **kwargs: Any) -> None:
        """Keep what must not be lost of a job that was cancelled or expired before it ran."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body, between a start and a confirmation by the job's record.

        Celery calls this for every delivery, in the thread or child that runs it; the arguments are the job's. What the
        run raises or returns from here on is written as its result, so a run that lost its job raises `NotHeld`.
        """
        delivery = self._delivery()
        if self.request.called_directly or delivery is None:
            return self.run(*args, **kwargs)
        if self.request.get("forebay_answer") is not None:  # of a batch, which began and confirmed for all of its jobs
            return self._guarded(*args, **kwargs)
        with cancellation.running(self.request.id), children.shielded():
            records = self._start(delivery, args, kwargs)
            try:
                with gates.metered(self._meter(records)):
                    value = self._guarded(*args, **kwargs)
            except Exception:
                self._confirm(records, delivery)
                if cancellation.is_cancelled(self.request.id):
                    raise NotRun("cancelled") from None
                raise
            self._confirm(records, delivery)
            return value

    def _start(self, delivery: Delivery, args: Any, kwargs: Any) -> Broker:
        """Begin the run in the job's record, which says whether it is to run at all."""
        try:
            records = self.records()
            said = records.start(delivery)
        except (RedisError, BrokerUnavailable) as error:
            raise Snoozed(exc=AttemptFailed(f"the broker is away: {error}"), when=self._policy.backoff_s) from error
        if said in ("late", "settled"):
            raise NotHeld(said)
        if said != "started":
            self._abandon(said, *args, **kwargs)
        if self.app.conf.task_track_started and not self.request.ignore_result:
            with suppress(Exception):  # it says little; the record says it too
                about = {"pid": os.getpid(), "hostname": self.request.hostname}
                self.backend.store_result(self.request.id, about, "STARTED", request=self.request)
        return records

    def _abandon(self, verdict: str, *args: Any, **kwargs: Any) -> NoReturn:
        try:
            self.abandoned(*args, **kwargs)
        except Exception as error:
            again = self.again(error, self.request.retries)
            if again is not None:
                raise again from error
            logger.exception("job %s is %s, and what was to be kept of it is not", self.request.id, verdict)
        raise NotRun(verdict)

    def _confirm(self, records: Broker, delivery: Delivery) -> None:
        try:
            said = records.confirm(delivery)
        except RedisError as error:  # what was done is done; the settle waits for Redis
            logger.warning("job %s ended while the broker is away: %s", delivery.id, error)
            return
        if said != "held":
            raise NotHeld(said)

    def _guarded(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body and turn what it raises into what the queue's policy makes of it."""
        try:
            return self.body(*args, **kwargs)
        except (Retry, Ignore, Reject):
            raise
        except MemoryError as error:
            raise OutOfMemory(f"job {self.request.id} ran out of memory") from error
        except Exception as error:
            again = self.again(error, self.request.retries)
            self._tell_failed(error, again is None, *args, **kwargs)
            if again is not None:
                raise again from error
            if isinstance(error, RedisError):
                raise BodyFailed(f"{type(error).__name__}: {error}") from error
            raise
        except BaseException as error:
            # In a pool child sys.exit ends the child, which is noticed; elsewhere nobody would settle the job.
            if isinstance(error, SystemExit | KeyboardInterrupt) and current_process().name != "MainProcess":
                raise
            raise BodyFailed(f"the task called for the end of its process: {error!r}") from error

    def _tell_failed(self, error: Exception, is_dead: bool, *args: Any, **kwargs: Any) -> None:
        if cancellation.is_cancelled(self.request.id):
            return
        try:
            self.failed(error, is_dead, *args, **kwargs)
        except Exception as second:
            logger.warning("job %s failed, and what was to be kept of that is not: %s", self.request.id, second)

    def _meter(self, records: Broker) -> Meter:
        step = (self.request.delivery_info or {}).get("priority")
        charge = Charge.of(self.request.get("forebay_charge"))
        return Meter(records, self.lane, step if isinstance(step, int) else 0, charge)

    def _delivery(self) -> Delivery | None:
        tag = self.request.get("forebay_delivery")
        return Delivery.of_tag(tag) if tag else None

    def records(self) -> Broker:
        """Return the records of jobs in the broker that the worker fetches from."""
        return broker.connect(self.app.conf.broker_url)

    def replace(self, sig: Signature) -> Any:
        """Put another task or canvas in this one's place, as Celery does: its end is this job's end."""
        delivery = self._delivery()
        if delivery is not None and not self.request.called_directly:
            said = self.records().replacing(delivery)
            if said != "replacing":
                raise NotHeld(said)
        return super().replace(sig)

    def body(self, *args: Any, **kwargs: Any) -> Any:
        """Do the job."""
        return self.run(*args, **kwargs)

    def again(self, error: Exception, attempts: int) -> Again | None:
        """Return the retry that an error leads to, None when the job is dead."""
        policy = self._policy
        cause = AttemptFailed(f"{type(error).__name__}: {error}"[:2000])
        match outcome.decide(self.classify(error), attempts, policy, random.random(), self.wait_s(error)):
            case outcome.Retry(after_s):
                return Again(exc=cause, when=after_s)
            case outcome.Snooze(after_s):
                return Snoozed(exc=cause, when=after_s)
            case outcome.Dead():
                return None
