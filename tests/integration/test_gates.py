"""Rate limits in the fetch: what a gate lets through, in which order, and what is put back."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.errors import NoPermit
from worker.limits import gates
from worker.limits.gates import Charge, Meter
from worker.policy.gate import Bucket, Gate
from worker.policy.priority import Priority
from worker.records import message
from worker.records.broker import Broker, Delivery, Fetched, Submission, Wanted

LEASE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


def rules(queues: dict[str, dict[str, Any]] | None = None, **gate: Any) -> str:
    """Rules of queue chat, or of the queues given, behind one gate named g."""
    of_gate = gates.of_gate("g", Gate(**{name: Bucket(**bucket) for name, bucket in gate.items()}))
    of_queues = queues if queues is not None else {"chat": {"gate": "g"}}
    return json.dumps({"queues": of_queues, "gates": {"g": of_gate}})


def put(broker: Broker, job_id: str, priority: Priority = Priority.NORMAL, cost: int = 0, queue: str = "chat") -> None:
    text = message.write("tasks.chat", job_id, queue, priority.step, {})
    broker.accept(Submission(job_id, queue, priority.step, "tasks.chat", text, fields={"cost": str(cost)}))


def fetch(broker: Broker, rules: str, most: int = 10, owner: str = "o", queue: str = "chat") -> list[str]:
    return [each.delivery.id for each in jobs(broker, rules, most, owner, queue)]


def jobs(broker: Broker, rules: str, most: int = 10, owner: str = "o", queue: str = "chat") -> list[Fetched]:
    return broker.fetch(owner, LEASE_S, [queue], most, rules)


def back(broker: Broker, seconds: float) -> None:
    """Let a gate's clock stand so long before now, as if the time had passed."""
    gate = broker.keys.gate("g")
    for field in ("at", "shut_until", "learned_at", "refused_at"):
        at = broker.redis.hget(gate, field)
        if at:
            broker.redis.hset(gate, field, f"{float(at) - seconds:.6f}")


def level(broker: Broker, bucket: str = "cost") -> float:
    return float(broker.redis.hget(broker.keys.gate("g"), bucket))


def just(seconds: float) -> Any:
    """Match a time to wait that was so long when it began: on a busy machine some of it is over when it is read."""
    return pytest.approx(seconds - 0.4, abs=0.5)


def filled(calls: float) -> Any:
    """Match a bucket of 60 calls a minute that held so many, and got more between two commands."""
    return pytest.approx(calls + 0.4, abs=0.5)


PER_MINUTE = {"limit": 60, "per": "minute", "burst": 3}


def test_a_burst_goes_and_the_rest_waits_in_its_queue_in_order(broker: Broker) -> None:
    for number in range(6):
        put(broker, f"normal {number}")
    assert fetch(broker, rules(requests=PER_MINUTE)) == ["normal 0", "normal 1", "normal 2"]
    assert fetch(broker, rules(requests=PER_MINUTE)) == []
    put(broker, "urgent", Priority.CRITICAL)
    back(broker, 1.1)
    assert fetch(broker, rules(requests=PER_MINUTE)) == ["urgent"]
    assert broker.redis.llen("chat") == 3
    assert broker.redis.zcard(broker.keys.leased("chat")) == 4


def test_one_that_waits_for_a_dear_job_is_not_passed_by_cheap_ones(broker: Broker) -> None:
    put(broker, "first", cost=90)
    put(broker, "dear", cost=80)
    put(broker, "cheap", cost=1)
    limit = {"limit": 1000, "burst": 100}
    assert fetch(broker, rules(tokens=limit)) == ["first"]
    assert fetch(broker, rules(tokens=limit)) == []
    back(broker, 6)
    assert fetch(broker, rules(tokens=limit)) == ["dear", "cheap"]


