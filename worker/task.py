"""Run one job: the base class of every task, which turns errors into outcomes."""

import random
import threading
from typing import Any

from celery import Task
from celery.exceptions import Ignore, Reject, Retry
from redis.exceptions import RedisError

from worker import outcome
from worker.message import HIDDEN
from worker.outcome import Fault
from worker.policy import Queue
from worker.policy import Retry as RetryPolicy
from worker.policy import load as load_policy

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


class BodyFailed(RuntimeError):
    """A task's Redis error or SystemExit, told apart from those of the result backend and of the pool."""


class OutOfMemory(RuntimeError):
    """A task's MemoryError. Celery ends the whole worker on the original."""


class Job(Task):  # type: ignore[misc]
    """A task whose failures are decided by its queue's retry policy.

    A subclass says what its errors mean (`classify`) and may keep something of a job that is never run
    (`abandoned`).
    """

    abstract = True
    Request = "worker.request:Request"
    resultrepr_maxsize = 1  # results hold answers: events, Flower and logs show only their kind

    @property
    def lane(self) -> Queue | None:
        """The declared queue that this run came through, or else the one that declares this task, or None."""
        policy = load_policy()
        carried = str((self.request.delivery_info or {}).get("routing_key"))
        return policy.queues.get(carried) or policy.queue_of_task(self.name)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Publish as Celery does, without showing in events what the job carries."""
        return super().apply_async(args, kwargs, **{"argsrepr": HIDDEN, "kwargsrepr": HIDDEN, **options})

    def classify(self, error: Exception) -> Fault:
        """Say whether trying again may help."""
        return Fault.FATAL

    def abandoned(self, *args: Any, **kwargs: Any) -> None:
        """Keep what must not be lost of a job that was cancelled or expired before it ran."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body. Celery calls this for every delivery; the arguments are the job's."""
        if self.request.called_directly:
            return self.run(*args, **kwargs)
        try:
            if self.request.get("forebay_verdict"):
                return self._abandon(*args, **kwargs)
            return self.body(*args, **kwargs)
        except (Retry, Ignore, Reject):
            raise
        except SystemExit as error:
            # In a pool child it ends the child, which is noticed; in a thread nobody would settle the job.
            if threading.current_thread() is threading.main_thread():
                raise
            raise BodyFailed(f"the task called sys.exit({error.code!r})") from error
        except MemoryError as error:
            raise OutOfMemory(f"job {self.request.id} ran out of memory") from error
        except Exception as error:
            again = self.again(error, self.request.retries)
            if again is not None:
                raise again from error
            if isinstance(error, RedisError):
                raise BodyFailed(f"{type(error).__name__}: {error}") from error
            raise

    def _abandon(self, *args: Any, **kwargs: Any) -> None:
        self.abandoned(*args, **kwargs)
        raise Ignore(self.request.get("forebay_verdict"))  # the request settles by the verdict

    def body(self, *args: Any, **kwargs: Any) -> Any:
        """Do the job."""
        return self.run(*args, **kwargs)

    def again(self, error: Exception, attempts: int) -> Again | None:
        """Return the retry that an error leads to, None when the job is dead."""
        policy = self.lane.retry if self.lane else ONCE
        cause = AttemptFailed(f"{type(error).__name__}: {error}"[:2000])
        match outcome.decide(self.classify(error), attempts, policy, random.random()):
            case outcome.Retry(after_s):
                return Again(exc=cause, when=after_s)
            case outcome.Snooze(after_s):
                return Snoozed(exc=cause, when=after_s)
            case outcome.Dead():
                return None
