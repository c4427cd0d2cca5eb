"""Say what became of the jobs that were accepted: from their records and the database, not from counters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.policy.priority import STEPS
from worker.records.broker import ENDED, Broker

WAITING = ("queued", "delayed", "leased", "started", "replaced")
#: Complaints of one kind that are told; more say nothing new.
TOLD = 3


@dataclass(frozen=True)
class Accepted:
    """A job that the producer was told is accepted, how it may end, and how many rows it leaves then.

    ``reasons``: those with which it may be a dead letter.
    """

    id: str
    kind: str
    rows: int = 1
    ends: tuple[str, ...] = ("succeeded",)
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """What is left of a job: its record's state (``""``: none), whether a waiting one is where it can be fetched."""

    job: Accepted
    state: str
    placed: bool = True
    reason: str = ""
    rows: int = 0

    @property
    def lost(self) -> bool:
        """Ended as it should without its whole effect, or neither ended nor waiting where a worker finds it."""
        if self.state in self.job.ends:
            return self.rows < self.job.rows
        return self.state not in ENDED and not (self.state in WAITING and self.placed)

    @property
    def doubled(self) -> bool:
        """Kept more than once."""
        return self.rows > max(1, self.job.rows)

    @property
    def surprising(self) -> bool:
        """Ended as this job should not, with half an effect, or with one where there should be none."""
        wrong_end = self.state in ENDED and self.state not in self.job.ends
        wrong_reason = self.state == "dead" and not wrong_end and self.reason not in self.job.reasons
        return wrong_end or wrong_reason or 0 < self.rows < self.job.rows or self.rows > self.job.rows == 0

    def __str__(self) -> str:
        state = f"{self.state or 'no record'}{'' if self.placed else ', in no list'}"
        because = f" ({self.reason})" if self.reason else ""
        return f"{self.job.kind} {self.job.id}: {state}{because}, {self.rows} of {self.job.rows} rows"


@dataclass
class Verdict:
    """One row of the result: what became of every accepted job under a fault, and what is wrong with that."""

    fault: str
    states: dict[str, int]
    accepted: int
    lost: int
    doubled: int
    rescue_s: float | None = None
    strokes: int = 0
    seconds: float = 0.0
    complaints: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return sum(self.states.get(state, 0) for state in WAITING)

    @property
    def passed(self) -> bool:
        return not self.complaints

    def as_dict(self) -> dict[str, Any]:
        return {
            "fault": self.fault,
            "accepted": self.accepted,
            **{state: self.states.get(state, 0) for state in ENDED},
            "waiting": self.waiting,
            "lost": self.lost,
            "doubled": self.doubled,
            "rescue_s": self.rescue_s,
            "strokes": self.strokes,
            "seconds": self.seconds,
            "passed": self.passed,
            "complaints": self.complaints,
        }


def judge(fault: str, found: Sequence[Found]) -> Verdict:
    """Count what was found; complain of what is lost, doubled or still waiting, and of ends that should not be."""
    states: dict[str, int] = {}
    for each in found:
        states[each.state] = states.get(each.state, 0) + 1
    lost, doubled = [each for each in found if each.lost], [each for each in found if each.doubled]
    verdict = Verdict(fault, states, len(found), len(lost), len(doubled))
    waiting = [each for each in found if each.state in WAITING and not each.lost]
    kinds = {
        "lost": lost,
        "doubled": doubled,
        "not ended": waiting,
        "ended wrongly": [each for each in found if each.surprising],
    }
    for what, jobs in kinds.items():
        verdict.complaints += _told(what, jobs)
    if not found:
        verdict.complaints.append("nothing was accepted, so nothing is proved")
    return verdict


def _told(what: str, jobs: Sequence[Found]) -> list[str]:
    told = [f"{what}: {job}" for job in jobs[:TOLD]]
    return [*told, f"{what}: {len(jobs) - TOLD} more"] if len(jobs) > TOLD else told


