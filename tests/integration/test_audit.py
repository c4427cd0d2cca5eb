"""The audit against a real Valkey: it finds what is broken by hand, and nothing in healthy traffic."""

import json
import shlex
import threading
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from cli.app import app
from dev import stack
from tests.integration.test_records import LEASE_S, fetch, submission
from worker.inspection.audit import Report, audit
from worker.policy.policy import load as load_policy
from worker.records.broker import Broker


def look(broker: Broker) -> Report:
    return audit(broker, load_policy())


def fill(broker: Broker) -> None:
    """Bring a job into each state, named for it; the held ones belong to ``ann``."""
    broker.accept_many([submission(name) for name in ("leased", "started", "dead", "succeeded", "queued")])
    broker.accept(submission("delayed", due="+3600"))
    _, started, dead, succeeded = (each.delivery for each in fetch(broker, 4, owner="ann"))
    broker.renew("ann", LEASE_S, {"node": "ann", "pid": "1", "queues": "chat"})
    broker.start(started)
    broker.bury(dead, "failed", "ValueError: no")
    broker.done(succeeded)


def _pages_of_chat(broker: Broker) -> Iterator[list[str]]:
    index, mark = 0, ""
    while True:
        index, mark, rows = json.loads(broker.run("audit_list", "chat", 0, index, mark))
        yield [row[0] for row in rows]
        if not mark:
            return


FAULTS: dict[str, tuple[Callable[[Broker], object], set[tuple[str, str]]]] = {
    "a list was deleted": (
        lambda broker: broker.redis.delete("chat"),
        {("lost", "forebay:job:queued"), ("counters", "forebay:stats:chat")},
    ),
    "a message was pushed again": (
        lambda broker: broker.redis.lpush("chat", submission("queued").message),
        {("twice", "chat")},
    ),
    "a message of an ended job was pushed": (
        lambda broker: broker.redis.lpush("chat", submission("succeeded").message),
        {("surplus", "chat")},
    ),
    "a message was moved": (
        lambda broker: broker.redis.lmove("chat", broker.keys.waiting("chat", 9)),
        {("misplaced", "chat\x06\x169")},
    ),
    "a delayed job left its set": (
        lambda broker: broker.redis.delete("forebay:delayed:chat"),
        {("not in", "forebay:delayed:chat"), ("counters", "forebay:stats:chat")},
    ),
    "a delayed job lost its message": (
        lambda broker: broker.redis.hdel("forebay:job:delayed", "message"),
        {("no message", "forebay:job:delayed")},
    ),
    "an owner was deleted": (
        lambda broker: broker.redis.delete("forebay:owners"),
        {("abandoned", "forebay:job:leased"), ("abandoned", "forebay:job:started")},
    ),
    "a job left its owner": (
        lambda broker: broker.redis.srem("forebay:held:ann", "leased"),
        {("not in", "forebay:held:ann")},
    ),
    "a job has two owners": (
        lambda broker: broker.redis.sadd("forebay:held:bob", "leased"),
        {("astray", "forebay:held:bob")},
    ),
    "a set holds a ghost": (
        lambda broker: broker.redis.zadd("forebay:leased:chat", {"ghost": 1}),
        {("no record", "forebay:leased:chat"), ("counters", "forebay:stats:chat")},
    ),
    "a dead letter left its set": (
        lambda broker: broker.redis.delete("forebay:dead"),
        {("not in", "forebay:dead"), ("counters", "forebay:dead")},
    ),
    "a dead letter is older than retention": (
        lambda broker: broker.redis.zadd("forebay:dead", {"dead": 1}),
        {("overdue", "forebay:dead")},
    ),
    "an ended job stays": (
        lambda broker: broker.redis.persist("forebay:job:succeeded"),
        {("immortal", "forebay:job:succeeded")},
    ),
    "an open job will be forgotten": (
        lambda broker: broker.redis.expire("forebay:job:delayed", 60),
        {("mortal", "forebay:job:delayed")},
    ),
    "a counter is wrong": (
        lambda broker: broker.redis.hincrby("forebay:stats:chat", "completed", 1),
        {("counters", "forebay:stats:chat")},
    ),
    "an idempotency key stays": (
        lambda broker: broker.redis.set("forebay:once:a key", "succeeded"),
        {("stays", "forebay:once:a key")},
    ),
    "a record is a fragment": (
        lambda broker: broker.redis.hset("forebay:job:fragment", "attempts", "1"),
        {("no state", "forebay:job:fragment")},
    ),
}

#: Remedies that are commands, and leave no counter wrong.
MENDED = ("not in", "abandoned", "astray", "no state", "mortal", "immortal", "stays")


def test_a_healthy_broker_is_clean_and_adds_up(broker: Broker) -> None:
    fill(broker)
    broker.redis.rpush("chat", b"\xff", b"\xff")
    unreadable, purged = fetch(broker, 2)
    broker.release(unreadable.delivery)
    broker.bury(purged.delivery, "malformed", "")
    broker.run("purge", purged.delivery.id, "", 60)
    broker.redis.lpush("chat", submission("pushed by a plain producer").message, b"\xff")
    report = look(broker)
    assert report.findings == ()
    (chat,) = (balance for balance in report.balances if balance.queue == "chat")
    assert (chat.accepted, chat.succeeded, chat.dead, chat.waiting, chat.unseen) == (8, 1, 2, 5, 2)
    once = dict.fromkeys(("leased", "started", "dead", "purged", "succeeded", "delayed"), 1)
    assert report.states == {**once, "queued": 2}


