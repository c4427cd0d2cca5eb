"""The scripts that change a job's record, each against a real Valkey."""

import json

import pytest

from tests.eventually import eventually
from worker.errors import QueueFull
from worker.policy.policy import load as load_policy
from worker.records import broker as brokers
from worker.records import message
from worker.records.broker import Broker, Fetched, Submission, Wanted

CHAT = ["chat"]
LEASE_S = 60.0


def submission(job_id: str, step: int = 0, **more: object) -> Submission:
    text = message.write("tasks.chat", job_id, "chat", step, {"message": "hello"})
    return Submission(job_id, "chat", step, "tasks.chat", text, **more)  # type: ignore[arg-type]


def fetch(broker: Broker, most: int = 1, owner: str = "a worker", lease_s: float = LEASE_S) -> list[Fetched]:
    return broker.fetch(owner, lease_s, CHAT, most)


def state(broker: Broker, job_id: str) -> str:
    return (broker.redis.hget(broker.keys.job(job_id), "state") or b"").decode()


def counter(broker: Broker, name: str) -> int:
    return int(broker.redis.hget(broker.keys.stats("chat"), name) or 0)


def test_a_job_is_accepted_fetched_started_and_done(broker: Broker) -> None:
    assert broker.accept(submission("a")) == "a"
    assert state(broker, "a") == "queued"
    (fetched,) = fetch(broker)
    assert state(broker, "a") == "leased"
    assert json.loads(fetched.message)["headers"]["id"] == "a"
    assert broker.start(fetched.delivery) == "started"
    assert broker.done(fetched.delivery) == "done"
    assert state(broker, "a") == "succeeded"
    assert 0 < broker.redis.ttl(broker.keys.job("a")) <= 86400
    assert (counter(broker, "submitted"), counter(broker, "completed")) == (1, 1)


def test_the_most_urgent_job_is_fetched_first(broker: Broker) -> None:
    for name, step in (("batch", 9), ("low", 6), ("normal", 0), ("high", 3), ("critical", 1)):
        broker.accept(submission(name, step))
    assert [each.delivery.id for each in fetch(broker, 5)] == ["critical", "high", "normal", "low", "batch"]


def test_jobs_of_one_priority_keep_their_order(broker: Broker) -> None:
    broker.accept_many([submission(str(number)) for number in range(100)])
    assert [each.delivery.id for each in fetch(broker, 100)] == [str(number) for number in range(100)]


def test_a_repeated_accept_changes_nothing(broker: Broker) -> None:
    broker.accept(submission("a"))
    before = broker.redis.hgetall(broker.keys.job("a"))
    assert broker.accept(submission("a")) == "a"
    assert broker.redis.hgetall(broker.keys.job("a")) == before
    assert broker.redis.llen("chat") == 1
    assert counter(broker, "submitted") == 1


def test_an_idempotency_key_gives_the_first_job(broker: Broker) -> None:
    assert broker.accept(submission("first", idempotency_key="order 7")) == "first"
    assert broker.accept(submission("second", idempotency_key="order 7")) == "first"
    assert state(broker, "second") == ""
    assert broker.redis.ttl(broker.keys.once("order 7")) > 0


def test_a_full_queue_refuses_and_says_so(broker: Broker) -> None:
    broker.accept(submission("a", max_length=1))
    with pytest.raises(QueueFull, match="is full: 1 jobs of at most 1"):
        broker.accept(submission("b", max_length=1))
    assert state(broker, "b") == ""
    assert counter(broker, "submitted") == 1


def test_a_late_run_settles_nothing(broker: Broker) -> None:
    broker.accept(submission("a"))
    (first,) = fetch(broker, lease_s=0)
    assert broker.start(first.delivery) == "started"
    assert broker.sweep()[0] == 1
    (second,) = fetch(broker, owner="another worker")
    assert second.delivery.number == first.delivery.number + 1
    assert broker.done(first.delivery) == "late"
    assert broker.bury(first.delivery, "failed", "too late") == "late"
    assert broker.reschedule(first.delivery, "{}", "+1", 1, "") == "late"
    assert broker.release(first.delivery) == "late"
    assert broker.drop(first.delivery, "cancelled") == "late"
    assert state(broker, "a") == "leased"
    assert counter(broker, "late") == 5
    assert broker.done(second.delivery) == "done"


def test_a_settle_repeated_after_a_lost_reply_is_not_late(broker: Broker) -> None:
    broker.accept(submission("a"))
    (fetched,) = fetch(broker)
    assert broker.done(fetched.delivery) == "done"
    assert broker.done(fetched.delivery) == "settled"
    assert (counter(broker, "completed"), counter(broker, "late")) == (1, 0)


