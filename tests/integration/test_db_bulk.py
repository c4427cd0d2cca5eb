"""Rows through COPY into a real table: what arrives, what is refused, and what a second run adds."""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import receipts
from db.bulk import inserts
from db.bulk.inserts import Inserted
from db.engine import transaction
from db.errors import Fault, RowError, TableError, fault_of

pytestmark = pytest.mark.usefixtures("database")
COLUMNS = {
    "id": "integer PRIMARY KEY",
    "word": "text",
    "whole": "bigint",
    "exact": "numeric",
    "broken": "float8",
    "flag": "boolean",
    "raw": "bytea",
    "moment": "timestamptz",
    "data": "jsonb",
    "words": "text[]",
    "wholes": "bigint[]",
    "datas": "jsonb[]",
    "place": "vector",
    "short": "varchar(3)",
}
examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def table() -> Iterator[str]:
    """Make a table whose name needs quoting, for this test alone."""
    name = f'Bulk "{uuid.uuid4().hex[:8]}"; %s, line 9'
    quoted = '"' + name.replace('"', '""') + '"'
    with transaction() as session:
        columns = ", ".join(f'"{column}" {kind}' for column, kind in COLUMNS.items())
        session.connection().exec_driver_sql(f"CREATE TABLE {quoted} ({columns})".replace("%", "%%"))
    yield name
    with transaction() as session:
        session.connection().exec_driver_sql(f"DROP TABLE {quoted}".replace("%", "%%"))


def run(statement: str, table: str) -> list[Any]:
    quoted = '"' + table.replace('"', '""').replace("%", "%%") + '"'
    with transaction() as session:
        return [tuple(row) for row in session.connection().exec_driver_sql(statement.format(table=quoted))]


def stored(table: str, column: str) -> list[Any]:
    return [value for (value,) in run(f'SELECT "{column}" FROM {{table}} ORDER BY id', table)]


def round_trip(table: str, column: str, values: Sequence[object]) -> list[Any]:
    """Insert the values into one column of the emptied table, and read them back."""
    run("DELETE FROM {table} RETURNING id", table)
    rows = list(enumerate(values))
    assert inserts.insert(None, table, ["id", column], rows) == Inserted(len(rows), repeated=False)
    return stored(table, column)


def as_floats(value: object) -> object:
    """Write all numbers as floats: jsonb keeps them as numeric and gives 1e+16 back as 10000000000000000."""
    return json.loads(json.dumps(value), parse_int=float)


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from('\t\n\r\\"{},N'))
wholes = st.integers(-(2**63), 2**63 - 1)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
containers = st.lists(jsons, max_size=3) | st.dictionaries(texts, jsons, max_size=3)


@examples
@given(st.lists(st.none() | texts, max_size=8))
def test_text_arrives_exactly(table: str, values: list[str | None]) -> None:
    assert round_trip(table, "word", values) == values


@examples
@given(st.lists(st.none() | wholes, max_size=8))
def test_whole_numbers_arrive_exactly(table: str, values: list[int | None]) -> None:
    assert round_trip(table, "whole", values) == values


@examples
@given(st.lists(st.none() | st.floats(), max_size=8))
def test_floats_arrive_exactly(table: str, values: list[float | None]) -> None:
    assert [repr(value) for value in round_trip(table, "broken", values)] == [repr(value) for value in values]


@examples
@given(st.lists(st.none() | st.decimals(-(10**30), 10**30, places=5), max_size=8))
def test_decimals_arrive_exactly(table: str, values: list[Any]) -> None:
    special = [Decimal("NaN"), Decimal("-Infinity"), Decimal("1E+20")]
    assert list(map(str, round_trip(table, "exact", values))) == list(map(str, values))
    assert round_trip(table, "exact", special)[1:] == special[1:]


@examples
@given(st.lists(st.none() | st.binary(), max_size=8))
def test_bytes_arrive_exactly(table: str, values: list[bytes | None]) -> None:
    stored = round_trip(table, "raw", values)
    assert [None if value is None else bytes(value) for value in stored] == values
    assert list(map(bytes, round_trip(table, "raw", [bytearray(b"\\x41"), memoryview(b"\0")]))) == [b"\\x41", b"\0"]