def find(broker: Broker, jobs: Sequence[Accepted], queues: Iterable[str]) -> list[Found]:
    """Read every job's record and the rows of its effect."""
    placed = _placed(broker, queues)
    pipeline = broker.redis.pipeline(transaction=False)
    for job in jobs:
        pipeline.hmget(broker.keys.job(job.id), "state", "reason")
    records = pipeline.execute()
    rows = _rows(jobs)
    return [
        Found(job, (state or b"").decode(), job.id in placed, (reason or b"").decode(), rows.get(job.id, 0))
        for job, (state, reason) in zip(jobs, records, strict=True)
    ]


def open_jobs(broker: Broker, jobs: Sequence[Accepted]) -> int:
    """Return how many have not ended."""
    pipeline = broker.redis.pipeline(transaction=False)
    for job in jobs:
        pipeline.hget(broker.keys.job(job.id), "state")
    return sum((state or b"").decode() in WAITING for state in pipeline.execute())


def _placed(broker: Broker, queues: Iterable[str]) -> set[str]:
    """Return the ids of all jobs that are where they are fetched, awaited or rescued."""
    import json

    ids: set[bytes] = set()
    placed: set[str] = set()
    for queue in queues:
        for step in STEPS:
            for raw in broker.redis.lrange(broker.keys.waiting(queue, step), 0, -1):
                placed.add(str(json.loads(raw)["headers"]["id"]))
        for stem in (broker.keys.delayed, broker.keys.alone):
            ids.update(broker.redis.zrange(stem(queue), 0, -1))
    for owner in broker.redis.zrange(broker.keys.owners(), 0, -1):
        ids.update(broker.redis.smembers(broker.keys.held(owner.decode())))
    return placed | {job_id.decode() for job_id in ids}


#: Kind of job -> how its effect is counted. Of a chat that is never run the question is kept.
EFFECTS = {
    "chat": "SELECT job_id, count(*) FROM messages WHERE role = 'assistant' AND notice IS NULL"
    " AND job_id = ANY(:ids) GROUP BY job_id",
    "question": "SELECT job_id, count(*) FROM messages WHERE role = 'user' AND job_id = ANY(:ids) GROUP BY job_id",
    "embedding": "SELECT job_id, count(*) FROM documents WHERE job_id = ANY(:ids) GROUP BY job_id",
    "bulk insert": "SELECT job_id, count(*) FROM chaos_rows WHERE job_id = ANY(:ids) GROUP BY job_id",
    "plain": "SELECT job_id, count(*) FROM chaos_effects WHERE kept AND job_id = ANY(:ids) GROUP BY job_id",
}


def _rows(jobs: Sequence[Accepted]) -> dict[str, int]:
    from sqlalchemy import text

    from db.engine import transaction

    found: dict[str, int] = {}
    with transaction() as session:
        for kind in {job.kind for job in jobs}:
            ids = {"ids": [job.id for job in jobs if job.kind == kind]}
            found.update((str(job_id), int(count)) for job_id, count in session.execute(text(EFFECTS[kind]), ids))
    return found


def second_opinion(before: Mapping[str, int], after: Mapping[str, int], verdict: Verdict, strangers: int) -> list[str]:
    """Compare what the counters say of the time between two readings with what the records say.

    ``strangers``: dead letters of messages that no producer sent.
    """
    wanted = {
        "submitted": verdict.accepted + strangers,
        "completed": verdict.states.get("succeeded", 0),
        "dead": verdict.states.get("dead", 0) + strangers,
        "cancelled": verdict.states.get("cancelled", 0),
        "expired": verdict.states.get("expired", 0),
    }
    counted = {name: after.get(name, 0) - before.get(name, 0) for name in wanted}
    return [
        f"counters: {name} is {counted[name]}, the records say {number}"
        for name, number in wanted.items()
        if counted[name] != number
    ]


def counters(broker: Broker, queues: Iterable[str]) -> dict[str, int]:
    """Return the counters of all queues together."""
    total: dict[str, int] = {}
    for queue in queues:
        for name, value in broker.redis.hgetall(broker.keys.stats(queue)).items():
            total[name.decode()] = total.get(name.decode(), 0) + int(value)
    return total
