"""Enqueue jobs: check, write the message, accept. Loads no task, no SQLAlchemy and no openai."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from tasks.producer.job import LONGEST_ID, Group, Job
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.chat import Chat
from tasks.producer.kinds.embedding import Embedding
from tasks.producer.kinds.payload import JobPayload, check
from worker.errors import JobRefused
from worker.policy.policy import load as load_policy
from worker.policy.priority import Priority
from worker.policy.priority import parse as parse_priority
from worker.policy.queue import Queue
from worker.records import broker, message
from worker.records.broker import Submission

#: Seconds from now, or a moment with its time zone.
When = float | timedelta | datetime

Rows = Iterable[Mapping[str, Any] | Sequence[Any]]

OFF = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True)
class Options:
    """How a job is to be carried.

    ``priority``: CRITICAL, HIGH, NORMAL, LOW or BATCH. ``job_id`` and ``idempotency_key``: a repeat returns the first
    job. ``deadline``: not to be started later than that. ``delay``: not before. ``tenant``: on whose behalf.
    """

    priority: str | Priority | None = None
    job_id: str | None = None
    idempotency_key: str | None = None
    deadline: When | None = None
    delay: When | None = None
    tenant: str | None = None


def chat(text: str, *, options: Options | None = None, **rest: Any) -> Job:
    """Enqueue one turn of a conversation and return its job.

    Further arguments are those of `tasks.Chat` (conversation, user, system, model, max_tokens,
    temperature, tools, history, stream) and of `Options`. The job's result is
    ``{"text", "conversation", "model", "usage", ...}``. Raises `JobRefused`, `QueueFull`, `BrokerUnavailable`.
    """
    options, fields = _options(options, rest)
    fields.setdefault("tenant", options.tenant)
    return many([(check(Chat, message=text, **fields), options)])[0]


def embedding(text: str, *, options: Options | None = None, **rest: Any) -> Job:
    """Enqueue one text to be embedded and kept under ``key``; return its job.

    The job's result is ``{"key", "model", "dimensions"}``. Raises `JobRefused`, `QueueFull`, `BrokerUnavailable`.
    """
    options, fields = _options(options, rest)
    return many([(check(Embedding, text=text, **fields), options)])[0]


def bulk_insert(
    table: str,
    rows: Iterable[Mapping[str, Any] | Sequence[Any]],
    *,
    columns: Sequence[str] | None = None,
    options: Options | None = None,
    on_progress: Callable[[int], None] | None = None,
    **rest: Any,
) -> Group:
    """Enqueue rows for a table, cut into jobs of the queue's ``rows_per_job``; return them as one group.

    ``operation`` (insert, update, upsert or delete), ``key`` and ``on_conflict`` (fail, skip or update) are those of
    `tasks.BulkInsert`.

    Rows are mappings that all have the same keys, or sequences in the order of ``columns``. The input is read as it is
    sent, so it may be larger than memory. ``on_progress`` gets the number of rows sent so far. The group's result is
    ``{"rows"}``. Raises `JobRefused` naming the row at fault (the jobs before it are in), `QueueFull`,
    `BrokerUnavailable`.
    """
    options, fields = _options(options, rest)
    if unknown := [name for name in fields if name not in ("operation", "key", "on_conflict")]:
        raise JobRefused(unknown[0], fields[unknown[0]], "is not an option of bulk_insert")
    group = Group(options.job_id or options.idempotency_key or uuid4().hex)
    sent = 0
    for number, payload in enumerate(_cut(table, rows, columns, fields)):
        one = _numbered(options, number)
        group.jobs.extend(many([(payload, one)]))
        sent += len(payload.rows)
        if on_progress:
            on_progress(sent)
    if not group.jobs:
        raise JobRefused("rows", [], "is empty; give at least one row")
    return group


def bulk_update(table: str, rows: Rows, *, key: Sequence[str], **rest: Any) -> Group:
    """Enqueue rows that change those with the same ``key``, columns of a unique index; else as `bulk_insert`."""
    return bulk_insert(table, rows, operation="update", key=_key(key), **rest)


def bulk_upsert(table: str, rows: Rows, *, key: Sequence[str], **rest: Any) -> Group:
    """Enqueue rows that are inserted, or change those with the same ``key``; else as `bulk_insert`."""
    return bulk_insert(table, rows, operation="upsert", key=_key(key), **rest)


def bulk_delete(table: str, rows: Rows, *, key: Sequence[str], **rest: Any) -> Group:
    """Enqueue the keys of rows to be deleted; else as `bulk_insert`."""
    return bulk_insert(table, rows, operation="delete", key=_key(key), **rest)


def many(
    jobs: Sequence[JobPayload | tuple[JobPayload, Options]],
    *,
    options: Options | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Job]:
    """Enqueue many jobs through one pipeline and return them in order.

    Each is a payload (`tasks.Chat`, `tasks.Embedding`, `tasks.BulkInsert`), alone or with options of its own. All are
    checked before the first is sent. Raises `JobRefused`, `QueueFull`, `BrokerUnavailable`.
    """
    common = options or Options()
    orders = [job if isinstance(job, tuple) else (job, common) for job in jobs]
    submissions = [_submission(payload, each) for payload, each in orders]
    if is_inline():
        from tasks import inline

        return [inline.run(payload, one.id) for (payload, _), one in zip(orders, submissions, strict=True)]
    return [Job(job_id) for job_id in broker.connect().accept_many(submissions, on_progress)]


def is_inline() -> bool:
    """Say whether ASYNC_PROCESSING_ENABLED lets jobs run in the caller."""
    return os.environ.get("ASYNC_PROCESSING_ENABLED", "").strip().lower() in OFF


def _submission(payload: JobPayload, options: Options) -> Submission:
    queue = load_policy().queue(payload.queue)
    job_id = _identifier("job_id", options.job_id) or uuid4().hex
    priority = parse_priority(queue.default_priority if options.priority is None else options.priority)
    try:
        arguments = payload.to_json()
    except (ValueError, TypeError) as error:
        raise JobRefused("payload", payload.task, f"cannot be written as JSON: {error}") from error
    text = message.write_json(payload.task, job_id, queue.name, priority.step, arguments)
    if (size := len(text.encode())) > queue.max_payload_bytes:
        raise JobRefused(
            "payload",
            f"{len(arguments.encode())} bytes",
            f"becomes a message of {size} bytes, of which {queue.name} takes at most {queue.max_payload_bytes}; "
            f"send less or raise max_payload_bytes in queues.yaml",
        )
    tenant = _identifier("tenant", options.tenant)
    fields = {"tenant": tenant} if tenant else {}
    if queue.gate or queue.batch:
        fields["cost"] = str(_cost(payload, queue))
    return Submission(
        id=job_id,
        queue=queue.name,
        step=priority.step,
        task=payload.task,
        message=text,
        due=_moment("delay", options.delay),
        deadline=_moment("deadline", options.deadline),
        idempotency_key=_identifier("idempotency_key", options.idempotency_key),
        max_length=queue.max_length,
        fields=fields,
    )


def _cost(payload: JobPayload, queue: Queue) -> int:
    """Return what a job is reckoned to cost. Raises `JobRefused` when its gate never lets so much through at once."""
    cost = payload.cost()
    bucket = load_policy().gates[queue.gate].cost if queue.gate else None
    if bucket and cost > bucket.capacity:
        raise JobRefused(
            "cost",
            cost,
            f"is more than gate {queue.gate} ever lets through at once ({bucket.capacity:g}); "
            f"send less or raise its burst in queues.yaml",
        )
    return cost


def _key(columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str):
        raise JobRefused("key", columns, f"must be a list of columns, such as [{columns!r}]")
    return list(columns)


def _options(options: Options | None, rest: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Split keyword arguments into those that say how and those that say what."""
    hows = {name: rest[name] for name in Options.__dataclass_fields__ if name in rest}
    whats = {name: value for name, value in rest.items() if name not in hows}
    if not hows:
        return options or Options(), whats
    return Options(**{**(vars(options) if options else {}), **hows}), whats


