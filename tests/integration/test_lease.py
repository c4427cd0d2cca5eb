"""The lease of a process: what it renews, whom it judges and when, what it repeats, what it passes on."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from dev import stack
from tasks import Job, enqueue
from tests.eventually import eventually
from tests.integration import probes
from tests.line import Line
from tests.workers import Workers
from worker.records import broker as brokers
from worker.records.broker import Broker, Delivery
from worker.runtime import lease
from worker.runtime.lease import Lease


@pytest.fixture
def own(broker: Broker) -> Iterator[Lease]:
    """Give a lease of this process."""
    held = Lease(broker)
    yield held
    held.leave()


@pytest.fixture
def line(machine: stack.Started) -> Iterator[Line]:
    """Give a way to the broker that can be cut."""
    made = Line(machine.addresses["CELERY_BROKER_URL"])
    yield made
    made.close()


class Clock:
    """The time of the lease's thread, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fault: Exception | None = None  # raised once

    def __call__(self) -> float:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    given = Clock()
    monkeypatch.setattr(lease, "monotonic", given)
    return given


def end_of(broker: Broker, held: Lease) -> float:
    return float(broker.redis.zscore(broker.keys.owners(), held.owner) or 0)


def renewed(broker: Broker, held: Lease, times: int) -> None:
    """Wait until a lease was extended so often."""
    for _ in range(times):
        before = end_of(broker, held)
        eventually(lambda before=before: end_of(broker, held) > before, timeout_s=20)


def taken(broker: Broker, owner: str, lease_s: float = 60, start: bool = True) -> Delivery:
    """Send a chat and let an owner fetch it and, mostly, start it."""
    enqueue.chat("a question")
    (fetched,) = broker.fetch(owner, lease_s, ["chat"], 1)
    if start:
        assert broker.start(fetched.delivery) == "started"
    return fetched.delivery


def vanished(broker: Broker) -> Delivery:
    """Leave a started job behind whose owner's lease has ended."""
    delivery = taken(broker, "elsewhere:1:vanished")
    broker.redis.zadd(broker.keys.owners(), {"elsewhere:1:vanished": 1})
    return delivery


def state(delivery: Delivery) -> Any:
    return Job(delivery.id).record()["state"]


def counter(broker: Broker, what: str) -> int:
    return int(broker.redis.hget(broker.keys.stats("chat"), what) or 0)


def test_a_job_that_outlasts_three_leases_stays_with_its_living_worker(workers: Workers, broker: Broker) -> None:
    workers.probes("threads")
    job = Job(probes.hold.apply_async(("long",)).id)
    eventually(lambda: broker.redis.llen("probe:holding") == 1)
    began = broker.redis.time()[0]
    three_leases_s = 3 * float(os.environ["FOREBAY_LEASE_DURATION_S"])
    eventually(lambda: broker.redis.time()[0] - began > three_leases_s)
    broker.redis.rpush("probe:go:long", "go")
    eventually(lambda: job.status == "SUCCESS")
    assert job.record()["delivery"] == "1"
    assert "orphaned" not in job.record()
    assert counter(broker, "rescued") == 0


