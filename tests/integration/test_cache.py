"""The cache's two tiers and its flights, on a real Redis.

Two caches in one process are to each other as two processes: they share nothing but Redis.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cache import keys, versions
from cache.errors import Away, CacheError, GivenUp
from cache.memory import Memory
from cache.settings import Settings
from cache.store import Cache
from dev import stack
from dev.ports import LOOPBACK
from tests.eventually import eventually
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
KIND = "model"


class Maker:
    """Something that is computed, and how often it was; it begins when told to."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.asked: list[list[str]] = []
        self.fails = fails
        self.may = threading.Event()
        self.may.set()
        self._guard = threading.Lock()

    def __call__(self, keys: Sequence[str]) -> list[str]:
        with self._guard:
            self.asked.append(list(keys))
        assert self.may.wait(30)
        if self.fails:
            raise self.fails
        return [f"value of {key}" for key in keys]

    def one(self, key: str) -> Callable[[], str]:
        return lambda: self([key])[0]


@pytest.fixture
def settings(machine: stack.Started, broker: Broker) -> Iterator[Settings]:
    url = machine.addresses["CELERY_BROKER_URL"]
    yield Settings(url=url, ttl_s={KIND: 100.0, "other": 100.0}, lease_s=1.0, tick_s=0.1, timeout_s=5)
    kept = [key for key in broker.redis.scan_iter("ai:*") if broker.redis.pttl(key) == -1]
    assert kept == [], "keys without a lifetime"


Make = Callable[..., Cache]


@pytest.fixture
def make_cache(settings: Settings) -> Iterator[Make]:
    made: list[Cache] = []

    def make(**different: Any) -> Cache:
        made.append(Cache(replace(settings, **different)))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def cache(make_cache: Make) -> Cache:
    return make_cache()


@pytest.fixture
def other(make_cache: Make) -> Cache:
    return make_cache()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(120) as threads:
        yield threads


def counts(cache: Cache) -> dict[str, Any]:
    cache.flush()
    return {kind.kind: kind.as_dict() for kind in cache.report({}).kinds}[KIND]


def test_what_was_computed_is_found_in_memory_and_in_redis(cache: Cache, other: Cache, broker: Broker) -> None:
    make, key = Maker(), cache.key(KIND, "who", "what")
    hows = [each.fetch(KIND, key, make.one(key)).how for each in (cache, cache, other, other)]
    assert hows == ["misses", "hits_memory", "hits_redis", "hits_memory"]
    assert len(make.asked) == 1
    assert 99_000 < broker.redis.pttl(key) <= 100_000
    other.flush()
    found = counts(cache)
    assert (found["hits_memory"], found["hits_redis"], found["misses"], found["hit_rate"]) == (2, 1, 1, 0.75)
    assert (found["calls"], found["calls_saved"]) == (1, 3)
    assert (found["redis_entries"], found["redis_bytes"]) == (1, broker.redis.strlen(key))


def test_a_value_is_found_until_its_time_is_over_in_both_tiers(make_cache: Make, broker: Broker) -> None:
    now = [1000.0]
    cache, other = make_cache(), make_cache()
    process = cache._process()
    process.tiers = process.tiers._replace(memory=Memory(10, 10_000, lambda: now[0]))
    make, key = Maker(), cache.key(KIND, "who", "what")

    def how(of: Cache) -> str:
        return of.fetch(KIND, key, make.one(key)).how

    assert how(cache) == "misses"
    now[0] += 99.9
    assert how(cache) == "hits_memory"
    now[0] += 0.1
    assert how(cache) == "hits_redis"
    assert 0 < broker.redis.pttl(key) <= 100_000
    broker.redis.pexpire(key, 0)  # as if its time had passed
    now[0] += 100
    assert [how(cache), how(other)] == ["misses", "hits_redis"]
    assert len(make.asked) == 2


def test_what_is_too_large_is_kept_nowhere(make_cache: Make) -> None:
    make, cache = Maker(), make_cache(value_bytes=5)
    hows = [cache.fetch(KIND, "large", make.one("large")).how for _ in range(2)]
    assert hows == ["misses", "misses"]


def test_an_unknown_kind_is_refused_with_the_nearest(cache: Cache) -> None:
    with pytest.raises(CacheError, match="did you mean model"):
        cache.fetch("modle", "key", lambda: 1)


