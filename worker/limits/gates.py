"""Keep to what a provider allows: the rules that the scripts charge by, and the meter that a run's calls go through.

The fetch script charges a job's first call when it hands the job out. Whatever a run calls beyond that takes a permit
first, what it did not use is put back, and a provider that refuses shuts its gate for all workers.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

from redis.exceptions import RedisError

from worker.errors import NoPermit
from worker.policy.gate import Bucket, Gate
from worker.policy.policy import Policy
from worker.policy.policy import load as load_policy
from worker.policy.priority import FETCH_ORDER, Priority
from worker.policy.queue import Queue
from worker.records.broker import Broker

logger = logging.getLogger(__name__)

#: The learned share of a gate's rate grows back by this much a second: by a twentieth a minute.
RECOVERS_PER_S = 0.05 / 60
UNLIMITED = 10**9
OFF = frozenset({"false", "0", "no", "off"})

_meter: ContextVar["Meter | None"] = ContextVar("meter", default=None)


def enabled() -> bool:
    """Return whether rate limits hold: ``RATE_LIMIT_ENABLED`` is not false."""
    return os.environ.get("RATE_LIMIT_ENABLED", "").strip().lower() not in OFF


def is_limited(queue: Queue | None) -> bool:
    """Return whether a queue's gate charges for calls, rather than only shuts when a provider refuses."""
    gate = load_policy().gates[queue.gate] if queue and queue.gate and enabled() else None
    return gate is not None and gate.is_limited


@cache
def rules(queues: tuple[str, ...], limited: bool = True) -> str:
    """Return the rules of queues as the fetch script takes them; empty for queues that declare none."""
    return rules_of(load_policy(), queues, limited)


def rules_of(policy: Policy, queues: Iterable[str], limited: bool = True) -> str:
    """Return a policy's rules of queues and of their gates as JSON."""
    declared = [policy.queues[name] for name in queues if name in policy.queues]
    of_queues = {queue.name: rule for queue in declared if (rule := _of_queue(queue, limited))}
    gates = {rule["gate"] for rule in of_queues.values() if "gate" in rule}
    of_gates = {name: of_gate(name, policy.gates[name]) for name in sorted(gates)}
    return json.dumps({"queues": of_queues, "gates": of_gates}, separators=(",", ":"))


def _of_queue(queue: Queue, limited: bool) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    if queue.gate and limited:
        rule["gate"] = queue.gate
    if queue.max_in_flight and limited:
        rule["max_in_flight"] = queue.max_in_flight
    if queue.shares:
        rule["shares"] = {str(Priority[name.upper()].step): share for name, share in queue.shares.items()}
    if queue.batch:
        limits = queue.batch
        rule["batch"] = {
            "max_jobs": limits.max_jobs,
            "max_cost": limits.max_tokens or limits.max_rows or UNLIMITED,
            "max_wait_s": limits.max_wait_s,
            "retry_apart": queue.pool == "prefork",
        }
    return rule


def of_gate(name: str, gate: Gate) -> dict[str, Any]:
    """Return one gate's rules."""
    rule: dict[str, Any] = {"name": name, "recovers": RECOVERS_PER_S, "max_shut_s": gate.max_shut_s}
    if gate.requests:
        rule["calls"] = _of_bucket(gate.requests, 1)
    if gate.cost:
        rule["cost"] = _of_bucket(gate.cost, 0)
    return rule


def _of_bucket(bucket: Bucket, smallest: float) -> dict[str, float]:
    return {"capacity": bucket.capacity, "rate": bucket.filled_per_s(smallest)}


@dataclass
class Charge:
    """What the fetch charged: so many calls, so much cost."""

    calls: int = 0
    cost: int = 0

    @classmethod
    def of(cls, text: str | None) -> "Charge | None":
        """Return the charge that a delivery carries, None when no gate charged it."""
        calls, _, cost = (text or "").partition(" ")
        return cls(int(calls), int(cost)) if cost else None