def test_an_urgent_job_of_another_queue_is_left_the_room_that_it_waits_for(broker: Broker) -> None:
    both = rules({"chat": {"gate": "g"}, "embedding": {"gate": "g"}}, requests={"limit": 60, "burst": 1})
    put(broker, "spends", queue="embedding", priority=Priority.LOW)
    assert fetch(broker, both, queue="embedding") == ["spends"]
    put(broker, "a chat", Priority.HIGH)
    put(broker, "an embedding", Priority.LOW, queue="embedding")
    assert fetch(broker, both) == []
    back(broker, 1.1)
    assert fetch(broker, both, owner="other", queue="embedding") == []
    assert fetch(broker, both) == ["a chat"]
    back(broker, 1.1)
    assert fetch(broker, both, owner="other", queue="embedding") == ["an embedding"]


def test_a_shut_gate_of_one_queue_holds_up_no_other(broker: Broker) -> None:
    both = rules({"chat": {"gate": "g"}}, requests=PER_MINUTE)
    put(broker, "a chat", Priority.CRITICAL)
    put(broker, "an embedding", Priority.BATCH, queue="embedding")
    broker.run("shut", json.dumps(json.loads(both)["gates"]["g"]), "30", "why", "refused")
    found = broker.fetch("o", LEASE_S, [Wanted("chat"), Wanted("embedding")], 10, both)
    assert [each.delivery.id for each in found] == ["an embedding"]


def test_the_same_moment_and_no_earlier_opens_a_gate(broker: Broker) -> None:
    for number in range(3):
        put(broker, str(number))
    told = rules(requests={"rate": 1, "per": "minute", "burst": 1})
    args = ["o", LEASE_S, 1, 1, told, "chat", "lease", 0]
    assert len(broker.run("fetch", *args)) == 3
    nap, deaf = broker.run("fetch", *["o", LEASE_S, 1, 2, *args[4:]])
    assert 59 < float(nap) <= 60
    assert deaf == [b"chat"]
    back(broker, float(nap) + 0.000001)
    assert fetch(broker, told, 1) == ["1"]


def test_one_owner_watches_a_gate_for_a_queue_and_hands_over_when_its_hands_are_full(broker: Broker) -> None:
    for number in range(4):
        put(broker, str(number))
    told = rules(requests={"rate": 1, "per": "minute", "burst": 1})
    assert fetch(broker, told, 1, "spender") == ["0"]

    def nap_s(owner: str, number: int) -> float:
        return float(broker.run("fetch", owner, LEASE_S, 1, number, told, "chat", "lease", 0)[0])

    assert nap_s("watcher", 100) > 30
    assert nap_s("sleeper", 100) == 1.0
    back(broker, 60)
    assert fetch(broker, told, 1, "watcher") == ["1"]
    assert broker.redis.llen(broker.keys.bell("sleeper")) == 1
    assert nap_s("sleeper", 101) > 30


def test_what_starts_nothing_is_put_back(broker: Broker) -> None:
    told = rules(requests=PER_MINUTE, tokens={"rate": 0.001, "per": "minute", "burst": 100})
    for number in range(3):
        put(broker, str(number), cost=30)
    first, second, third = jobs(broker, told)
    assert level(broker) == pytest.approx(10, abs=0.1)
    broker.release(first.delivery)
    broker.start(second.delivery)
    broker.release(second.delivery)  # it may have called already
    assert level(broker) == pytest.approx(40, abs=0.1)
    broker.cancel(third.delivery.id)
    broker.drop(third.delivery, "cancelled")
    assert level(broker) == pytest.approx(70, abs=0.1)
    assert level(broker, "calls") == filled(2)
    assert not broker.redis.hexists(broker.keys.job("1"), "charged")


def test_a_vanished_owner_is_charged_only_for_what_it_had_started(broker: Broker) -> None:
    told = rules(tokens={"rate": 0.001, "burst": 100})
    put(broker, "started", cost=30)
    put(broker, "leased", cost=30)
    started, _ = jobs(broker, told)
    broker.start(started.delivery)
    broker.redis.zadd(broker.keys.owners(), {"o": 1})
    broker.sweep()
    assert level(broker) == pytest.approx(70, abs=0.1)