@examples
@given(st.lists(st.none() | containers, max_size=5))
def test_json_arrives_exactly(table: str, values: list[Any]) -> None:
    assert as_floats(round_trip(table, "data", values)) == as_floats(values)


@examples
@given(st.lists(st.none() | st.lists(st.none() | texts, max_size=5), max_size=5))
def test_arrays_of_text_arrive_exactly(table: str, values: list[Any]) -> None:
    assert round_trip(table, "words", values) == values


@examples
@given(st.lists(st.lists(st.none() | wholes, min_size=2, max_size=2), min_size=1, max_size=3))
def test_nested_arrays_arrive_exactly(table: str, value: list[list[int | None]]) -> None:
    assert round_trip(table, "wholes", [value, None, [], value[0]]) == [value, None, [], value[0]]


@examples
@given(st.lists(containers, max_size=4))
def test_arrays_of_json_arrive_exactly(table: str, value: list[Any]) -> None:
    assert as_floats(round_trip(table, "datas", [value])) == as_floats([value])


def test_the_rest_arrives(table: str) -> None:
    assert round_trip(table, "flag", [True, False, None, "yes"]) == [True, False, None, True]
    assert round_trip(table, "place", [[1, 0.5], "[2,3]", None]) == ["[1,0.5]", "[2,3]", None]
    [moment] = round_trip(table, "moment", ["2026-01-02T03:04:05.678901+02:00"])
    assert moment.isoformat().startswith("2026-01-02T0")
    assert round_trip(table, "data", ['{"as": "text"}', 1, True, '"word"']) == [{"as": "text"}, 1, True, "word"]
    assert math.isnan(round_trip(table, "broken", [float("nan")])[0])


@pytest.mark.parametrize(
    ("column", "bad", "said"),
    [
        ("whole", "twelve", 'invalid input syntax for type bigint: "twelve"'),
        ("whole", 2**63, "out of range"),
        ("whole", 1.5, "invalid input syntax"),
        ("short", "four", "value too long"),
        ("data", "{", "invalid input syntax for type json"),
        ("data", {"a": "\0"}, "unsupported Unicode escape sequence"),
        ("moment", "2026-02-30", "out of range"),
        ("words", [["a"], ["b", "c"]], "malformed array literal"),
        ("place", [1e300], "out of range"),
        ("id", None, "violates not-null constraint"),
        ("word", "a\0", "U\\+0000 at position 1"),
        ("word", {"a": 1}, "a dict was given"),
    ],
)
def test_a_bad_row_is_named_and_none_arrives(table: str, column: str, bad: object, said: str) -> None:
    names = ["id", "word", column] if column not in ("id", "word") else ["id", "word"]
    rows: list[list[object]] = [[number, "fine", None][: len(names)] for number in range(5)]
    rows[3][names.index(column)] = bad
    with pytest.raises(RowError, match=said) as raised:
        inserts.insert(uuid.uuid4().hex, table, names, rows)
    assert (raised.value.line, raised.value.column) == (4, column)
    assert stored(table, "id") == []


def test_a_repeated_key_is_named_by_its_row(table: str) -> None:
    with pytest.raises(
        RowError,
        match=r"row 3: duplicate key value .*; Key \(id\)=\(1\) already exists\.; to take rows that are there, skip",
    ):
        inserts.insert(None, table, ["id"], [[1], [2], [1]])


@pytest.mark.parametrize(
    ("name", "columns", "said"),
    [
        ("unicode_character", ["name"], r"not an ordinary table .* did you mean 'unicode_characters'"),
        ("unicode_characters", ["nam"], "has no column 'nam'; it has codepoint, .*; did you mean 'name'"),
        ("unicode_characters", ["ctid"], "has no column 'ctid'"),
        ("unicode_characters", [], "no columns were given"),
        ("unicode_characters", ["name", "name"], "column 'name' was given twice"),
        ("pg_class", ["relname"], "not an ordinary table"),
        ("pg_catalog.pg_class", ["relname"], "not an ordinary table"),
        ("scratch_view", ["name"], "not an ordinary table"),
        ("x; DROP TABLE messages", ["name"], "not an ordinary table"),
        ("a\0", ["name"], r"U\+0000"),
        ("documents", ["dimensions"], "generated column"),
    ],
)
def test_what_may_not_be_written_is_named(name: str, columns: list[str], said: str) -> None:
    with transaction() as session:
        session.execute(text("CREATE OR REPLACE VIEW scratch_view AS SELECT name FROM unicode_characters"))
    try:
        with pytest.raises(TableError, match=said):
            inserts.insert(None, name, columns, [["1"] * len(columns)])
    finally:
        with transaction() as session:
            session.execute(text("DROP VIEW scratch_view"))


