"""Which index would help a slow statement: not guessed, but tried, in a transaction that is rolled back.

Candidates come from what the statement compares and sorts by. Each is built for real and the planner asked again: what
it does not use, or what does not halve the cost, is not recommended. While an index is tried its table takes no writes,
so large tables are left alone unless that is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Connection, text

from db.engine import engine
from db.tuning import index_candidates, normal_form, plans
from db.tuning.index_candidates import Candidate
from db.tuning.plans import Plan
from db.tuning.slow_statements import Kept
from db.tuning.statements import UNWATCHED

#: Tables up to this size are tried without being asked for: a build of a second or two.
MOST_BYTES = 256 * 1024 * 1024
#: An index is recommended when the planner's cost falls to this share or below.
HELPS_AT = 0.5
MOST_CANDIDATES = 12
_TRIAL = "forebay_trial"
_INDEXES = text("""
    SELECT ic.relname, i.indisunique,
           array(SELECT pg_get_indexdef(i.indexrelid, n, true) || CASE WHEN i.indoption[n - 1] & 1 = 1 THEN ' DESC'
                        ELSE '' END FROM generate_series(1, i.indnkeyatts) n)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class ic ON ic.oid = i.indexrelid
    WHERE c.relname = :table AND c.relnamespace = 'public'::regnamespace AND i.indisvalid AND i.indpred IS NULL
""")


@dataclass(frozen=True)
class Advice:
    """What came of it: an index that helps, with the planner's cost before and after, or why there is none."""

    statement: str
    index: str | None
    reason: str
    cost_before: float | None = None
    cost_after: float | None = None
    size_bytes: int | None = None
    redundant: tuple[str, ...] = ()


def recommend(statement: str, *, any_size: bool = False) -> Advice:
    """Try indexes for a statement in its normal form, as `slow_statements` keeps it.

    Its values are not known, so it is planned for values as they are on average.
    """
    if not normal_form.of(statement).has_plan:
        return Advice(statement, None, "EXPLAIN does not take it, or it is more than one statement")
    with engine().connect().execution_options(**UNWATCHED) as connection:
        before = _planned(connection, statement)
        if isinstance(before, str):
            return Advice(statement, None, f"it cannot be planned without its values: {before}")
        found = index_candidates.of(connection, statement)[:MOST_CANDIDATES]
        connection.rollback()
        if not found:
            return Advice(statement, None, f"it compares no column that an index is good for: {plans.summary(before)}")
        sizes = {each.table: _size(connection, each.table) for each in found}
        large = sorted(table for table, size in sizes.items() if size > MOST_BYTES and not any_size)
        tried = [_tried(connection, each, statement, before) for each in found if each.table not in large]
    helpful = [each for each in tried if each is not None]
    if helpful:
        return min(helpful, key=lambda each: (each.cost_after or 0.0, each.size_bytes or 0))
    if large:
        return Advice(
            statement,
            None,
            f"{', '.join(large)} is too large to try an index on: it would take no writes meanwhile; --any-size does",
        )
    return Advice(statement, None, f"none of {len(tried)} indexes that were tried halves its cost")


def _tried(connection: Connection, candidate: Candidate, statement: str, before: Plan) -> Advice | None:
    """Build an index, plan the statement, roll back; return None when it is there already, or does not help."""
    keys = _keys(candidate)
    there = [(name, unique, tuple(of)) for name, unique, of in connection.execute(_INDEXES, {"table": candidate.table})]
    connection.rollback()
    if any(of[: len(keys)] == keys for _, _, of in there):
        return None
    transaction = connection.begin()
    try:
        connection.execute(text("SET LOCAL lock_timeout = '1s'"))
        connection.execute(text("SET LOCAL statement_timeout = '10min'"))
        connection.exec_driver_sql(f"CREATE INDEX {_TRIAL} {_on(candidate)}")
        size = connection.scalar(text("SELECT pg_relation_size(CAST(:name AS regclass))"), {"name": _TRIAL})
        after = _explained(connection, statement)
    except sqlalchemy.exc.DBAPIError:  # a column that has no order, a lock that was not to be had
        return None
    finally:
        transaction.rollback()
    is_used = any(step.get("Index Name") == _TRIAL for step in plans.steps(after))
    cost_before, cost_after = float(before["Total Cost"]), float(after["Total Cost"])
    if not is_used or cost_after > cost_before * HELPS_AT:
        return None
    index = f"CREATE INDEX CONCURRENTLY {_name(candidate)} {_on(candidate)}"
    redundant = tuple(name for name, unique, of in there if not unique and of == keys[: len(of)])
    return Advice(statement, index, "it was tried", cost_before, cost_after, size, redundant)


def _planned(connection: Connection, statement: str) -> Plan | str:
    """Return a statement's plan, or why there is none."""
    transaction = connection.begin()
    try:
        return _explained(connection, statement)
    except sqlalchemy.exc.DBAPIError as error:
        return str(error.orig).strip().partition("\n")[0]
    finally:
        transaction.rollback()


def _explained(connection: Connection, statement: str) -> Plan:
    for limit in plans.LIMITS:
        connection.execute(limit)
    answer: Any = connection.exec_driver_sql(
        f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement}", execution_options={"no_parameters": True}
    ).scalar_one()
    return dict(answer[0]["Plan"])


def _size(connection: Connection, table: str) -> int:
    size = connection.scalar(text("SELECT pg_table_size(CAST(:table AS regclass))"), {"table": _quoted(table)})
    connection.rollback()
    return int(size or 0)


def _keys(candidate: Candidate) -> tuple[str, ...]:
    """Return an index's keys as the server writes them."""
    return tuple(
        f"{_quoted(column)} DESC" if column in candidate.falling else _quoted(column) for column in candidate.columns
    )


def _on(candidate: Candidate) -> str:
    return f"ON {_quoted(candidate.table)} ({', '.join(_keys(candidate))})"


def _name(candidate: Candidate) -> str:
    """Return a name like those of the other indexes, within what PostgreSQL keeps of one."""
    return _quoted(f"ix_{candidate.table}_{'_'.join(candidate.columns)}"[:63])


def _quoted(name: str) -> str:
    return engine().dialect.identifier_preparer.quote(name)


def worth_trying(found: Sequence[Kept]) -> list[Kept]:
    """Return those of the slow statements whose plan is not known to read by indexes alone."""
    return [each for each in found if each.plan is None or plans.scans(each.plan)]
