"""Look at queues and workers as they are now, from the broker alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from worker.limits.gates import RECOVERS_PER_S
from worker.policy.gate import Gate
from worker.policy.policy import Policy
from worker.policy.priority import FETCH_ORDER, of_step
from worker.records.broker import Broker


@dataclass(frozen=True)
class QueueState:
    """One queue. ``pending`` counts by priority name, most urgent first; ``counters`` are cumulative."""

    name: str
    pending: dict[str, int]
    delayed: int
    leased: int
    started: int
    workers: list[str]
    counters: dict[str, int]

    @property
    def waiting(self) -> int:
        """Jobs that are not running: pending, delayed, and fetched but not started."""
        return sum(self.pending.values()) + self.delayed + self.leased - self.started

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "waiting": self.waiting}


@dataclass(frozen=True)
class WorkerState:
    """One worker process that holds a lease: how many jobs it has in hand, and for how long the lease still runs."""

    node: str
    pid: int
    queues: list[str]
    held: int
    lease_left_s: float


#: What is counted of each queue, as it happens and for ever.
COUNTERS = (
    "submitted",
    "completed",
    "failed",
    "retries",
    "batches",
    "dead",
    "replayed",
    "purged",
    "cancelled",
    "expired",
    "rescued",
    "late",
    "duplicates",
    "moved_in",
    "moved_out",
)


@dataclass(frozen=True)
class Stats:
    """What became of a queue's jobs since the first, and where the open ones are now. ``counters`` has `COUNTERS`."""

    queue: str
    counters: dict[str, int]
    pending: int
    delayed: int
    in_hand: int
    running: int
    workers: int

    @property
    def dead(self) -> int:
        """Dead letters that are there now."""
        return self.counters["dead"] - self.counters["replayed"] - self.counters["purged"]

    @property
    def success_rate(self) -> float | None:
        """The share of success among the jobs that succeeded or died and were not replayed; None before the first."""
        died = self.counters["dead"] - self.counters["replayed"]
        ended = self.counters["completed"] + died
        return self.counters["completed"] / ended if ended else None

    def as_dict(self) -> dict[str, Any]:
        now = {name: getattr(self, name) for name in ("pending", "delayed", "in_hand", "running", "workers")}
        return {"queue": self.queue, **self.counters, "dead": self.dead, "success_rate": self.success_rate, **now}


def stats(broker: Broker, names: Sequence[str]) -> list[Stats]:
    """Return the statistics of queues, exact and of one moment, and last their ``total``."""
    _, rows = json.loads(broker.run("sizes", *names))
    holders = [holder for holder in workers(broker) if set(holder.queues) & set(names)]
    found = []
    for queue, pending, delayed, in_hand, running, counters in rows:
        counted = {name: int(counters.get(name, 0)) for name in COUNTERS}
        serving = sum(queue in holder.queues for holder in holders)
        found.append(Stats(queue, counted, pending, delayed, in_hand, running, serving))
    total = Stats(
        "total",
        {name: sum(each.counters[name] for each in found) for name in COUNTERS},
        pending=sum(each.pending for each in found),
        delayed=sum(each.delayed for each in found),
        in_hand=sum(each.in_hand for each in found),
        running=sum(each.running for each in found),
        workers=len(holders),
    )
    return [*found, total]


@dataclass(frozen=True)
class GateState:
    """One gate. Levels and limits by bucket, as (now there, capacity, filled each second, at the learned share)."""

    name: str
    buckets: dict[str, tuple[float, float, float]]
    shut_s: float
    reason: str
    learned: float
    refusals: int
    waiting: list[str]

    def as_dict(self) -> dict[str, Any]:
        buckets = {
            name: {"level": level, "capacity": capacity, "per_s": per_s}
            for name, (level, capacity, per_s) in self.buckets.items()
        }
        return {**asdict(self), "buckets": buckets}


def gates(broker: Broker, policy: Policy) -> list[GateState]:
    """Return every declared gate as it is now."""
    seconds, micros = broker.redis.time()
    now = seconds + micros / 1e6
    return [_gate(broker, name, gate, now) for name, gate in policy.gates.items()]


def _gate(broker: Broker, name: str, gate: Gate, now: float) -> GateState:
    known = {key.decode(): value.decode() for key, value in broker.redis.hgetall(broker.keys.gate(name)).items()}
    grown = RECOVERS_PER_S * (now - float(known.get("learned_at", now)))
    learned = min(1.0, float(known.get("learned", 1)) + grown)
    buckets = {}
    for title, field, bucket, least in (
        ("requests", "calls", gate.requests, 1),
        ("tokens", "cost", gate.tokens, 0),
        ("rows", "cost", gate.rows, 0),
    ):
        if bucket:
            per_s = bucket.filled_per_s(least) * learned
            level = float(known.get(field, bucket.capacity)) + per_s * (now - float(known.get("at", now)))
            buckets[title] = (min(bucket.capacity, level), float(bucket.capacity), per_s)
    shut_s = max(0.0, float(known.get("shut_until", 0)) - now)
    waiting = [
        key.removeprefix("want:")
        for key, value in sorted(known.items())
        if key.startswith("want:") and float(value.split()[4]) > now
    ]
    reason = known.get("reason", "") if shut_s else ""
    return GateState(name, buckets, shut_s, reason, learned, int(known.get("refusals", 0)), waiting)


def queues(broker: Broker, policy: Policy) -> list[QueueState]:
    """Return every declared queue as it is now."""
    names = sorted(policy.queues)
    pipeline = broker.redis.pipeline(transaction=False)
    for name in names:
        for step in FETCH_ORDER:
            pipeline.llen(broker.keys.waiting(name, step))
        pipeline.zcard(broker.keys.delayed(name))
        pipeline.zcard(broker.keys.alone(name))
        pipeline.zrange(broker.keys.leased(name), 0, -1)
        pipeline.hgetall(broker.keys.stats(name))
    replies = iter(pipeline.execute())
    holders = workers(broker)
    states = []
    for name in names:
        pending = {of_step(step).name: int(next(replies)) for step in FETCH_ORDER}
        delayed, leased, counters = next(replies) + next(replies), next(replies), next(replies)
        states.append(
            QueueState(
                name,
                pending,
                int(delayed),
                len(leased),
                _started(broker, [job.decode("utf-8", "surrogateescape") for job in leased]),
                [holder.node for holder in holders if name in holder.queues],
                {key.decode(): int(value) for key, value in sorted(counters.items())},
            )
        )
    return states


def workers(broker: Broker) -> list[WorkerState]:
    """Return the worker processes whose lease runs."""
    seconds, micros = broker.redis.time()
    now = seconds + micros / 1e6
    owners = broker.redis.zrange(broker.keys.owners(), "(" + repr(now), "+inf", byscore=True, withscores=True)
    pipeline = broker.redis.pipeline(transaction=False)
    for owner, _ in owners:
        pipeline.hgetall(broker.keys.owner(owner.decode()))
        pipeline.scard(broker.keys.held(owner.decode()))
    replies = iter(pipeline.execute())
    states = []
    for _, until in owners:
        about, held = {key.decode(): value.decode() for key, value in next(replies).items()}, int(next(replies))
        if about:
            names = [name for name in about.get("queues", "").split(",") if name]
            states.append(WorkerState(about["node"], int(about["pid"]), names, held, until - now))
    return sorted(states, key=lambda state: (state.node, state.pid))


def _started(broker: Broker, job_ids: list[str]) -> int:
    pipeline = broker.redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipeline.hget(broker.keys.job(job_id), "state")
    return sum(state == b"started" for state in pipeline.execute())
