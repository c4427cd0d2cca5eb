"""Tasks of a plain Celery user, for the tests: none of them knows Forebay."""

import os
import sys
import threading
from typing import Any

import redis
from celery import chain
from celery.exceptions import Reject

from worker.app import app
from worker.runtime import cancellation
from worker.runtime.outcome import Fault
from worker.runtime.task import Job


@app.task(name="probe.add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="probe.early", acks_late=False, ignore_result=False)
def early(a: int) -> int:
    return a


@app.task(name="probe.fail")
def fail() -> None:
    raise ValueError("this task always fails")


@app.task(name="probe.leave")
def leave() -> None:
    sys.exit(3)


@app.task(name="probe.vanish")
def vanish() -> None:
    os._exit(3)


@app.task(name="probe.own_redis")
def own_redis() -> None:
    raise redis.ConnectionError("a Redis that only this task uses is away")


@app.task(name="probe.reject")
def reject(requeue: bool) -> str:
    """Reject the first delivery."""
    if marks().rpush("probe:ran", "reject") == 1:
        raise Reject("not by this worker", requeue=requeue)
    return "ran"


@app.task(name="probe.hunger")
def hunger() -> None:
    raise MemoryError


@app.task(name="probe.retry", bind=True)
def retry(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


@app.task(name="probe.replace", bind=True)
def replace(self: Any) -> None:
    raise self.replace(add.s(20, 22))


@app.task(name="probe.mark")
def mark(name: str) -> str:
    """Say in the broker's Redis that this ran."""
    marks().rpush("probe:ran", name)
    return name


@app.task(name="probe.hold")
def hold(name: str) -> str:
    """Say that this runs, then wait until the test lets it go on."""
    marks().rpush("probe:holding", name)
    marks().blmove(f"probe:go:{name}", "probe:gone", 60)
    marks().rpush("probe:ran", name)
    return name


@app.task(name="probe.listen", bind=True)
def listen(self: Any) -> None:
    """Wait for good, unless the job is cancelled."""
    let_go = threading.Event()
    marks().rpush("probe:holding", self.request.id)
    with cancellation.closing(self.request.id, let_go.set):
        let_go.wait(60)
    raise ConnectionError("what the job waited for was closed")


@app.task(name="probe.confide", bind=True)
def confide(self: Any, way: str, text: str, word: str) -> int:
    """Take what nobody is to see; return, fail, or go on as another run or task, and say none of it."""
    if way == "fail":
        raise ValueError("this way always fails")
    if way == "retry" and not self.request.retries:
        raise self.retry(countdown=0.1)
    if way == "replace":
        raise self.replace(confide.s("return", text, word=word))
    return len(text) + len(word)


@app.task(name="probe.confide_and_hold")
def confide_and_hold(text: str, name: str, word: str) -> int:
    """Take what nobody is to see, and wait until the test lets it go on."""
    hold(name)
    return len(text) + len(word)


@app.task(name="probe.replace_by_chain", bind=True)
def replace_by_chain(self: Any) -> None:
    raise self.replace(chain(add.s(1, 2), add.s(3)))


def marks() -> "redis.Redis":
    """Return the Redis of the test's marks: the broker's, by a way of its own where the test cuts the worker's."""
    url = os.environ.get("PROBE_REDIS_URL") or os.environ["CELERY_BROKER_URL"]
    return redis.Redis.from_url(url, socket_timeout=None)


class Forgetful(Job):
    """A task that cannot keep what it is to keep of a job that is never run."""

    abstract = True

    def abandoned(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("nothing can be kept")


class Breaking(Job):
    """A task whose error meets Celery's own code, behind the run: Celery's tracer lets a MemoryError pass."""

    abstract = True

    def after_return(self, *args: Any, **kwargs: Any) -> None:
        raise MemoryError("behind the run")


@app.task(name="probe.breaking", base=Breaking)
def breaking(name: str) -> None:
    marks().rpush("probe:ran", name)


@app.task(name="probe.forgetful", base=Forgetful)
def forgetful() -> None:
    raise AssertionError("this is cancelled")


@app.task(name="probe.pause")
def pause(seconds: float) -> None:
    """Hold a slot for a moment."""
    threading.Event().wait(seconds)


class Hopeful(Job):
    """A task whose every error may heal."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return Fault.PASSING


@app.task(name="probe.hope", base=Hopeful)
def hope() -> None:
    raise ConnectionError("this never heals")