def test_a_renewal_extends_the_lease_and_says_who_holds_it(
    broker: Broker, own: Lease, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.now = 0.0  # it stands: this process sweeps nobody, itself neither
    monkeypatch.setenv("FOREBAY_NODE", "lane@here")
    own.keep(["chat", "bulk_insert"])
    renewed(broker, own, 3)
    assert end_of(broker, own) - broker.redis.time()[0] <= own.duration_s + 1
    about = {
        name.decode(): value.decode() for name, value in broker.redis.hgetall(broker.keys.owner(own.owner)).items()
    }
    assert about == {"node": "lane@here", "pid": str(os.getpid()), "queues": "bulk_insert,chat"}


def test_a_process_that_is_new_judges_nobody_until_others_could_renew(broker: Broker, own: Lease, clock: Clock) -> None:
    left = vanished(broker)
    own.keep(["chat"])
    renewed(broker, own, 2)
    clock.now += 1.9 * own.renew_every_s
    renewed(broker, own, 3)
    assert state(left) == "started"
    clock.now += 0.1 * own.renew_every_s
    eventually(lambda: state(left) == "queued")
    assert Job(left.id).record()["orphaned"] == "1"
    renewed(broker, own, 2)  # who judges others renews its own all the same


def test_a_process_that_was_cut_off_judges_nobody_for_a_lease(broker: Broker, own: Lease, clock: Clock) -> None:
    own.keep(["chat"])
    renewed(broker, own, 2)
    clock.now += 1.1 * own.duration_s  # nothing was renewed for so long: it was stopped, or Redis was away
    renewed(broker, own, 2)
    left = vanished(broker)
    clock.now += 0.9 * own.duration_s
    renewed(broker, own, 3)
    assert state(left) == "started"
    clock.now += 0.2 * own.duration_s
    eventually(lambda: state(left) == "queued")


def test_dead_letters_past_their_retention_are_purged(broker: Broker, own: Lease) -> None:
    old, new = taken(broker, own.owner), taken(broker, own.owner)
    for each in (old, new):
        broker.bury(each, "failed", "a fault")
    broker.redis.zadd(broker.keys.dead(), {old.id: 1})
    own.keep(["chat"])
    eventually(lambda: broker.redis.zrange(broker.keys.dead(), 0, -1) == [new.id.encode()])


def test_a_settle_that_finds_redis_away_is_repeated(broker: Broker, line: Line) -> None:
    held = Lease(brokers.connect(line.url))
    deliveries = [taken(broker, held.owner) for _ in range(4)]
    refused: list[str] = []

    def refuse(broker: Broker, delivery: Delivery) -> str:
        refused.append(delivery.id)
        raise ResponseError("this settle never succeeds")

    line.cut()
    held.settle(deliveries[0], refuse)
    held.settle(deliveries[1], Broker.done)
    with held.together():
        for each in deliveries[2:]:
            held.settle(each, Broker.done)
    assert {state(each) for each in deliveries} == {"started"}
    line.mend()
    held.keep(["chat"])
    try:
        eventually(lambda: [state(each) for each in deliveries[1:]] == ["succeeded"] * 3, timeout_s=20)
        eventually(lambda: len(refused) >= 3)  # it is tried again, behind the others
        assert counter(broker, "completed") == 3
    finally:
        held.leave()
    assert state(deliveries[0]) == "queued"  # what cannot be settled is given back


def test_a_batch_settles_at_its_end_in_one_round_trip_and_later_ones_apart(broker: Broker, own: Lease) -> None:
    first, second, third = [taken(broker, own.owner) for _ in range(3)]
    with own.together():
        own.settle(first, Broker.done)
        own.settle(second, Broker.release)  # only what is done waits for the others
        assert (state(first), state(second)) == ("started", "queued")
    assert state(first) == "succeeded"
    own.settle(third, Broker.done)
    assert state(third) == "succeeded"


def test_a_process_that_ends_settles_what_is_left_and_gives_back_the_rest(broker: Broker, line: Line) -> None:
    held = Lease(brokers.connect(line.url))
    done, running = taken(broker, held.owner), taken(broker, held.owner)
    line.cut()
    held.settle(done, Broker.done)
    line.mend()
    held.leave()
    assert (state(done), state(running)) == ("succeeded", "queued")
    assert "attempts" not in Job(running.id).record()
    assert "orphaned" not in Job(running.id).record()
    assert end_of(broker, held) == 0


def test_an_owner_that_leaves_during_a_renewal_does_not_come_back(
    broker: Broker, own: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.keep(["chat"])
    renewed(broker, own, 1)
    real, renewing, go_on = broker.renew, threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        renewing.set()
        go_on.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(broker, "renew", slow)
    assert renewing.wait(10)
    leaving = threading.Thread(target=own.leave)
    leaving.start()
    leaving.join(1)  # one that did not wait would have left by now
    go_on.set()
    leaving.join(10)
    assert not leaving.is_alive()
    assert own._thread is not None
    own._thread.join(10)
    assert end_of(broker, own) == 0


def test_a_run_that_ends_does_not_wait_while_another_settle_is_repeated(broker: Broker, own: Lease) -> None:
    repeating, go_on = threading.Event(), threading.Event()
    first, second = taken(broker, own.owner), taken(broker, own.owner)

    def refused_once(records: Broker, delivery: Delivery) -> str:
        if not repeating.is_set():
            repeating.set()
            raise ResponseError("not now")
        go_on.wait(10)
        return records.done(delivery)

    own.settle(first, refused_once)
    again = threading.Thread(target=own._settle_again)
    again.start()

    def refused(*_: object) -> str:
        raise ResponseError("not now")

    ending = threading.Thread(target=own.settle, args=(second, refused))
    ending.start()
    ending.join(5)
    was_held_up = ending.is_alive()
    go_on.set()
    again.join(10)
    ending.join(10)
    assert not was_held_up
    assert state(first) == "succeeded"


def test_a_forked_child_does_not_end_its_parents_lease(broker: Broker, own: Lease) -> None:
    running = taken(broker, own.owner)
    child = os.fork()
    if child == 0:
        own.leave()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert state(running) == "started"
    assert end_of(broker, own) > 0


def test_what_is_said_to_an_owner_is_passed_on_once_whatever_its_listener_raises(broker: Broker, own: Lease) -> None:
    first, second = taken(broker, own.owner), taken(broker, own.owner)
    heard: list[tuple[str, str]] = []

    def listen(what: str, job_id: str) -> None:
        heard.append((what, job_id))
        raise ValueError("this listener fails")

    own.listen(listen)
    own.keep(["chat"])
    assert Job(first.id).cancel()
    eventually(lambda: heard == [("cancel", first.id)])
    assert Job(second.id).cancel()
    eventually(lambda: len(heard) >= 2)
    renewed(broker, own, 2)
    assert heard == [("cancel", first.id), ("cancel", second.id)]


def test_a_slow_listener_holds_up_no_renewal(broker: Broker, own: Lease) -> None:
    called, let_go = threading.Event(), threading.Event()
    running = taken(broker, own.owner)

    def listen(_what: str, _job_id: str) -> None:
        called.set()
        let_go.wait(60)

    own.listen(listen)
    own.keep(["chat"])
    assert Job(running.id).cancel()
    assert called.wait(30)
    try:
        renewed(broker, own, 3)
    finally:
        let_go.set()


def test_renewals_go_on_whatever_the_thread_meets(broker: Broker, line: Line, clock: Clock) -> None:
    held = Lease(brokers.connect(line.url))
    held.keep(["chat"])
    try:
        renewed(broker, held, 1)
        line.cut()
        eventually(lambda: end_of(broker, held) < broker.redis.time()[0])
        line.mend()
        renewed(broker, held, 1)
        clock.fault = ValueError("a fault that nobody thought of")
        eventually(lambda: clock.fault is None)
        renewed(broker, held, 1)
    finally:
        held.leave()


@pytest.mark.parametrize("had_started", [True, False])
def test_a_rescue_rings_the_bell(broker: Broker, had_started: bool) -> None:
    delivery = taken(broker, "elsewhere:1:vanished", start=had_started)
    broker.redis.zadd(broker.keys.owners(), {"elsewhere:1:vanished": 1})
    broker.redis.delete(broker.keys.bell("chat"))
    assert broker.sweep()[0] == 1
    assert state(delivery) == "queued"
    assert broker.redis.llen(broker.keys.bell("chat")) == 1


def test_a_rescue_of_a_job_that_is_to_run_alone_rings_the_bell(broker: Broker) -> None:
    delivery = vanished(broker)
    broker.redis.hset(broker.keys.job(delivery.id), "orphaned", 1)
    broker.redis.delete(broker.keys.bell("chat"))
    assert broker.sweep()[0] == 1
    assert state(delivery) == "delayed"
    assert broker.redis.llen(broker.keys.bell("chat")) == 1


@pytest.mark.parametrize("give_back", [Broker.release, lambda broker, _: broker.leave("here:1:leaving")])
def test_a_job_that_is_given_back_rings_the_bell(
    broker: Broker, give_back: Callable[[Broker, Delivery], object]
) -> None:
    delivery = taken(broker, "here:1:leaving")
    broker.redis.delete(broker.keys.bell("chat"))
    give_back(broker, delivery)
    assert state(delivery) == "queued"
    assert broker.redis.llen(broker.keys.bell("chat")) == 1
