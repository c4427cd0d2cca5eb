"""Read a file of rows piece by piece, whichever its format: its columns first, then each row with its place."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from cli.rows import csv as csv_rows
from cli.rows import parquet as parquet_rows
from tasks.producer.kinds.payload import UNSTORABLE
from worker.errors import JobRefused

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowFile:
    """``rows``: (number, values in the order of ``columns``); the number is a line's, from 1, or a Parquet row's.

    ``total``: bytes, or rows of Parquet; None when it is not known. ``done``: how much of it is read.
    """

    name: str
    columns: list[str]
    rows: Iterator[tuple[int, Sequence[Any]]]
    total: int | None
    done: Callable[[], int]
    place: Callable[[int], str]


@contextmanager
def opened(
    path: Path, file_format: str | None, columns: list[str] | None, null: str, most_bytes: int
) -> Iterator[RowFile]:
    """Open a file, or standard input for ``-``. No row may be longer than ``most_bytes``.

    ``columns``: of a CSV without a header; those to take of JSONL and Parquet. Raises `JobRefused` naming the place.
    """
    kind = file_format or FORMATS.get(path.suffix.lower(), "")
    is_stream = str(path) == "-"
    if file_format and kind not in FORMATS.values():
        raise JobRefused("format", file_format, "is not known; give csv, jsonl or parquet")
    if is_stream and not kind:
        raise JobRefused(
            "file", "-", "is standard input, whose format has no suffix to tell it; give --format csv|jsonl"
        )
    if not kind:
        raise JobRefused("file", str(path), "must end in .csv, .jsonl or .parquet; or give --format csv|jsonl|parquet")
    if kind == "parquet":
        if is_stream:
            raise JobRefused("file", "-", "cannot be Parquet, which is read from its end; give a file")
        yield from _parquet(path, columns)
        return
    name = "standard input" if is_stream else str(path)
    try:
        file: BinaryIO = sys.stdin.buffer if is_stream else path.open("rb")
    except OSError as error:
        raise JobRefused("file", name, f"cannot be read: {error.strerror}") from error
    with file:
        lines = _Lines(file, name, most_bytes)
        read = (
            csv_rows.read(lines, name, columns, null, most_bytes) if kind == "csv" else _json_rows(lines, name, columns)
        )
        names, rows = read
        total = path.stat().st_size if path.is_file() and not is_stream else None
        yield RowFile(name, names, rows, total, lambda: lines.read_bytes, lambda number: f"{name}:{number}")


def _parquet(path: Path, columns: list[str] | None) -> Iterator[RowFile]:
    with parquet_rows.opened(path, columns) as (names, rows, total):
        done = 0

        def counted() -> Iterator[tuple[int, Sequence[Any]]]:
            nonlocal done
            for number, values in rows:
                done = number
                yield number, values

        yield RowFile(str(path), names, counted(), total, lambda: done, lambda number: f"{path} row {number}")


class _Lines:
    """The numbered lines of a file in UTF-8, each with its end."""

    def __init__(self, file: BinaryIO, name: str, most_bytes: int) -> None:
        self.file, self.name, self.most_bytes = file, name, most_bytes
        self.number = self.read_bytes = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        try:
            raw = self.file.readline(self.most_bytes + 1)
        except OSError as error:
            raise JobRefused("file", self.name, f"cannot be read: {error.strerror}") from error
        if not raw:
            raise StopIteration
        self.number += 1
        place, begins = f"{self.name}:{self.number}", self.read_bytes
        self.read_bytes += len(raw)
        if len(raw) > self.most_bytes:
            raise JobRefused(
                place, raw[:80], f"is longer than a job may be ({self.most_bytes} bytes, max_payload_bytes)"
            )
        if begins == 0 and raw.startswith(BOM):
            raw, begins = raw[len(BOM) :], len(BOM)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            bad, at = raw[error.start : error.end], error.start
            raise JobRefused(
                place, bad, f"at byte {at} of the line, {begins + at} of the file, is not UTF-8; write it as UTF-8"
            ) from error
        if "\0" in text:
            raise JobRefused(place, text[:80], f"holds U+0000 at position {text.index(chr(0))}, which is never stored")
        return self.number, text


def _json_rows(
    lines: _Lines, name: str, columns: list[str] | None
) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """Take the columns of the first object, which all others have, or those given: then one that is missing is NULL."""
    objects = _objects(lines, name)
    first = next(objects, None)
    names = columns or (list(first[1]) if first else [])
    wanted = set(names)

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        given = first
        while given:
            number, row = given
            if not row.keys() <= wanted or (columns is None and len(row) < len(wanted)):
                listed = ", ".join(names)
                raise JobRefused(
                    f"{name}:{number}",
                    sorted(row),
                    f"must have no columns but {listed}"
                    if columns
                    else f"must have the columns {listed}; with --columns a missing one is NULL",
                )
            yield number, [_plain(row.get(each)) for each in names]
            given = next(objects, None)

    return names, rows()


def _objects(lines: _Lines, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            row = json.loads(line, parse_float=_number, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            why = f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else error
            raise JobRefused(place, line.rstrip()[:80], f"is not JSON: {why}; write one object a line") from error
        if not isinstance(row, dict):
            raise JobRefused(place, line.rstrip()[:80], "must be a JSON object; write one object a line, in no list")
        if "\\u" in line and (bad := _unstorable(row)):
            raise JobRefused(place, line[:80], f"holds U+{ord(bad[0]):04X}, which PostgreSQL cannot store")
        yield number, row


def _unstorable(row: dict[str, Any]) -> re.Match[str] | None:
    # An escaped backslash before u0000 is a text that spells it out, and no U+0000: such pairs go first.
    written = json.dumps(row, ensure_ascii=False).replace("\\\\", "").replace("\\u0000", "\0")
    return UNSTORABLE.search(written)


class _Long(float):
    """A number that a float cannot hold as it is written."""

    text: str


def _number(text: str) -> float:
    value = float(text)
    if Decimal(text) == Decimal(repr(value)):
        return value
    exact = _Long(value)
    exact.text = text
    return exact


def _plain(value: Any) -> Any:
    return value.text if type(value) is _Long else value  # as text, which the server reads without loss


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON number; write null, or a text that the column's type takes")
