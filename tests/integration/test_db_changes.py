"""Insert, update, upsert and delete on a real table: exact values, counts, refused rows, locks and receipts."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from db import changes
from db.changes import Change, Conflict, Operation
from db.engine import transaction
from db.errors import RowError, TableError
from db.staging import Counts

pytestmark = pytest.mark.usefixtures("database")
COLUMNS = ("id", "word", "data", "words", "place", "moment")
ID = ("id",)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from('\t\n\r\\"{},N'))
datas = st.lists(texts | st.integers(-(2**53), 2**53), max_size=3) | st.dictionaries(texts, texts, max_size=3)
cells = st.tuples(
    st.none() | texts,
    st.none() | datas,
    st.none() | st.lists(st.none() | texts, max_size=3),
    st.none() | st.just([1.5, -2.0]),
    st.none() | st.datetimes(),
)


def run(statement: str, *given: Any) -> list[Any]:
    with transaction() as session:
        result = session.connection().exec_driver_sql(statement, given)
        return [tuple(row) for row in result] if result.returns_rows else []


@pytest.fixture
def table() -> Iterator[str]:
    name = f"changes_{uuid.uuid4().hex[:8]}"
    run(
        f"CREATE TABLE {name} (id int PRIMARY KEY, word text, data jsonb, words text[], place vector, "
        "moment timestamp, short varchar(3) NOT NULL DEFAULT '')"
    )
    yield name
    run(f"DROP TABLE {name}")


def stored(table: str) -> dict[int, tuple[Any, ...]]:
    rows = run(f"SELECT id, word, data, words, place::text, moment FROM {table} ORDER BY id")
    return {row[0]: row[1:] for row in rows}


def expected(cells: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*cells[:3], None if cells[3] is None else "[1.5,-2]", cells[4])


def words(table: str, rows: Sequence[Sequence[object]], **how: Any) -> changes.Changed:
    return changes.apply(Change(table, ("id", "word"), **how), rows)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(cells, min_size=1, max_size=5), st.lists(cells, min_size=1, max_size=5))
def test_values_arrive_exactly_through_all_operations(table: str, first: list[Any], second: list[Any]) -> None:
    run(f"TRUNCATE {table}")
    old = [(number, *values) for number, values in enumerate(first)]
    new = [(number, *values) for number, values in enumerate(second)]
    assert changes.apply(Change(table, COLUMNS), old).counts == Counts(inserted=len(old))
    known = min(len(old), len(new))
    done = changes.apply(Change(table, COLUMNS, Operation.UPDATE, ID), new).counts
    assert done == Counts(updated=known, skipped=len(new) - known)
    wanted = {row[0]: expected(row[1:]) for row in [*old, *new[:known]]}
    assert stored(table) == wanted
    done = changes.apply(Change(table, COLUMNS, Operation.UPSERT, ID), new).counts
    assert done == Counts(updated=known, inserted=len(new) - known)
    assert stored(table) == wanted | {row[0]: expected(row[1:]) for row in new}
    done = changes.apply(Change(table, ID, Operation.DELETE, ID), [[row[0]] for row in new]).counts
    assert done == Counts(deleted=len(new))
    assert stored(table) == {number: cells for number, cells in wanted.items() if number >= len(new)}


def test_a_conflict_fails_is_skipped_or_updates(table: str) -> None:
    words(table, [(1, "old")])
    rows = [(1, "new"), (2, "new")]
    refused = words(table, rows)
    assert (refused.counts.inserted, [each.line for each in refused.rejected]) == (1, [1])
    assert words(table, rows, on_conflict=Conflict.SKIP).counts == Counts(skipped=2)
    assert words(table, [*rows, (3, "x")], on_conflict=Conflict.UPDATE, key=ID).counts == Counts(1, 2)
    assert words(table, [(1, "first"), (1, "last")], operation=Operation.UPDATE, key=ID).counts == Counts(0, 1, 1)
    assert stored(table)[1][0] == "last"


@pytest.mark.parametrize("operation", [Operation.INSERT, Operation.UPSERT])
def test_bad_rows_are_told_and_the_good_ones_are_in(table: str, operation: Operation) -> None:
    rows: list[list[object]] = [[number, "ok"] for number in range(100)]
    rows[7] = ["seven", "ok"]
    rows[50][1] = "too long"
    rows[99][1] = "a\0b"
    done = changes.apply(Change(table, ("id", "short"), operation, ID), [[a, str(b)[:9]] for a, b in rows])
    assert done.counts.inserted == 97
    told = [(each.line, each.column, each.value) for each in done.rejected]
    assert told[0] == (8, "id", "'seven'")
    assert told[2] == (100, "short", r"'a\x00b'")
    assert told[1][0] == 51
    assert "value too long" in done.rejected[1].reason


def test_nothing_is_kept_when_every_row_is_bad(table: str) -> None:
    with pytest.raises(RowError, match="one"):
        changes.apply(Change(table, ("id", "word")), [["one", "x"]], "all-bad")
    assert changes.apply(Change(table, ("id", "word")), [[1, "x"]], "all-bad").repeated is False


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change("", ("id", "word"), Operation.UPDATE), "needs a key"),
        (Change("", ("id", "word"), Operation.UPSERT, ("word",)), r"no unique index; it has \(id\)"),
        (Change("", ("word",), Operation.DELETE, ID), "not among"),
        (Change("", ("id", "word"), Operation.DELETE, ID), "alone"),
        (Change("", ("id", "wrod"), Operation.UPSERT, ID), "did you mean 'word'"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(table: str, change: Change, said: str) -> None:
    with pytest.raises(TableError, match=said):
        changes.apply(changes.replace(change, table=table), [[1] * len(change.columns)])


@pytest.mark.parametrize("operation", list(Operation))
def test_a_second_run_changes_nothing(table: str, operation: Operation) -> None:
    if operation is not Operation.INSERT:
        words(table, [(1, "old")])
    columns: tuple[str, ...] = ID if operation is Operation.DELETE else ("id", "word")
    change = Change(table, columns, operation, ID)
    job_id, rows = uuid.uuid4().hex, [(1, "new")[: len(columns)]]
    first = changes.apply(change, rows, job_id)
    run(f"DELETE FROM {table}")
    words(table, [(1, "later")])
    assert changes.apply(change, rows, job_id) == changes.replace(first, repeated=True)
    assert stored(table)[1][0] == "later"


@pytest.mark.parametrize("operation", [Operation.UPDATE, Operation.UPSERT, Operation.DELETE])
def test_jobs_with_the_same_rows_do_not_lock_each_other_out(
    table: str, operation: Operation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_ATTEMPTS", 1)
    columns: tuple[str, ...] = ID if operation is Operation.DELETE else ("id", "word")
    rows = [(number, "x")[: len(columns)] for number in range(400)]
    words(table, [(number, "old") for number in range(400)])
    failed: list[Exception] = []

    def work(mine: list[Any]) -> None:
        try:
            for _ in range(5):
                changes.apply(Change(table, columns, operation, ID), mine)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(rows[:: 1 - 2 * (n % 2)],)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []


def test_any_number_of_rows_goes_in_by_chunks(table: str) -> None:
    rows = ((number if number != 1500 else "bad", "x") for number in range(2500))
    done = list(changes.in_chunks(Change(table, ("id", "word")), rows))
    assert [each.counts.inserted for each in done] == [1000, 999, 500]
    assert [each.line for each in done[1].rejected] == [1501]