def test_cancelled_expired_and_second_copies_cost_nothing(broker: Broker) -> None:
    told = rules(requests={"limit": 60, "burst": 1})
    put(broker, "cancelled")
    broker.cancel("cancelled")
    text = message.write("tasks.chat", "expired", "chat", 0, {})
    broker.accept(Submission("expired", "chat", 0, "tasks.chat", text, deadline="+0.000001"))
    put(broker, "copied")
    broker.redis.lpush("chat", broker.redis.lindex("chat", 0))
    put(broker, "good")
    assert fetch(broker, told) == ["cancelled", "expired", "copied"]
    back(broker, 1.1)
    assert fetch(broker, told) == ["good"]


def test_a_job_that_can_never_go_is_a_dead_letter_that_says_what_to_do(broker: Broker) -> None:
    put(broker, "huge", cost=101)
    put(broker, "good", cost=100)
    assert fetch(broker, rules(tokens={"limit": 1000, "burst": 100})) == ["good"]
    state, reason, error = broker.redis.hmget(broker.keys.job("huge"), "state", "reason", "error")
    assert (state, reason) == (b"dead", b"too costly")
    assert b"raise the burst" in error


def test_a_job_of_a_plain_producer_is_reckoned_by_its_length(broker: Broker) -> None:
    envelope = json.loads(message.write("tasks.chat", "plain", "chat", 0, {"message": "x" * 4000}))
    envelope["body"] = base64.b64encode(envelope["body"].encode()).decode()
    envelope["properties"]["body_encoding"] = "base64"
    broker.redis.lpush("chat", json.dumps(envelope))
    (one,) = jobs(broker, rules(tokens={"limit": 100000, "burst": 10000}))
    charge = Charge.of(one.charge)
    assert charge is not None
    assert 1000 < charge.cost < 1400


def test_no_more_are_in_flight_than_may_and_a_settle_rings_who_was_refused(broker: Broker) -> None:
    told = rules({"chat": {"max_in_flight": 2}})
    for number in range(3):
        put(broker, str(number))
    first, _ = jobs(broker, told, most=2, owner="one")
    assert fetch(broker, told, owner="two") == []
    broker.start(first.delivery)
    broker.done(first.delivery)
    assert broker.redis.llen(broker.keys.bell("two")) == 1
    assert fetch(broker, told, owner="two") == ["2"]


def test_the_less_urgent_get_the_share_that_is_declared_for_them(broker: Broker) -> None:
    told = rules({"chat": {"shares": {str(Priority.BATCH.step): 0.1, str(Priority.LOW.step): 0.2}}})
    for number in range(200):
        put(broker, f"h{number}", Priority.HIGH)
        put(broker, f"l{number}", Priority.LOW)
        put(broker, f"b{number}", Priority.BATCH)
    drawn = [fetch(broker, told, 1)[0][0] for _ in range(200)]
    assert drawn.count("b") == pytest.approx(20, abs=1)
    assert drawn.count("l") == pytest.approx(40, abs=1)
    assert drawn.count("h") == 200 - drawn.count("b") - drawn.count("l")


# Batches.

BATCH = {"max_jobs": 4, "max_cost": 100, "max_wait_s": 0}


def batches(broker: Broker, told: str, room: int = 1) -> list[Fetched]:
    return broker.fetch("o", LEASE_S, [Wanted("chat", "batch", room)], 64, told)


def test_a_batch_is_cut_by_number_by_cost_and_by_waiting_time(broker: Broker) -> None:
    told = rules({"chat": {"batch": BATCH}})
    for number in range(6):
        put(broker, str(number), cost=10)
    assert [each.delivery.id for each in batches(broker, told)] == ["0", "1", "2", "3"]
    put(broker, "dear", cost=85)
    assert [each.delivery.id for each in batches(broker, told)] == ["4", "5"]
    patient = rules({"chat": {"batch": {**BATCH, "max_wait_s": 30}}})
    nap, deaf = broker.run("fetch", "o", LEASE_S, 64, 99, patient, "chat", "batch", 1)
    assert 29 < float(nap) <= 30
    assert deaf == [b"chat"]
    broker.redis.hset(broker.keys.job("dear"), "accepted_at", "1")
    assert [each.delivery.id for each in batches(broker, patient)] == ["dear"]


