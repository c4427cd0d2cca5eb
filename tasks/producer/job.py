"""Follow a job after it was accepted: its status, its result, its cancellation."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from tasks.producer import stream
from worker.errors import JobFailed, ResultTimeout, UnknownJob
from worker.records import broker

#: Record state -> what Celery's users call it. A job that waits for another attempt is in RETRY.
STATUS = {
    "queued": "QUEUED",
    "delayed": "QUEUED",
    "leased": "QUEUED",
    "started": "STARTED",
    "replaced": "STARTED",
    "succeeded": "SUCCESS",
    "dead": "FAILURE",
    "cancelled": "REVOKED",
    "expired": "REVOKED",
}
#: Fields that a record is not shown with: what the job carries, and what `./forebay dead show` is for.
HIDDEN = frozenset({b"message", b"history", b"follows"})
ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})
POLL_S = (0.005, 0.1)
LONGEST_ID = 200  # characters


class Job:
    """One accepted job, known by its id in any process."""

    def __init__(self, job_id: str, inline: Any = None) -> None:
        self.id = job_id
        self._inline = inline  # what `tasks.inline` ran in this process

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def record(self) -> dict[str, str]:
        """Return the job's record: state, queue, step, task, times (seconds since the epoch), attempts, error.

        Raises `UnknownJob` when there is none: never accepted, or ended longer ago than records are kept.
        """
        client = broker.connect()
        pairs: dict[bytes, bytes] = client.redis.hgetall(client.keys.job(self.id))
        if not pairs:
            raise UnknownJob(
                f"job {self.id!r} is not known; it was never accepted, or its record is past retention.record_s"
            )
        return {name.decode(): value.decode("utf-8", "replace") for name, value in pairs.items() if name not in HIDDEN}

    @property
    def status(self) -> str:
        """QUEUED, STARTED, RETRY, SUCCESS, FAILURE or REVOKED, from the job's record. Raises `UnknownJob`."""
        if self._inline is not None:
            return str(self._inline.status)
        return status_of(self.record())

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the job to end and return its value.

        Raises `ResultTimeout` after ``timeout`` seconds (the job goes on), `JobFailed` when it was dead-lettered,
        cancelled or expired, `UnknownJob`.
        """
        if self._inline is not None:
            return self._inline.value()
        waited_until = None if timeout is None else time.monotonic() + timeout
        pause_s = POLL_S[0]
        while True:
            record = self.record()
            status = status_of(record)
            if status == "SUCCESS":
                return self._value()
            if status in ENDED:
                raise JobFailed(self.id, record["state"], record.get("error", ""))
            if waited_until is not None and time.monotonic() + pause_s > waited_until:
                raise ResultTimeout(f"job {self.id} is {status} after {timeout} s; it goes on, ask again")
            time.sleep(pause_s)
            pause_s = min(POLL_S[1], pause_s * 1.5)

    def stream(self, after: str | None = None, timeout: float | None = None) -> Iterator[stream.Event]:
        """Yield the job's text while the model writes it, as `tasks.producer.stream` events; the last is an ``End``.

        ``after``: the id of the last event that was read before; it goes on behind it. After a ``Restart`` all text
        before it is void. A job that was not enqueued with ``stream=True`` gives its whole text at its end.
        Raises as `result` does, and `JobRefused` for an ``after`` that is no event's id.
        """
        return stream.read(self, after, timeout)

    def texts(self, timeout: float | None = None) -> Iterator[str]:
        """Yield the text alone. Raises as `stream` does, and `JobFailed` when the answer began anew."""
        for event in self.stream(timeout=timeout):
            if isinstance(event, stream.Restart):
                raise JobFailed(self.id, "restarted", "its answer began anew; read it with stream() or result()")
            if isinstance(event, stream.Text):
                yield event.text

    def cancel(self) -> bool:
        """Cancel the job; return whether it had not ended.

        One that runs is broken off by its worker within seconds, unless it ends first: its status says.
        """
        if self._inline is not None:
            return False
        state = broker.connect().cancel(self.id)
        if not state:
            raise UnknownJob(f"job {self.id!r} is not known; there is nothing to cancel")
        return state not in broker.ENDED

    def _value(self) -> Any:
        from worker.app import app  # Celery is loaded by those who read results

        meta = app.backend.get_task_meta(self.id)
        if meta["status"] != "SUCCESS":
            raise JobFailed(self.id, "succeeded", "its result is past retention.result_s or the result backend lost it")
        return meta["result"]


@dataclass
class Group:
    """Jobs that were enqueued as one: a large input cut into pieces."""

    id: str
    jobs: list[Job] = field(default_factory=list)

    def progress(self) -> dict[str, int]:
        """Return how many jobs are in each status."""
        counted: dict[str, int] = {}
        for status in self._statuses():
            counted[status] = counted.get(status, 0) + 1
        return counted

    @property
    def status(self) -> str:
        """The least advanced of the jobs' statuses; FAILURE as soon as one job failed."""
        statuses = set(self._statuses())
        for status in ("FAILURE", "REVOKED", "RETRY", "STARTED", "QUEUED"):
            if status in statuses:
                return status
        return "SUCCESS"

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for every job; return ``{"rows": taken in all}``. Raises as `Job.result` does.

        Of these ``updated``, ``skipped`` and ``deleted`` are told where there are any; the others were inserted.
        When rows were refused while others were taken, ``rejected`` is their number and ``rejected_jobs`` are the ids
        of the jobs that hold them, dead letters soon.
        """
        waited_until = None if timeout is None else time.monotonic() + timeout
        told: dict[str, Any] = {"rows": 0}
        for job in self.jobs:
            left_s = None if waited_until is None else max(0.0, waited_until - time.monotonic())
            result = job.result(left_s)
            told["rows"] += result["rows"]
            for name in ("updated", "skipped", "deleted"):
                if count := result.get(name):
                    told[name] = told.get(name, 0) + count
            if "rejected_job" in result:
                told["rejected"] = told.get("rejected", 0) + len(result["rejected"])
                told["rejected_jobs"] = [*told.get("rejected_jobs", ()), result["rejected_job"]]
        return told

    def cancel(self) -> bool:
        """Cancel every job; return whether none had ended."""
        cancelled = [job.cancel() for job in self.jobs]  # every one, also behind one that has ended
        return all(cancelled)

    def _statuses(self) -> list[str]:
        if any(job._inline is not None for job in self.jobs):
            return [job.status for job in self.jobs]
        client = broker.connect()
        pipeline = client.redis.pipeline(transaction=False)
        for job in self.jobs:
            pipeline.hmget(client.keys.job(job.id), "state", "attempts", "cancel")
        return [_status(*reply) for reply in pipeline.execute()]


def rejected_id(job_id: str) -> str:
    """Return the id of the job that holds the rows which a job refused: always the same, so that it is sent once."""
    name = f"{job_id}.rejected"
    return name if len(name) <= LONGEST_ID else uuid5(NAMESPACE_OID, name).hex


def status_of(record: dict[str, str]) -> str:
    """Return the status that a record stands for."""
    return _status(record["state"].encode(), record.get("attempts", "").encode(), record.get("cancel", "").encode())


def _status(state: bytes | None, attempts: bytes | None, cancel: bytes | None) -> str:
    status = STATUS[(state or b"queued").decode()]
    if status == "QUEUED" and cancel:
        return "REVOKED"
    if status == "QUEUED" and attempts not in (None, b"", b"0"):
        return "RETRY"
    return status
