"""queues.yaml: what it may hold, what the environment changes, and that every fault is named at once."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.errors import ConfigurationError
from worker.policy.policy import DEFAULT_FILE, Policy, effective, load
from worker.policy.queue import ONLY_FOR
from worker.policy.queue_file import LARGEST_BYTES, MOST_FORBIDDEN

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[str | bytes], Path]

#: The least file. Lines of the queue ``chat`` go on from line 5.
PLAIN = """\
queues:
  chat:
    task: tasks.chat
    pool: threads
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: str | bytes) -> Path:
        path = tmp_path / "queues.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def faults(path: Path, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the faults without the path of the file."""
    with pytest.raises(ConfigurationError) as error:
        load(path, environ or {})
    assert str(error.value).splitlines() == error.value.faults, "one line each"
    return [fault.removeprefix(f"{path}:").strip() for fault in error.value.faults]


# The file of the project.


def test_the_projects_own_file_holds_the_three_lanes() -> None:
    policy = load(DEFAULT_FILE, {})
    assert list(policy.queues) == ["chat", "embedding", "bulk_insert"]
    assert {name: queue.pool for name, queue in policy.queues.items()} == {
        "chat": "threads",
        "embedding": "threads",
        "bulk_insert": "prefork",
    }
    assert policy.queue("chat").prefetch_multiplier == 1
    assert policy.queue("embedding").batch is not None
    assert policy.queue("bulk_insert").tables == ("unicode_characters",)
    assert all(queue.name == name for name, queue in policy.queues.items())
    assert policy.queue_of_task("tasks.chat") is policy.queue("chat")
    assert policy.queue_of_task("tasks.none") is None


def test_a_policy_cannot_be_changed() -> None:
    policy = load(DEFAULT_FILE, {})
    with pytest.raises(ValidationError):
        policy.queue("chat").concurrency = 7


def test_an_undeclared_queue_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError) as error:
        load(DEFAULT_FILE, {}).queue("embeding")
    assert "'embeding' is not declared" in str(error.value)
    assert "chat, embedding, bulk_insert; did you mean embedding?" in str(error.value)


# What a file may leave out, and the forms that values may have.


def test_a_queue_needs_a_task_and_a_pool_and_no_more(write: Write) -> None:
    queue = load(write(PLAIN), {}).queue("chat")
    assert (queue.concurrency, queue.prefetch_multiplier, queue.batch, queue.max_length) == (1, 1, None, 0)
    assert queue.max_tasks_per_child is None


def test_prefork_children_are_recycled_unless_told_otherwise(write: Write) -> None:
    def per_child(line: str) -> int | None:
        text = f"queues:\n  bulk:\n    task: tasks.bulk\n    pool: prefork\n{line}"
        return load(write(text), {}).queue("bulk").max_tasks_per_child

    assert per_child("") == 1000
    assert per_child("    max_tasks_per_child: 5\n") == 5
    assert per_child("    max_tasks_per_child: null\n") is None


@pytest.mark.parametrize("given", ["off", "'off'", "0", "'OFF'"])
def test_prefetch_without_a_limit(write: Write, given: str) -> None:
    assert load(write(f"{PLAIN}    prefetch_multiplier: {given}\n"), {}).queue("chat").prefetch_multiplier == 0


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
@pytest.mark.parametrize("key", ONLY_FOR)
def test_a_key_of_another_pool_is_a_fault(write: Write, pool: str, key: str) -> None:
    value = "{max_jobs: 2}" if key == "batch" else "5"
    path = write(f"queues:\n  a:\n    task: tasks.a\n    pool: {pool}\n    {key}: {value}\n")
    if ONLY_FOR[key] == pool:
        load(path, {})
        return
    (fault,) = faults(path)
    assert fault.startswith(f"5: queues.a.{key}: ")
    assert fault.endswith(
        f"applies to pool {ONLY_FOR[key]} only, and this pool is {pool}; leave it out or change the pool"
    )


# Faults, one at a time: (lines added to the queue chat, the line at fault, the key, part of the text).


