"""Inserts, updates, upserts and deletes many rows at once, and sets apart those that the server refuses."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from db import receipts, schema
from db.bulk import staging
from db.bulk.staging import Counts
from db.engine import transaction
from db.errors import Fault, RowError, TableError, fault_of

T = TypeVar("T")
Row = Sequence[object]
_ATTEMPTS = 4
_SHOWN_CHARACTERS = 200


class Operation(enum.StrEnum):
    """What is done with the rows."""

    INSERT = "insert"
    UPDATE = "update"
    UPSERT = "upsert"
    DELETE = "delete"


class Conflict(enum.StrEnum):
    """What becomes of a row to insert whose key is there already."""

    FAIL = "fail"
    SKIP = "skip"
    UPDATE = "update"


@dataclass(frozen=True)
class Change:
    """What to do to a table of the schema public. ``key``: the columns of one of its unique indexes."""

    table: str
    columns: tuple[str, ...]
    operation: Operation = Operation.INSERT
    key: tuple[str, ...] = ()
    on_conflict: Conflict = Conflict.FAIL


@dataclass(frozen=True)
class Rejected:
    """A row that was refused: its line, counted from 1, and the server's reason, column and value if known."""

    line: int
    column: str | None
    value: str | None
    reason: str


@dataclass(frozen=True)
class Changed:
    """What was done, what was refused, and whether an earlier run of the job did it."""

    counts: Counts
    rejected: tuple[Rejected, ...] = ()
    repeated: bool = False


def in_chunks(change: Change, rows: Iterable[Row], chunk_rows: int = 1000) -> Iterator[Changed]:
    """Apply the change to any number of rows, a transaction for each chunk; yield what each chunk came to.

    No more than one chunk is held in memory. Lines count over all chunks. Raises as `apply` does, except that
    a chunk without any good row is yielded too.
    """
    if chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows}; give at least 1")
    left, before = iter(rows), 0
    while chunk := list(itertools.islice(left, chunk_rows)):
        done = _retried(lambda chunk=chunk: _once(change, chunk, None))  # type: ignore[misc]
        yield replace(done, rejected=tuple(replace(each, line=each.line + before) for each in done.rejected))
        before += len(chunk)


def apply(change: Change, rows: Sequence[Row], job_id: str | None = None) -> Changed:
    """Apply the change in one transaction: the good rows are in, the others are told.

    The job's receipt commits with them, so that a second run changes nothing and returns what the first did. Rows
    are touched in the order of their key, so that two jobs cannot lock them crosswise; where they still do (a job
    with refused rows goes piece by piece), the loser is tried again. Of rows with the same key the last counts.

    Raises TableError for an unknown table, column or key, RowError when every row is refused (nothing is kept
    then, not even the receipt), or when the first run refused rows and had more or fewer; `errors.fault_of` tells
    what any other error means.
    """
    return _retried(lambda: _once(change, rows, job_id, fail=True))


def _retried(do: Callable[[], T]) -> T:
    for left in reversed(range(_ATTEMPTS)):
        try:
            return do()
        except Exception as error:
            if not left or _state(error) not in ("40001", "40P01"):
                raise
    raise AssertionError


