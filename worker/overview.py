"""Look at queues and workers as they are now, from the broker alone."""

from dataclasses import asdict, dataclass
from typing import Any

from worker.broker import Broker
from worker.policy import Policy
from worker.priority import FETCH_ORDER, of_step


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


def queues(broker: Broker, policy: Policy) -> list[QueueState]:
    """Return every declared queue as it is now."""
    names = sorted(policy.queues)
    pipeline = broker.redis.pipeline(transaction=False)
    for name in names:
        for step in FETCH_ORDER:
            pipeline.llen(broker.keys.waiting(name, step))
        pipeline.zcard(broker.keys.delayed(name))
        pipeline.zrange(broker.keys.leased(name), 0, -1)
        pipeline.hgetall(broker.keys.stats(name))
    replies = iter(pipeline.execute())
    holders = workers(broker)
    states = []
    for name in names:
        pending = {of_step(step).name: int(next(replies)) for step in FETCH_ORDER}
        delayed, leased, counters = next(replies), next(replies), next(replies)
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
