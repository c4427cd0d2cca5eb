"""Many chats at once: what is reached of what the slots allow, how long each waits, and the memory of a slot."""

import time
from collections.abc import Iterator
from typing import Any

from bench.line import Line
from bench.stage import Stage, quantile, resident_mib, until

LATENCY_S = 1.2
P95_S, P99_S = 5.0, 5.5
WAVES = 4
#: Slots -> worker processes that share them.
SIZES = {100: 1, 1000: 2}


def run(stage: Stage) -> Iterator[Line]:
    """Answer so many people at once, then go on with all slots busy."""
    stage.provider.clear()
    stage.provider.set(chat_s=LATENCY_S, chunks=8, answer_tokens=40)
    for slots, processes in SIZES.items():
        limit = slots / LATENCY_S
        settings = {"FOREBAY_CHAT_CONCURRENCY": str(slots // processes), "DATABASE_POOL_OVERFLOW": "0"}
        with stage.workers("chat", processes, settings) as workers:
            stage.answer(processes)  # clients and connections are made with the first call
            idle_mib = sum(map(resident_mib, workers))
            waited_s = [ended - accepted for accepted, ended in stage.times(stage.answer(slots))]
            began = time.monotonic()
            stage.answer(WAVES * slots)
            ours = WAVES * slots / (time.monotonic() - began)
            ours_mib = (sum(map(resident_mib, workers)) - idle_mib) / slots
        with stage.plain("threads", slots) as (app, worker):
            _plain_flood(stage, app, 1)
            idle_mib, began = resident_mib(worker), time.monotonic()
            _plain_flood(stage, app, WAVES * slots)
            plain = WAVES * slots / (time.monotonic() - began)
            plain_mib = (resident_mib(worker) - idle_mib) / slots
        who = f"{slots} chats at once"
        if slots == 100:
            yield Line(
                "chat", f"{who}: p95", quantile(waited_s, 0.95), P95_S, "s", "what is asked for", 1, is_cost=True
            )
            yield Line(
                "chat", f"{who}: p99", quantile(waited_s, 0.99), P99_S, "s", "what is asked for", 1, is_cost=True
            )
        else:
            yield Line("chat", f"{who}: p95", quantile(waited_s, 0.95), LATENCY_S, "s", "the provider's latency")
        yield Line("chat", f"{slots} slots busy", ours, limit, "jobs/s", "slots / latency")
        yield Line("chat", f"{slots} slots busy", ours, plain, "jobs/s", "plain Celery, without a database")
        yield Line("chat", f"{slots} slots: memory of each", ours_mib, plain_mib, "MiB", "plain Celery")


def _plain_flood(stage: Stage, app: Any, jobs: int) -> None:
    stage.provider.forget()
    for n in range(jobs):
        app.send_task("plain.chat", (f"What is {n}?",))
    until(lambda: stage.provider.counts().answered, jobs, "chats")
