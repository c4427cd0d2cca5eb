"""The cache: how fast a known answer is, and how many calls a stampede of equal jobs makes."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

from bench.line import Line
from bench.stage import Stage, until
from cache.store import Cache
from dev.errors import StackError
from tasks import Embedding, enqueue
from tasks.provider import cached

LATENCY_S = 1.2
LOOKS = 200
STAMPEDE = 100


def run(stage: Stage) -> Iterator[Line]:
    """Ask what was asked before, from memory and from Redis; then the same question in many jobs at once."""
    stage.provider.clear()
    stage.provider.set(chat_s=LATENCY_S, embedding_s=LATENCY_S, answer_tokens=40)
    _asked_ms("anything")  # the client is made with the first call
    question = f"What is {uuid4().hex}?"
    call_ms = _asked_ms(question)
    memory_ms = statistics.median(_asked_ms(question) for _ in range(LOOKS))
    redis_ms = statistics.median(_looked_up_ms(LOOKS))
    cached.results().close()
    yield Line("cache", "a hit in memory", memory_ms, call_ms, "ms", "a call")
    yield Line("cache", "a hit in Redis", redis_ms, call_ms, "ms", "a call")
    with stage.workers("embedding", 2, {"FOREBAY_EMBEDDING_BATCH_MAX_JOBS": "8"}):
        stage.provider.forget()
        before, text = stage.completed("embedding"), uuid4().hex
        enqueue.many([Embedding(text=text, key=f"bench-{n}") for n in range(STAMPEDE)])
        until(lambda: stage.completed("embedding"), before + STAMPEDE, "texts")
        calls = stage.provider.counts().answered
    what = f"calls of {STAMPEDE} equal jobs at once"
    yield Line("cache", what, calls, 1, "calls", "one call", 1, is_cost=True)


def _asked_ms(question: str) -> float:
    began = time.perf_counter()
    cached.chat([{"role": "user", "content": question}], timeout_s=30, temperature=0)
    return 1000 * (time.perf_counter() - began)


def _looked_up_ms(looks: int) -> Iterator[float]:
    """Give the milliseconds of looks at a value that this process' memory does not keep."""
    remote = Cache(replace(cached.results().settings, memory_entries=0))
    key = remote.key("model", "bench", uuid4().hex)
    remote.fetch("model", key, lambda: "x" * 400)
    for _ in range(looks):
        began = time.perf_counter()
        found = remote.fetch("model", key, lambda: "not asked")
        yield 1000 * (time.perf_counter() - began)
        if found.how != "hits_redis":
            raise StackError(f"a value of the cache came as {found.how}, not from Redis")
    remote.close()
