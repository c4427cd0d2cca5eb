"""Random histories of jobs: after every step the scripts and a model of the queue agree, and the audit is clean.

Nothing sleeps: leases end, jobs get due and runs hang by backdated scores. The order of fetching is strictly by
priority, first in first out within one, and what was given back comes before what never left; jobs that are given back
together come in any order among themselves, which the test therefore puts in one.

``HISTORIES=2000 ./forebay test tests/integration/test_history.py`` looks longer, and makes what it finds short.
"""

import hashlib
import json
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.queue_model import HELD, LATER, Model
from worker.inspection.audit import audit
from worker.policy.policy import load as load_policy
from worker.policy.priority import STEPS
from worker.records.broker import Broker, Delivery, Submission, Wanted, fetch_args, parse_fetched

QUEUES = ("chat", "embedding")
OWNERS = ("ann", "bob", "cid")
FOREVER_S = 3600.0  # no history takes that long
PAST = "1000000000"
MAX_ORPHANED = 4
#: What a record says of times, texts and particulars, which the model does not keep.
UNKEPT = {"task", "accepted_at", "deadline", "leased_at", "started_at", "ended_at", "error", "traceback", "fingerprint"}
UNKEPT |= {"history", "worker", "fetch", "follows_step", "follows_due", "follows_queue"}

picks = st.integers(0, 99)
queues = st.sampled_from(QUEUES)
owners = st.sampled_from(OWNERS)
steps = st.sampled_from(STEPS)
moments = st.sampled_from(["", PAST, f"+{FOREVER_S}"])


