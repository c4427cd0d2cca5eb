"""Every key that is not permanent ends when its setting says.

When a key ends is asked of Redis and compared with Redis' own clock before and after the step that set it, so a slow
machine changes nothing. The tolerance is 10 ms to each side, for the milliseconds that Redis cuts off.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache import keys as cache_keys
from cache import remote as cache_remote
from cache import statistics as cache_statistics
from cache.memory import Memory
from cache.settings import Settings
from cache.store import Cache
from cache.versions import Versions
from db.query_cache import kinds as query_kinds
from db.query_cache import results as query_cache
from db.query_cache import table_versions
from dev.faulty.process import FaultyProvider
from tasks import enqueue
from tasks.producer.bulk_group import BulkGroup, Piece
from tasks.producer.enqueue import Options
from tasks.producer.job import Job
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.embedding import Embedding
from tasks.producer.kinds.payload import check
from tasks.provider import cached
from tasks.stream_writer import Writer
from tests.eventually import eventually
from tests.integration import probes
from tests.integration.test_breaker import NAME, failing
from tests.integration.test_deadletters import age, die
from tests.integration.test_gates import LEASE_S, PER_MINUTE, jobs, put, rules
from tests.integration.test_records import fetch, submission
from tests.workers import Workers
from worker.app import app
from worker.inspection import dead_letters
from worker.limits.gates import Charge, Meter
from worker.policy import policy
from worker.policy.priority import Priority
from worker.records.broker import Broker, Delivery
from worker.records.keys import PERMANENT, STEMS

ROOT = Path(__file__).resolve().parents[2]
#: Each so far from the others that none is taken for another.
RETENTION = {"record_s": 11_111, "result_s": 22_222, "idempotency_s": 33_333, "dead_s": 44_444, "stream_s": 55_555}
CACHE = {"analysis_ttl_s": 61_111, "embedding_ttl_s": 62_222, "model_ttl_s": 63_333, "memory_ttl_s": 64_444}
RULES = rules(requests=PER_MINUTE)
MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86400.0


@pytest.fixture
def queues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a queues.yaml in which no two lifetimes are the same, for this process and for workers."""
    settings = yaml.safe_load((ROOT / "queues.yaml").read_text(encoding="utf-8"))
    settings["retention"] = RETENTION
    settings["cache"] |= CACHE
    path = tmp_path / "queues.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.setenv("FOREBAY_QUEUES", str(path))
    policy._of_process.cache_clear()
    yield path
    policy._of_process.cache_clear()


def clock(broker: Broker) -> float:
    seconds, microseconds = broker.redis.time()
    return float(seconds) + float(microseconds) / 1e6


@contextmanager
def ends(broker: Broker, lifetime_s: float, *names: str) -> Iterator[None]:
    """Hold the keys to ending so long after the block set them."""
    before = clock(broker)
    yield
    after = clock(broker)
    for name in names:
        at = broker.redis.pexpiretime(name) / 1000
        assert at > 0, f"{name} has no lifetime, or is not there"
        assert before + lifetime_s - 0.01 <= at <= after + lifetime_s + 0.01, f"{name} lives for {at - before:.2f} s"


def started(broker: Broker, job_id: str = "a") -> Delivery:
    broker.accept(submission(job_id))
    (fetched,) = fetch(broker)
    assert broker.start(fetched.delivery) == "started"
    return fetched.delivery


# Broker: by stem, the step that sets the lifetime, and the lifetime.

Step = tuple[float, list[str], Callable[[], object]]


def of_done(broker: Broker) -> Step:
    delivery = started(broker)
    return RETENTION["record_s"], [broker.keys.job("a")], lambda: broker.done(delivery)


def of_done_batch(broker: Broker) -> Step:
    several = [started(broker, name) for name in "ab"]
    return RETENTION["record_s"], [broker.keys.job(each.id) for each in several], lambda: broker.done_batch(several)


def of_drop(broker: Broker) -> Step:
    delivery = started(broker)
    return RETENTION["record_s"], [broker.keys.job("a")], lambda: broker.drop(delivery, "cancelled")


def of_purge(broker: Broker) -> Step:
    die(broker)
    return RETENTION["record_s"], [broker.keys.job("a")], lambda: dead_letters.purge(broker, "a")


def of_expire(broker: Broker) -> Step:
    die(broker)
    age(broker, "a", 1)
    return RETENTION["record_s"], [broker.keys.job("a")], lambda: dead_letters.expire(broker, 1000)