def test_a_sweep_rescues_only_from_ended_leases(broker: Broker) -> None:
    broker.accept_many([submission("kept"), submission("orphan")])
    fetch(broker, owner="alive")
    fetch(broker, owner="vanished", lease_s=0)
    assert broker.sweep()[0] == 1
    assert (state(broker, "kept"), state(broker, "orphan")) == ("leased", "queued")
    assert counter(broker, "rescued") == 1
    assert broker.redis.zrange(broker.keys.owners(), 0, -1) == [b"alive"]


def test_a_rescued_job_is_fetched_before_its_equals(broker: Broker) -> None:
    broker.accept_many([submission("first"), submission("second")])
    fetch(broker, lease_s=0)
    broker.sweep()
    assert fetch(broker)[0].delivery.id == "first"


def test_a_rescheduled_job_waits_in_redis_until_it_is_due(broker: Broker) -> None:
    broker.accept(submission("a"))
    (fetched,) = fetch(broker)
    broker.reschedule(fetched.delivery, fetched.message, "+0.05", 1, "a reason")
    assert state(broker, "a") == "delayed"
    assert fetch(broker) == []
    again = eventually(lambda: fetch(broker))
    assert again[0].delivery.number == 2
    assert broker.redis.hget(broker.keys.job("a"), "attempts") == b"1"
    assert counter(broker, "retries") == 1


def test_a_delayed_job_is_not_fetched_before_it_is_due(broker: Broker) -> None:
    broker.accept(submission("later", due="+3600"))
    broker.accept(submission("now"))
    assert [each.delivery.id for each in fetch(broker, 2)] == ["now"]
    assert state(broker, "later") == "delayed"


def test_a_job_past_its_deadline_is_handed_out_as_expired(broker: Broker) -> None:
    broker.accept(submission("a", deadline="1000000000"))
    (fetched,) = fetch(broker)
    assert broker.start(fetched.delivery) == "expired"
    assert broker.drop(fetched.delivery, "expired") == "dropped"
    assert state(broker, "a") == "expired"
    assert counter(broker, "expired") == 1


def test_a_cancelled_job_is_handed_out_as_cancelled_even_when_delayed(broker: Broker) -> None:
    broker.accept(submission("a", due="+3600"))
    assert broker.cancel("a") == "delayed"
    (fetched,) = fetch(broker)
    assert broker.start(fetched.delivery) == "cancelled"


def test_a_dead_letter_keeps_its_message_untouched_and_for_ever(broker: Broker) -> None:
    broker.accept(submission("a"))
    (fetched,) = fetch(broker)
    assert broker.bury(fetched.delivery, "failed", "ValueError: no", "Traceback") == "buried"
    record = broker.redis.hgetall(broker.keys.job("a"))
    assert record[b"message"].decode() == fetched.message
    assert (record[b"reason"], record[b"error"]) == (b"failed", b"ValueError: no")
    assert broker.redis.ttl(broker.keys.job("a")) == -1
    assert broker.redis.zrange(broker.keys.dead(), 0, -1) == [b"a"]


@pytest.mark.parametrize("raw", [b"", b"not json", b"\xff\xfe", b"[" * 5000, b"null", b'{"headers": {"id": 7}}', b"{}"])
def test_an_unreadable_message_is_leased_under_a_name_of_its_own(broker: Broker, raw: bytes) -> None:
    broker.redis.lpush("chat", raw)
    (fetched,) = fetch(broker)
    assert fetched.delivery.id.startswith("unreadable-")
    assert broker.bury(fetched.delivery, "malformed", "cannot be read") == "buried"
    assert broker.redis.hget(broker.keys.job(fetched.delivery.id), "message") == raw


def test_a_second_copy_of_a_job_is_counted_not_run(broker: Broker) -> None:
    broker.accept(submission("a"))
    broker.redis.lpush("chat", submission("a").message)
    assert len(fetch(broker, 2)) == 1
    assert counter(broker, "duplicates") == 1


def test_scripts_prefix_every_key(broker: Broker) -> None:
    own = Broker(broker.redis, "mine:")
    own.accept(submission("a"))
    assert all(key.startswith(b"mine:") for key in broker.redis.scan_iter("*"))
    (fetched,) = own.fetch("a worker", LEASE_S, CHAT, 1)
    own.done(fetched.delivery)
    assert all(key.startswith(b"mine:") for key in broker.redis.scan_iter("*"))
    broker.redis.flushall()


def test_fetching_and_settling_go_on_when_redis_is_out_of_memory(broker: Broker) -> None:
    from worker.errors import BrokerUnavailable

    broker.accept(submission("a"))
    broker.redis.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(BrokerUnavailable, match="takes no jobs now"):
            broker.accept(submission("b"))
        (fetched,) = fetch(broker)
        assert broker.start(fetched.delivery) == "started"
        assert broker.done(fetched.delivery) == "done"
    finally:
        broker.redis.config_set("maxmemory", "0")