@pytest.mark.parametrize(
    ("lines", "at", "key", "text"),
    [
        ("concurency: 4", 5, "concurency", "did you mean concurrency?"),
        ("zzz: 4", 5, "zzz", "unknown key; known are answer_tokens, batch, breaker, concurrency"),
        ("name: other", 5, "name", "leave it out; the key is the name"),
        ("concurrency: 0", 5, "concurrency", "0: must be greater than or equal to 1"),
        ("concurrency: 5000", 5, "concurrency", "must be less than or equal to 4096"),
        ("concurrency: many", 5, "concurrency", "'many': must be a whole number"),
        ("concurrency: 1.5", 5, "concurrency", "1.5: must be a whole number"),
        ("concurrency: yes", 5, "concurrency", "True: must be a whole number"),
        ("concurrency: '4'", 5, "concurrency", "'4': must be a whole number, and this is text"),
        ("concurrency: 4.0", 5, "concurrency", "4.0: must be a whole number"),
        ("concurrency:", 5, "concurrency", "None: must be a whole number"),
        ("concurrency: [4]", 5, "concurrency", "[4]: must be a whole number"),
        ("prefetch_multiplier: -1", 5, "prefetch_multiplier", "-1: must be greater than or equal to 0"),
        ("prefetch_multiplier: on", 5, "prefetch_multiplier", "True: must be a whole number"),
        ("max_tasks_per_worker: 0", 5, "max_tasks_per_worker", "must be greater than or equal to 1"),
        ("max_length: -1", 5, "max_length", "must be greater than or equal to 0"),
        ("max_payload_bytes: 1", 5, "max_payload_bytes", "must be greater than or equal to 1024"),
        ("time_limit_s: 0", 5, "time_limit_s", "must be greater than 0"),
        ("time_limit_s: .nan", 5, "time_limit_s", "nan: "),
        ("time_limit_s: .inf", 5, "time_limit_s", "inf: "),
        ("time_limit_s: true", 5, "time_limit_s", "True: must be a number"),
        ("time_limit_s: '30'", 5, "time_limit_s", "'30': must be a number, and this is text"),
        ("time_limit_s: 1e3", 5, "time_limit_s", "'1e3': must be a number, and this is text"),
        ("description: 12", 5, "description", "must be text"),
        ("tables: unicode_characters", 5, "tables", "must be a list"),
        ("tables: [a, 1]", 5, "tables.1", "1: must be text"),
        ("batch: 3", 5, "batch", "must be a mapping"),
        ("batch:\n      max_jobs: 0", 6, "batch.max_jobs", "must be greater than or equal to 1"),
        ("batch:\n      max_wait_s: -1", 6, "batch.max_wait_s", "must be greater than or equal to 0"),
        ("batch:\n      max_job: 4", 6, "batch.max_job", "known are max_jobs, max_rows, max_tokens, max_wait_s; did"),
        ("retry: [1]", 5, "retry", "must be a mapping"),
        ("retry:\n      max_attempts: 0", 6, "retry.max_attempts", "must be greater than or equal to 1"),
        ("retry:\n      jitter: 1.5", 6, "retry.jitter", "must be less than or equal to 1"),
        ("retry:\n      backof_s: 1", 6, "retry.backof_s", "did you mean backoff_s?"),
        (
            "retry:\n      backoff_s: 9\n      backoff_max_s: 8",
            7,
            "retry.backoff_max_s",
            "8: must be at least backoff_s, which is 9",
        ),
        ("retry: {backoff_s: 61}", 5, "retry.backoff_max_s", "60: must be at least backoff_s, which is 61"),
        ("time_limit_s: 2026-02-30", 5, "time_limit_s", "'2026-02-30': day is out of range"),
    ],
)
def test_a_fault_is_named_by_line_key_value_and_what_is_allowed(
    write: Write, lines: str, at: int, key: str, text: str
) -> None:
    (fault,) = faults(write(f"{PLAIN}    {lines}\n"))
    assert fault.startswith(f"{at}: queues.chat.{key}: ")
    assert text in fault


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("queues: 3\n", "1: queues: 3: must be a mapping"),
        ("queues: [chat]\n", "1: queues: ['chat']: must be a mapping"),
        ("queues:\n", "1: queues: None: must be a mapping"),
        ("queues: {}\n", "1: queues: {}: must declare at least one queue"),
        (
            "queues:\n  chat: {task: a, pool: true}\n",
            "2: queues.chat.pool: True: must be 'threads', 'prefork' or 'solo'",
        ),
        ("queues:\n  chat:\n", "2: queues.chat: None: must be a mapping"),
        (
            "queues:\n  chat: {task: a, pool: thread}\n",
            "2: queues.chat.pool: 'thread': must be 'threads', 'prefork' or 'solo'; did you mean threads?",
        ),
        (
            "queues:\n  a: {task: a, pool: solo, concurrency: 4}\n",
            "2: queues.a.concurrency: 4: must be 1 with pool solo, which runs one job at a time",
        ),
        (
            f"{PLAIN}leases: {{}}\n",
            "5: leases: {}: unknown key; known are cache, gates, lease, queues, retention; did you mean lease?",
        ),
        (
            f"{PLAIN}lease: {{duration_s: 8, renew_every_s: 3}}\n",
            "5: lease.renew_every_s: 3: must be at most a third of duration_s (8), or one slow renewal loses the lease",
        ),
        (
            f"{PLAIN}lease: {{duration_s: 2}}\n",
            "5: lease.renew_every_s: 2: must be at most a third of duration_s (2), or one slow renewal loses the lease",
        ),
        (f"{PLAIN}retention:\n  record_s: -1\n", "6: retention.record_s: -1: must be greater than or equal to 1"),
        (f"{PLAIN}retention: {{result_s: 0.5}}\n", "5: retention.result_s: 0.5: must be greater than or equal to 1"),
        (
            "queues:\n  retry: {task: a, pool: solo, jitter: 1}\n",
            "2: queues.retry.jitter: 1: unknown key; known are answer_tokens, batch",
        ),
    ],
)
def test_faults_of_the_other_parts(write: Write, content: str, fault: str) -> None:
    (found,) = faults(write(content))
    assert found.startswith(fault)