def test_a_changed_table_is_seen(table: str) -> None:
    inserts.insert(None, table, ["id"], [[1]])
    run('ALTER TABLE {table} ADD "later" text; SELECT 1', table)
    inserts.insert(None, table, ["id", "later"], [[2, "x"]])
    run('ALTER TABLE {table} DROP "later"; SELECT 1', table)
    with pytest.raises(TableError):  # by the server: what is known of the columns may be seconds old
        inserts.insert(None, table, ["id", "later"], [[3, "x"]])
    with pytest.raises(TableError, match="has no column 'later'"):
        inserts.insert(None, table, ["id", "later"], [[3, "x"]])


def test_a_second_run_adds_nothing(table: str) -> None:
    job = uuid.uuid4().hex
    assert inserts.insert(job, table, ["id"], [[1], [2]]) == Inserted(2, repeated=False)
    assert inserts.insert(job, table, ["id"], [[3]]) == Inserted(2, repeated=True)
    assert stored(table, "id") == [1, 2]


def test_no_rows_still_leave_a_receipt(table: str) -> None:
    job = uuid.uuid4().hex
    assert inserts.insert(job, table, ["id"], []) == Inserted(0, repeated=False)
    assert inserts.insert(job, table, ["id"], [[1]]) == Inserted(0, repeated=True)


def test_a_run_that_failed_leaves_no_receipt(table: str) -> None:
    job = uuid.uuid4().hex
    with pytest.raises(RowError):
        inserts.insert(job, table, ["id"], [[1], ["x"]])
    assert inserts.insert(job, table, ["id"], [[1]]) == Inserted(1, repeated=False)


def test_without_a_job_nothing_is_remembered(table: str) -> None:
    assert (
        inserts.insert(None, table, ["id"], [[1]]) == inserts.insert(None, table, ["id"], [[2]]) == Inserted(1, False)
    )


@pytest.mark.parametrize(
    ("mishap", "fault"),
    [
        ("PERFORM pg_terminate_backend(pg_backend_pid())", Fault.AWAY),
        ("RAISE EXCEPTION USING ERRCODE = '40P01'", Fault.BUSY),
    ],
)
def test_a_mishap_within_copy_is_no_fault_of_a_row(table: str, mishap: str, fault: Fault) -> None:
    job = uuid.uuid4().hex
    rows = [[1], [2], [3], [4]]
    run(
        f"CREATE FUNCTION mishap() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$BEGIN IF NEW.id = 3 THEN {mishap}; END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER mishap BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION mishap(); SELECT 1",
        table,
    )
    try:
        with pytest.raises((psycopg2.Error, DBAPIError)) as raised:
            inserts.insert(job, table, ["id"], rows)
    finally:
        run("DROP FUNCTION mishap() CASCADE; SELECT 1", table)
    assert fault_of(raised.value) is fault
    assert inserts.insert(job, table, ["id"], rows) == Inserted(4, repeated=False)
    assert stored(table, "id") == [1, 2, 3, 4]


def test_of_runs_that_race_one_inserts(table: str) -> None:
    job = uuid.uuid4().hex
    at_once = threading.Barrier(4)
    outcomes: list[Inserted] = []

    def race() -> None:
        at_once.wait(10)
        outcomes.append(inserts.insert(job, table, ["word", "id"], [["x", number] for number in range(500)]))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcome.repeated for outcome in outcomes) == [False, True, True, True]
    assert {outcome.rows for outcome in outcomes} == {500}
    assert len(stored(table, "id")) == 500


def test_the_receipt_tells_the_count(table: str) -> None:
    job = uuid.uuid4().hex
    inserts.insert(job, table, ["id"], [[1]])
    with transaction() as session:
        assert json.loads(json.dumps(receipts.of(session, job))) == {"rows": 1}