def orphaned(broker: Broker, owner: str = "doomed") -> Fetched:
    """Fetch and start a job in a process that vanishes, and sweep."""
    (fetched,) = fetch(broker, owner=owner, lease_s=0)
    assert broker.start(fetched.delivery) == "started"
    broker.sweep()
    return fetched


def test_only_started_jobs_count_as_orphaned(broker: Broker) -> None:
    broker.accept(submission("a"))
    for _ in range(10):
        fetch(broker, lease_s=0)
        broker.sweep()
    assert broker.redis.hget(broker.keys.job("a"), "orphaned") is None
    assert counter(broker, "rescued") == 10


def test_a_job_orphaned_again_waits_and_runs_alone(broker: Broker) -> None:
    broker.accept(submission("suspect"))
    orphaned(broker)
    assert state(broker, "suspect") == "queued"
    orphaned(broker)
    assert state(broker, "suspect") == "delayed"
    assert broker.redis.zcard(broker.keys.alone("chat")) == 1
    broker.accept_many([submission("first"), submission("second"), submission("third"), submission("fourth")])
    assert [each.delivery.id for each in fetch(broker, 1, owner="busy")] == ["first"]  # it is not due yet
    assert [each.delivery.id for each in fetch(broker, 1, owner="other")] == ["second"]
    broker.redis.zadd(broker.keys.alone("chat"), {"suspect": 0})
    assert fetch(broker, owner="busy") == []  # reserves the suspect and takes nothing more
    assert [each.delivery.id for each in fetch(broker, 1, owner="other")] == ["third"]  # one process is enough
    broker.leave("busy")
    (alone,) = fetch(broker, 5, owner="empty")
    assert alone.delivery.id == "suspect"
    assert fetch(broker, 5, owner="empty") == []
    assert broker.done(alone.delivery) == "done"
    assert {each.delivery.id for each in fetch(broker, 5, owner="empty")} == {"first", "fourth"}


def test_a_job_that_is_orphaned_too_often_is_dead(broker: Broker) -> None:
    broker.accept(submission("poison"))
    for _ in range(load_policy().queue("chat").max_orphaned):
        broker.redis.zadd(broker.keys.alone("chat"), {"poison": 0}, xx=True)
        orphaned(broker)
    record = broker.redis.hgetall(broker.keys.job("poison"))
    assert (record[b"state"], record[b"reason"]) == (b"dead", b"poison")
    assert b"message" in record
    assert broker.redis.zcard(broker.keys.alone("chat")) == 0


def test_a_job_that_runs_too_long_is_taken_from_a_living_owner(broker: Broker) -> None:
    broker.accept_many([submission("hangs"), submission("fetched")])
    hangs, _ = fetch(broker, 2, owner="alive")
    broker.start(hangs.delivery)
    assert broker.sweep()[0] == 0
    broker.redis.zadd(broker.keys.leased("chat"), {"hangs": 1, "fetched": 1})
    assert broker.sweep()[0] == 2
    assert sorted(broker.renew("alive", 60, {"node": "n"})) == [("wedged", "fetched"), ("wedged", "hangs")]
    assert broker.redis.hget(broker.keys.job("hangs"), "orphaned") == b"1"
    assert broker.redis.hget(broker.keys.job("fetched"), "orphaned") is None
    assert broker.done(hangs.delivery) == "late"
    assert counter(broker, "late") == 1


def test_a_fetch_whose_reply_was_lost_is_given_up(broker: Broker) -> None:
    broker.accept_many([submission("kept"), submission("lost")])
    (kept,) = fetch(broker, 1, owner="cut")
    fetch(broker, 1, owner="cut")
    number = next(broker.fetches) - 1
    assert broker.reclaim("cut", number) == 1
    assert (state(broker, "kept"), state(broker, "lost")) == ("leased", "queued")
    late = brokers.fetch_args("cut", 60, [Wanted("chat")], 1, number)
    assert brokers.parse_fetched(broker.run("fetch", *late)).jobs == []  # it reached Redis after it was given up
    assert [each.delivery.id for each in fetch(broker, owner="cut")] == ["lost"]
    assert broker.done(kept.delivery) == "done"


def test_leaving_gives_back_what_runs_and_spends_nothing(broker: Broker) -> None:
    broker.accept_many([submission("runs"), submission("waits")])
    runs, _ = fetch(broker, 2)
    broker.start(runs.delivery)
    assert broker.leave("a worker") == 2
    assert {state(broker, each) for each in ("runs", "waits")} == {"queued"}
    assert broker.redis.hget(broker.keys.job("runs"), "orphaned") is None
    assert broker.redis.zcard(broker.keys.owners()) == 0


