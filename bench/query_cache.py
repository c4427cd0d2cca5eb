"""The query cache: how fast a known result is, and how often one is known while others write."""

import random
import time
from collections.abc import Iterator
from functools import partial

from sqlalchemy import select, text

from bench.line import Line
from bench.stage import Stage, execute, quantile, setting
from db import models
from db.conversations import turns
from db.engine import transaction
from db.query_cache import results as query_cache
from db.query_cache import table_versions

USERS, CONVERSATIONS = 200, 20
LOOKS, LOADS, PER_PAGE, WRITE_SHARE = 200, 3000, 4, 0.05
TABLES = (
    "CREATE TABLE bench_prompts (name text PRIMARY KEY, content text)",
    "INSERT INTO bench_prompts SELECT 'prompt ' || n, repeat('You are helpful. ', 50) FROM generate_series(1, 5) n",
    "CREATE TABLE bench_preferences (user_id int PRIMARY KEY, language text)",
    f"INSERT INTO bench_preferences SELECT n, 'de' FROM generate_series(1, {USERS}) n",  # noqa: S608
)
PROMPT = "SELECT content FROM bench_prompts WHERE name = :value"
PREFERENCES = "SELECT language FROM bench_preferences WHERE user_id = :value"
DOCUMENTS = "SELECT count(*) FROM documents"
_conversation = models.Conversation


def run(_: Stage) -> Iterator[Line]:
    """Read what a chat's page shows, the users by Zipf's law, while turns of conversations are written."""
    for statement in TABLES:
        execute(statement)
    execute(
        "INSERT INTO conversations (id, user_id)"  # noqa: S608
        f" SELECT 'bench-' || u || '-' || n, 'bench-' || u FROM generate_series(1, {USERS}) u,"
        f" generate_series(1, {CONVERSATIONS}) n"
    )
    try:
        with setting("QUERY_CACHE_ENABLED", "true"):
            yield from _looks()
            yield from _mix()
    finally:
        execute("DELETE FROM conversations WHERE id LIKE 'bench-%'")
        execute("DROP TABLE bench_prompts, bench_preferences")


def _looks() -> Iterator[Line]:
    uncached = quantile([_ms(1, uncached=True) for _ in range(LOOKS)], 0.5)
    _ms(1)
    in_memory = quantile([_ms(1) for _ in range(LOOKS)], 0.5)
    in_redis = quantile([_redis_ms() for _ in range(LOOKS)], 0.5)
    yield Line("query cache", "a list found in memory", in_memory, 1, "ms", "what it may take", 1, is_cost=True)
    yield Line("query cache", "a list found in Redis", in_redis, 5, "ms", "what it may take", 1, is_cost=True)
    yield Line("query cache", "a list found in memory", in_memory, uncached, "ms", "the query")


def _mix() -> Iterator[Line]:
    """Load pages: a prompt, a user's preferences and conversations, how many documents there are.

    One operation in 20 is a turn of a conversation. One turn in 20 begins a conversation, one in 100 comes from
    a user who has just changed preferences. The worst case beside it: lists alone, and each write changes their table.
    """
    asked, writes = _Asked(), 0
    chance = random.Random(7)
    for user in _users(chance, LOADS):
        for _ in range(PER_PAGE):
            if chance.random() < WRITE_SHARE:
                writes += 1
                turns.store_user_message(f"bench-{writes}", f"bench-new-{writes // 20}", "hello")
                if writes % 100 == 0:
                    execute(f"UPDATE bench_preferences SET language = 'n{writes}' WHERE user_id = {user}")  # noqa: S608
        _load(user, chance, asked)
    yield Line(
        "query cache", "of reads known, 1 operation in 20 a turn", _known(asked, LOADS * PER_PAGE), 1, "", "all", 0.8
    )
    asked = _Asked()
    for user in _users(chance, LOADS):
        if chance.random() < WRITE_SHARE:
            execute("UPDATE conversations SET language = 'en' WHERE id = 'bench-1-1'")
        _read(user, asked)
    yield Line("query cache", "of lists known, 1 in 20 a change of their table", _known(asked, LOADS), 1, "", "all")


def _users(chance: random.Random, count: int) -> list[int]:
    return chance.choices(range(1, USERS + 1), [1 / user for user in range(1, USERS + 1)], k=count)


def _known(asked: "_Asked", reads: int) -> float:
    return 1 - asked.times / reads


def _load(user: int, chance: random.Random, asked: "_Asked") -> None:
    prompt = chance.randint(1, 5)
    _read(user, asked)
    for kind, key, table, statement, value in (
        ("prompt", f"prompts:text:{prompt}:all", "bench_prompts", PROMPT, f"prompt {prompt}"),
        ("preferences", f"users:preferences:{user}:all", "bench_preferences", PREFERENCES, user),
        ("statistics", "documents:count:all:all", "documents", DOCUMENTS, None),
    ):
        ask = partial(asked.scalar, statement, value)
        query_cache.through(kind, key, ask, tables=(table,), type_=str)


class _Asked:
    """How often the database was asked."""

    times = 0

    def scalar(self, statement: str, value: object) -> str:
        self.times += 1
        with transaction() as session:
            return str(session.scalar(text(statement), {"value": value}))


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