def test_switched_off_it_asks_each_time(make_cache: Make) -> None:
    make, cache = Maker(), make_cache(enabled=False, url="redis://127.0.0.1:1")
    assert [cache.fetch(KIND, "k", make.one("k")).is_new for _ in range(2)] == [True, True]


def test_what_another_version_wrote_is_computed_again(cache: Cache, other: Cache, broker: Broker) -> None:
    broker.redis.set("k", b"\xff no JSON", px=10_000)
    assert cache.fetch(KIND, "k", Maker().one("k")).how == "misses"
    assert other.fetch(KIND, "k", Maker().one("k")).how == "hits_redis"


@pytest.mark.parametrize("name", ["ai:generation:model", "k:flight"])
def test_what_is_no_token_fails_nobody(cache: Cache, broker: Broker, name: str) -> None:
    broker.redis.set(name, b"\xff no token", px=1000)
    assert cache.fetch(KIND, "k", Maker().one("k")).value == "value of k"


def test_a_hundred_equal_questions_are_one_call(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    make = Maker()
    make.may.clear()
    asked = [pool.submit(each.fetch, KIND, "k", make.one("k")) for each in (cache, other) for _ in range(50)]
    eventually(lambda: make.asked)
    make.may.set()
    assert {each.result(30).value for each in asked} == {"value of k"}
    assert len(make.asked) == 1
    assert sum(each.result().is_new for each in asked) == 1


def test_a_leader_outlives_its_lease(cache: Cache, other: Cache, pool: ThreadPoolExecutor, broker: Broker) -> None:
    make = Maker()
    make.may.clear()
    first = pool.submit(cache.fetch, KIND, "k", make.one("k"))
    eventually(lambda: make.asked)
    second = pool.submit(other.fetch, KIND, "k", make.one("k"))
    began = broker.redis.time()[0]

    def held_for_longer_than_a_lease() -> bool:
        assert broker.redis.exists("k:flight"), "it was not renewed"
        return bool(broker.redis.time()[0] - began > 2)

    eventually(held_for_longer_than_a_lease)
    make.may.set()
    assert first.result(30).value == second.result(30).value
    assert len(make.asked) == 1


def test_an_error_is_nobody_else_s_value(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    failing, working = Maker(fails=RuntimeError("away")), Maker()
    failing.may.clear()
    first = pool.submit(cache.fetch, KIND, "k", failing.one("k"))
    eventually(lambda: failing.asked)
    followers = [pool.submit(each.fetch, KIND, "k", working.one("k")) for each in (cache, other) for _ in range(5)]
    failing.may.set()
    with pytest.raises(RuntimeError, match="away"):
        first.result(30)
    assert {each.result(30).value for each in followers} == {"value of k"}
    assert len(working.asked) == 1


def test_an_error_of_the_question_is_got_by_each(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    make = Maker(fails=ValueError("wrong"))
    make.may.clear()
    asked = [pool.submit(each.fetch, KIND, "k", make.one("k")) for each in (cache, other) for _ in range(3)]
    eventually(lambda: make.asked)
    make.may.set()
    assert all(isinstance(each.exception(30), ValueError) for each in asked)
    assert len(make.asked) == 6
    assert cache.fetch(KIND, "k", Maker().one("k")).is_new


def test_who_waits_can_be_told_to_stop(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    make, over = Maker(), threading.Event()
    make.may.clear()
    pool.submit(cache.fetch, KIND, "k", make.one("k"))
    eventually(lambda: make.asked)
    waiting = [pool.submit(each.fetch, KIND, "k", make.one("k"), over=over) for each in (cache, other)]
    over.set()
    assert all(isinstance(each.exception(30), GivenUp) for each in waiting)
    make.may.set()
    assert len(make.asked) == 1


LEADER = """
import sys, time
from cache.settings import Settings
from cache.store import Cache

def make():
    print("computing", flush=True)
    time.sleep(600)

Cache(Settings(url=sys.argv[1], ttl_s={"model": 100.0}, lease_s=1.0, tick_s=0.1)).fetch("model", "k", make)
"""


def test_a_killed_leader_is_followed_by_another(settings: Settings, cache: Cache) -> None:
    program = [sys.executable, "-c", LEADER, settings.url]
    with subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"computing\n"
        with ThreadPoolExecutor(1) as pool:
            follower = pool.submit(cache.fetch, KIND, "k", Maker().one("k"))
            one.send_signal(signal.SIGKILL)
            assert follower.result(30).how == "misses"


def test_a_batch_costs_one_call_for_what_is_missing(cache: Cache, other: Cache) -> None:
    make = Maker()
    cache.fetch_many(KIND, ["a", "b"], make)
    found = other.fetch_many(KIND, ["c", "a", "c", "b", "d"], make)
    assert [each.value for each in found] == [f"value of {key}" for key in "cacbd"]
    assert make.asked == [["a", "b"], ["c", "d"]]


def test_a_batch_is_one_round_trip(make_cache: Make, broker: Broker) -> None:
    cache = make_cache(tick_s=600)
    keys = [f"k{number}" for number in range(64)]
    cache.fetch_many(KIND, keys[:1], Maker())  # connected, the scripts are known
    before = broker.redis.info("commandstats")
    cache.fetch_many(KIND, keys[1:], Maker())
    after = broker.redis.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"] == 2  # claim and land
    assert make_cache().get_many(KIND, keys) == cache.get_many(KIND, keys)
    assert broker.redis.info("commandstats")["cmdstat_mget"]["calls"] >= 1


@pytest.mark.parametrize("same_process", [True, False])
def test_batches_that_overlap_do_not_wait_for_each_other(
    cache: Cache, other: Cache, pool: ThreadPoolExecutor, same_process: bool
) -> None:
    make, letters = Maker(), "abcdefghijklmnop"
    caches = (cache, cache if same_process else other)
    asked = []
    for turn in range(20):
        wanted = [f"{turn // 2}{letter}" for letter in (letters if turn % 2 else reversed(letters))]
        batches = (wanted, wanted[::-1], wanted[4:12], wanted[:6])
        asked += [(batch, pool.submit(caches[n % 2].fetch_many, KIND, batch, make)) for n, batch in enumerate(batches)]
    for batch, each in asked:
        assert [found.value for found in each.result(30)] == [f"value of {key}" for key in batch]
    computed = [key for keys in make.asked for key in keys]
    assert sorted(computed) == sorted(set(computed))


def test_two_batches_that_each_have_what_the_other_needs(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    left, right = Maker(), Maker()
    left.may.clear()
    right.may.clear()
    first = pool.submit(cache.fetch_many, KIND, ["a", "b"], left)
    second = pool.submit(other.fetch_many, KIND, ["c", "d"], right)
    eventually(lambda: left.asked and right.asked)
    crossing = [
        pool.submit(cache.fetch_many, KIND, ["a", "c", "x"], left),
        pool.submit(other.fetch_many, KIND, ["d", "b", "x"], right),
    ]
    left.may.set()
    right.may.set()
    for each in (first, second, *crossing):
        assert each.result(30)
    assert len([key for keys in left.asked + right.asked for key in keys]) == 5


def test_after_its_bound_a_batch_computes_for_itself(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    stuck, make = Maker(), Maker()
    stuck.may.clear()
    leader = pool.submit(cache.fetch_many, KIND, ["a"], stuck)
    eventually(lambda: stuck.asked)
    for each in (other, cache):  # the first of them writes what it computed
        found = each.fetch_many(KIND, ["a", "b"], make, wait_s=0.1)
        assert [one.value for one in found] == ["value of a", "value of b"]
    assert not leader.done(), "they waited for the leader's end"
    stuck.may.set()


def test_a_batch_that_fails_gives_back_all_that_it_claimed(cache: Cache, other: Cache, broker: Broker) -> None:
    with pytest.raises(RuntimeError):
        cache.fetch_many(KIND, ["a", "b"], Maker(fails=RuntimeError("away")))
    assert not broker.redis.exists("a:flight", "b:flight")
    for each in (cache, other):
        assert each.fetch_many(KIND, ["b", "a"], Maker(), wait_s=0)


def test_clearing_reaches_the_memory_of_others(cache: Cache, other: Cache) -> None:
    for each in (cache, other):
        each.fetch(KIND, each.key(KIND, "who", "what"), lambda: 1)
        each.fetch("other", each.key("other", "who", "what"), lambda: 1)
    steps: list[tuple[int, int]] = []
    assert cache.clear(KIND, lambda seen, total: steps.append((seen, total))) == 1
    assert steps[-1][0] == steps[-1][1]
    key = other.key(KIND, "who", "what")
    eventually(lambda: other.get_many(KIND, [key]) == [None])
    assert other.get_many("other", [other.key("other", "who", "what")]) == [b"1"]


def test_what_is_on_its_way_when_cleared_is_not_kept(cache: Cache, other: Cache, pool: ThreadPoolExecutor) -> None:
    make, key = Maker(), cache.key(KIND, "who", "what")
    make.may.clear()
    asked = pool.submit(cache.fetch, KIND, key, make.one(key))
    eventually(lambda: make.asked)
    other.clear(KIND)
    cache.flush()
    make.may.set()
    assert asked.result(30).value == f"value of {key}"
    for each in (cache, other):
        assert each.get_many(KIND, [key]) == [None]


def test_only_who_holds_a_flight_in_this_generation_lands_its_value(cache: Cache, broker: Broker) -> None:
    remote = cache.remote()
    assert remote.claim(KIND, ["k"], "first").mine == ["k"]
    broker.redis.delete("k:flight")  # as if its lease had ended
    assert remote.claim(KIND, ["k"], "second").mine == ["k"]
    assert remote.land(KIND, "first", "", {"k": b"1"}, 100) == 0
    assert (broker.redis.get("k"), broker.redis.get("k:flight")) == (None, b"second")
    assert remote.land(KIND, "second", "", {"k": b"2"}, 100) == 1
    assert remote.claim(KIND, ["other"], "third").generation == ""
    remote.begin(KIND, "the next")
    assert remote.land(KIND, "third", "", {"other": b"3"}, 100) == 0
    assert not broker.redis.exists("other", "other:flight")


def test_a_version_whose_end_redis_has_not_heard_is_not_read(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "AGAIN_S", 600.0)
    remote, known = cache.remote(), versions.Versions(cache.remote, 0)
    before = known.read(["a table"])
    remote._fail(ConnectionError("cut"))
    known.end(["a table"])
    remote.probe()  # it is back, and has yet to be told
    with pytest.raises(Away, match="a table is still to be told"):
        known.read(["a table"])
    known.end([])  # an older debt goes with the next end
    assert known.owed == ["a table"], "only who owes it says that it is paid"
    assert versions.Versions(cache.remote, 0).read(["a table"]) != before


def test_counts_wait_for_a_redis_that_is_away(make_cache: Make) -> None:
    cache = make_cache(tick_s=600)
    memory, remote, _, tally = cache._process().tiers
    cache.fetch(KIND, "k", lambda: 1)
    remote._fail(ConnectionError("cut"))
    with pytest.raises(Away):
        tally.flush(remote, memory)
    remote.probe()
    assert counts(cache)["misses"] == 1


def test_a_process_that_is_silent_is_not_counted(make_cache: Make, broker: Broker) -> None:
    cache = make_cache(tick_s=600)
    cache.flush()
    name = keys.memories()
    broker.redis.hset(name, "gone:1", json.dumps([broker.redis.time()[0] - 60, 7, 7]))
    report = cache.report({})
    assert (report.processes, report.memory_entries) == (1, 0)
    assert not broker.redis.hexists(name, "gone:1")


def test_many_keys_are_cleared_in_steps(cache: Cache, broker: Broker) -> None:
    broker.redis.config_resetstat()
    cache.set_many(KIND, {cache.key(KIND, "who", number): b"1" for number in range(3000)})
    assert cache.clear(KIND) == 3000
    said = broker.redis.info("commandstats")
    assert said["cmdstat_unlink"]["calls"] > 1
    assert "cmdstat_keys" not in said


@contextmanager
def silent_server() -> Iterator[tuple[str, list[Any]]]:
    """Serve nobody: connections are taken and never answered."""
    lines: list[Any] = []
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    lines.append(listener.accept())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"redis://{LOOPBACK}:{listener.getsockname()[1]}/0", lines
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for line, _ in lines:
                line.close()


def test_a_redis_that_is_silent_is_asked_once(make_cache: Make, caplog: pytest.LogCaptureFixture) -> None:
    make = Maker()
    with silent_server() as (url, lines):
        cache = make_cache(url=url, timeout_s=0.1, tick_s=600)
        for key in ("a", "b", "a"):
            assert cache.fetch(KIND, key, make.one(key)).value == f"value of {key}"
        assert len(lines) == 1
    assert make.asked == [["a"], ["b"]]
    assert len([each for each in caplog.records if each.levelno == logging.WARNING and "away" in each.message]) == 1


def test_a_redis_that_comes_back_is_used_again(make_cache: Make) -> None:
    cache = make_cache()
    remote = cache._process().tiers.remote
    cache.fetch(KIND, "a", lambda: 1)
    remote._fail(ConnectionError("cut"))
    assert cache.fetch(KIND, "b", lambda: 1).is_new
    eventually(lambda: not remote.is_away)
    cache.fetch(KIND, "c", lambda: 1)
    assert make_cache().get_many(KIND, ["a", "b", "c"]) == [b"1", None, b"1"]


def test_a_full_redis_is_read_and_nothing_fails(make_cache: Make, broker: Broker, cache: Cache) -> None:
    cache.fetch(KIND, "known", lambda: "x")
    fresh, make = make_cache(tick_s=600), Maker()
    try:
        broker.redis.config_set("maxmemory", 1)
        found = fresh.fetch_many(KIND, ["known", "new"], lambda keys: [f"made {key}" for key in keys])
        assert [each.value for each in found] == ["x", "made new"]
        assert fresh.fetch(KIND, "newer", make.one("newer")).is_new
        assert not fresh.fetch(KIND, "newer", make.one("newer")).is_new
    finally:
        broker.redis.config_set("maxmemory", 0)


def test_a_broker_that_fills_is_left_its_memory(make_cache: Make, broker: Broker) -> None:
    cache = make_cache(tick_s=600)
    try:
        broker.redis.config_set("maxmemory", int(broker.redis.info("memory")["used_memory"] * 1.2))
        cache.flush()
        cache.fetch(KIND, "k", lambda: 1)
    finally:
        broker.redis.config_set("maxmemory", 0)
    assert broker.redis.get("k") is None


def test_a_leader_that_finds_redis_full_at_its_end_keeps_nobody_waiting(
    make_cache: Make, broker: Broker, pool: ThreadPoolExecutor
) -> None:
    make, other = Maker(), make_cache(lease_s=600)
    leader = make_cache(lease_s=600, tick_s=600)
    make.may.clear()
    first = pool.submit(leader.fetch, KIND, "k", make.one("k"))
    eventually(lambda: make.asked)
    second = pool.submit(other.fetch, KIND, "k", make.one("k"))
    try:
        broker.redis.config_set("maxmemory", 1)
        make.may.set()
        assert first.result(30).value == second.result(30).value
    finally:
        broker.redis.config_set("maxmemory", 0)


FORK = """
import os, sys
from cache.settings import Settings
from cache.store import Cache

cache = Cache(Settings(url=sys.argv[1], ttl_s={"model": 100.0}))
cache.fetch("model", "k", lambda: 1)
child = os.fork()
print(os.getpid(), cache.fetch("model", "k", lambda: 2).how, flush=True)
if child:
    os.waitpid(child, 0)
    assert cache.fetch("model", "k", lambda: 2).value == 1
"""


def test_a_child_has_connections_of_its_own(settings: Settings) -> None:
    program = [sys.executable, "-W", "ignore", "-c", FORK, settings.url]
    said = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    hows = dict(line.split() for line in said.splitlines())
    assert sorted(hows.values()) == ["hits_memory", "hits_redis"]


def test_a_function_is_asked_once_for_equal_arguments(cache: Cache) -> None:
    calls = []

    @cache.cached(kind=KIND)
    def plain(text: str, size: float = 1) -> dict[str, Any]:
        calls.append(text)
        return {"text": text, "size": size}

    assert plain("a") == plain("a", 1.0) == plain(size=1, text="a") == {"text": "a", "size": 1}
    assert plain("a", 2)["size"] == 2
    assert calls == ["a", "a"]

    @cache.cached(kind=KIND, key=lambda text: text.strip())
    def keyed(text: str) -> str:
        calls.append(text)
        return text

    assert keyed(" b ") == keyed("b") == " b "

    @cache.cached(kind=KIND)
    def odd(value: object) -> int:
        calls.append("odd")
        return 1

    assert [odd(object()), odd(object())] == [1, 1]
    assert calls == ["a", "a", " b ", "odd", "odd"]