@pytest.mark.parametrize("name", ["Chat", "2nd", "_chat", "bulk-insert", "a b", "ü", "a" * 61, "forebay:job"])
def test_a_queue_has_a_plain_name(write: Write, name: str) -> None:
    (fault,) = faults(write(f'queues:\n  "{name}": {{task: tasks.a, pool: threads}}\n'))
    assert fault.startswith(f"2: queues.{name}: {name!r}: must be a queue's name: a-z first")


def test_every_fault_is_reported_at_once(write: Write) -> None:
    path = write(
        """\
lease: {duration_s: 8, renew_every_s: 7}
retentoin: {}
queues:
  chat:
    task: tasks.chat
    pool: threads
    concurrency: 0
    max_tasks_per_child: 4
    max_memory_per_child_mib: 4
    retry: {backoff_s: 100, jitter: 2}
  Embedding:
    pool: thread
  bulk:
    task: tasks.bulk
    pool: prefork
    batch: {max_jobs: 0}
    pool: prefork
"""
    )
    found = faults(path, {"FOREBAY_CHAT_MAX_LENGHT": "5", "FOREBAY_BULK_CONCURRENCY": "x"})
    places = [fault.split(": ")[0] for fault in found]
    lines = ["1", "2", "7", "8", "9", "10", "10", "11", "11", "12", "16", "17"]
    assert sorted(places) == sorted([*lines, "environment", "environment variable FOREBAY_BULK_CONCURRENCY"])


def test_a_key_that_stands_twice_hides_no_fault_of_its_value(write: Write) -> None:
    path = write(f"{PLAIN}    pool: true\n")
    assert faults(path) == [
        f"5: queues.chat.pool: stands here a second time; it is on {path}:4 already",
        "5: queues.chat.pool: True: must be 'threads', 'prefork' or 'solo'",
    ]