def test_a_batch_pays_one_call_and_the_sum_and_is_not_cut_by_a_low_level(broker: Broker) -> None:
    told = rules(
        {"chat": {"gate": "g", "batch": BATCH}}, requests={"limit": 60, "burst": 5}, tokens={"limit": 600, "burst": 60}
    )
    for number in range(8):
        put(broker, str(number), cost=10)
    charges = [Charge.of(each.charge) for each in batches(broker, told)]
    assert charges == [Charge(1, 10), Charge(0, 10), Charge(0, 10), Charge(0, 10)]
    assert (level(broker, "calls"), level(broker)) == pytest.approx((4, 20), abs=0.1)
    assert batches(broker, told) == []
    back(broker, 2.5)
    assert len(batches(broker, told)) == 4


def test_a_batch_takes_the_urgent_first_whatever_came_first(broker: Broker) -> None:
    for number in range(5):
        put(broker, f"low {number}", Priority.LOW)
    put(broker, "urgent", Priority.CRITICAL)
    found = batches(broker, rules({"chat": {"batch": BATCH}}))
    assert [each.delivery.id for each in found] == ["urgent", "low 0", "low 1", "low 2"]


# The meter of a run.


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Gate:
    from worker.policy.policy import load

    gate = Gate(requests=Bucket(limit=60, burst=2), tokens=Bucket(rate=0.001, burst=100))
    policy = load().model_copy(update={"gates": {"g": gate, "provider": Gate()}})
    monkeypatch.setattr(gates, "load_policy", lambda: policy)
    return gate


def meter(broker: Broker, charge: Charge | None = None) -> Meter:
    from worker.policy.policy import load

    queue = load().queue("chat").model_copy(update={"gate": "g"})
    return Meter(broker, queue, Priority.HIGH.step, charge)


def charged(broker: Broker, gate: Gate, cost: int) -> Meter:
    put(broker, "a", cost=cost)
    (one,) = jobs(broker, json.dumps({"queues": {"chat": {"gate": "g"}}, "gates": {"g": gates.of_gate("g", gate)}}))
    return meter(broker, Charge.of(one.charge))


def test_the_estimate_is_settled_against_what_the_provider_counted(broker: Broker, gated: Gate) -> None:
    run = charged(broker, gated, 30)
    run.before_call(50)
    assert level(broker) == pytest.approx(50, abs=0.1)
    run.used(20)
    assert level(broker) == pytest.approx(80, abs=0.1)
    run.before_call(10)
    run.unused()
    assert level(broker) == pytest.approx(80, abs=0.1)
    assert level(broker, "calls") == filled(1)


def test_every_further_call_takes_a_permit_or_is_told_when(broker: Broker, gated: Gate) -> None:
    run = charged(broker, gated, 30)
    run.before_call(30)
    run.used(30)
    run.before_call(30)
    run.used(30)
    with pytest.raises(NoPermit) as refused:
        run.before_call(30)
    assert refused.value.retry_after_s == just(1)
    with pytest.raises(NoPermit, match="never"):
        run.before_call(101)


def test_a_run_that_calls_nobody_is_put_back_and_one_that_asks_for_no_meter_is_not(broker: Broker, gated: Gate) -> None:
    with gates.metered(charged(broker, gated, 30)):
        pass
    assert level(broker) == pytest.approx(70, abs=0.1)
    with gates.metered(meter(broker, Charge(1, 30))):
        gates.meter()
    assert level(broker) == pytest.approx(100, abs=0.1)


def test_a_refusal_shuts_the_gate_for_all_and_repeated_ones_step_the_rate_down(broker: Broker, gated: Gate) -> None:
    told = json.dumps({"queues": {"chat": {"gate": "g"}}, "gates": {"g": gates.of_gate("g", gated)}})
    run = charged(broker, gated, 30)
    run.before_call(30)
    assert run.busy(7.0) == just(7)
    assert level(broker) == pytest.approx(100, abs=0.1)
    put(broker, "b")
    assert fetch(broker, told) == []
    assert meter(broker).busy(1.0) == just(7)  # under way when it was shut
    assert broker.redis.hget(broker.keys.gate("g"), "learned") is None
    back(broker, 8)
    assert fetch(broker, told) == ["b"]
    assert meter(broker).busy(None) == just(4)
    assert float(broker.redis.hget(broker.keys.gate("g"), "learned")) == pytest.approx(0.8, abs=0.01)
    back(broker, 3000)
    assert meter(broker).busy(1e9) == pytest.approx(gated.max_shut_s, abs=0.1)


