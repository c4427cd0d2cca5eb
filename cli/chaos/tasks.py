"""The plain Celery tasks of `./forebay chaos`: each writes its effect once, and each run of it into a log."""

import ctypes
import os
import resource
import signal
import time

from sqlalchemy import text

from db import receipts
from db.bulk import inserts
from db.engine import transaction
from tasks import fault
from worker.app import app
from worker.runtime.outcome import Fault
from worker.runtime.task import Job

MIB = 2**20
#: What a greedy job takes: more than its lane's ceiling for a child.
GREED_MIB = 320
COLUMNS = ("job_id", "number")


class Plain(Job):
    """A task whose errors mean what they mean to Forebay's own tasks."""

    abstract = True

    def classify(self, error: Exception) -> Fault:
        return fault.of(error)


def keep(job_id: str) -> None:
    """Write the effect of a job: a row that only the run with the receipt marks as kept."""
    with transaction() as session:
        is_first = receipts.write(session, job_id, "chaos", {})
        session.execute(
            text("INSERT INTO chaos_effects (job_id, kept) VALUES (:job_id, :kept)"),
            {"job_id": job_id, "kept": is_first},
        )


@app.task(base=Plain, bind=True, name="cli.chaos.tasks")  # type: ignore[untyped-decorator]
def effect(self: Plain, seconds: float = 0.0) -> None:
    """Work for so long, half of it behind the commit: a kill then finds a job that is done and not settled."""
    time.sleep(seconds / 2)
    keep(self.request.id)
    time.sleep(seconds / 2)


@app.task(base=Plain, name="chaos.poison")  # type: ignore[untyped-decorator]
def poison(way: str) -> None:
    """End the process that runs this, with no chance to catch it."""
    if way == "exit":
        os._exit(3)
    ctypes.string_at(0)  # a null pointer: SIGSEGV


@app.task(base=Plain, bind=True, name="chaos.greed")  # type: ignore[untyped-decorator]
def greed(self: Plain, *, limited: bool) -> None:
    """Take more memory than the lane's ceiling; ``limited``: the kernel refuses it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if limited:
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + GREED_MIB // 4 * MIB, before[1]))
    try:
        taken = bytearray(GREED_MIB * MIB)
        taken[:: resource.getpagesize()] = b"1" * len(range(0, len(taken), resource.getpagesize()))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    keep(self.request.id)


@app.task(base=Plain, bind=True, name="chaos.deadlock")  # type: ignore[untyped-decorator]
def deadlock(self: Plain, first: int, second: int) -> None:
    """Lock two rows, the other one later: with a second job the other way round this is a deadlock."""
    lock = text("SELECT 1 FROM chaos_locks WHERE number = :number FOR UPDATE")
    with transaction() as session:
        session.execute(lock, {"number": first})
        session.execute(text("SELECT pg_sleep(0.3)"))
        session.execute(lock, {"number": second})
    keep(self.request.id)


@app.task(base=Plain, bind=True, name="chaos.commit_and_die")  # type: ignore[untyped-decorator]
def commit_and_die(self: Plain, rows: int) -> None:
    """Copy rows in, and with the first commit kill the worker: no settle tells of it."""
    job_id = self.request.id
    if not inserts.insert(job_id, "chaos_rows", COLUMNS, [(job_id, number) for number in range(rows)]).repeated:
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(1)


def _address_space() -> int:
    """Return how many bytes this process has mapped."""
    import psutil

    return int(psutil.Process().memory_info().vms)
