"""Send rows as a named group of jobs that can be broken off and taken up again, and tell what became of them."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.producer import enqueue
from tasks.producer.enqueue import Options
from tasks.producer.job import ENDED, rejected_id, status_of
from tasks.producer.kinds.bulk_insert import BulkInsert
from worker.errors import JobRefused, UnknownJob
from worker.policy.policy import load as load_policy
from worker.records import broker

#: Jobs that are asked about in one round trip.
PAGE = 1000
LONGEST_NAME = 150  # so that a job's id still fits with its number and what `rejected_id` adds


@dataclass(frozen=True)
class Piece:
    """One job of a group: its number from 0, what it carries, and the place in the input where its rows begin.

    ``written`` is the payload as JSON in UTF-8.
    """

    number: int
    payload: BulkInsert
    written: bytes
    place: str

    def mark(self) -> str:
        """Return what stands for the piece in the group's record: a digest of all that it carries, and its rows."""
        return f"{hashlib.sha256(self.written).hexdigest()[:32]} {len(self.payload.rows)}"


@dataclass(frozen=True)
class State:
    """How far a group is. ``jobs`` and ``rows`` by status; FORGOTTEN: ended longer than retention.record_s ago.

    ``complete``: the whole input was sent. ``failed``: id, status and error of each job that failed, refused rows too.
    """

    name: str
    complete: bool
    jobs: dict[str, int]
    rows: dict[str, int]
    failed: list[dict[str, str]]

    @property
    def is_over(self) -> bool:
        return self.complete and self.jobs.keys() <= {*ENDED, "FORGOTTEN"}


class BulkGroup:
    """A group, known by its name in any process. Its record outlives its last change as long as dead letters do."""

    def __init__(self, name: str) -> None:
        if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
            raise JobRefused("group", name, f"must be text of 1 to {LONGEST_NAME} printable characters")
        self.name = name
        self._broker = broker.connect()
        self._key = self._broker.keys.group(name)

    def job_id(self, number: int) -> str:
        return f"{self.name}.{number}"

    def rows_per_job(self, wanted: int) -> int:
        """Return the rows a job: those wanted, or those that the group was begun with."""
        return int(self._broker.redis.hget(self._key, "rows_per_job") or wanted)

    def send(self, pieces: Sequence[Piece], options: Options, rows_per_job: int) -> int:
        """Enqueue the pieces that are not in yet; return how many these were.

        Each is claimed by its mark before it is sent, so a command that ends in between is taken up here.
        Raises `JobRefused` for a piece other than the one that was sent under its number, and as `enqueue.many` does.
        """
        redis = self._broker.redis
        marks = {str(piece.number): piece.mark() for piece in pieces}

        def claim(pipeline: Any) -> None:
            self._compare(pieces, marks, pipeline.hmget(self._key, list(marks)))
            pipeline.multi()
            pipeline.hsetnx(self._key, "rows_per_job", rows_per_job)
            pipeline.hset(self._key, mapping=marks)
            pipeline.expire(self._key, int(load_policy().retention.dead_s))

        redis.transaction(claim, self._key)  # all or none: of two commands with other rows, one is refused
        sent = int(redis.hget(self._key, "sent") or 0)
        new = [piece for piece in pieces if piece.number >= sent]
        enqueue.many([(each.payload, replace(options, job_id=self.job_id(each.number))) for each in new])
        if new:
            redis.hset(self._key, "sent", new[-1].number + 1)
        return len(new)

    def end(self, jobs: int) -> None:
        """Note that the whole input was sent as so many jobs. Raises `JobRefused` when there were more before."""
        if self._broker.redis.hexists(self._key, str(jobs)):
            raise JobRefused(
                "group",
                self.name,
                f"was begun with more rows: job {self.job_id(jobs)} is in, and the input ends before it",
            )
        self._broker.redis.hset(self._key, "jobs", jobs)

    def open_jobs(self, numbers: Sequence[int]) -> list[int]:
        """Return those of the jobs that have not ended."""
        statuses = self._ask([self.job_id(number) for number in numbers])
        return [number for number, (status, _, _) in zip(numbers, statuses, strict=True) if status not in _OVER]

    def state(self) -> State:
        """Ask for every job. Raises `UnknownJob` when no such group was begun within retention.dead_s."""
        record = {name.decode(): value.decode() for name, value in self._broker.redis.hgetall(self._key).items()}
        if not record:
            raise UnknownJob(
                f"group {self.name!r} is not known; it was never begun, or longer than retention.dead_s ago"
            )
        marks = {int(name): int(value.split()[1]) for name, value in record.items() if name.isdigit()}
        jobs: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        failed = []
        for name, status, error, count in self._walk(sorted(marks.items()), int(record.get("sent", 0))):
            jobs[status] += 1
            rows[status] += count
            if status in ("FAILURE", "REVOKED"):
                failed.append({"id": name, "status": status, "error": error})
        return State(self.name, "jobs" in record, dict(jobs), dict(rows), failed)

    def wait(self, timeout_s: float, on_progress: Callable[[State], None]) -> State:
        """Ask until the group is over or the time is; return its last state."""
        until = time.monotonic() + timeout_s
        while True:
            asked_at = time.monotonic()
            state = self.state()
            on_progress(state)
            now = time.monotonic()
            if state.is_over or now >= until:
                return state
            time.sleep(min(until - now, max(0.2, 4 * (now - asked_at))))  # a large group is asked about less often

    def _compare(self, pieces: Sequence[Piece], marks: dict[str, str], known: Sequence[bytes | None]) -> None:
        for piece, mark, found in zip(pieces, marks.values(), known, strict=True):
            if found is not None and found.decode() != mark:
                raise JobRefused(
                    "group",
                    self.name,
                    f"was begun with other rows: job {self.job_id(piece.number)}, whose rows begin at {piece.place}, "
                    f"is the first that differs; give the input and the options as they were, or another group",
                )

    def _walk(self, marks: list[tuple[int, int]], sent: int) -> Iterator[tuple[str, str, str, int]]:
        """Yield id, status, error and rows of each job, and of the jobs that hold rows which others refused."""
        for at in range(0, len(marks), PAGE):
            page = marks[at : at + PAGE]
            ids = [self.job_id(number) for number, _ in page]
            found = []
            for (number, count), name, (status, error, _) in zip(page, ids, self._ask(ids), strict=True):
                found.append((name, "UNSENT" if not status and number >= sent else status or "FORGOTTEN", error, count))
            while found:  # what was mended in part refuses again
                refusing = [rejected_id(name) for name, *_ in found]
                refused = [(name, *told) for name, told in zip(refusing, self._ask(refusing), strict=True)]
                for (name, status, error, count), (*_, fewer) in zip(found, refused, strict=True):
                    yield name, status, error, max(0, count - fewer)  # a row counts once, where it is now
                found = [each for each in refused if each[1]]

    def _ask(self, ids: Sequence[str]) -> list[tuple[str, str, int]]:
        """Return status, error and rows of each job; an empty status for one without a record."""
        pipeline = self._broker.redis.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hmget(self._broker.keys.job(job_id), "state", "attempts", "cancel", "error", "cost")
        return [_told(reply) for reply in pipeline.execute()]


_OVER = {*ENDED, ""}


def _told(reply: list[Any]) -> tuple[str, str, int]:
    state, attempts, cancel, error, cost = (
        value.decode("utf-8", "replace") if value is not None else "" for value in reply
    )
    if not state:
        return "", "", 0
    return status_of({"state": state, "attempts": attempts, "cancel": cancel}), error, int(float(cost or 0))
