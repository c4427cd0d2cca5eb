"""Errors that need no server."""

from __future__ import annotations

import json
import pickle

import pytest
import sqlalchemy.exc

from db import text
from db.errors import Fault, RowError, SettingError, StoreError, TableError, TextError, fault_of


def test_a_row_error_survives_the_way_between_processes() -> None:
    error = RowError(3, "name", "too long")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "row 3, column name: too long"
    assert json.loads(json.dumps(error.args)) == [3, "name", "too long"]


def test_a_row_error_names_what_is_known() -> None:
    assert str(RowError(None, None, "broken")) == "broken"
    assert str(RowError(7, None, "broken")) == "row 7: broken"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (RowError(1, None, "x"), Fault.INPUT),
        (TableError("x"), Fault.INPUT),
        (TextError("x"), Fault.INPUT),
        (SettingError("x"), Fault.UNKNOWN),
        (sqlalchemy.exc.TimeoutError("x"), Fault.AWAY),
        (ValueError("x"), Fault.UNKNOWN),
    ],
)
def test_faults(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_text_that_can_be_stored_passes() -> None:
    text.check(content="tabs\t, \x01, \U0001f600, \uffff", job_id=None)


@pytest.mark.parametrize(("bad", "named"), [("ab\0c", r"U\+0000 at position 2"), ("\ud800", r"U\+D800 at position 0")])
def test_text_that_cannot_be_stored_is_named(bad: str, named: str) -> None:
    with pytest.raises(StoreError, match=f"content holds {named}"):
        text.check(job_id="fine", content=bad)
