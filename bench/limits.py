"""Rate limits: how much of a provider's budget is used without one refusal, and what a limit costs that never binds."""

import random
import statistics
import time
from collections.abc import Iterator
from uuid import uuid4

from bench.line import Line
from bench.stage import Stage, until
from tasks import Chat, enqueue

REQUESTS, TOKENS, SECONDS = 600, 60_000, 60
WORKERS = 4
ROUNDS, JOBS = 5, 600


def run(stage: Stage) -> Iterator[Line]:
    """Let four workers share one limit for a minute, then compare limits that never bind with none."""
    yield from _budget(stage)
    yield from _cost(stage)


def _budget(stage: Stage) -> Iterator[Line]:
    stage.provider.clear()
    stage.provider.set(
        chat_s=0.3, answer_tokens=40, limit_requests=REQUESTS, limit_tokens=TOKENS, limit_window_s=SECONDS
    )
    gate = {"REQUESTS_LIMIT": REQUESTS, "REQUESTS_BURST": 4, "TOKENS_LIMIT": TOKENS, "TOKENS_BURST": 400}
    settings = {f"FOREBAY_GATES_PROVIDER_{name}": str(value) for name, value in gate.items()}
    chance = random.Random(1)
    jobs = [
        Chat(message="tell me " * chance.randint(10, 45), conversation=uuid4().hex, max_tokens=chance.randint(40, 60))
        for _ in range(3 * REQUESTS)
    ]
    with stage.workers("chat", WORKERS, settings | {"FOREBAY_CHAT_CONCURRENCY": "8"}):
        sent = enqueue.many(jobs)
        until(lambda: stage.provider.counts().answered, 1, "chats")
        time.sleep(SECONDS + 1)
        log = [entry for entry in stage.provider.log() if entry.path.endswith("/completions")]
        refused = sum(entry.status == 429 for entry in log)
        for job in sent:
            job.cancel()
    first_at = min(entry.at_s for entry in log)
    within = [entry for entry in log if entry.at_s < first_at + SECONDS and entry.status == 200]
    used = {
        "requests": (len(within), REQUESTS),
        "tokens": (sum(entry.tokens for entry in within), TOKENS),
    }
    binding = max(used, key=lambda name: used[name][0] / used[name][1])
    what = f"{WORKERS} workers, {SECONDS} s: {binding} used"
    yield Line("limits", what, *used[binding], f"{binding}/min", "the provider's limit", 0.98)
    yield Line(
        "limits", f"{WORKERS} workers, {SECONDS} s: refused", refused, len(log), "429", "all calls", 0, is_cost=True
    )


def _cost(stage: Stage) -> Iterator[Line]:
    stage.provider.clear()
    rates: dict[str, list[float]] = {"provider": [], "loose": []}
    for turn in range(ROUNDS):
        for gate in sorted(rates, reverse=bool(turn % 2)):
            with stage.workers("chat", settings={"FOREBAY_CHAT_GATE": gate, "FOREBAY_CHAT_CONCURRENCY": "16"}):
                stage.answer(50)
                began = time.monotonic()
                stage.answer(JOBS)
                rates[gate].append(JOBS / (time.monotonic() - began))
    with_limit, without = (statistics.median(rates[gate]) for gate in ("loose", "provider"))
    yield Line("limits", "chats behind limits that never bind", with_limit, without, "jobs/s", "without limits", 0.95)
