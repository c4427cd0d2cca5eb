"""Read Parquet through pyarrow, which is an extra: its row groups piece by piece."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.producer.kinds.payload import UNSTORABLE
from worker.errors import JobRefused

ROWS_AT_ONCE = 1000


@contextmanager
def opened(
    path: Path, columns: list[str] | None
) -> Iterator[tuple[list[str], Iterator[tuple[int, Sequence[Any]]], int]]:
    """Give the columns, the rows, numbered from 1, and how many there are. Raises `JobRefused`."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise JobRefused(
            "file",
            str(path),
            "needs pyarrow, the extra parquet; set FOREBAY_INSTALL=full, or: pip install 'pyarrow>=22'",
        ) from error
    try:
        file = ParquetFile(path, pre_buffer=False)
    except (OSError, ArrowException) as error:
        raise JobRefused("file", str(path), f"cannot be read as Parquet: {error}") from error
    with file:
        there = list(file.schema_arrow.names)
        if missing := [name for name in columns or () if name not in there]:
            raise JobRefused("columns", missing[0], f"is not in {path}, which has {', '.join(there)}")
        yield (
            columns or there,
            _rows(file, path, columns or there, (OSError, ValueError, ArrowException)),
            file.metadata.num_rows,
        )


def _rows(
    file: Any, path: Path, names: list[str], faults: tuple[type[Exception], ...]
) -> Iterator[tuple[int, Sequence[Any]]]:
    number = 0
    try:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
            for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                number += 1
                yield number, [_sent(value, f"{path} row {number}") for value in values]
    except faults as error:
        raise JobRefused(f"{path} behind row {number}", "", f"cannot be read: {error}") from error


def _sent(value: Any, place: str) -> Any:
    """Return a value as JSON carries it, and as the server reads it."""
    if isinstance(value, str):
        if bad := UNSTORABLE.search(value):
            raise JobRefused(place, value[:80], f"holds U+{ord(bad[0]):04X}, which PostgreSQL cannot store")
        return value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, list) and bytes in map(type, value):
        return [_sent(each, place) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan and inf, which are the server's words too and no JSON
    return value
