"""Say what queues.yaml may hold, and load it: the queues, their pools, limits and retries."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker import queuefile
from worker.errors import ConfigurationError, ForebayError, nearest
from worker.queuefile import Setting

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "queues.yaml"

#: Keys that say something about one pool alone.
ONLY_FOR = {
    "batch": "threads",
    "max_tasks_per_worker": "threads",
    "max_memory_mib": "threads",
    "max_tasks_per_child": "prefork",
    "max_memory_per_child_mib": "prefork",
}


def _off(value: Any) -> Any:
    return 0 if value is False or str(value).strip().lower() == "off" else value


def _queue_name(name: str) -> str:
    if len(name) > 60 or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("must be a queue's name: a-z first, then a-z, 0-9 and _, at most 60 characters")
    return name


# Strict, for pydantic would take true, which YAML also spells yes and on, for 1, and text for the number it spells.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Seconds = Annotated[Real, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Kept = Annotated[Real, Field(ge=1, le=366 * 86400, allow_inf_nan=False)]  # below 1, whole seconds are 0: for ever
Count = Annotated[Whole, Field(ge=1, le=10_000_000)]
Share = Annotated[Real, Field(ge=0, le=1, allow_inf_nan=False)]


class Model(BaseModel):
    """A part of queues.yaml: unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Retention(Model):
    """How long what is left of a job is kept, counted from its end (the key: from its acceptance)."""

    record_s: Kept = 86400
    result_s: Kept = 86400
    idempotency_s: Kept = 86400
    dead_s: Kept = 30 * 86400


class Lease(Model):
    """For how long a worker process owns what it holds after its last sign of life."""

    duration_s: Seconds = 8
    renew_every_s: Seconds = Field(default=2, validate_default=True)

    @field_validator("renew_every_s")
    @classmethod
    def _can_be_renewed(cls, renew_every_s: float, info: ValidationInfo) -> float:
        duration_s = info.data.get("duration_s")  # absent when it is at fault itself; so in the checks below
        if duration_s is not None and renew_every_s > duration_s / 3:
            raise ValueError(
                f"must be at most a third of duration_s ({duration_s:g}), or one slow renewal loses the lease"
            )
        return renew_every_s


class Retry(Model):
    """How often and how far apart a failed job is tried: see `worker.outcome.decide`."""

    max_attempts: Count = 3
    backoff_s: Seconds = 2
    backoff_max_s: Seconds = Field(default=60, validate_default=True)
    jitter: Share = 0.2

    @field_validator("backoff_max_s")
    @classmethod
    def _grows(cls, backoff_max_s: float, info: ValidationInfo) -> float:
        backoff_s = info.data.get("backoff_s")
        if backoff_s is not None and backoff_s > backoff_max_s:
            raise ValueError(f"must be at least backoff_s, which is {backoff_s:g}")
        return backoff_max_s


class Batch(Model):
    """When gathered jobs are sent off together."""

    max_jobs: Annotated[Whole, Field(ge=1, le=2048)] = 64
    max_wait_s: Annotated[Real, Field(ge=0, le=60, allow_inf_nan=False)] = 0.05