def test_a_long_value_is_cut(write: Write) -> None:
    (fault,) = faults(write(f"{PLAIN}    concurrency: {'x' * 1000}\n"))
    assert len(fault) < 200


# Files that are no YAML of ours, or hostile.


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "must be a mapping with the key queues"),
        ("# only a comment\n", "must be a mapping with the key queues"),
        ("- chat\n", "must be a mapping with the key queues"),
        ("chat\n", "must be a mapping with the key queues"),
        ("{}\n", "queues: is required"),
        ("queues:\n\tchat: 1\n", "2: not YAML: "),
        ("queues: {\n", "2: not YAML: "),
        ("queues:\n  a: 'b\n", "3: not YAML: "),
        ("queues: {}\n---\nqueues: {}\n", "2: not YAML: "),
        (f"{PLAIN}  chat:\n    task: a\n", "5: queues.chat: stands here a second time; it is on "),
        (f"{PLAIN}    pool: threads\n", "5: queues.chat.pool: stands here a second time; it is on "),
        ("a: &a [x]\nqueues: *a\n", "2: aliases (*name) are not allowed"),
        ("queues: !!python/name:os.system x\n", "1: tags (!name) are not allowed; write the value alone"),
    ],
)
def test_a_file_that_is_no_policy(write: Write, content: str, fault: str) -> None:
    assert faults(write(content))[0].startswith(fault)


def test_a_bomb_of_aliases_does_not_go_off(write: Write) -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{f'*a{n},' * 9}]\n" for n in range(20))
    found = faults(write(bomb))
    assert found[0] == "2: aliases (*name) are not allowed; repeat what they stand for"
    assert len(found) <= MOST_FORBIDDEN


