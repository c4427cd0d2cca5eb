"""Statements that differ only in their values have one form, and no value is left in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.tuning import normal_form


@pytest.mark.parametrize(
    ("statement", "form"),
    [
        ("SELECT a FROM t WHERE id = %(id_1)s", "SELECT a FROM t WHERE id = $1"),
        ("SELECT  a\n FROM t -- secret\n WHERE /* secret */ id = 7;", "SELECT a FROM t WHERE id = $1"),
        ("SELECT 1 WHERE a IN (%(a_1)s, %(a_2)s, 3) AND b = 'x'", "SELECT $1 WHERE a IN ($2) AND b = $3"),
        ("INSERT INTO t (a, b) VALUES (%s, %s), (%s, %s) ON CONFLICT (a) DO NOTHING",
         "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO NOTHING"),
        ("SELECT now() - interval '1 day', date '2026-01-01', date FROM t",
         "SELECT now() - $1::interval, $2::date, date FROM t"),
        ("SELECT x::numeric(10, 2), CAST(v AS vector(3)) <=> %(v)s",
         "SELECT x::numeric(10, 2), CAST(v AS vector(3)) <=> $1"),
        ("SELECT $tag$secret$tag$, $$x$$, E'a\\'b', 'it''s', \"Name\" , 100 %% 7",
         "SELECT $1, $2, $3, $4, \"Name\" , $5 % $6"),
        ("SELECT a FROM t WHERE f(b) IN (SELECT 1)", "SELECT a FROM t WHERE f(b) IN (SELECT $1)"),
        ("COPY t (a) FROM STDIN (FORMAT text, ENCODING 'UTF8')", "COPY t (a) FROM STDIN (FORMAT text, ENCODING $1)"),
    ],
)  # fmt: skip
def test_values_become_places(statement: str, form: str) -> None:
    assert normal_form.of(statement).statement == form
    assert normal_form.of(form).statement == form


@pytest.mark.parametrize(
    ("statement", "has_plan"),
    [
        ("SELECT 1", True),
        ("with x as (select 1) select * from x;", True),
        ("SELECT 1; DELETE FROM t", False),
        ("CREATE INDEX i ON t (a)", False),
        ("COPY t FROM STDIN", False),
        ("EXPLAIN SELECT 1", False),
        ("SELECT 'unterminated", False),
        ("SELECT " + "1, " * 20_000 + "1", False),
        ("", False),
        (";", False),
    ],
)
def test_only_one_whole_statement_that_explain_takes_has_a_plan(statement: str, has_plan: bool) -> None:
    assert normal_form.of(statement).has_plan is has_plan


@given(st.text(), st.text())
def test_text_values_make_no_difference_and_leave_no_trace(one: str, other: str) -> None:
    forms = {normal_form.of(f"SELECT a FROM t WHERE b = '{each}'") for each in (quoted(one), quoted(other))}
    assert {form.statement for form in forms} <= {"SELECT a FROM t WHERE b = $1", normal_form.UNREADABLE}


@given(st.text())
def test_anything_has_a_form(statement: str) -> None:
    assert len(normal_form.of(statement).fingerprint) == 12


def quoted(value: str) -> str:
    return value.replace("'", "''").replace("%", "%%")