class History(RuleBasedStateMachine):
    """Do the same to Redis and to the model."""

    def __init__(self, broker: Broker) -> None:
        super().__init__()
        broker.redis.flushall()
        self.broker = broker
        self.model = Model(MAX_ORPHANED)
        self.deliveries: list[Delivery] = []  # every one there was
        self.fetches: list[tuple[str, int, list[Delivery]]] = []  # owner, number, what it leased
        self.messages = 0
        self.surplus = False

    # What producers do.

    @initialize(picked=st.lists(st.tuples(queues, steps), min_size=2, max_size=4))
    def accept_some(self, picked: list[tuple[str, int]]) -> None:
        for number, (queue, step) in enumerate(picked):
            self._accept(f"i{number}", queue, step, "")

    @rule(queue=queues, step=steps, due=moments, deadline=moments, key=st.sampled_from(["", "", "k", "l"]))
    def accept(self, queue: str, step: int, due: str, deadline: str, key: str) -> None:
        self._accept(f"j{len(self.model.jobs)}", queue, step, due, deadline, key)

    @precondition(lambda self: self.model.jobs)
    @rule(pick=picks, queue=queues, step=steps, due=moments)
    def accept_again(self, pick: int, queue: str, step: int, due: str) -> None:
        self._accept(self._any_job(pick), queue, step, due)

    @precondition(lambda self: any(job.state == "replaced" or job.replacing for job in self.model.jobs.values()))
    @rule(pick=picks, queue=queues, step=steps, due=moments)
    def accept_what_replaces(self, pick: int, queue: str, step: int, due: str) -> None:
        jobs = [job.id for job in self.model.jobs.values() if job.state == "replaced" or job.replacing]
        self._accept(jobs[pick % len(jobs)], queue, step, due)

    @rule(queue=queues, step=steps)
    def push_plainly(self, queue: str, step: int) -> None:
        self._push(queue, step, self._message(f"p{self.messages}"))

    @rule(queue=queues, step=steps, message=st.sampled_from(["no JSON", "nor this"]))
    def push_what_cannot_be_read(self, queue: str, step: int, message: str) -> None:
        self._push(queue, step, message)

    @precondition(lambda self: self._named())
    @rule(queue=queues, step=steps, pick=picks)
    def push_a_copy(self, queue: str, step: int, pick: int) -> None:
        """Push a job's message once more, mostly that of one which is queued."""
        self.surplus = True
        queued = [job for job in self._named() if self.model.jobs[job].state == "queued"]
        among = queued if queued and pick % 4 else self._named()
        self._push(queue, step, self._message(among[pick // 4 % len(among)]))

    @precondition(lambda self: self.model.jobs)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        job = self._any_job(pick)
        assert self.broker.cancel(job) == self.model.cancel(job)

    # What workers do.

    @rule(owner=owners, order=st.permutations(QUEUES), count=st.integers(1, 2), most=st.sampled_from([1, 1, 3, 64]))
    def fetch(self, owner: str, order: list[str], count: int, most: int) -> None:
        self._fetch(owner, order[:count], most, next(self.broker.fetches))

    @precondition(lambda self: self._waits())
    @rule(owner=owners)
    def begin(self, owner: str) -> None:
        """Fetch one job and start whatever is held."""
        self._fetch(owner, list(QUEUES), 1, next(self.broker.fetches))
        for job in self.model.held(owner):
            delivery = Delivery(job, self.model.jobs[job].delivery)
            assert self.broker.start(delivery) == self.model.start(delivery)

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        about = {"node": owner, "pid": "1", "queues": ",".join(QUEUES)}
        heard = len(self.broker.renew(owner, FOREVER_S, about))
        self.model.renew(owner, 0)
        said = self.broker.renew(owner, FOREVER_S, about, heard)
        assert Counter(f"{what} {job}" for what, job in said) == Counter(self.model.renew(owner, heard))

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def start(self, pick: int) -> None:
        delivery = self._delivery(pick)
        assert self.broker.start(delivery) == self.model.start(delivery)

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def confirm(self, pick: int) -> None:
        delivery = self._delivery(pick)
        assert self.broker.confirm(delivery) == self.model.confirm(delivery)

    @precondition(lambda self: self._held())
    @rule(pick=picks, queue=queues, step=steps, due=moments)
    def follow(self, pick: int, queue: str, step: int, due: str) -> None:
        delivery = self._delivery(pick)
        message = self._message(delivery.id)
        said = self.broker.follow(delivery, Submission(delivery.id, queue, step, "task", message, due))
        assert said == self.model.follow(delivery, queue, step, message, _score(due))

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def replace(self, pick: int) -> None:
        delivery = self._delivery(pick)
        assert self.broker.replacing(delivery) == self.model.replacing(delivery)

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def leave_to_a_canvas(self, pick: int) -> None:
        self.replace(pick)
        self.done(pick)

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def done(self, pick: int) -> None:
        delivery = self._delivery(pick)
        assert self.broker.done(delivery) == self.model.done(delivery)

    @precondition(lambda self: self._held())
    @rule(pick=picks, due=moments, spent=st.integers(0, 1))
    def reschedule(self, pick: int, due: str, spent: int) -> None:
        delivery = self._delivery(pick)
        message = self._message(delivery.id)
        said = self.broker.reschedule(delivery, message, due, spent, "an error")
        assert said == self.model.reschedule(delivery, message, _score(due), spent)

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def bury(self, pick: int) -> None:
        delivery = self._delivery(pick)
        assert self.broker.bury(delivery, "failed", "an error") == self.model.bury(delivery, "failed")

    @precondition(lambda self: self._held())
    @rule(pick=picks, verdict=st.sampled_from(["cancelled", "expired"]))
    def drop(self, pick: int, verdict: str) -> None:
        delivery = self._delivery(pick)
        assert self.broker.drop(delivery, verdict) == self.model.drop(delivery, verdict)

    @precondition(lambda self: self._held())
    @rule(pick=picks, unless_started=st.booleans())
    def release(self, pick: int, unless_started: bool) -> None:
        delivery = self._delivery(pick)
        said = self.broker.release(delivery, unless_started=unless_started)
        assert said == self.model.release(delivery, unless_started)

    # What people do with dead letters.

    @precondition(lambda self: any(job.state == "dead" for job in self.model.jobs.values()))
    @rule(pick=picks)
    def replay(self, pick: int) -> None:
        job = self._letter(pick)
        assert _text(self.broker.run("replay", job, "", "", "")) == self.model.replay(job)

    @precondition(lambda self: any(job.state == "dead" for job in self.model.jobs.values()))
    @rule(pick=picks)
    def purge(self, pick: int) -> None:
        job = self._letter(pick)
        assert _text(self.broker.run("purge", job, "", 86400)) == self.model.purge(job)

    # What goes wrong.

    @precondition(lambda self: self.fetches)
    @rule(pick=picks)
    def lose_a_reply(self, pick: int) -> None:
        owner, number, deliveries = self.fetches[-1 - pick % len(self.fetches)]
        back = self.model.reclaim(owner, number, deliveries)
        assert self.broker.reclaim(owner, number) == len(back)
        self._put_in_order(back)

    @rule(owner=owners)
    def lose_a_request(self, owner: str) -> None:
        number = next(self.broker.fetches)
        assert self.broker.reclaim(owner, number) == len(self.model.reclaim(owner, number, []))
        self._fetch(owner, list(QUEUES), 1, number)

    @rule(owner=owners)
    def leave(self, owner: str) -> None:
        back = self.model.leave(owner)
        assert self.broker.leave(owner) == len(back)
        self._put_in_order(back)

    @precondition(lambda self: self.model.leases)
    @rule(pick=picks)
    def vanish(self, pick: int) -> None:
        owner = sorted(self.model.leases)[pick % len(self.model.leases)]
        self.broker.redis.zadd(self.broker.keys.owners(), {owner: 0})
        self.model.leases[owner] = False

    @precondition(lambda self: self._waits())
    @rule(owner=owners, times=st.integers(1, MAX_ORPHANED))
    def crash(self, owner: str, times: int) -> None:
        """Let a worker vanish over what it runs; the next fetches the same, is there any, and vanishes too."""
        for _ in range(times):
            self.pass_time()
            self.begin(owner)
            self.broker.redis.zadd(self.broker.keys.owners(), {owner: 0})
            self.model.leases[owner] = False
            self.sweep()

    @precondition(lambda self: self.model.reserved)
    @rule()
    def lapse(self) -> None:
        """Let reservations for jobs that must run alone run out."""
        for queue in QUEUES:
            self.broker.redis.delete(self.broker.keys.reserved(queue))
        self.model.reserved.clear()

    @precondition(lambda self: self._held())
    @rule(pick=picks)
    def hang(self, pick: int) -> None:
        job = self.model.jobs[self._held()[pick % len(self._held())].id]
        self.broker.redis.zadd(self.broker.keys.leased(job.queue), {job.id: 0})
        job.hung = True

    @rule()
    def sweep(self) -> None:
        policies = [text for queue in QUEUES for text in (queue, MAX_ORPHANED, FOREVER_S, FOREVER_S, FOREVER_S)]
        rescued = self.model.sweep()
        assert self.broker.run("sweep", 1000, *policies)[0] == len(rescued)
        self._put_in_order(rescued)

    @precondition(
        lambda self: any(any(waiting.values()) for queue in QUEUES for waiting, _ in self._sorted_sets(queue))
    )
    @rule()
    def pass_time(self) -> None:
        """Let everything that waits be due."""
        for queue in QUEUES:
            for waiting, key in self._sorted_sets(queue):
                for job in waiting:
                    self.broker.redis.zadd(key, {job: 0})
                    waiting[job] = 0

    # What must hold.

    @invariant()
    def agree(self) -> None:
        keys, model = self.broker.keys, self.model
        look = self.broker.redis.pipeline(transaction=False)
        expected: list[object] = [
            set(model.jobs),
            {job.id for job in model.jobs.values() if job.state == "dead" and not job.purged},
        ]
        look.keys(keys.job("*"))
        look.zrange(keys.dead(), 0, -1)
        for job in model.jobs.values():
            look.hgetall(keys.job(job.id))
            expected.append(job.fields())
        for queue in QUEUES:
            for step in STEPS:
                look.lrange(keys.waiting(queue, step), 0, -1)
                expected.append(model.lists[queue, step])
            for waiting, key in self._sorted_sets(queue):
                look.zrange(key, 0, -1, withscores=True)
                expected.append(waiting)
            look.mget(keys.reserved(queue))
            expected.append([model.reserved[queue]] if queue in model.reserved else [])
            look.zrange(keys.leased(queue), 0, -1)
            expected.append({job.id for job in model.jobs.values() if job.queue == queue and job.state in HELD})
            look.hgetall(keys.stats(queue))
            expected.append({name: str(count) for name, count in model.counters[queue].items() if count})
        for owner in OWNERS:
            look.smembers(keys.held(owner))
            expected.append(set(model.held(owner)))
            look.lrange(keys.mail(owner), 0, -1)
            expected.append(Counter(model.mail[owner]))
        for (queue, message), named in model.nameless.items():
            look.lrange(self._nameless(queue, message), 0, -1)
            expected.append(named[::-1])
        look.zrange(keys.owners(), 0, -1)
        expected.append(set(model.leases))
        assert [_like(found, each) for found, each in zip(look.execute(), expected, strict=True)] == expected

    @invariant()
    def is_clean(self) -> None:
        report = audit(self.broker, load_policy())
        findings = [
            each for each in report.findings if not (self.surplus and each.fault in ("twice", "surplus", "misplaced"))
        ]
        assert findings == []
        states = Counter("purged" if job.purged else job.state for job in self.model.jobs.values())
        assert report.states == dict(states)

    def _accept(self, job: str, queue: str, step: int, due: str, deadline: str = "", key: str = "") -> None:
        message = self._message(job)
        submission = Submission(job, queue, step, "task", message, due, deadline, key)
        said = [_text(part) for part in self.broker.run("accept", *submission.args())]
        assert said == self.model.accept(job, queue, step, message, _score(due), deadline == PAST, key)

    def _fetch(self, owner: str, queues: list[str], most: int, number: int) -> None:
        args = fetch_args(owner, FOREVER_S, [Wanted(queue) for queue in queues], most, number)
        jobs = parse_fetched(self.broker.run("fetch", *args)).jobs
        fetched = [(each.delivery.id, each.delivery.number, each.message) for each in jobs]
        assert fetched == self.model.fetch(owner, queues, most, number)
        for queue in queues:
            self.broker.redis.expire(
                self.broker.keys.reserved(queue), int(FOREVER_S)
            )  # it lapses by a step, not in time
        self.deliveries += [each.delivery for each in jobs]
        self.fetches.append((owner, number, [each.delivery for each in jobs]))

    def _push(self, queue: str, step: int, message: str) -> None:
        self.broker.redis.lpush(self.broker.keys.waiting(queue, step), message)
        self.model.lists[queue, step].insert(0, message)

    def _message(self, job: str) -> str:
        self.messages += 1
        return json.dumps({"headers": {"id": job, "task": "task"}, "number": self.messages})

    def _any_job(self, pick: int) -> str:
        return list(self.model.jobs)[-1 - pick % len(self.model.jobs)]

    def _named(self) -> list[str]:
        return [job for job in self.model.jobs if not job.startswith("unreadable")]

    def _letter(self, pick: int) -> str:
        """Return a dead letter, or now and then any job."""
        dead = [job.id for job in self.model.jobs.values() if job.state == "dead"]
        return dead[pick % len(dead)] if pick % 8 else self._any_job(pick)

    def _held(self) -> list[Delivery]:
        return [Delivery(job.id, job.delivery) for job in self.model.jobs.values() if job.state in HELD]

    def _delivery(self, pick: int) -> Delivery:
        """Return a delivery that holds its job, or now and then any that there was."""
        among = self._held() if pick % 4 else self.deliveries
        return among[pick // 4 % len(among)]

    def _waits(self) -> bool:
        return any(self.model.lists.values()) or any(
            moment != LATER
            for queue in QUEUES
            for waiting, _ in self._sorted_sets(queue)
            for moment in waiting.values()
        )

    def _put_in_order(self, back: list[str]) -> None:
        """Let jobs that went to the head together lie there as in the model: their order is chance."""
        jobs = [self.model.jobs[job] for job in back if self.model.jobs[job].state == "queued"]
        lists = {self.broker.keys.waiting(job.queue, job.step): self.model.lists[job.queue, job.step] for job in jobs}
        counts = Counter(self.broker.keys.waiting(job.queue, job.step) for job in jobs)
        for (queue, message), named in self.model.nameless.items():
            key = self._nameless(queue, message)
            lists[key], counts[key] = named[::-1], len(named)
        for key, expected in lists.items():
            found = self._list(key)
            assert Counter(found[-counts[key] :]) == Counter(expected[-counts[key] :])
            if found != expected:
                self.broker.redis.ltrim(key, 0, -1 - counts[key])
                self.broker.redis.rpush(key, *expected[-counts[key] :])

    def _nameless(self, queue: str, message: str) -> str:
        return self.broker.keys.nameless(queue, hashlib.sha1(message.encode()).hexdigest())

    def _list(self, key: str) -> list[str]:
        return [_text(each) for each in self.broker.redis.lrange(key, 0, -1)]

    def _sorted_sets(self, queue: str) -> list[tuple[dict[str, float], str]]:
        keys = self.broker.keys
        return [(self.model.delayed[queue], keys.delayed(queue)), (self.model.alone[queue], keys.alone(queue))]


def _score(due: str) -> float:
    return LATER if due.startswith("+") else float(due or 0)


def _text(value: bytes) -> str:
    return value.decode().removeprefix("forebay:job:")


def _like(found: Any, expected: object) -> object:
    """Return a reply of Redis as the kind of thing that the model has."""
    match expected:
        case Counter():
            return Counter(map(_text, found))
        case set():
            return set(map(_text, found))
        case list():
            return [_text(each) for each in found if each is not None]
    if isinstance(found, dict):
        return {_text(name): _text(value) for name, value in found.items() if _text(name) not in UNKEPT}
    return {_text(job): LATER if moment > float(PAST) else moment for job, moment in found}


LONG = "HISTORIES" in os.environ


@pytest.mark.timeout(0 if LONG else 120)
def test_the_scripts_and_the_model_agree_after_every_step_of_any_history(broker: Broker) -> None:
    profile = settings(
        max_examples=int(os.environ.get("HISTORIES", "40")),
        stateful_step_count=100 if LONG else 50,
        phases=[phase for phase in Phase if LONG or phase is not Phase.shrink],  # it takes minutes
        report_multiple_bugs=False,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: History(broker), settings=profile)