def test_nothing_in_a_file_is_executed(write: Write, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    faults(write(f"queues: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]\n"))
    assert not mark.exists()


def test_a_file_has_at_most_one_mebibyte(write: Write) -> None:
    padded = PLAIN + "#" * (LARGEST_BYTES - len(PLAIN))
    load(write(padded), {})
    (fault,) = faults(write(padded + "#"))
    assert fault == f"has {LARGEST_BYTES + 1} bytes; at most {LARGEST_BYTES} are read"


def test_a_missing_file_and_a_folder_say_what_to_set(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        (fault,) = faults(path)
        assert "cannot be read" in fault
        assert "FOREBAY_QUEUES" in fault


# The environment.


def test_the_environment_wins_over_the_file() -> None:
    policy = load(
        DEFAULT_FILE,
        {
            "FOREBAY_CHAT_CONCURRENCY": "8",
            "FOREBAY_CHAT_RETRY_MAX_ATTEMPTS": " 9 ",
            "FOREBAY_EMBEDDING_BATCH_MAX_JOBS": "3",
            "FOREBAY_EMBEDDING_BATCH_MAX_WAIT_S": "0.5",
            "FOREBAY_LEASE_DURATION_S": "30",
            "FOREBAY_RETENTION_RESULT_S": "60",
            "FOREBAY_BULK_INSERT_MAX_TASKS_PER_CHILD": "7",
        },
    )
    chat, embedding = policy.queue("chat"), policy.queue("embedding")
    assert (chat.concurrency, chat.retry.max_attempts) == (8, 9)
    assert embedding.batch is not None
    assert (embedding.batch.max_jobs, embedding.batch.max_wait_s) == (3, 0.5)
    assert (policy.lease.duration_s, policy.retention.result_s) == (30, 60)
    assert policy.queue("bulk_insert").max_tasks_per_child == 7
    untouched = load(DEFAULT_FILE, {})
    assert chat.model_copy(update={"concurrency": 32, "retry": untouched.queue("chat").retry}) == untouched.queue(
        "chat"
    )


def test_celerys_own_variables_hold_for_every_lane_that_they_apply_to() -> None:
    policy = load(
        DEFAULT_FILE,
        {
            "CELERY_WORKER_PREFETCH_MULTIPLIER": "7",
            "CELERY_WORKER_MAX_TASKS_PER_CHILD": "70",
            "FOREBAY_CHAT_PREFETCH_MULTIPLIER": "2",
        },
    )
    assert {name: queue.prefetch_multiplier for name, queue in policy.queues.items()} == {
        "chat": 2,
        "embedding": 7,
        "bulk_insert": 7,
    }
    assert {name: queue.max_tasks_per_child for name, queue in policy.queues.items()} == {
        "chat": None,
        "embedding": None,
        "bulk_insert": 70,
    }


@pytest.mark.parametrize("given", ["0", "off"])
def test_prefetch_may_be_freed_by_the_environment(given: str) -> None:
    policy = load(DEFAULT_FILE, {"CELERY_WORKER_PREFETCH_MULTIPLIER": given})
    assert {queue.prefetch_multiplier for queue in policy.queues.values()} == {0}


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("FOREBAY_CHAT_CONCURRENCY", "x", "queues.chat.concurrency: 'x': must be a whole number"),
        ("FOREBAY_CHAT_CONCURRENCY", "true", "queues.chat.concurrency: 'true': must be a whole number"),
        ("FOREBAY_CHAT_CONCURRENCY", "1.5", "queues.chat.concurrency: 1.5: must be a whole number"),
        ("FOREBAY_CHAT_TIME_LIMIT_S", "nan", "queues.chat.time_limit_s: nan: "),
        ("FOREBAY_CHAT_CONCURRENCY", "-1", "must be greater than or equal to 1"),
        ("FOREBAY_CHAT_MAX_TASKS_PER_CHILD", "3", "applies to pool prefork only, and this pool is threads"),
        ("FOREBAY_CHAT_POOL", "treads", "must be 'threads', 'prefork' or 'solo'; did you mean threads?"),
        ("FOREBAY_CHAT_CONCURENCY", "8", "overrides nothing; did you mean FOREBAY_CHAT_CONCURRENCY?"),
        ("FOREBAY_RETENTION_RESULTS_S", "8", "overrides nothing; did you mean FOREBAY_RETENTION_RESULT_S?"),
        ("FOREBAY_LEASE_DURATION", "8", "overrides nothing; did you mean FOREBAY_LEASE_DURATION_S?"),
        ("FOREBAY_BULK_INSERT_TABLES", "secrets", "overrides nothing"),
        ("FOREBAY_LEASE_DURATION_S", "2", "lease.renew_every_s: 2: must be at most a third of duration_s (2)"),
        ("FOREBAY_CHAT_RETRY_BACKOFF_S", "100", "queues.chat.retry.backoff_max_s: 60: must be at least backoff_s"),
    ],
)
def test_a_variable_at_fault_is_named(variable: str, value: str, text: str) -> None:
    (fault,) = faults(DEFAULT_FILE, {variable: value})
    assert text in fault


@pytest.mark.parametrize(
    "variable",
    ["HOME", "QUEUES", "INSTALL", "VALKEY_PORT", "POSTGRES_PORT", "PROVIDER_PORT", "FLOWER_PORT", "KEY_PREFIX", "NODE"],
)
def test_variables_of_other_parts_are_left_alone(variable: str) -> None:
    assert load(DEFAULT_FILE, {f"FOREBAY_{variable}": "anything"}) == load(DEFAULT_FILE, {})


def test_the_file_is_the_one_that_the_environment_names(write: Write) -> None:
    path = write(PLAIN)
    assert list(load(environ={"FOREBAY_QUEUES": str(path)}).queues) == ["chat"]
    assert load(environ={"FOREBAY_QUEUES": ""}) == load(DEFAULT_FILE, {})


# What `./forebay config` shows.


