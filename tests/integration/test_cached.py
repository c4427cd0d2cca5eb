"""Calls of a provider behind the cache: what is asked once, what each time, and the commands that show it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dev import stack
from dev.faulty import answers as provider_answers
from dev.faulty.process import FaultyProvider
from tasks.provider import cached, endpoint, llm
from tests.eventually import eventually
from tests.integration.test_cli import Cli
from tests.workers import Workers
from worker.policy import policy
from worker.policy.queue import Fallback
from worker.records.broker import Broker
from worker.runtime import cancellation

ROOT = Path(__file__).resolve().parents[2]
HELLO = [{"role": "user", "content": "hello"}]
LATENCY_S = 0.1


def forget() -> None:
    if cached.results.cache_info().currsize:
        cached.results().close()
    cached.results.cache_clear()
    policy._of_process.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, broker: Broker, faulty: FaultyProvider) -> Iterator[FaultyProvider]:
    """Switch the cache on, and give the provider that is asked when it does not know."""
    faulty.set(chat_s=LATENCY_S, embedding_s=LATENCY_S, log_texts=True)
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setenv("CACHE_ENABLED", "true")
    forget()
    yield faulty
    forget()


def say(text: str = "hello", **options: Any) -> llm.Completion:
    return cached.chat([{"role": "user", "content": text}], timeout_s=30, **options)


def test_a_deterministic_chat_is_asked_once(asked: FaultyProvider, broker: Broker) -> None:
    first, second = say(temperature=0.3), say(temperature=0.3)
    assert len(asked.log()) == 1
    assert cached.marks(first) == {}
    assert cached.marks(second) == {"cached": True}
    assert vars(first) == vars(second)
    keys = list(broker.redis.scan_iter("ai:*"))
    assert [key.startswith(b"ai:analysis:v1:") for key in keys].count(True) == 1
    assert all(broker.redis.ttl(key) > 0 for key in keys)


@pytest.mark.parametrize("temperature", [None, 0.31, 1, 2.0])
def test_any_other_chat_is_asked_each_time(asked: FaultyProvider, broker: Broker, temperature: float | None) -> None:
    assert [cached.marks(say(temperature=temperature)) for _ in range(2)] == [{}, {}]
    assert len(asked.log()) == 2
    assert not list(broker.redis.scan_iter("ai:analysis:*"))


def test_what_changes_an_answer_is_part_of_its_key(asked: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    different: list[dict[str, Any]] = [
        {},
        {"temperature": 0.1},
        {"model": "another"},
        {"max_tokens": 5},
        {"tools": tools},
        {"text": "bye"},
    ]
    for options in different:
        assert cached.marks(say(**{"temperature": 0, **options})) == {}
    monkeypatch.setenv("OPENAI_CHAT_MODEL", "changed")
    assert cached.marks(say(temperature=0)) == {}
    assert len(asked.log()) == 7
    assert cached.marks(say(temperature=0.0, model="changed", max_tokens=None)) == {"cached": True}


def test_errors_are_not_kept(asked: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.environ["OPENAI_BASE_URL"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(llm.ProviderAway):
        cached.chat(HELLO, timeout_s=0.3, temperature=0)
    monkeypatch.setenv("OPENAI_BASE_URL", here)
    assert cached.marks(say(temperature=0)) == {}


def test_a_fallback_s_answer_is_not_the_first_model_s(asked: FaultyProvider, broker: Broker) -> None:
    fallbacks = [Fallback(model="a-second-model")]
    first = endpoint.chosen("chat").model
    asked.fault("unknown_model", model=first)
    late = [say(temperature=0, fallbacks=fallbacks) for _ in range(2)]
    assert [(each.model, cached.marks(each)) for each in late] == [("a-second-model", {})] * 2
    assert not list(broker.redis.scan_iter("ai:analysis:*"))
    asked.heal()
    own = [say(temperature=0, fallbacks=fallbacks) for _ in range(2)]
    assert [(each.model, cached.marks(each)) for each in own] == [(first, {}), (first, {"cached": True})]
    assert [each.model for each in asked.log()] == [first, "a-second-model"] * 2 + [first]


def test_one_provider_s_answers_are_not_another_s(asked: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = asked.base_url, asked.base_url.replace("127.0.0.1", "localhost")
    monkeypatch.setenv("OPENAI_CHAT_MODEL", "a-model")
    monkeypatch.setenv("OPENAI_EMBEDDING_MODEL", "a-model")
    for url, calls in ((here, 2), (there, 4), (here, 4), (there, 4)):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        say(temperature=0)
        cached.embed(["a text"], timeout_s=30)
        assert len(asked.log()) == calls


STAMPEDE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from tasks.provider import cached

ask = lambda _: cached.chat([{"role": "user", "content": "hello"}], timeout_s=60, temperature=0).text
with ThreadPoolExecutor(50) as pool:
    print(set(pool.map(ask, range(50))))
"""