def of_once(broker: Broker) -> Step:
    name = broker.keys.once("order 7")
    return RETENTION["idempotency_s"], [name], lambda: enqueue.embedding("text", idempotency_key="order 7")


def of_plain_once(broker: Broker) -> Step:
    return (
        RETENTION["idempotency_s"],
        [broker.keys.once("k")],
        lambda: broker.accept(submission("a", idempotency_key="k")),
    )


def of_reserved(broker: Broker) -> Step:
    broker.accept(submission("suspect"))
    for _ in range(2):
        (fetched,) = fetch(broker, owner="doomed", lease_s=0)
        broker.start(fetched.delivery)
        broker.sweep()
    broker.accept(submission("other"))
    fetch(broker, owner="busy")
    broker.redis.zadd(broker.keys.alone("chat"), {"suspect": 0})
    return 30, [broker.keys.reserved("chat")], lambda: fetch(broker, owner="busy")


def of_bell(broker: Broker) -> Step:
    return MINUTE_S, [broker.keys.bell("chat")], lambda: broker.accept(submission("a"))


def of_owner(broker: Broker) -> Step:
    return HOUR_S, [broker.keys.owner("o")], lambda: broker.renew("o", LEASE_S, {"node": "n"})


def of_mail(broker: Broker) -> Step:
    started(broker)
    return HOUR_S, [broker.keys.mail("a worker")], lambda: broker.cancel("a")


def of_charge(broker: Broker) -> Step:
    put(broker, "a")
    return 2 * DAY_S, [broker.keys.gate("g")], lambda: jobs(broker, RULES)


def of_shut(broker: Broker) -> Step:
    queue = policy.load().queue("chat")
    meter = Meter(broker, queue, Priority.HIGH.step, Charge(1, 1))
    return 2 * DAY_S, [broker.keys.gate(str(queue.gate))], lambda: meter.busy(7.0)


def of_breaker(broker: Broker) -> Step:
    return HOUR_S, [broker.keys.breaker(NAME), STEMS["breakers"][0]], lambda: failing(broker)


def of_refused(broker: Broker) -> Step:
    told = json.dumps({"queues": {"chat": {"max_in_flight": 1}}, "gates": {}})
    put(broker, "a")
    put(broker, "b")
    jobs(broker, told, 1, "first")
    return MINUTE_S, [STEMS["refused"][0] + "chat"], lambda: jobs(broker, told, 1, "second")


def of_credit(broker: Broker) -> Step:
    told = json.dumps({"queues": {"chat": {"shares": {"9": 0.05}}}, "gates": {}})
    put(broker, "urgent", Priority.CRITICAL)
    put(broker, "patient", Priority.BATCH)
    return DAY_S, [STEMS["credit"][0] + "chat"], lambda: jobs(broker, told, 1)


def of_stream(broker: Broker) -> Step:
    delivery = started(broker)
    writer = Writer(broker, delivery)
    writer.text("the first piece")
    broker.redis.persist(broker.keys.stream("a"))
    return RETENTION["stream_s"], [broker.keys.stream("a")], lambda: writer.whole({})


def of_group(broker: Broker) -> Step:
    payload = check(BulkInsert, table="unicode_characters", columns=["codepoint"], rows=[[1]])
    piece = Piece(0, payload, payload.to_json().encode(), "line 1")
    return RETENTION["dead_s"], [broker.keys.group("load")], lambda: BulkGroup("load").send([piece], Options(), 1)


STEPS: dict[str, list[Callable[[Broker], Step]]] = {
    "job": [of_done, of_done_batch, of_drop, of_purge, of_expire],
    "once": [of_once, of_plain_once],
    "reserved": [of_reserved],
    "bell": [of_bell],
    "owner": [of_owner],
    "mail": [of_mail],
    "gate": [of_charge, of_shut],
    "breaker": [of_breaker],
    "breakers": [of_breaker],
    "refused": [of_refused],
    "credit": [of_credit],
    "stream": [of_stream],
    "group": [of_group],
    "pace": [],  # its own test: its name holds the time
}


def test_every_key_of_the_broker_is_permanent_or_held_to_its_lifetime() -> None:
    permanent = {stem for stem, (name, _) in STEMS.items() if name in PERMANENT}
    assert STEPS.keys() | permanent == STEMS.keys()
    assert not STEPS.keys() & permanent