def _state(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", error), "pgcode", None)


def _once(change: Change, rows: Sequence[Row], job_id: str | None, *, fail: bool = False) -> Changed:
    with transaction() as session:
        kind = f"bulk_{change.operation}"
        if job_id is not None and not receipts.write(session, job_id, kind, {}):
            return _earlier(receipts.of(session, job_id) or {}, len(rows))
        _check(change)
        columns = schema.columns(session, change.table, change.columns)
        if change.key:
            schema.check_key(session, change.table, change.key)
        write = _writer(change)
        counts, errors = _apart(session, lambda some: write(session, change.table, columns, some), rows, 0)
        if fail and rows and len(errors) == len(rows):
            raise errors[0][1]
        rejected = tuple(_rejected(change, rows, line, error) for line, error in errors)
        if job_id is not None:
            result = {**asdict(counts), "rejected": [asdict(each) for each in rejected]}
            receipts.amend(session, job_id, result)
        return Changed(counts, rejected)


def _earlier(result: dict[str, Any], given: int) -> Changed:
    # A receipt of `bulk.insert_all` says only how many rows there were.
    counts = {name: int(result.get(name, 0)) for name in ("updated", "skipped", "deleted")}
    inserted = int(result.get("inserted", result.get("rows", 0)))
    rejected = tuple(Rejected(**each) for each in result.get("rejected", ()))
    taken = inserted + sum(counts.values())
    if rejected and taken + len(rejected) != given:  # their lines would name other rows
        raise RowError(
            None,
            None,
            f"an earlier run took {taken} rows of this job and refused {len(rejected)}, and now it has {given} in all; "
            "give its rows as they were, or what is left to do as a new job",
        )
    return Changed(Counts(inserted=inserted, **counts), rejected, repeated=True)


def _check(change: Change) -> None:
    table, key, columns = change.table, change.key, change.columns
    if change.operation not in list(Operation):
        raise TableError(f"table {table!r}: operation {change.operation!r}: give one of {', '.join(Operation)}")
    if change.on_conflict not in list(Conflict):
        raise TableError(f"table {table!r}: on_conflict {change.on_conflict!r}: give one of {', '.join(Conflict)}")
    names: dict[str, object] = {"columns": columns, "key": key}  # as typed, text could not be here
    for name, given in names.items():
        if isinstance(given, str):
            raise TableError(f"table {table!r}: {name}={given!r}: give a tuple, such as ({given!r},)")
    is_insert = change.operation is Operation.INSERT
    if not is_insert and change.on_conflict is not Conflict.FAIL:
        raise TableError(f"table {table!r}: on_conflict is for insert; leave it out of {change.operation}")
    if not key and (not is_insert or change.on_conflict is Conflict.UPDATE):
        raise TableError(f"table {table!r}: {change.operation} needs a key; name the columns of a unique index")
    if missing := [name for name in key if name not in columns]:
        raise TableError(f"table {table!r}: key column {missing[0]!r} is not among the columns given")
    if change.operation is Operation.DELETE and set(columns) != set(key):
        raise TableError(f"table {table!r}: delete takes the columns of the key alone; give {', '.join(key)}")
    if change.operation is Operation.UPDATE and set(columns) == set(key):
        raise TableError(f"table {table!r}: update needs a column besides the key")


def _writer(change: Change) -> Callable[..., Counts]:
    key = change.key
    match change.operation, change.on_conflict:
        case Operation.INSERT, Conflict.FAIL:
            return staging.insert
        case Operation.INSERT, Conflict.SKIP:
            return partial(staging.insert_new, key=key)
        case (Operation.INSERT, Conflict.UPDATE) | (Operation.UPSERT, _):
            return partial(staging.upsert, key=key)
        case Operation.UPDATE, _:
            return partial(staging.update, key=key)
        case Operation.DELETE, _:
            return partial(staging.delete, key=key)
    raise AssertionError(change)


def _apart(
    session: Session, write: Callable[[Sequence[Row]], Counts], rows: Sequence[Row], before: int
) -> tuple[Counts, list[tuple[int, RowError]]]:
    """Write the rows; what is refused is halved until the row at fault stands alone."""
    if not rows:
        return Counts(), []
    try:
        with session.begin_nested():
            return write(rows), []
    except Exception as error:
        if isinstance(error, TableError) or fault_of(error) is not Fault.INPUT:
            raise
        if len(rows) == 1:
            told = error if isinstance(error, RowError) else RowError(None, None, str(error))
            return Counts(), [(before + 1, told)]
    middle = len(rows) // 2
    first, refused = _apart(session, write, rows[:middle], before)
    second, more = _apart(session, write, rows[middle:], before + middle)
    return first + second, refused + more


def _rejected(change: Change, rows: Sequence[Row], line: int, error: RowError) -> Rejected:
    value = None
    if error.column in change.columns:
        row, place = rows[line - 1], change.columns.index(error.column)
        # Where the row is too short, nothing is there; a receipt is JSON in PostgreSQL, which takes no U+0000.
        value = ascii(row[place])[:_SHOWN_CHARACTERS] if place < len(row) else None
    return Rejected(line, error.column, value, error.reason)