def test_a_provider_that_names_too_short_a_time_is_left_alone_for_longer_each_time(broker: Broker, gated: Gate) -> None:
    opened_s = []
    for _ in range(4):
        opened_s.append(meter(broker).busy(0.0))
        back(broker, (opened_s[-1] or 0) + 0.1)
    assert opened_s == [just(0), just(1), just(2), just(4)]
    back(broker, 5)
    assert meter(broker).busy(0.0) == pytest.approx(0, abs=0.1)  # it let calls through for a while


def test_a_limit_that_is_used_up_shuts_a_gate_without_limits_and_is_no_refusal(broker: Broker, gated: Gate) -> None:
    meter(broker).used_up(5)
    assert broker.redis.exists(broker.keys.gate("g")) == 0
    run = meter(broker)
    assert run.queue is not None
    run.queue, run.gate = run.queue.model_copy(update={"gate": "provider"}), "provider"
    run.used_up(5)
    known = broker.redis.hgetall(broker.keys.gate("provider"))
    assert float(known[b"shut_until"]) > 0
    assert b"strikes" not in known


def test_calls_that_were_held_up_on_their_way_do_not_leave_all_at_once(broker: Broker, gated: Gate) -> None:
    """The bucket fills up while charged jobs are on their way; what they leave with must not."""
    told = json.dumps({"queues": {"chat": {"gate": "g"}}, "gates": {"g": gates.of_gate("g", gated)}})
    charges = []
    for number in range(6):
        put(broker, str(number), cost=1)
        (one,) = jobs(broker, told)
        charges.append(Charge.of(one.charge))
        back(broker, 1.1)
    leaves_s = [meter(broker, charge).before_call(1) for charge in charges]
    assert leaves_s == pytest.approx([0, 0, 1, 2, 3, 4], abs=0.9)


def test_a_job_on_its_way_to_a_gate_that_was_shut_since_waits(broker: Broker, gated: Gate) -> None:
    run = charged(broker, gated, 30)
    meter(broker).busy(7.0)
    with pytest.raises(NoPermit) as refused:
        run.before_call(30)
    assert refused.value.retry_after_s == just(7)
    run.asked = True
    run.close()
    assert (level(broker), level(broker, "calls")) == pytest.approx((100, 2), abs=0.1)


def test_without_a_gate_and_without_redis_calls_go(broker: Broker, gated: Gate) -> None:
    run = Meter(None, None, 0, None)
    run.before_call(10)
    run.used(5)
    assert run.busy(1.0) is None
    import redis

    nowhere = Broker(redis.Redis(port=1, retry=None))
    run = meter(nowhere)
    run.before_call(10)
    run.unused()
    assert run.busy(1.0) is None


steps = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 40)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(2, 30), st.integers(41, 90))
def test_no_window_ever_has_more_than_the_limit(
    broker: Broker, history: list[tuple[float, int]], calls: int, cost: int
) -> None:
    """Whatever comes when: a second's window of calls and of cost stays within what the provider allows."""
    broker.redis.flushall()
    told = rules(
        requests={"limit": calls, "per": "second", "burst": calls // 2},
        tokens={"limit": 2 * cost, "per": "second", "burst": cost},
    )
    clock, went = 0.0, []
    for number, (pause_s, price) in enumerate(history):
        put(broker, str(number), cost=price)
        if number:
            back(broker, pause_s / 10)
            clock += pause_s / 10
        for one in jobs(broker, told, 50):
            charge = Charge.of(one.charge)
            assert charge is not None
            went.append((clock, charge))
    for start, _ in went:
        within = [charge for at, charge in went if start <= at < start + 0.9]  # real time passes beside the clock
        assert sum(each.calls for each in within) <= calls
        assert sum(each.cost for each in within) <= 2 * cost


def test_a_delivery_keeps_its_charge_to_itself(broker: Broker) -> None:
    put(broker, "a", cost=5)
    (one,) = jobs(broker, rules(tokens={"limit": 1000, "burst": 100}))
    assert one == Fetched("chat", Delivery("a", 1), one.message, "1 5")
    broker.start(one.delivery)
    broker.done(one.delivery)
    assert not {b"gate", b"calls", b"charged"} & set(broker.redis.hgetall(broker.keys.job("a")))


# Whole workers.


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queues.yaml whose chat queue lets 20 jobs a second through, 2 at once."""
    text = (ROOT / "queues.yaml").read_text(encoding="utf-8")
    path = tmp_path / "queues.yaml"
    limits = "gates:\n  provider:\n    requests: {rate: 20, per: second, burst: 2}"
    path.write_text(text.replace("gates:\n  provider:", limits), encoding="utf-8")
    return path


def commands(broker: Broker) -> int:
    """How many commands of a worker's loop Redis has been sent."""
    stats = broker.redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "brpop", "lpush", "publish"))