def _identifier(field: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST_ID or not value.isprintable():
        raise JobRefused(field, value, f"must be text of 1 to {LONGEST_ID} printable characters")
    return value


def _moment(field: str, when: object) -> str:
    match when:
        case None:
            return ""
        case datetime() if when.tzinfo is None:
            raise JobRefused(field, when, "must have a time zone, such as datetime.now(UTC)")
        case datetime():
            return f"{when.astimezone(UTC).timestamp():.6f}"
        case timedelta():
            seconds = when.total_seconds()
        case bool():
            raise JobRefused(field, when, "must be seconds, a timedelta or a datetime with a time zone")
        case int() | float():
            seconds = float(when)
        case _:
            raise JobRefused(field, when, "must be seconds, a timedelta or a datetime with a time zone")
    if field == "deadline" and seconds <= 0:
        raise JobRefused(field, when, "must be more than 0 seconds from now; leave it out for a job that may wait")
    if not 0 <= seconds <= 10 * 365 * 86400:
        raise JobRefused(field, when, "must be between now and ten years from now")
    return f"+{seconds:.6f}"


def _cut(
    table: str,
    rows: Iterable[Mapping[str, Any] | Sequence[Any]],
    columns: Sequence[str] | None,
    how: dict[str, Any],
) -> Iterable[BulkInsert]:
    """Gather rows into payloads of ``rows_per_job``."""
    most = load_policy().queue(BulkInsert.queue).rows_per_job or 1000
    names = list(columns) if columns is not None else None
    values: list[Sequence[Any]] = []
    for number, row in enumerate(rows):
        if names is None:
            if not isinstance(row, Mapping):
                raise JobRefused("columns", None, "is required when rows are sequences")
            names = list(row)
        values.append(_values(row, names, number))
        if len(values) == most:
            yield check(BulkInsert, table=table, columns=names, rows=values, **how)
            values = []
    if values:
        yield check(BulkInsert, table=table, columns=names, rows=values, **how)


def _values(row: Any, columns: list[str], number: int) -> Sequence[Any]:
    if type(row) is list or type(row) is tuple:  # as most are; to ask about abstract types costs more than all else
        return row
    if isinstance(row, Mapping):
        if row.keys() != set(columns):
            raise JobRefused(f"rows[{number}]", sorted(map(str, row)), f"must have the columns {', '.join(columns)}")
        return [row[name] for name in columns]
    if isinstance(row, str | bytes) or not isinstance(row, Sequence):
        raise JobRefused(f"rows[{number}]", row, "must be a mapping or a sequence of values")
    return list(row)


def _numbered(options: Options, number: int) -> Options:
    """Give each job of a group a name of its own, so that a repeated group repeats its jobs."""
    return Options(
        **{
            **vars(options),
            "job_id": options.job_id and f"{options.job_id}.{number}",
            "idempotency_key": options.idempotency_key and f"{options.idempotency_key}.{number}",
        }
    )