@pytest.mark.parametrize("make", dict.fromkeys(each for steps in STEPS.values() for each in steps))
def test_a_key_of_the_broker_ends_when_it_should(broker: Broker, queues: Path, make: Callable[[Broker], Step]) -> None:
    lifetime_s, names, step = make(broker)
    with ends(broker, lifetime_s, *names):
        step()
    for name in broker.redis.scan_iter("forebay:job:*"):
        broker.redis.delete(name)  # of jobs that the step left open


def test_the_rate_at_which_jobs_end_is_known_for_two_minutes(broker: Broker) -> None:
    delivery = started(broker)
    with ends(broker, 120):
        before = clock(broker)
        broker.done(delivery)
        (name,) = broker.redis.scan_iter(f"{STEMS['pace'][0]}*")
    assert before + 119.9 <= broker.redis.pexpiretime(name) / 1000 <= clock(broker) + 120.1


def test_a_dead_letter_has_no_lifetime_until_a_worker_finds_it_past_its_retention(
    workers: Workers, broker: Broker, queues: Path
) -> None:
    for job_id, older_s in (("kept", -600), ("over", 600)):
        die(broker, job_id)
        age(broker, job_id, (RETENTION["dead_s"] + older_s) / DAY_S)
        assert broker.redis.ttl(broker.keys.job(job_id)) == -1
    workers.probes("threads", 1)
    eventually(lambda: broker.redis.zcard(broker.keys.dead()) == 1)
    assert broker.redis.zrange(broker.keys.dead(), 0, -1) == [b"kept"]
    assert "purged" in Job("over").record()


def test_results_and_records_of_real_workers_end_when_they_should(
    workers: Workers, broker: Broker, queues: Path, faulty: FaultyProvider
) -> None:
    workers.probes("threads", 1)
    workers.start("embedding", OPENAI_BASE_URL=faulty.base_url, OPENAI_EMBEDDING_MODEL="a-model")
    before = clock(broker)
    single = Job(probes.mark.apply_async(("it ran",)).id)
    batch = enqueue.many([Embedding(text=text) for text in ("a", "b")])
    for job in (single, *batch):
        eventually(lambda job=job: job.status == "SUCCESS")  # type: ignore[misc]
    elapsed_s = clock(broker) - before
    for job in (single, *batch):
        for client, name, lifetime_s in (
            (app.backend.client, app.backend.get_key_for_task(job.id), RETENTION["result_s"]),
            (broker.redis, broker.keys.job(job.id), RETENTION["record_s"]),
        ):
            lives_s = client.pexpiretime(name) / 1000 - before
            assert lifetime_s - 0.01 <= lives_s <= lifetime_s + elapsed_s + 0.01, name


# Cache.


@pytest.fixture
def settings(broker: Broker) -> Settings:
    url = os.environ["CELERY_BROKER_URL"]
    return Settings(url=url, ttl_s={"model": 71_111.0, "other": 72_222.0}, lease_s=77.0, tick_s=600, memory_ttl_s=66.0)


@pytest.fixture
def cache(settings: Settings) -> Iterator[Cache]:
    made = Cache(settings)
    yield made
    made.close()


@pytest.mark.parametrize(("kind", "ttl_s"), [("model", 71_111.0), ("other", 72_222.0)])
def test_a_cached_value_ends_when_its_kind_s_does_however_it_was_kept(
    cache: Cache, broker: Broker, kind: str, ttl_s: float
) -> None:
    names = [cache.key(kind, "who", number) for number in range(4)]
    with ends(broker, ttl_s, names[0]):
        cache.fetch(kind, names[0], lambda: 1)
    with ends(broker, ttl_s, names[1]):
        cache.set_many(kind, {names[1]: b"1"})
    broker.redis.set(names[2], b"\xff no JSON", px=5000)  # it cannot be read, and is computed in no flight
    with ends(broker, ttl_s, *names[2:]):
        cache.fetch_many(kind, names[2:], lambda missing: [1 for _ in missing])


def test_a_flight_lives_for_its_lease_and_its_end_is_told_for_half_a_minute(cache: Cache, broker: Broker) -> None:
    remote = cache.remote()
    with ends(broker, 77.0, "k" + cache_keys.FLIGHT):
        assert remote.claim("model", ["k"], "mine").mine == ["k"]
    broker.redis.pexpire("k" + cache_keys.FLIGHT, 1_000_000)
    with ends(broker, 77.0, "k" + cache_keys.FLIGHT):
        assert remote.renew("mine", ["k"]) == 1
    with ends(broker, cache_remote.MARK_S, cache_keys.landed("mine")):
        remote.land("model", "mine", "", {"k": b"1"}, 100)
    remote.claim("model", ["other"], "second")
    with ends(broker, cache_remote.MARK_S, cache_keys.landed("second")):
        remote.leave("second", ["other"], "retry")


