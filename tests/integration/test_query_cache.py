"""Results of queries that are kept: what ends them, on a real Redis and a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DataError

from db import engine, models
from db.bulk import changes, inserts
from db.bulk.changes import Change, Operation
from db.conversations import turns
from db.engine import transaction
from db.errors import QueryCacheError
from db.query_cache import results as query_cache
from db.query_cache import table_versions, touched
from db.vectors import documents, neighbours
from db.vectors.documents import Document
from dev import stack
from tests.eventually import eventually
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
KEY = "test:conversations:all:languages"
TABLES = ("conversations",)
_conversation = models.Conversation


class Reader:
    """Reads the languages of all conversations, and counts how often the database was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self) -> list[str | None]:
        return query_cache.through("session", KEY, self.query, tables=TABLES, type_=list[str | None])

    def query(self) -> list[str | None]:
        self.asked += 1
        with transaction() as session:
            found = list(session.scalars(select(_conversation.language).order_by(_conversation.id)))
        self.began.set()
        assert self.may_end.wait(30)
        return found


def restart() -> None:
    table_versions.close()
    engine.close()


@pytest.fixture(autouse=True)
def cache_is_on(database: None, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch the cache on; what another process changes is not heard of within a test, unless it says so."""
    monkeypatch.setenv("QUERY_CACHE_ENABLED", "true")
    monkeypatch.setenv("QUERY_CACHE_STALE_S", "60")
    restart()
    with transaction() as session:
        session.execute(insert(_conversation).values(id="a", language="en"))
    yield
    kept = [key for key in broker.redis.scan_iter("query:*") if broker.redis.pttl(key) == -1]
    assert kept == [], "keys without a lifetime"
    restart()
    monkeypatch.undo()
    restart()


@pytest.fixture
def reader() -> Reader:
    made = Reader()
    assert made() == ["en"]
    assert made() == ["en"]
    assert made.asked == 1, "nothing was kept"
    return made


def by_orm() -> None:
    with transaction() as session:
        found = session.get(_conversation, "a")
        assert found is not None
        found.language = "de"


def by_core() -> None:
    with transaction() as session:
        session.execute(update(_conversation).values(language="de"))


def by_connection() -> None:
    with engine.engine().begin() as connection:
        connection.execute(update(_conversation).values(language="de"))


def by_autocommit() -> None:
    with engine.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(update(_conversation).values(language="de"))


def by_text() -> None:
    with transaction() as session:
        session.execute(
            text("WITH given AS (SELECT 1) UPDATE /* a comment */ public.Conversations SET language = 'de'")
        )


def by_parentheses() -> None:
    with transaction() as session:
        session.execute(text("UPDATE ONLY (conversations) SET language = 'de'"))


def by_driver_sql() -> None:
    with transaction() as session:
        session.connection().exec_driver_sql('UPDATE"conversations"SET language = %s', ("de",))


def by_function() -> None:
    with transaction() as session:
        session.execute(text("DO $$ BEGIN EXECUTE 'UPD' || 'ATE conversations SET language = ''de'''; END $$"))
        touched.tables(session, "conversations")


def by_copy() -> None:
    change = Change("conversations", ("id", "language"), Operation.UPSERT, ("id",))
    changes.apply(change, [("a", "de")], "job-1")


@pytest.mark.parametrize(
    "write",
    [by_orm, by_core, by_connection, by_autocommit, by_text, by_parentheses, by_driver_sql, by_function, by_copy],
)
def test_what_is_committed_is_read(reader: Reader, write: Callable[[], None]) -> None:
    write()
    assert reader() == ["de"]
    assert reader() == ["de"]
    assert reader.asked == 2


def test_a_plain_copy_and_a_cascade_count_too(reader: Reader) -> None:
    inserts.insert("job-2", "conversations", ("id", "language"), [("b", "fr")])
    assert reader() == ["en", "fr"]
    change = Change("conversations", ("id",), Operation.DELETE, ("id",))
    changes.apply(change, [("a",)])
    assert reader() == ["fr"]


def test_another_table_s_commit_ends_nothing(reader: Reader) -> None:
    turns.store_notice("job-3", "a", "busy", "wait")
    documents.store([Document("key", "text", [1, 0], "model")])
    reader()
    assert reader.asked == 1


def test_a_statement_that_changed_nothing_ends_nothing(reader: Reader) -> None:
    turns.store_user_message("job-4", "a", "hello")
    reader()
    assert reader.asked == 1
    turns.store_user_message("job-5", "b", "hello")
    assert reader() == ["en", None]


def test_it_ends_after_the_commit_and_not_before(reader: Reader) -> None:
    with ThreadPoolExecutor(1) as elsewhere:
        with transaction() as session, transaction() as inner:
            inner.execute(update(_conversation).values(language="de"))
            assert reader() == ["de"], "who writes has to see it"
            assert elsewhere.submit(reader).result() == ["en"]
            assert session is inner
        assert reader.asked == 2, "the result was thrown away before the commit"
        assert elsewhere.submit(reader).result() == ["de"]


def test_what_ends_is_committed_already(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def end(names: Iterable[str]) -> None:
        with ThreadPoolExecutor(1) as elsewhere:
            seen.extend(elsewhere.submit(reader.query).result())

    monkeypatch.setattr(table_versions, "end", end)
    by_core()
    assert seen == ["de"]


def test_who_writes_messages_has_nothing_to_end(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(table_versions, "end", ended.extend)
    turns.store_notice("job-6", "a", "busy", "wait")
    assert ended == []
    by_core()
    assert ended == ["table:conversations"]


def test_a_rollback_ends_nothing(reader: Reader) -> None:
    with suppress(DataError), transaction() as session:
        session.execute(update(_conversation).values(language="de"))
        session.execute(text("SELECT 1 / 0"))
    with transaction() as session:  # the same connection, most likely
        session.execute(select(1))
    assert reader() == ["en"]
    assert reader.asked == 1


@pytest.mark.parametrize("rolled_back", [True, False])
def test_a_savepoint_ends_what_it_leaves(reader: Reader, rolled_back: bool) -> None:
    with transaction() as session:
        with session.begin_nested():
            session.execute(select(1))
        savepoint = session.begin_nested()
        with session.begin_nested():
            session.execute(update(_conversation).values(language="de"))
        if rolled_back:
            savepoint.rollback()
        else:
            savepoint.commit()
    assert reader() == (["en"] if rolled_back else ["de"])
    assert reader.asked == (1 if rolled_back else 2)


def test_what_was_read_before_a_commit_and_kept_after_it_is_not_found() -> None:
    slow, quick = Reader(), Reader()
    slow.may_end.clear()
    with ThreadPoolExecutor(1) as elsewhere:
        late = elsewhere.submit(slow)
        assert slow.began.wait(30)
        by_core()
        assert quick() == ["de"], "it got what a reader under way had read before the commit"
        slow.may_end.set()
        assert late.result() == ["en"]
    assert quick() == ["de"]
    assert quick.asked == 1


def test_a_version_that_ended_while_redis_was_asked_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    found = table_versions.of_process()
    assert found is not None
    remote, versions = found.cache.remote(), found.versions
    ask = remote.versions

    def ask_and_end(*given: Any) -> dict[str, str]:
        heard = ask(*given)
        versions.end(["table:scratch"])
        return heard

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(remote, "versions", ask_and_end)
        ended = versions.read(["table:scratch"])
    now = versions.read(["table:scratch"])
    assert now != ended
    assert versions.read(["table:scratch"]) == now, "what nothing ended is remembered"


def test_many_who_ask_at_once_ask_the_database_once() -> None:
    reader = Reader()
    reader.may_end.clear()
    with ThreadPoolExecutor(20) as elsewhere:
        answers = [elsewhere.submit(reader) for _ in range(20)]
        assert reader.began.wait(30)
        reader.may_end.set()
        assert all(answer.result() == ["en"] for answer in answers)
    assert reader.asked == 1


def in_another_process(code: str, machine: stack.Started) -> str:
    environment = {**os.environ, **machine.environment, "QUERY_CACHE_ENABLED": "true"}
    head = (
        "from sqlalchemy import select, update; from db import models; from db.engine import transaction\n"
        "from db.query_cache import results as query_cache\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code], cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_processes_share_and_hear_of_each_other_s_commits(
    reader: Reader, machine: stack.Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERY_CACHE_STALE_S", "0.2")
    restart()
    read = f"print(query_cache.through('session', {KEY!r}, lambda: 1/0, tables={TABLES!r}, type_=list[str]))"
    assert in_another_process(read, machine) == "['en']"
    assert reader() == ["en"]
    assert reader.asked == 1, "a new memory finds it in Redis"
    write = "with transaction() as session: session.execute(update(models.Conversation).values(language='de'))"
    in_another_process(write, machine)
    eventually(lambda: reader() == ["de"], 10)
    assert reader.asked == 2


def test_while_redis_is_away_nothing_is_kept_and_a_commit_is_owed(
    reader: Reader, broker: Broker, machine: stack.Started
) -> None:
    found = table_versions.of_process()
    assert found is not None
    remote = found.cache.remote()
    remote._fail(redis.ConnectionError("cut off"))  # as it is after an answer that did not come
    by_core()
    assert reader() == ["de"]
    assert reader() == ["de"]
    assert reader.asked == 3
    assert "table:conversations" in found.versions.owed
    eventually(lambda: found.versions.owed == [], 20)
    assert reader() == ["de"]
    assert reader() == ["de"]
    assert reader.asked == 4
    other = f"print(query_cache.get('session', {KEY!r}, tables={TABLES!r}, type_=list[str]))"
    assert in_another_process(other, machine) == "['de']"


def test_what_ends_while_its_last_end_is_told_is_told_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    found = table_versions.of_process()
    assert found is not None
    remote = found.cache.remote()
    tell, told = remote.end_versions, 0

    def tell_and_end_again(kept: Sequence[str], marks: Sequence[str]) -> None:
        nonlocal told
        tell(kept, marks)
        told += 1
        if told == 1:
            remote._fail(redis.ConnectionError("cut off again"))
            by_core()

    monkeypatch.setattr(remote, "end_versions", tell_and_end_again)
    remote._fail(redis.ConnectionError("cut off"))
    by_core()
    eventually(lambda: told == 2, 20)
    eventually(lambda: found.versions.owed == [], 20)


def test_a_version_that_redis_lost_does_not_come_again(reader: Reader, broker: Broker) -> None:
    assert broker.redis.delete("query:ai:version:table:conversations") == 1
    with transaction() as session:
        session.connection().connection.driver_connection.cursor().execute("UPDATE conversations SET language = 'de'")  # type: ignore[union-attr]
    restart()
    assert reader() == ["de"]


def test_a_version_that_ended_does_not_come_again_when_it_is_asked_for_again(reader: Reader) -> None:
    found = table_versions.of_process()
    assert found is not None
    remote, names = found.cache.remote(), ["table:conversations"]
    remote.end_versions(names, [])
    began = remote.versions(names, [], "token")
    remote.end_versions(names, [])
    assert remote.versions(names, [], "token") != began, "as after a connection that was cut before the answer"


def test_a_version_that_is_no_text_fails_nobody(broker: Broker) -> None:
    broker.redis.set("query:ai:version:table:conversations", b"\xff", px=10_000)
    reader = Reader()
    assert (reader(), reader(), reader.asked) == (["en"], ["en"], 1)


def test_keys_are_forgotten_alone_and_by_their_first_parts() -> None:
    def read(key: str, value: int) -> int:
        return query_cache.through("feed", key, lambda: value, tables=TABLES, type_=int)

    keys = ("n:r:1:a", "n:r:1:b", "n:r:2:a", "n:s:1:a", "m:r:1:a")
    left = {
        "n:r:1:a": {"n:r:1:b", "n:r:2:a", "n:s:1:a", "m:r:1:a"},
        "n:r:1:*": {"n:r:2:a", "n:s:1:a", "m:r:1:a"},
        "n:r:*": {"n:s:1:a", "m:r:1:a"},
        "n:*": {"m:r:1:a"},
    }
    for pattern, kept in left.items():
        query_cache.forget("n:*")
        assert all(read(key, 1) == read(key, 2) == 1 for key in keys)
        query_cache.forget(pattern)
        assert {key for key in keys if read(key, 3) == 1} == kept
    assert query_cache.get("feed", "m:r:1:a", tables=TABLES, type_=int) == 1
    assert query_cache.get("feed", "m:r:none:a", tables=TABLES, type_=int, default=7) == 7


def test_a_key_is_forgotten_with_the_commit(reader: Reader) -> None:
    with ThreadPoolExecutor(1) as elsewhere, transaction():
        query_cache.forget(KEY)
        elsewhere.submit(reader).result()
        assert reader.asked == 1
    reader()
    assert reader.asked == 2


@pytest.mark.parametrize(
    "key", ["a:b:c", "a:b:c:d:e", "a:b:c:*", "a b:c:d:e", "a:b::d", "a:b:c:d\n", "ä:b:c:d", "a:b:c:" + "d" * 65, ""]
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(QueryCacheError, match="namespace:resource:id:variant"):
        query_cache.through("feed", key, lambda: 1, tables=TABLES, type_=int)


def test_any_text_makes_a_part_and_no_two_the_same() -> None:
    texts = ["plain", "with:colon", "*", "", "~", "x" * 500, "\ud800", "a\0b", "~" + "0" * 32]
    parts = [query_cache.part(each) for each in texts]
    assert len(set(parts)) == len(texts)
    for each in parts:
        query_cache.check(f"a:b:{each}:c")


@pytest.mark.parametrize("kind", ["messages", "user_check", "tool_result"])
def test_what_is_never_kept_is_refused_when_it_is_declared(kind: str) -> None:
    with pytest.raises(QueryCacheError, match="never kept"):
        query_cache.cached(kind, tables=TABLES, key=lambda: KEY)
    with pytest.raises(QueryCacheError, match="table 'messages' is never kept"):
        query_cache.cached("session", tables=("conversations", "messages"), key=lambda: KEY)
    with pytest.raises(QueryCacheError, match="did you mean statistics"):
        query_cache.cached("statistic", tables=TABLES, key=lambda: KEY)
    with pytest.raises(QueryCacheError, match="name all tables"):
        query_cache.cached("session", tables=(), key=lambda: KEY)


def test_a_table_that_was_not_declared_is_refused_when_it_is_read() -> None:
    @query_cache.cached("session", tables=TABLES, key=lambda: KEY)
    def read() -> int:
        with transaction() as session:
            return session.scalar(text("SELECT count(*) FROM conversations c JOIN public.messages m ON true")) or 0

    with pytest.raises(QueryCacheError, match="also read from messages"):
        read()


def test_a_huge_value_and_none_are_returned_all_the_same() -> None:
    made: list[int] = []

    @query_cache.cached("feed", tables=TABLES, key=lambda size: f"n:r:{size}:a")
    def read(size: int) -> str | None:
        made.append(size)
        return "x" * size or None

    assert [read(2_000_000) == "x" * 2_000_000 for _ in range(2)] == [True, True]
    assert [read(0), read(0)] == [None, None]
    assert made == [2_000_000, 2_000_000, 0], "what is larger than a mebibyte is kept nowhere"


def test_warming_calls_all_and_counts_what_failed(reader: Reader) -> None:
    by_core()
    assert query_cache.warm([reader, lambda: 1 / 0, reader], 2) == query_cache.Warmed(2, 1)
    asked = reader.asked
    assert reader() == ["de"]
    assert reader.asked == asked


def test_the_nearest_are_kept_until_documents_change(broker: Broker) -> None:
    documents.store([Document("east", "east", [1, 0], "m")])
    first = neighbours.nearest([1, 0], model="m")
    found = table_versions.of_process()
    assert found is not None
    found.cache.flush()
    with transaction() as session:  # unseen: a way past all that notices
        session.connection().connection.driver_connection.cursor().execute("UPDATE documents SET content = 'unseen'")  # type: ignore[union-attr]
    assert neighbours.nearest([1, 0], model="m") == first
    documents.store([Document("north", "north", [0, 1], "m")])
    assert [each.content for each in neighbours.nearest([1, 0], model="m")] == ["unseen", "north"]
    found.cache.flush()
    of_search = next(kind for kind in found.cache.report({}).kinds if kind.kind == "search")
    assert of_search.hit_rate == pytest.approx(1 / 3)


def test_switched_off_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, broker: Broker) -> None:
    monkeypatch.setenv("QUERY_CACHE_ENABLED", "false")
    restart()
    broker.redis.flushall()
    reader = Reader()
    assert reader() == reader() == ["en"]
    by_copy()
    query_cache.forget("n:*")
    assert reader() == ["de"]
    assert reader.asked == 3
    assert broker.redis.keys("query:*") == []
