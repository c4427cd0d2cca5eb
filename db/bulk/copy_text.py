"""Encodes rows in the text format of PostgreSQL's COPY.

The work goes column by column, because a column's values mostly share one type: then whole columns pass
through a few calls in C, with no Python code run per value.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

from pydantic_core import from_json, to_json

from db import text
from db.errors import RowError
from db.schema import Column, Kind

_NULL = "\\N"
_NULL_ELEMENT = "NULL"
_NESTED = {list, tuple, dict}
_BYTES = (bytes, bytearray, memoryview)  # the last is what psycopg2 gives for a bytea
_UNWRITABLE = (TypeError, ValueError, RecursionError)


class _UnfitError(Exception):
    """The value at a place, counted from 0, cannot be written."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


def encode(columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> bytes:
    """Encode rows, each with one value per column, as UTF-8 lines for COPY ... (FORMAT text).

    None becomes NULL. A str is sent as it is, for the server to read as the column's type: numbers,
    timestamps, JSON and array literals alike. Numbers, booleans, Decimals, dates, times and UUIDs are sent
    in the server's own notation, bytes as bytea; lists and dicts by the kind of the column.

    Raises RowError that names row and column for a value that has no such form, for text with U+0000 or lone
    surrogates, and for a row with more or fewer values than columns.
    """
    width = len(columns)
    if set(map(len, rows)) - {width}:
        line, row = next((line, row) for line, row in enumerate(rows, 1) if len(row) != width)
        raise RowError(line, None, f"{len(row)} values were given for {width} columns")
    if not rows:
        return b""
    cells = [_cells(column, values) for column, values in zip(columns, zip(*rows, strict=True), strict=True)]
    lines = "\n".join(map("\t".join, zip(*cells, strict=True)))
    try:
        return f"{lines}\n".encode()
    except UnicodeEncodeError:
        raise _surrogate(columns, cells) from None


def _cells(column: Column, values: Sequence[object]) -> list[str]:
    types = set(map(type, values))
    try:
        if NoneType not in types:
            return _texts(column, values, types)
        present = iter(_texts(column, [value for value in values if value is not None], types - {NoneType}))
        return [_NULL if value is None else next(present) for value in values]
    except _UnfitError as unfit:
        lines = [line for line, value in enumerate(values, 1) if value is not None]
        raise RowError(lines[unfit.place], column.name, unfit.reason) from None


def _texts(column: Column, values: Sequence[Any], types: set[type]) -> list[str]:
    if types == {str}:
        return _escape(values)
    try:
        if column.kind is Kind.JSON and types <= _NESTED:
            return _escape(_dump_all(values))
        if len(types) == 1:
            return _escape(list(map(_converter(column, *types), values)))
    except _UNWRITABLE:
        pass  # going value by value finds the one at fault
    texts = []
    for place, value in enumerate(values):
        try:
            texts.append(value if isinstance(value, str) else _converter(column, type(value))(value))
        except _UNWRITABLE as error:
            raise _UnfitError(place, f"cannot be written as {column.type}: {error}") from None
    return _escape(texts)


def _escape(texts: Sequence[str]) -> list[str]:
    """Escape backslash, tab, newline and carriage return, in one pass each over the whole column."""
    if not texts:
        return []
    joined = "\0".join(texts)
    if joined.count("\0") >= len(texts):
        place = next(place for place, value in enumerate(texts) if "\0" in value)
        raise _UnfitError(place, str(text.fault(texts[place])))
    escaped = joined.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return escaped.split("\0")


def _dump(value: object) -> str:
    """Write a value as JSON, as the payloads of jobs are written: dates and UUIDs as text, tuples and sets as lists."""
    written = to_json(value).decode()
    if "NaN" in written or "Infinity" in written:  # no JSON, unless it stands within a text
        json.dumps(from_json(written), allow_nan=False)
    return written


def _dump_all(values: Sequence[object]) -> list[str]:
    """Write each value as JSON through one call of the encoder, which costs less than a call for each."""
    mark = secrets.token_hex(16)  # not to be guessed, so that no value can hold it
    marked: list[object] = [mark] * (2 * len(values) - 1)
    marked[::2] = values
    return _dump(marked)[1:-1].split(f',"{mark}",')


def _decimal(value: Decimal) -> str:
    return "NaN" if value.is_nan() else str(value)  # Python also knows -NaN and sNaN


def _interval(value: timedelta) -> str:
    return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"


# The float's repr is the shortest text that reads back as the same number; nan and inf are the server's
# words too. The types' own methods, because a subclass (an IntEnum, numpy.float64) may have another repr.
_CONVERTERS: dict[type, Callable[[Any], str]] = {
    bool: {True: "true", False: "false"}.__getitem__,
    int: int.__repr__,
    float: float.__repr__,
    Decimal: _decimal,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: _interval,
    UUID: str,
}


def _converter(column: Column, kind: type) -> Callable[[Any], str]:
    """Return what writes values of a type, neither None nor str; it raises one of _UNWRITABLE."""
    if issubclass(kind, list | tuple | dict):
        return _dump if column.kind is Kind.JSON else lambda value: _nested(column, value)
    if issubclass(kind, _BYTES):
        return lambda value: _bytea(column, value)
    for base in kind.__mro__:
        if base in _CONVERTERS:
            return _CONVERTERS[base]
    raise TypeError(f"values of type {kind.__name__} are not taken")


def _nested(column: Column, value: list[object] | tuple[object, ...] | dict[str, object]) -> str:
    if not isinstance(value, dict):
        if column.kind is Kind.VECTOR:
            return _dump(value)
        if column.kind is Kind.ARRAY:
            return _array(column, value)
        if column.kind is Kind.JSON_ARRAY:
            return _braces(_NULL_ELEMENT if item is None else _quote(_dump(item)) for item in value)
    raise TypeError(f"a {type(value).__name__} was given, and the column takes {column.kind.value}")


def _bytea(column: Column, value: bytes | bytearray | memoryview) -> str:
    if column.kind is not Kind.BYTES:
        raise TypeError(f"{type(value).__name__} was given, and the column takes {column.kind.value}")
    return f"\\x{value.hex()}"


def _array(column: Column, items: Iterable[object]) -> str:
    return _braces(_element(column, item) for item in items)


def _element(column: Column, item: object) -> str:
    if item is None:
        return _NULL_ELEMENT
    if isinstance(item, list | tuple):
        return _array(column, item)
    return _quote(item if isinstance(item, str) else _converter(column, type(item))(item))


def _braces(elements: Iterable[str]) -> str:
    return "{" + ",".join(elements) + "}"


def _quote(element: str) -> str:
    escaped = element.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _surrogate(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> RowError:
    return next(
        RowError(line, column.name, reason)
        for column, texts in zip(columns, cells, strict=True)
        for line, cell in enumerate(texts, 1)
        if (reason := text.fault(cell)) is not None
    )