class Meter:
    """Account for the calls that one run makes. Not to be shared between threads.

    Without a gate every call may go and nothing is counted. While Redis is away calls go too: nothing new is fetched
    then, and what runs is worth its end.
    """

    def __init__(self, broker: Broker | None, queue: Queue | None, step: int, charge: Charge | None) -> None:
        self.broker, self.queue = broker, queue
        self.gate = queue.gate if broker and queue and queue.gate and enabled() else None
        self.rank = FETCH_ORDER.index(step) + 1 if step in FETCH_ORDER else len(FETCH_ORDER)
        self.open = charge or Charge()  # charged, and its call is still to come or under way
        self.asked = False

    def before_call(self, tokens: int) -> float:
        """Take a permit for a call that is reckoned to cost so many tokens; return in how many seconds it may leave.

        The first call's was taken by the fetch, by an estimate that could not know the whole prompt: the difference is
        taken from the bucket, which may owe then. Raises `NoPermit`: for a first call only when the gate was shut
        since, for others also when the bucket has not enough.
        """
        wait_s = 0.0
        if self.gate is not None:
            wait_s = self._ask("depart", self.open.cost, tokens) if self.open.calls else self._take(tokens)
        self.open = Charge(0, tokens)
        return wait_s

    def used(self, tokens: int) -> None:
        """Note what the call has cost by the provider's own count."""
        self._put_back(0, self.open.cost - tokens, has_left=True)
        self.open = Charge()

    def busy(self, retry_after_s: float | None, reason: str = "the provider limits the rate") -> float | None:
        """Shut the gate for all workers, for so long or for as long as repeated refusals suggest; return for how long.

        Return None when there is no gate to shut.
        """
        self._put_back(0, self.open.cost, has_left=True)
        self.open = Charge()
        return self._shut(retry_after_s, reason, "refused")

    def used_up(self, opens_s: float) -> None:
        """Shut the gate for so long, because the provider said with its answer that nothing is left until then.

        A gate with limits of its own reckons that itself.
        """
        if not is_limited(self.queue):
            self._shut(opens_s, "the provider says that its limit is used up", "used up")

    def _shut(self, for_s: float | None, reason: str, why: str) -> float | None:
        if self.gate is None or self.broker is None:
            return None
        try:
            given_s = "" if for_s is None else f"{for_s:.6f}"
            opens_s = float(self.broker.run("shut", self._rules(), given_s, reason[:200], why))
        except RedisError as error:
            logger.warning("gate %s is not shut though %s: %s", self.gate, reason, error)
            return None
        logger.log(
            logging.WARNING if opens_s >= 1 else logging.INFO,
            "gate %s is shut for %.1f s: %s",
            self.gate,
            opens_s,
            reason,
        )
        return opens_s

    def unused(self) -> None:
        """Put back the whole charge of a call that never reached the provider."""
        self._put_back(1, self.open.cost, has_left=True)
        self.open = Charge()

    def close(self) -> None:
        """Put back what was charged for a run that asked for its meter and made no call."""
        if self.asked and self.open.calls:
            self._put_back(self.open.calls, self.open.cost)
            self.open = Charge()

    def _take(self, tokens: int) -> float:
        assert self.queue is not None
        return self._ask("permit", self.queue.name, self.rank, tokens)

    def _ask(self, script: str, *about: str | int) -> float:
        assert self.broker is not None
        try:
            said, *wait_s = self.broker.run(script, self._rules(), *about)
        except RedisError as error:
            logger.warning("a call goes without a permit of gate %s: %s", self.gate, error)
            return 0.0
        if said == b"go":
            return float(wait_s[0])
        raise NoPermit(str(self.gate), float(wait_s[0]) if wait_s else None)

    def _put_back(self, calls: int, cost: int, *, has_left: bool = False) -> None:
        if self.gate is None or self.broker is None or (not calls and not cost):
            return
        try:
            self.broker.run("put_back", self.gate, calls, cost, "1" if has_left else "")
        except RedisError as error:
            logger.warning("gate %s is not told what a call cost: %s", self.gate, error)

    def _rules(self) -> str:
        assert self.gate is not None
        return json.dumps(of_gate(self.gate, load_policy().gates[self.gate]), separators=(",", ":"))


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Let the block's calls go through a meter."""
    before = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(before)
        meter.close()


def meter() -> Meter:
    """Return the meter of the run in this thread; who asks for it says of each call what became of it."""
    current = _meter.get() or Meter(None, None, 0, None)
    current.asked = True
    return current