def test_a_dead_letter_may_outstay_its_retention_by_an_hour(broker: Broker) -> None:
    fill(broker)
    over = broker.redis.time()[0] - load_policy().retention.dead_s
    for late_s, found in ((3000, set()), (4000, {("overdue", "forebay:dead")})):
        broker.redis.zadd("forebay:dead", {"dead": over - late_s})
        assert {(finding.fault, finding.key) for finding in look(broker).findings} == found
    broker.redis.flushall()


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_broken_by_hand_is_found_and_its_remedy_mends_it(broker: Broker, what: str) -> None:
    fill(broker)
    break_it, expected = FAULTS[what]
    break_it(broker)
    findings = look(broker).findings
    assert {(finding.fault, finding.key) for finding in findings} == expected
    if all(finding.fault in MENDED for finding in findings):
        for finding in findings:
            broker.redis.execute_command(*shlex.split(finding.remedy)[1:])
        assert look(broker).findings == ()
    broker.redis.flushall()


def test_live_traffic_is_clean(broker: Broker) -> None:
    """While the audit looks, jobs are accepted, pushed plainly, fetched, run, retried, given back and rescued."""
    stop = threading.Event()

    def produce(name: str) -> None:
        count = 0
        while not stop.is_set():
            broker.accept_many([submission(f"{name}-{count}-{number}") for number in range(20)])
            broker.redis.lpush("chat", submission(f"plain-{name}-{count}").message)
            count += 1

    def work(owner: str) -> None:
        while not stop.is_set():
            for number, fetched in enumerate(fetch(broker, 16, owner=owner)):
                delivery = fetched.delivery
                broker.start(delivery)
                match number % 8:
                    case 0:
                        broker.release(delivery)
                    case 1:
                        broker.reschedule(delivery, fetched.message, "+0.01", 1, "")
                    case 2:
                        broker.bury(delivery, "failed", "")
                    case 3:
                        pass  # left behind
                    case _:
                        broker.done(delivery)
            broker.redis.zadd(broker.keys.owners(), {owner: 0})
            broker.sweep()

    threads = [threading.Thread(target=produce, args=(name,)) for name in "pq"]
    threads += [threading.Thread(target=work, args=(name,)) for name in ("ann", "bob")]
    for thread in threads:
        thread.start()
    try:
        reports = [look(broker) for _ in range(6)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [report.findings for report in reports] == [()] * len(reports)
    assert reports[0].states != reports[-1].states
    final = look(broker)
    assert final.findings == ()
    (chat,) = (balance for balance in final.balances if balance.queue == "chat")
    assert chat.accepted == chat.succeeded + chat.dead + chat.cancelled + chat.expired + chat.waiting


def test_the_audit_keeps_to_its_prefix(broker: Broker) -> None:
    own = Broker(broker.redis, "m[y]:")
    own.accept(submission("a"))
    own.redis.delete("m[y]:chat")
    broker.redis.set("forebay:once:of another", "stays")
    found = {(finding.fault, finding.key) for finding in look(own).findings}
    assert found == {("lost", "m[y]:forebay:job:a"), ("counters", "m[y]:forebay:stats:chat")}
    broker.redis.flushall()


def test_long_lists_are_read_in_pages_while_they_grow_and_shrink(broker: Broker) -> None:
    broker.accept_many([submission(str(number)) for number in range(1200)])
    reading = iter(_pages_of_chat(broker))
    seen = next(reading)
    broker.accept_many([submission(f"new {number}") for number in range(40)])
    fetch(broker, 10)
    rest = [job for page in reading for job in page]
    assert len({*seen, *rest}) == len(seen) + len(rest)
    assert {str(number) for number in range(10, 1200)} <= {*seen, *rest}
    assert look(broker).findings == ()


def test_the_commands_count_and_judge(machine: stack.Started, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner()
    fill(broker)
    chat, total = json.loads(run.invoke(app, ["stats", "--queue", "chat", "--json"]).stdout)
    assert {**chat, "queue": "total"} == total
    assert {name: count for name, count in chat.items() if count} == {
        "queue": "chat",
        "submitted": 6,
        "completed": 1,
        "failed": 1,
        "dead": 1,
        "success_rate": 0.5,
        "pending": 1,
        "delayed": 1,
        "in_hand": 2,
        "running": 1,
        "workers": 1,
    }
    assert "success_rate" in run.invoke(app, ["stats"]).stdout
    assert run.invoke(app, ["audit"]).exit_code == 0
    broker.redis.hincrby("forebay:stats:chat", "submitted", 1)
    judged = run.invoke(app, ["audit", "--json"])
    assert (judged.exit_code, [each["fault"] for each in json.loads(judged.stdout)["findings"]]) == (1, ["counters"])
    assert "HINCRBY forebay:stats:chat submitted -1" in run.invoke(app, ["audit"]).stdout


def test_ids_may_hold_any_bytes(broker: Broker) -> None:
    broker.redis.zadd(b"forebay:dead", {b"\xff\xfe": 1e12})
    broker.redis.hincrby("forebay:stats:chat", "dead", 1)
    broker.redis.hincrby("forebay:stats:chat", "submitted", 1)
    assert [finding.job.encode("utf-8", "surrogateescape") for finding in look(broker).findings] == [b"\xff\xfe"]
    shown = CliRunner().invoke(app, ["audit"])
    assert (shown.exit_code, "no record" in shown.stdout) == (1, True)