class Queue(Model):
    """A lane: one queue and the workers that serve it."""

    name: str
    description: str = ""
    task: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]
    pool: Literal["threads", "prefork", "solo"]
    concurrency: Annotated[Whole, Field(ge=1, le=4096)] = 1
    prefetch_multiplier: Annotated[Whole, Field(ge=0, le=1000), BeforeValidator(_off)] = 1
    max_tasks_per_worker: Count | None = None
    max_memory_mib: Count | None = None
    max_tasks_per_child: Count | None = None
    max_memory_per_child_mib: Count | None = None
    max_length: Annotated[Whole, Field(ge=0)] = 0
    max_payload_bytes: Annotated[Whole, Field(ge=1024, le=512 * 1024 * 1024)] = 262144
    time_limit_s: Seconds = 300
    batch: Batch | None = None
    rows_per_job: Count | None = None
    tables: tuple[str, ...] | None = None
    retry: Retry = Retry()
    max_orphaned: Annotated[Whole, Field(ge=3, le=1000)] = 5
    wedged_after_s: Seconds = Field(default=3600, validate_default=True)
    drain_s: Annotated[Real, Field(ge=0, le=86400, allow_inf_nan=False)] = 30

    @model_validator(mode="before")
    @classmethod
    def _recycle_children(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("pool") == "prefork":
            return {"max_tasks_per_child": 1000, **given}
        return given

    @field_validator("concurrency")
    @classmethod
    def _solo_is_alone(cls, concurrency: int, info: ValidationInfo) -> int:
        if info.data.get("pool") == "solo" and concurrency != 1:
            raise ValueError("must be 1 with pool solo, which runs one job at a time")
        return concurrency

    @field_validator("wedged_after_s")
    @classmethod
    def _outlasts_the_time_limit(cls, wedged_after_s: float, info: ValidationInfo) -> float:
        limit_s = info.data.get("time_limit_s")
        if limit_s is not None and wedged_after_s <= limit_s:
            raise ValueError(f"must be more than time_limit_s, which is {limit_s:g}")
        return wedged_after_s

    @field_validator(*ONLY_FOR)
    @classmethod
    def _fits_its_pool(cls, value: Any, info: ValidationInfo) -> Any:
        pool, only = info.data.get("pool"), ONLY_FOR[str(info.field_name)]
        if value is not None and pool not in (None, only):
            raise ValueError(f"applies to pool {only} only, and this pool is {pool}; leave it out or change the pool")
        return value


class Policy(Model):
    """The whole of queues.yaml with the environment's overrides."""

    retention: Retention = Retention()
    lease: Lease = Lease()
    queues: dict[Annotated[str, AfterValidator(_queue_name)], Queue] = Field(min_length=1)

    def queue(self, name: str) -> Queue:
        """Return a declared queue. Raises `ConfigurationError` naming the nearest one."""
        if name in self.queues:
            return self.queues[name]
        known = ", ".join(self.queues)
        raise ConfigurationError(
            [f"queue {name!r} is not declared; queues.yaml has {known}{nearest(name, self.queues)}"]
        )

    def queue_of_task(self, task: str) -> Queue | None:
        """Return the queue that declares a task, None when none does."""
        return next((queue for queue in self.queues.values() if queue.task == task), None)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Policy:
    """Return the policy of a file, by default the one that FOREBAY_QUEUES names or the project's queues.yaml.

    Raises `ConfigurationError` with every fault of the file and of the variables that override it. Without arguments
    the file is read once a process.
    """
    if path is None and environ is None:
        return _of_process()
    return _load(path, os.environ if environ is None else environ)[0]


def effective(path: Path | None = None, environ: Mapping[str, str] | None = None) -> list[Setting]:
    """Return each effective value and where it came from: a line of the file, a variable, or the default."""
    policy, read = _load(path, os.environ if environ is None else environ)
    settings = []
    for key, value in _leaves(policy.model_dump(mode="json")):
        if not key.endswith(".name") and value is not None:
            settings.append(Setting(key, value, read.sources.get(key, "default")))
    return settings


@cache
def _of_process() -> Policy:
    return _load(None, os.environ)[0]


def _load(path: Path | None, environ: Mapping[str, str]) -> tuple[Policy, queuefile.Reading]:
    source = path or Path(environ.get("FOREBAY_QUEUES") or DEFAULT_FILE)
    read = queuefile.read(source, environ)
    queues = read.values.get("queues")
    for name, queue in queues.items() if isinstance(queues, dict) else ():
        if isinstance(queue, dict):
            if "name" in queue:
                where = read.sources[f"queues.{name}.name"]
                read.faults.append(f"{where}: queues.{name}.name: {queue['name']!r}: leave it out; the key is the name")
            queue["name"] = name
    try:
        policy = Policy.model_validate(read.values)
    except ValidationError as error:
        raise ConfigurationError(read.faults + _faults(read, error)) from None
    if read.faults:
        raise ConfigurationError(read.faults)
    return policy, read


#: pydantic's kinds of error whose own text speaks of Python.
PLAIN = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must declare at least one queue",
    "missing": "is required",
}


def _faults(read: queuefile.Reading, errors: ValidationError) -> list[str]:
    """Return each of pydantic's errors as one line: where, key, value, what is allowed, the nearest known name."""
    lines = []
    for error in errors.errors(include_url=False):
        path = [str(part) for part in error["loc"] if part != "[key]"]
        if error["type"] == "missing":
            lines.append(f"{read.where(path[:-1])}: {'.'.join(path)}: {PLAIN['missing']}")
            continue
        key = ".".join(path)
        if key not in read.unread:
            lines.append(f"{read.where(path)}: {key}: {_shown(error['input'])}: {_what_is_allowed(error, path)}")
    return lines


def _what_is_allowed(error: Any, path: list[str]) -> str:
    given = error["input"]
    if error["type"] == "extra_forbidden":
        known = sorted(_known_keys(path[:-1]))
        return f"unknown key; known are {', '.join(known)}{nearest(path[-1], known)}"
    if error["type"] == "literal_error":
        allowed = str(error["ctx"]["expected"])
        return f"must be {allowed}{nearest(str(given), allowed.replace(chr(39), '').replace(' or ', ', ').split(', '))}"
    text = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    text = PLAIN.get(error["type"], f"{text[:1].lower()}{text[1:]}")
    return (
        f"{text}, and this is text" if error["type"] in ("int_type", "float_type") and isinstance(given, str) else text
    )


def _known_keys(path: list[str]) -> set[str]:
    parts: dict[str, type[Model]] = {"retention": Retention, "lease": Lease, "batch": Batch, "retry": Retry}
    match path:
        case []:
            model: type[Model] = Policy
        case ["queues", _]:
            model = Queue
        case _:
            model = parts[path[-1]]
    return set(model.model_fields) - {"name"}


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _leaves(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{path}{key}.")
        else:
            found.append((f"{path}{key}", value))
    return found


__all__ = ["Batch", "ForebayError", "Lease", "Policy", "Queue", "Retention", "Retry", "effective", "load"]
