"""All of the database's part behind a pooler in transaction mode, which gives each transaction another session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from db import engine
from db.bulk import changes
from db.bulk.changes import Change, Operation
from db.bulk.staging import Counts
from db.conversations import history, search, summaries, turns
from db.engine import transaction
from db.vectors import documents, neighbours
from db.vectors.documents import Document
from tasks import enqueue
from tests import pooler
from tests.integration.test_jobs import scalar
from tests.pooler import Pooler
from tests.workers import Workers

TABLE, COLUMNS, KEY = "unicode_characters", ("codepoint", "name"), ("codepoint",)
USERS = 8


@pytest.fixture
def behind(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pooler]:
    """Put a pooler with two sessions between this process and PostgreSQL."""
    url = engine.settings().url
    server = (url.host or "", url.port or 0)
    with pooler.opened(server, url.username or "", url.database or "", connections=2) as found:
        engine.close()
        monkeypatch.setenv("DATABASE_URL", url.set(port=found.port).render_as_string(hide_password=False))
        monkeypatch.setenv("DATABASE_PGBOUNCER", "true")
        yield found
        engine.close()


def use(number: int) -> None:
    """Do what one user's jobs and pages do, each in transactions of its own."""
    user, thread, first = f"user-{number}", f"thread-{number}", number * 1000
    turns.store_user_message(f"job-{number}", thread, "where is the harbour?", user)
    rows = [(first + line, "old") for line in range(100)]
    assert changes.apply(Change(TABLE, COLUMNS), rows, f"in-{number}").counts == Counts(inserted=100)
    assert changes.apply(Change(TABLE, COLUMNS), rows, f"in-{number}").repeated
    new = [(first + line, "new") for line in range(50, 150)]
    assert changes.apply(Change(TABLE, COLUMNS, Operation.UPSERT, KEY), new).counts == Counts(50, 50)
    bad = [(first, "new"), ("none", "new")]
    done = changes.apply(Change(TABLE, COLUMNS, Operation.UPDATE, KEY), bad)
    assert (done.counts.updated, [each.line for each in done.rejected]) == (1, [2])
    assert changes.apply(Change(TABLE, KEY, Operation.DELETE, KEY), [[first]]).counts == Counts(deleted=1)
    assert len(history.page(user, thread, total=True).items) == 1
    assert len(summaries.page(user, total=True).items) == 1
    assert len(search.messages(user, "harbour").items) == 1
    vector = [float(number), 1.0, 0.0]
    documents.store([Document(key=f"doc-{number}", content="harbour", embedding=vector, model="by-hand")])
    assert neighbours.nearest(vector, 1, "by-hand")[0].key == f"doc-{number}"


def test_many_share_two_sessions_and_leave_nothing_in_them(behind: Pooler) -> None:
    with ThreadPoolExecutor(USERS) as threads:
        list(threads.map(use, range(USERS)))
    assert behind.clients > 2
    assert scalar(f"SELECT count(*) FROM {TABLE}") == USERS * 149
    for _ in range(2):  # the other session at the second time
        with transaction() as session:
            session.execute(text("COMMIT"))
            assert session.scalar(text("SHOW statement_timeout")) == "0"
            kept = "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors)"
            assert session.scalar(text(f"{kept} + (SELECT count(*) FROM pg_class WHERE relpersistence = 't')")) == 0
            assert session.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0


def test_it_takes_no_options_unless_it_is_named(behind: Pooler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PGBOUNCER", "false")
    with pytest.raises(OperationalError, match="unsupported startup parameter: options"):
        scalar("SELECT 1")


def test_a_worker_loads_rows_through_it(behind: Pooler, workers: Workers) -> None:
    workers.start("bulk_insert", DATABASE_URL=os.environ["DATABASE_URL"], DATABASE_PGBOUNCER="true")
    before = behind.clients
    rows = [{"codepoint": number, "name": f"row {number}"} for number in range(3000)]
    assert enqueue.bulk_insert(TABLE, rows).result(60) == {"rows": 3000}
    enqueue.bulk_insert(TABLE, rows, operation="upsert", key=["codepoint"]).result(60)
    assert scalar(f"SELECT count(*) FROM {TABLE}") == 3000
    assert behind.clients > before
