"""Say what each kind of job is given, and refuse anything else before it is sent."""

import json
import re
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from operator import is_
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks import tokens
from worker.errors import JobRefused
from worker.policy.policy import load as load_policy
from worker.policy.priority import Priority

Payload = TypeVar("Payload", bound="JobPayload")

#: NUL, and the halves of surrogate pairs, which JSON can carry and UTF-8 cannot.
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_MINUTE = timedelta(minutes=1)

#: A list of what JSON carries into the columns of a table. `BulkInsert` looks at all of them at once: they are many.
Row = Any


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must hold more than white space")
    return text


def _storable(text: str) -> str:
    bad = UNSTORABLE.search(text)
    if bad:
        raise ValueError(f"must hold no U+{ord(bad[0]):04X}, as at position {bad.start()}: PostgreSQL stores none")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_not_blank), AfterValidator(_storable)]
Operation = Literal["insert", "update", "upsert", "delete"]
Conflict = Literal["fail", "skip", "update"]
Text = Annotated[str, AfterValidator(_not_blank), AfterValidator(_storable)]


class JobPayload(BaseModel):
    """The arguments of a task, as they travel."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    queue: ClassVar[str]
    task: ClassVar[str]
    priority: ClassVar[Priority] = Priority.NORMAL

    def cost(self) -> int:
        """Return what the job is reckoned to take from its gate: LLM tokens, or rows."""
        raise NotImplementedError

    def to_json(self) -> str:
        """Return the arguments as JSON, those that were left out left out. Raises `ValueError`, `TypeError`."""
        text = self.__pydantic_serializer__.to_json(self, exclude_none=True).decode()
        if "NaN" in text or "Infinity" in text:  # no JSON, unless it stands within a text
            json.dumps(self.model_dump(mode="json", exclude_none=True), allow_nan=False)
        return text


class Chat(JobPayload):
    """One turn of a conversation. Without ``conversation`` a new one begins.

    ``stream``: give readers of `Job.stream` the text while the model writes it.
    """

    queue = "chat"
    task = "tasks.chat"
    priority = Priority.HIGH

    message: Text
    conversation: Name = Field(default_factory=lambda: uuid4().hex)
    user: Name | None = None
    tenant: Name | None = None
    system: Text | None = None
    model: Name | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    tools: list[dict[str, Any]] | None = None
    history: int = Field(default=15, ge=1, le=1000)
    stream: bool = False

    def cost(self) -> int:
        """Return the tokens of what is known here and of the answer; the history is added when the call is made."""
        tools = json.dumps(self.tools) if self.tools else ""
        answer = self.max_tokens or load_policy().queue(self.queue).answer_tokens
        return tokens.estimate(self.message) + tokens.estimate(self.system or "") + tokens.estimate(tools) + answer


class Embedding(JobPayload):
    """One text to be kept with its vector under ``key`` (by default the job's id).

    ``add``: the vector of a further model, kept beside the others, and only while the document has this very text.
    """

    queue = "embedding"
    task = "tasks.embedding"

    text: Text
    key: Name | None = None
    model: Name | None = None
    add: bool | None = None  # left out when it is not wanted, so that a worker of the version before takes the job

    def cost(self) -> int:
        return tokens.estimate(self.text)

    @model_validator(mode="after")
    def _fits(self) -> "Embedding":
        if self.add and not self.key:
            raise ValueError("key: is required with add; name the document")
        return self


class BulkInsert(JobPayload):
    """Rows for one table: ``columns`` once, then one list of values a row.

    ``operation``: what is done with them; all but an insert need ``key``, the columns of a unique index.
    ``on_conflict``: what becomes of a row to insert whose key is there.
    """

    queue = "bulk_insert"
    task = "tasks.bulk_insert"
    priority = Priority.BATCH

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


def check(kind: type[Payload], /, **arguments: Any) -> Payload:
    """Return the payload of a job. Raises `JobRefused` naming the first field at fault, its value and the remedy."""
    try:
        return kind(**arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if where:
            raise JobRefused(where, first["input"], _remedy(first)) from error
        field, _, remedy = first["msg"].removeprefix("Value error, ").partition(": ")
        raise JobRefused(field, _value_of(field, arguments), remedy) from error


def _remedy(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "is not a field of this kind of job; leave it out"
    if fault["type"] == "missing":
        return "is required; give it"
    if fault["type"] == "string_too_short":
        return f"is too short; give at least {fault['ctx']['min_length']} character, or leave it out if it may be"
    if fault["type"] in ("literal_error", "enum"):
        return f"is not allowed; give {fault['ctx']['expected']}"
    return str(fault["msg"]).removeprefix("Value error, ")


def _value_of(field: str, arguments: dict[str, Any]) -> Any:
    if field.startswith("rows["):
        return arguments["rows"][int(field[5:-1])]
    return arguments.get(field)


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