def test_a_stampede_of_two_processes_is_one_call(asked: FaultyProvider) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = [sys.executable, "-c", STAMPEDE]
    running = [subprocess.Popen(start, env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate(timeout=120)[0] for each in running]
    assert said == ["{'You said: hello'}\n"] * 2
    assert len(asked.log()) == 1
    report = cached.results().report({"smollm2-135m-instruct": (1.0, 2.0)})
    kind = {each.kind: each.as_dict() for each in report.kinds}["analysis"]
    assert (kind["misses"], kind["calls"], kind["calls_saved"]) == (1, 1, 99)
    assert (kind["tokens_saved"], kind["cost_saved"]) == (6 * 99, pytest.approx(0.099 * (2 * 1.0 + 4 * 2.0)))


def test_a_job_that_waits_for_another_s_answer_can_be_cancelled(asked: FaultyProvider, database: None) -> None:
    started = threading.Event()

    def follow() -> llm.Completion:
        with cancellation.running("a-job"):
            started.set()
            return say(temperature=0, job_id="a-job")

    asked_at = endpoint.chosen("chat")
    with ThreadPoolExecutor(1) as pool, cached.limited(30, "") as call:
        key = cached.results().key("analysis", [asked_at.base_url, {"temperature": 0, "model": asked_at.model}], HELLO)
        token = cached.results()._process().tiers.remote.claim("analysis", [key], "somebody").mine
        assert token == [key]
        waiting = pool.submit(follow)
        assert started.wait(10)
        cancellation.cancel("a-job")
        assert isinstance(waiting.exception(10), llm.Cancelled)
        assert not call.over.is_set()
    assert asked.log() == []


def test_texts_are_embedded_once(asked: FaultyProvider) -> None:
    first = cached.embed(["a", "b", "a"], timeout_s=30)
    second = cached.embed(["b", "c", "a"], timeout_s=30)
    assert [call.texts for call in asked.log()] == [["a", "b"], ["c"]]
    a, b, c = (list(map(float, provider_answers.vector(text, 384))) for text in "abc")
    assert (first.vectors, second.vectors) == ([a, b, a], [b, c, a])
    assert (first.prompt_tokens, second.prompt_tokens) == (2, 1)
    assert cached.embed(["a"], timeout_s=30, model="another").model == "another"
    assert cached.embed([], timeout_s=30).vectors == []


def test_vectors_come_back_exactly() -> None:
    vector = cached.Vector([0.1, -1e-300, 3.0], "a \u2028 model", 7)
    assert cached.VECTOR.decode(cached.VECTOR.encode(vector) or b"") == vector
    for broken in (b"", b"[]", b'["m", 1]\n123456789'):
        with pytest.raises((ValueError, TypeError)):
            cached.VECTOR.decode(broken)


def test_jobs_are_answered_from_the_cache_and_say_so(
    asked: FaultyProvider, workers: Workers, cli: Callable[..., Any]
) -> None:
    from tasks import enqueue

    workers.start("chat", OPENAI_BASE_URL=os.environ["OPENAI_BASE_URL"], CACHE_ENABLED="true")
    results = []
    for number in range(2):
        job = enqueue.chat("Hello?", conversation=f"c-{number}", temperature=0.0)
        results.append(eventually(lambda job=job: job.result(timeout=30)))  # type: ignore[misc]
    assert [result.get("cached") for result in results] == [None, True]
    assert results[0]["usage"] == results[1]["usage"]
    assert len(asked.log()) == 1

    def counted() -> bool:
        kinds = {kind["kind"]: kind for kind in cli.json("cache", "stats")["kinds"]}  # type: ignore[attr-defined]
        return bool(kinds["analysis"]["hit_rate"] == 0.5)

    eventually(counted)
    shown = cli("cache", "stats")
    assert "calls_saved" in shown
    assert "│ analysis " in shown
    assert "nothing yet: embedding, model, configuration, default" in shown
    assert cli("cache", "clear", "--kind", "embedding", "--yes") == ""
    cleared = json.loads(cli("cache", "clear", "--yes", "--json"))
    assert {kind: cleared[kind] for kind in ("analysis", "embedding", "model")} == {
        "analysis": 1,
        "embedding": 0,
        "model": 0,
    }
    assert cleared["search"] == 0, "results of queries are cleared as well"
    assert "did you mean model?" in cli("cache", "clear", "--kind", "modle", code=1)
    cli("cache", "clear", code=1, given=b"n\n")


@pytest.fixture
def cli(machine: stack.Started) -> Cli:
    return Cli(dict(machine.environment))
