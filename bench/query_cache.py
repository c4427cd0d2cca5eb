"""The query cache: how fast a known result is, and how often one is known while others write."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import select, update

from bench.line import Line
from bench.stage import Stage, execute, quantile
from db import conversations, engine, models, query_cache, table_versions
from db.engine import transaction

USERS, CONVERSATIONS = 200, 20
LOOKS, READS, WRITE_SHARE = 200, 4000, 0.05
_conversation = models.Conversation


def run(_: Stage) -> Iterator[Line]:
    """Read lists of conversations, the users by Zipf's law; a write changes something that all lists depend on."""
    execute(
        "INSERT INTO conversations (id, user_id)"  # noqa: S608
        f" SELECT 'bench-' || u || '-' || n, 'bench-' || u FROM generate_series(1, {USERS}) u,"
        f" generate_series(1, {CONVERSATIONS}) n"
    )
    try:
        with _switched_on():
            yield from _looks()
            yield from _mix()
    finally:
        execute("DELETE FROM conversations WHERE id LIKE 'bench-%'")


def _looks() -> Iterator[Line]:
    uncached = quantile([_ms(1, uncached=True) for _ in range(LOOKS)], 0.5)
    _ms(1)
    in_memory = quantile([_ms(1) for _ in range(LOOKS)], 0.5)
    in_redis = quantile([_redis_ms() for _ in range(LOOKS)], 0.5)
    yield Line("query cache", "a list found in memory", in_memory, 1, "ms", "what it may take", 1, is_cost=True)
    yield Line("query cache", "a list found in Redis", in_redis, 5, "ms", "what it may take", 1, is_cost=True)
    yield Line("query cache", "a list found in memory", in_memory, uncached, "ms", "the query")


def _mix() -> Iterator[Line]:
    """Write turns of conversations, one in 20 of which begins a new one; then changes of all lists' table alone."""
    turns = _rate(lambda turn: conversations.store_user_message(f"bench-{turn}", f"bench-new-{turn // 20}", "hello"))
    yield Line("query cache", "of lists known, 1 in 20 a turn", turns, 1, "", "all", aim=0.8)
    changed = update(_conversation).where(_conversation.id == "bench-1-1").values(language="en")

    def change(_: int) -> None:
        with transaction() as session:
            session.execute(changed)

    yield Line("query cache", "of lists known, 1 in 20 a change of their table", _rate(change), 1, "", "all")


def _rate(write: Callable[[int], object]) -> float:
    chance, asked, writes = random.Random(7), _Asked(), 0
    for user in chance.choices(range(1, USERS + 1), [1 / user for user in range(1, USERS + 1)], k=READS):
        if chance.random() < WRITE_SHARE:
            write(writes)
            writes += 1
        _read(user, asked)
    return 1 - asked.times / READS


class _Asked:
    """How often the database was asked."""

    times = 0


def _read(user: int, asked: _Asked, variant: str = "first") -> list[str]:
    def query() -> list[str]:
        asked.times += 1
        with transaction() as session:
            wanted = select(_conversation.id).where(_conversation.user_id == f"bench-{user}")
            return list(session.scalars(wanted.order_by(_conversation.created_at.desc(), _conversation.id.desc())))

    if variant == "uncached":
        return query()
    key = f"conversations:list:{user}:{variant}"
    return query_cache.through("session", key, query, tables=("conversations",), type_=list[str])


def _ms(user: int, uncached: bool = False) -> float:
    asked = _Asked()
    began = time.perf_counter()
    _read(user, asked, "uncached" if uncached else "first")
    return 1000 * (time.perf_counter() - began)


def _redis_ms() -> float:
    """Return what a look takes in a process that has just begun, but for its first connection."""
    table_versions.close()
    query_cache.get("session", "conversations:list:none:first", tables=("receipts",), type_=list[str])
    return _ms(1)


@contextmanager
def _switched_on() -> Iterator[None]:
    before = os.environ.get("QUERY_CACHE_ENABLED")
    os.environ["QUERY_CACHE_ENABLED"] = "true"
    _restart()
    try:
        yield
    finally:
        if before is None:
            del os.environ["QUERY_CACHE_ENABLED"]
        else:
            os.environ["QUERY_CACHE_ENABLED"] = before
        _restart()


def _restart() -> None:
    table_versions.close()
    engine.close()