def test_gated_workers_take_jobs_at_the_rate_the_urgent_first_and_leave_redis_in_peace(
    workers: Workers, broker: Broker, limited: Path
) -> None:
    running = [workers.probes("threads", 4, FOREBAY_QUEUES=str(limited)) for _ in range(2)]
    jobs = [probes.mark.apply_async((str(number),), priority=Priority.BATCH.step) for number in range(40)]
    urgent = probes.mark.apply_async(("urgent",), priority=Priority.CRITICAL.step)
    eventually(lambda: ran(broker) == 41)
    taken = {job.id: float(broker.redis.hget(broker.keys.job(job.id), "leased_at")) for job in [*jobs, urgent]}
    in_order = sorted(taken.values())
    for first, after_a_second in zip(in_order, in_order[22:], strict=False):
        assert after_a_second - first >= 1  # by Redis' clock: 20 a second and 2 at once
    sent = float(broker.redis.hget(broker.keys.job(urgent.id), "accepted_at"))
    assert sum(sent < moment < taken[urgent.id] for moment in in_order) < 10
    broker.run("shut", json.dumps(gates.of_gate("provider", Gate())), "100", "a test", "refused")
    probes.mark.apply_async(("waits",))
    eventually(lambda: broker.redis.hexists(broker.keys.gate("provider"), "want:chat"))
    before, began, ends = commands(broker), clock(broker), lease_ends(broker)
    assert len(ends) == len(running)
    # each has renewed its lease some times, and so has been awake and has seen the gate that is shut
    eventually(lambda: all(end - ends[owner] > 2 for owner, end in lease_ends(broker).items()))
    sent, took_s = commands(broker) - before, clock(broker) - began
    assert 2 * len(running) < sent < 10 * len(running) * took_s
    assert ran(broker) == 41


def clock(broker: Broker) -> float:
    seconds, microseconds = broker.redis.time()
    return float(seconds) + float(microseconds) / 1e6


def lease_ends(broker: Broker) -> dict[bytes, float]:
    """Return when the lease of each living worker ends: each renewal moves it."""
    return dict(broker.redis.zrange(broker.keys.owners(), 0, -1, withscores=True))


def ran(broker: Broker) -> int:
    return int(broker.redis.llen("probe:ran"))


def test_a_batch_is_drawn_in_order_however_long_its_queue_is(broker: Broker) -> None:
    for number in range(40):
        put(broker, str(number), cost=1)
    told = rules({"chat": {"batch": {**BATCH, "max_jobs": 33}}})
    assert [each.delivery.id for each in batches(broker, told)] == [str(number) for number in range(33)]
    assert [each.delivery.id for each in batches(broker, told)] == [str(number) for number in range(33, 40)]


def test_a_batch_holds_no_more_than_memory_is_meant_for(broker: Broker) -> None:
    text = "x" * 12 * 1024 * 1024
    for name in ("a", "b", "c"):
        message_ = message.write("tasks.chat", name, "chat", 0, {"message": text})
        broker.accept(Submission(name, "chat", 0, "tasks.chat", message_, fields={"cost": "1"}))
    told = rules({"chat": {"batch": BATCH}})
    assert [each.delivery.id for each in batches(broker, told)] == ["a", "b"]
    assert [each.delivery.id for each in batches(broker, told)] == ["c"]