def test_each_effective_value_says_where_it_came_from(write: Write) -> None:
    path = write(f"{PLAIN}    concurrency: 4\n")
    shown = {
        setting.key: (setting.value, setting.source)
        for setting in effective(path, {"FOREBAY_CHAT_TIME_LIMIT_S": "5", "CELERY_WORKER_PREFETCH_MULTIPLIER": "off"})
    }
    assert shown["queues.chat.concurrency"] == (4, f"{path}:5")
    assert shown["queues.chat.time_limit_s"] == (5, "environment variable FOREBAY_CHAT_TIME_LIMIT_S")
    assert shown["queues.chat.prefetch_multiplier"] == (0, "environment variable CELERY_WORKER_PREFETCH_MULTIPLIER")
    assert shown["queues.chat.retry.jitter"] == (0.2, "default")
    assert shown["lease.duration_s"] == (8, "default")
    assert "queues.chat.name" not in shown


def test_every_key_of_the_projects_file_is_shown_with_its_line() -> None:
    for setting in effective(DEFAULT_FILE, {}):
        place, _, line = setting.source.rpartition(":")
        if place:
            assert place == str(DEFAULT_FILE)
            assert DEFAULT_FILE.read_text().splitlines()[int(line) - 1].split(":")[0].strip() in setting.key


def test_loading_is_quick_and_brings_no_heavy_package() -> None:
    program = (
        "import sys, worker.policy.policy, worker.policy.priority, worker.errors; worker.policy.policy.load(); "
        "print(*{'celery', 'kombu', 'redis', 'sqlalchemy', 'openai'} & set(sys.modules))"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_policy_of_the_process_is_read_once() -> None:
    first: Policy = load()
    assert load() is first


def test_the_cache_s_variables_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "queues.yaml"
    path.write_text(f"{PLAIN}cache: {{analysis_ttl_s: 5, prices: {{a.b/c: {{prompt: 0.1}}}}}}\n", encoding="utf-8")
    environ = {"CACHE_ENABLED": "false", "CACHE_EMBEDDING_TTL": "60", "FOREBAY_CACHE_MEMORY_MIB": "1"}
    found = {setting.key: (setting.value, setting.source) for setting in effective(path, environ)}
    assert found["cache.enabled"] == (False, "environment variable CACHE_ENABLED")
    assert found["cache.embedding_ttl_s"] == (60, "environment variable CACHE_EMBEDDING_TTL")
    assert found["cache.memory_mib"] == (1, "environment variable FOREBAY_CACHE_MEMORY_MIB")
    assert found["cache.analysis_ttl_s"] == (5, f"{path}:5")
    assert found["cache.prices.a.b/c.prompt"][0] == 0.1
    assert found["cache.model_ttl_s"] == (3600, "default")


@pytest.mark.parametrize(
    ("cache", "fault"),
    [
        ("max_temperature: 0.5", "cache.max_temperature: 0.5: must be less than or equal to 0.3"),
        ("enabled: maybe", "cache.enabled: 'maybe': must be true or false"),
        ("ttl_s: 5", "cache.ttl_s: 5: unknown key; known are analysis_ttl_s,"),
        ("prices: {m: {promt: 1}}", "cache.prices.m.promt: 1: unknown key; known are completion, prompt; did you mean"),
        ("analysis_ttl_s: 0", "cache.analysis_ttl_s: 0: must be greater than or equal to 1"),
    ],
)
def test_faults_of_the_cache_are_named(tmp_path: Path, cache: str, fault: str) -> None:
    path = tmp_path / "queues.yaml"
    path.write_text(f"{PLAIN}cache: {{{cache}}}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as error:
        load(path, {})
    assert fault in str(error.value)


def test_a_queue_has_the_priority_of_jobs_that_name_none(write: Write) -> None:
    assert load(write(PLAIN), {}).queue("chat").default_priority == "NORMAL"
    assert load(write(PLAIN + "    default_priority: high\n"), {}).queue("chat").default_priority == "HIGH"
    (fault,) = faults(write(PLAIN + "    default_priority: urgnet\n"))
    assert "queues.chat.default_priority: 'urgnet': is no priority; known are critical, high" in fault