def test_what_values_depend_on_outlives_them(cache: Cache, broker: Broker) -> None:
    versions = Versions(cache.remote, 0)
    longest_s = cache_remote.GENERATION_S
    with ends(broker, longest_s, cache_keys.generation("model")):
        cache.clear("model")
    with ends(broker, longest_s, cache_keys.version("a table")):
        versions.read(["a table"])
    with ends(broker, longest_s, cache_keys.version("a mark")):
        versions.end([], ["a mark"])
    assert longest_s > query_kinds.LONGEST_S >= max(query_kinds.DEFAULTS_S.values())


def test_statistics_end_when_they_should(cache: Cache, broker: Broker) -> None:
    cache.fetch("model", "k", lambda: 1)
    with ends(broker, cache_statistics.KEPT_S, cache_keys.statistics()):
        cache.flush()
    with ends(broker, HOUR_S, cache_keys.memories()):
        cache.flush()


def test_memory_keeps_a_value_no_longer_than_redis_or_its_own_limit(settings: Settings, broker: Broker) -> None:
    now = [1000.0]
    for left_s, lives_s in ((40.0, 40.0), (71_111.0, 66.0)):
        cache = Cache(settings)
        process = cache._process()
        memory = Memory(10, 10_000, lambda: now[0])
        process.tiers = process.tiers._replace(memory=memory)
        name = cache.key("model", "who", left_s)
        broker.redis.set(name, b"1", px=int(left_s * 1000))
        began = now[0]
        assert cache.fetch("model", name, lambda: 2).how == "hits_redis"
        now[0] = began + lives_s - 5  # what the fetch itself took is off the time that was left in Redis
        assert cache.fetch("model", name, lambda: 2).how == "hits_memory"
        now[0] = began + lives_s
        assert cache.fetch("model", name, lambda: 2).how == "hits_redis"
        cache.close()


def test_answers_of_models_end_as_queues_yaml_says(
    broker: Broker, queues: Path, faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setenv("CACHE_ENABLED", "true")
    policy._of_process.cache_clear()
    cached.results.cache_clear()

    @cached.cached()  # type: ignore[untyped-decorator]
    def own(text: str) -> str:
        return text

    steps: dict[str, Callable[[], Any]] = {
        "analysis": lambda: cached.chat([{"role": "user", "content": "hello"}], timeout_s=30, temperature=0),
        "embedding": lambda: cached.embed(["a text"], timeout_s=30),
        "model": lambda: own("a text"),
    }
    try:
        assert steps.keys() == cached.results().settings.ttl_s.keys()
        assert cached.results().settings.memory_ttl_s == CACHE["memory_ttl_s"]
        for kind, step in steps.items():
            before = clock(broker)
            step()
            (name,) = broker.redis.scan_iter(cache_keys.pattern(kind))
            lives_s = broker.redis.pexpiretime(name) / 1000 - before
            assert 0 <= lives_s - CACHE[f"{kind}_ttl_s"] + 0.01 <= clock(broker) - before + 0.02, kind
    finally:
        cached.results().close()
        cached.results.cache_clear()


def test_results_of_queries_end_as_their_variables_say(
    broker: Broker, database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ttl_s = {kind: 81_000 + 111 * number for number, kind in enumerate(query_kinds.DEFAULTS_S)}
    for kind, lifetime_s in ttl_s.items():
        monkeypatch.setenv(f"CACHE_{kind.upper()}_TTL", str(lifetime_s))
    monkeypatch.setenv("QUERY_CACHE_ENABLED", "true")
    table_versions.close()
    try:
        for kind, lifetime_s in ttl_s.items():
            before = clock(broker)
            query_cache.through(kind, f"test:{kind}:all:values", lambda: 1, tables=("conversations",), type_=int)
            (name,) = broker.redis.scan_iter(cache_keys.pattern(kind, "query:"))
            lives_s = broker.redis.pexpiretime(name) / 1000 - before
            assert 0 <= lives_s - lifetime_s + 0.01 <= clock(broker) - before + 0.02, kind
    finally:
        table_versions.close()
