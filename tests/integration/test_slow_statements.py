"""Slow statements: seen, kept without their values, planned without being run, and an index tried for them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import sqlalchemy.exc
from sqlalchemy import text

from db import engine
from db.bulk import inserts
from db.engine import transaction
from db.errors import UnknownStatementError
from db.tuning import index_advice, normal_form, plans, seen, slow_statements, statements
from db.tuning.slow_statements import Kept
from tests.commands import Cli

SECRET = "open sesame"
BIG = 20_000


@pytest.fixture(autouse=True)
def watched(database: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("QUERY_SLOW_THRESHOLD", "0.05")
    engine.close()
    yield
    statements.finish()
    engine.close()


@pytest.fixture
def big() -> Iterator[str]:
    """Give a table without an index that anybody wants."""
    execute("CREATE TABLE scratch_big (id int PRIMARY KEY, owner int, at timestamptz, note text)")
    execute(
        "INSERT INTO scratch_big SELECT n, n % 500, now() + n * interval '1 s', 'note ' || n "
        f"FROM generate_series(1, {BIG}) n"
    )
    execute("ANALYZE scratch_big")
    kept()
    slow_statements.forget()
    yield "scratch_big"
    execute("DROP TABLE scratch_big")


def execute(statement: str, **values: object) -> None:
    with transaction() as session:
        session.execute(text(statement), values)


def kept() -> dict[str, Kept]:
    """Return what is kept, by the beginning of the statement, when all that was seen so far is."""
    statements.finish()
    return {each.statement: each for each in slow_statements.listed()}


def test_slow_runs_of_one_kind_are_counted_together(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "db.tuning.statements"):
        for seconds in (0.06, 0.2):
            execute("SELECT pg_sleep(:seconds)", seconds=seconds)
        execute("SELECT pg_sleep(0.001)")
        found = kept()["SELECT pg_sleep($1)"]
    assert (found.calls, found.failures) == (2, 0)
    assert found.total_ms > found.longest_ms > 200
    assert found.fingerprint in caplog.text


def test_the_level_grows_with_the_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("QUERY_SLOW_WARNING", "0.1")
    monkeypatch.setenv("QUERY_SLOW_ERROR", "0.3")
    engine.close()
    for seconds in (0.06, 0.15, 0.35):
        execute(f"SELECT {'1, ' * round(seconds * 100)} pg_sleep({seconds})")
    kept()
    levels = [each.levelno for each in caplog.records if "slow statement" in each.message]
    assert sorted(levels) == [logging.WARNING, logging.ERROR], "INFO is not captured"


def test_no_value_is_kept_or_told(big: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        execute(
            f"SELECT pg_sleep(0.06) FROM {big} WHERE note <> :note AND note NOT IN ('{SECRET} 2', :other) LIMIT 1",
            note=SECRET,
            other=f"{SECRET} 3",
        )
        found = kept()
        with transaction() as session:
            rows = [str(row) for row in session.execute(text("SELECT slow_statements::text FROM slow_statements"))]
    (one,) = (each for each in found.values() if "scratch_big" in each.statement)
    assert one.plan is not None
    (scan,) = plans.scans(one.plan)
    assert scan.table == big
    assert "Filter" in json.dumps(one.plan)
    for told in (*rows, caplog.text, json.dumps(one.plan)):
        assert "sesame" not in told


def test_a_slow_insert_is_planned_and_runs_once(big: str) -> None:
    execute(f"INSERT INTO {big} SELECT 0, 0, now(), pg_sleep(0.06)::text")
    (found,) = (each for each in kept().values() if each.statement.startswith("INSERT INTO scratch_big"))
    assert found.plan is not None
    assert found.plan["Operation"] == "Insert"
    with transaction() as session:
        assert session.scalar(text(f"SELECT count(*) FROM {big}")) == BIG + 1


def test_a_plan_stays_when_the_next_run_takes_none() -> None:
    for calls in (1, 2):
        execute("SELECT pg_sleep(0.06)")
        found = kept()["SELECT pg_sleep($1)"]
        assert found.calls == calls
        assert found.plan is not None


def test_what_failed_counts_too() -> None:
    with pytest.raises(sqlalchemy.exc.DataError):
        execute("SELECT 1 / (length(pg_sleep(0.06)::text))")
    (found,) = (each for each in kept().values() if each.statement.startswith("SELECT $1 / "))
    assert (found.calls, found.failures) == (1, 1)


def test_copy_is_timed(big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERY_SLOW_THRESHOLD", "0")
    engine.close()
    inserts.insert(None, big, ["id", "note"], [[-1, SECRET]])
    assert any(each.startswith('COPY "public"."scratch_big"') for each in kept())


def test_nothing_is_timed_when_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERY_SLOW_ENABLED", "false")
    engine.close()
    execute("SELECT pg_sleep(0.06)")
    assert "SELECT pg_sleep($1)" not in kept()


def test_when_it_cannot_be_kept_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    execute("ALTER TABLE slow_statements RENAME TO slow_statements_away")
    try:
        execute("SELECT pg_sleep(0.6)")
        statements.finish()
    finally:
        execute("ALTER TABLE slow_statements_away RENAME TO slow_statements")
    assert "slow statement" in caplog.text
    assert "not kept" in caplog.text


def test_only_so_many_kinds_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "MOST", 3)
    for number in range(5):
        execute(f"SELECT {'1, ' * number}pg_sleep(0.06)")
        statements.finish()
    assert len(kept()) == 3


def test_an_index_that_helps_is_found_and_leaves_no_trace(big: str) -> None:
    statement = f"SELECT id FROM {big} WHERE owner = $1 ORDER BY at DESC LIMIT $2"
    advice = index_advice.recommend(statement)
    assert advice.index == f"CREATE INDEX CONCURRENTLY ix_{big}_owner_at ON {big} (owner, at DESC)"
    assert advice.cost_before is not None
    assert advice.cost_after is not None
    assert advice.cost_after < advice.cost_before / 2
    with transaction() as session:
        assert session.scalars(text(f"SELECT indexname FROM pg_indexes WHERE tablename = '{big}'")).all() == [
            f"{big}_pkey"
        ]
    execute(f"CREATE INDEX scratch_owner ON {big} (owner)")
    execute(f"CREATE INDEX scratch_right ON {big} (owner, at DESC)")
    again = index_advice.recommend(statement)
    assert again.index is None


def test_an_index_that_another_makes_redundant_is_named(big: str) -> None:
    execute(f"CREATE INDEX scratch_owner ON {big} (owner)")
    advice = index_advice.recommend(f"SELECT id FROM {big} WHERE owner = $1 ORDER BY at LIMIT $2")
    assert advice.redundant == ("scratch_owner",)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELECT id FROM scratch_big WHERE note LIKE $1", "compares no column"),
        ("SELECT count(*) FROM scratch_big", "compares no column"),
        ("SELECT id FROM scratch_big WHERE owner <> $1 AND id = $2", "none of"),
        ("SELECT id FROM not_there WHERE a = $1", "cannot be planned"),
        ("DROP TABLE scratch_big", "EXPLAIN does not take it"),
        ("SELECT $1; DROP TABLE scratch_big", "EXPLAIN does not take it"),
        (normal_form.UNREADABLE, "EXPLAIN does not take it"),
    ],
)
def test_without_an_index_that_helps_it_says_why(big: str, statement: str, reason: str) -> None:
    advice = index_advice.recommend(statement)
    assert advice.index is None
    assert reason in advice.reason
    execute(f"SELECT FROM {big}")


def test_large_tables_are_left_alone(big: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_advice, "MOST_BYTES", 1000)
    statement = f"SELECT id FROM {big} WHERE owner = $1"
    assert "--any-size" in index_advice.recommend(statement).reason
    assert index_advice.recommend(statement, any_size=True).index


def test_an_unknown_fingerprint_says_where_to_look() -> None:
    with pytest.raises(UnknownStatementError, match="queries slow"):
        slow_statements.one("abc")


def test_the_commands_show_recommend_and_forget(big: str, cli: Cli) -> None:
    execute(f"SELECT pg_sleep(0.06), id FROM {big} WHERE owner = 7 LIMIT 1")
    (found,) = (each for each in kept().values() if "owner" in each.statement)
    assert found.fingerprint in cli("queries", "slow")
    assert " ... │" in cli("queries", "slow"), "cut, and marked so"
    assert found.fingerprint in [each["fingerprint"] for each in cli.json("queries", "slow", "--since", "1h")]
    shown = cli("queries", "show", found.fingerprint[:6])
    assert "Seq Scan on scratch_big" in shown
    assert "owner = $1" in shown
    said = cli("queries", "recommend", found.fingerprint, code=1)
    assert "CREATE INDEX CONCURRENTLY ix_scratch_big_owner ON scratch_big (owner);" in said
    assert "queries slow" in cli("queries", "show", "nothing", code=1)
    assert "forgotten" in cli("queries", "forget")
    assert cli.json("queries", "slow") == []
