"""The lines that COPY is sent, and what has no form in them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest

from db.bulk import copy_text
from db.errors import RowError
from db.schema import Column, Kind

TEXT = Column("word", "text", Kind.SCALAR)
ARRAY = Column("list", "text[]", Kind.ARRAY)
JSON = Column("data", "jsonb", Kind.JSON)
JSONS = Column("datas", "jsonb[]", Kind.JSON_ARRAY)
VECTOR = Column("embedding", "vector", Kind.VECTOR)


class Level(enum.IntEnum):
    HIGH = 3


def one(column: Column, *values: object) -> list[str]:
    """Encode a column of its own and return its lines."""
    lines = copy_text.encode([column], [[value] for value in values]).decode()
    return lines.split("\n")[:-1]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (None, r"\N"),
        (r"\N", r"\\N"),
        ("", ""),
        ("a\tb\nc\rd\\e", r"a\tb\nc\rd\\e"),
        ("\\.", r"\\."),
        (True, "true"),
        (12, "12"),
        (0.1, "0.1"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (Decimal("1.50"), "1.50"),
        (Decimal("-sNaN"), "NaN"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (timedelta(days=-1, seconds=5), "-1 days 5 seconds 0 microseconds"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Level.HIGH, "3"),
        (np.float64(0.5), "0.5"),
    ],
)
def test_scalars(value: object, line: str) -> None:
    assert one(TEXT, value) == [line]
    # Beside a value of another type the slower way is taken, which must write the same.
    assert one(TEXT, "other", value, None) == ["other", line, r"\N"]


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        (ARRAY, [], "{}"),
        (ARRAY, ["a", None, 'q"\\', "NULL"], r'{"a",NULL,"q\\"\\\\","NULL"}'),
        (ARRAY, [[1, 2], (3, None)], '{{"1","2"},{"3",NULL}}'),
        (JSON, {"a": ["é\n", None]}, r'{"a":["é\\n",null]}'),
        (JSON, [], "[]"),
        (JSON, '{"as": "it is"}', '{"as": "it is"}'),
        (JSONS, [{"a": 1}, None, "s"], r'{"{\\"a\\":1}",NULL,"\\"s\\""}'),
        (VECTOR, [1, 0.5], "[1,0.5]"),
    ],
)
def test_lists_and_dicts(column: Column, value: object, line: str) -> None:
    assert one(column, value) == [line]
    assert one(column, value, "x", value) == [line, "x", line]


def test_rows_keep_their_order_and_columns() -> None:
    rows: list[list[object]] = [[1, "a", None], [None, "b", {"k": 1}], [3, None, [2]]]
    columns = [Column("id", "integer", Kind.SCALAR), TEXT, JSON]
    assert copy_text.encode(columns, rows) == b'1\ta\t\\N\n\\N\tb\t{"k":1}\n3\t\\N\t[2]\n'


def test_no_rows_are_no_bytes() -> None:
    assert copy_text.encode([TEXT], []) == b""


CIRCULAR: list[object] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("column", "values", "line", "reason"),
    [
        (TEXT, ["a", "b\0"], 2, r"U\+0000 at position 1"),
        (TEXT, [None, "a", None, "\0"], 4, r"U\+0000 at position 0"),
        (TEXT, ["a", 1, "\0"], 3, r"U\+0000"),
        (TEXT, ["a", "b", "\udfff"], 3, r"U\+DFFF"),
        (TEXT, ["a", b"b"], 2, "bytes was given, and the column takes neither lists, dicts nor bytes"),
        (TEXT, [b"b", b"b"], 1, "bytes was given, and the column takes neither lists, dicts nor bytes"),
        (TEXT, ["a", None, ["b"]], 3, "a list was given, and the column takes neither lists, dicts nor bytes"),
        (TEXT, [10**5000], 1, "digits"),
        (ARRAY, [["fine"], ["\0"]], 2, r"U\+0000"),
        (ARRAY, [["fine"], {"a": 1}], 2, "a dict was given, and the column takes lists"),
        (ARRAY, [None, ["fine", b""]], 2, "bytes was given, and the column takes lists"),
        (ARRAY, [CIRCULAR], 1, "recursion"),
        (JSON, [{}, {"a": float("nan")}], 2, "not JSON compliant"),
        (JSON, [{}, {"a": object()}], 2, "Unable to serialize"),
        (JSON, [{}, CIRCULAR], 2, "Circular"),
        (VECTOR, [[1.0], {"a": 1}], 2, "takes lists of numbers"),
    ],
)
def test_what_cannot_be_written_is_named(column: Column, values: Sequence[object], line: int, reason: str) -> None:
    with pytest.raises(RowError, match=reason) as raised:
        one(column, *values)
    assert (raised.value.line, raised.value.column) == (line, column.name)


@pytest.mark.parametrize("row", [["a"], ["a", "b", "c"], []])
def test_a_row_of_another_width_is_named(row: list[str]) -> None:
    with pytest.raises(RowError, match=f"row 2: {len(row)} values were given for 2 columns"):
        copy_text.encode([TEXT, TEXT], [["a", "b"], row])