def test_a_cancelled_job_is_not_started_and_its_owner_hears_of_it(broker: Broker) -> None:
    broker.accept_many([submission("fetched"), submission("runs")])
    fetched, runs = fetch(broker, 2)
    broker.start(runs.delivery)
    assert [broker.cancel("fetched"), broker.cancel("runs")] == ["leased", "started"]
    assert broker.start(fetched.delivery) == "cancelled"
    assert broker.renew("a worker", 60, {"node": "n"}) == [("cancel", "fetched"), ("cancel", "runs")]
    assert len(broker.renew("a worker", 60, {"node": "n"})) == 2  # the first reply may have been lost
    assert broker.renew("a worker", 60, {"node": "n"}, heard=2) == []
    assert broker.done(runs.delivery) == "done"  # it came first
    assert state(broker, "runs") == "succeeded"


def test_a_job_that_expires_in_a_workers_hands_is_not_started(broker: Broker) -> None:
    broker.accept(submission("a", deadline="+60"))
    (fetched,) = fetch(broker)
    broker.redis.hset(broker.keys.job("a"), "deadline", "1")
    assert broker.start(fetched.delivery) == "expired"


def test_only_the_running_delivery_can_be_followed(broker: Broker) -> None:
    broker.accept(submission("a"))
    (first,) = fetch(broker, lease_s=0)
    broker.start(first.delivery)
    assert broker.follow(first.delivery, submission("a")) == "follows"
    broker.accept(submission("a"))  # a producer's repeat changes nothing
    broker.sweep()
    assert broker.follow(first.delivery, submission("a")) == "late"
    (second,) = fetch(broker)
    assert broker.done(second.delivery) == "done"  # what the lost run had sent is forgotten
    assert state(broker, "a") == "succeeded"


def test_a_replaced_job_ends_with_what_replaces_it(broker: Broker) -> None:
    broker.accept_many([submission("settled first"), submission("published first"), submission("never")])
    one, two, three = fetch(broker, 3)
    for each in (one, two, three):
        assert broker.replacing(each.delivery) == "replacing"
    broker.accept(submission("published first"))
    assert [broker.done(each.delivery) for each in (one, two, three)] == ["replaced", "follows", "replaced"]
    broker.accept(submission("settled first"))
    for each in fetch(broker, 5):
        assert broker.done(each.delivery) == "done"
    assert {state(broker, "settled first"), state(broker, "published first")} == {"succeeded"}
    assert state(broker, "never") == "replaced"
    broker.redis.zadd(broker.keys.delayed("chat"), {"never": 0})
    assert fetch(broker) == []
    assert broker.redis.hget(broker.keys.job("never"), "reason") == b"replacement never came"
    assert counter(broker, "submitted") == counter(broker, "completed") + counter(broker, "dead") == 3


def test_a_full_queue_says_how_long_it_will_last(broker: Broker) -> None:
    seconds, _ = broker.redis.time()
    broker.redis.set(broker.keys.pace(f"chat:{seconds // 10 - 1}"), 30, ex=60)
    broker.accept_many([submission("a"), submission("b")])
    with pytest.raises(QueueFull, match="2 jobs of at most 2, are worked off in about 4 seconds") as refused:
        broker.accept(submission("c", max_length=2))
    assert refused.value.lasts_s == pytest.approx(4)


def test_a_job_id_of_odd_bytes_ends_as_any_other(broker: Broker) -> None:
    raw = message.write("tasks.chat", "XX", "chat", 0, {}).encode().replace(b"XX", b"\xff\xfe")
    broker.redis.lpush("chat", raw)
    (fetched,) = fetch(broker)
    assert broker.bury(fetched.delivery, "failed", "odd \udcff \ud800") == "buried"
    assert broker.redis.hget(b"forebay:job:\xff\xfe", "state") == b"dead"
    broker.redis.delete(b"forebay:job:\xff\xfe")


@pytest.mark.parametrize(
    "raw",
    [
        '{"headers": {"id": "it", "task": "t"}, "body": "\\",\\"body\\":\\""}',
        '{"body":"[[],{},{}]","headers":{"id":"it","task":"t"}}',
        '{"x":{"y":1,"body":"z"},"headers":{"id":"it","task":"t"},"body":"[]"}',
        '{"x":[{"y":1,"body":"z"}],"headers":{"id":"it","task":"t"},"body":"[]"}',
        '{"x":",\\"body\\":\\"","headers":{"id":"it","task":"t"},"body":"[]"}',
        '{"headers":{"id":"it","task":"t"},"body":"cut off',
    ],
)
def test_the_id_of_a_message_is_found_wherever_it_stands(broker: Broker, raw: str) -> None:
    broker.redis.lpush("chat", raw)
    (fetched,) = fetch(broker)
    assert fetched.delivery.id == "it"
    assert fetched.message == raw
