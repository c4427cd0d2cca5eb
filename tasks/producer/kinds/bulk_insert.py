"""What a job that changes rows in bulk is given."""

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from operator import is_
from typing import Any, Literal

from pydantic import Field, model_validator

from tasks.producer.kinds.payload import JobPayload, Name
from worker.policy.policy import load as load_policy

Operation = Literal["insert", "update", "upsert", "delete"]
Conflict = Literal["fail", "skip", "update"]

_MINUTE = timedelta(minutes=1)

#: A list of what JSON carries into the columns of a table. `BulkInsert` looks at all of them at once: they are many.
Row = Any


class BulkInsert(JobPayload):
    """Rows for one table: ``columns`` once, then one list of values a row.

    ``operation``: what is done with them; all but an insert need ``key``, the columns of a unique index.
    ``on_conflict``: what becomes of a row to insert whose key is there.
    """

    queue = "bulk_insert"
    task = "tasks.bulk_insert"

    table: Name
    columns: list[Name] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    operation: Operation | None = None  # insert; left out, so that a worker of the version before takes it
    key: list[Name] | None = None
    on_conflict: Conflict | None = None  # fail

    def cost(self) -> int:
        return len(self.rows)

    def to_json(self) -> str:
        """Return the arguments as JSON, and what that would change as text. Raises `ValueError`, `TypeError`."""
        given = list(zip(*self.rows, strict=True))
        spelled = [_spelled(name, values) for name, values in zip(self.columns, given, strict=True)]
        if all(map(is_, spelled, given)):
            return super().to_json()
        return super(BulkInsert, self.model_copy(update={"rows": list(zip(*spelled, strict=True))})).to_json()

    @model_validator(mode="after")
    def _fits(self) -> "BulkInsert":
        tables = load_policy().queue(self.queue).tables or ()
        if self.table not in tables:
            raise ValueError(f"table: is not allowed; queues.yaml allows {', '.join(tables)}")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns: must differ from each other")
        is_insert = self.operation in (None, "insert")
        if not self.key and (not is_insert or self.on_conflict == "update"):
            raise ValueError(f"key: is required for {self.operation or 'insert'}; name the columns of a unique index")
        if self.on_conflict and not is_insert:
            raise ValueError("on_conflict: is for insert; leave it out")
        if not set(self.key or ()) <= set(self.columns):
            raise ValueError(f"key: must be among the columns {', '.join(self.columns)}")
        if not set(map(type, self.rows)) <= {list, tuple}:
            number = next(number for number, row in enumerate(self.rows) if type(row) not in (list, tuple))
            raise ValueError(f"rows[{number}]: must be a list of values")
        width = len(self.columns)
        if set(map(len, self.rows)) != {width}:
            number, row = next((number, row) for number, row in enumerate(self.rows) if len(row) != width)
            raise ValueError(f"rows[{number}]: has {len(row)} values for {width} columns")
        return self


def _spelled(column: str, values: Sequence[Any]) -> Sequence[Any]:
    """Return a column's values; as text, those that JSON would change: 365 days to a year, an offset by its seconds.

    Raises `TypeError` for bytes, in whose text a bytea would read escapes.
    """
    kinds = set(map(type, values))
    if any(issubclass(kind, bytes | bytearray) for kind in kinds):
        number = next(number for number, value in enumerate(values) if isinstance(value, bytes | bytearray))
        raise TypeError(f"rows[{number}], column {column}: bytes; write them as text, \\x and hexadecimal digits")
    if any(issubclass(kind, timedelta | datetime | time) for kind in kinds):
        return tuple(map(_timed, values))
    return values


def _timed(value: Any) -> Any:
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
    if isinstance(value, datetime | time) and (offset := value.utcoffset()) and offset % _MINUTE:
        return value.isoformat()
    return value
