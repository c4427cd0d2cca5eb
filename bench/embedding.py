"""Many texts in one call: how much of what the provider can do is reached, and what that gains."""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit
from uuid import uuid4

from bench.line import Line
from bench.stage import Stage, until
from tasks import Embedding, enqueue

CALLS, CALL_S, TEXT_S = 4, 0.05, 0.001
TEXTS = 12000
ONE_BY_ONE = 400
RAW_CALLS = 20
#: Texts in a call -> what of the provider's limit is to be reached.
SIZES = {10: 0.95, 64: None}


def run(stage: Stage) -> Iterator[Line]:
    """Embed texts with a provider that works on a few calls at once, each the longer the more texts it has."""
    stage.provider.clear()
    stage.provider.set(concurrent=CALLS, embedding_s=CALL_S, embedding_per_input_s=TEXT_S, dimensions=384)
    with stage.plain("threads", CALLS) as (app, _):
        for n in range(CALLS):
            app.send_task("plain.embedding", (f"{n}",))
        until(lambda: stage.provider.counts().answered, CALLS, "texts")
        stage.provider.forget()
        began = time.monotonic()
        for n in range(ONE_BY_ONE):
            app.send_task("plain.embedding", (f"text {n}",))
        plain = ONE_BY_ONE / (until(lambda: stage.provider.counts().answered, ONE_BY_ONE, "texts") - began)
    for size, aim in SIZES.items():
        limit = _raw(stage, size)
        # slots beyond the provider's calls: while some wait for it, others keep what it gave
        settings = {"FOREBAY_EMBEDDING_BATCH_MAX_JOBS": str(size), "FOREBAY_EMBEDDING_CONCURRENCY": str(2 * CALLS)}
        with stage.workers("embedding", 2, settings):
            _embed(stage, 4 * size)
            began = time.monotonic()
            _embed(stage, TEXTS)
            ours = TEXTS / (time.monotonic() - began)
        yield Line("embedding", f"{size} texts in a call", ours, limit, "texts/s", f"raw calls, {CALLS} at once", aim)
        yield Line("embedding", f"{size} texts in a call", ours, plain, "texts/s", "plain Celery, one by one", 6)


def _raw(stage: Stage, size: int) -> float:
    """Return how many texts a second the provider embeds for a client that does nothing else."""
    address = urlsplit(stage.provider.base_url)
    body = json.dumps({"model": "bench", "input": [f"text {n}" for n in range(size)], "encoding_format": "base64"})

    def ask(_: int) -> None:
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        for _ in range(RAW_CALLS):
            connection.request("POST", f"{address.path}/embeddings", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        connection.close()

    with ThreadPoolExecutor(2 * CALLS) as pool:
        began = time.monotonic()
        list(pool.map(ask, range(2 * CALLS)))
        return 2 * CALLS * RAW_CALLS * size / (time.monotonic() - began)


def _embed(stage: Stage, texts: int) -> None:
    run, before = uuid4().hex[:8], stage.completed("embedding")
    enqueue.many([Embedding(text=f"text {n} of {run}", key=f"bench-{run}-{n}") for n in range(texts)])
    until(lambda: stage.completed("embedding"), before + texts, "texts")
