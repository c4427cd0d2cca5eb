"""Say what queues.yaml may hold, and load it: the queues, their pools, limits and retries."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from worker import queuefile
from worker.errors import ConfigurationError, ForebayError
from worker.queuefile import Setting

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "queues.yaml"

Seconds = Annotated[float, Field(gt=0, le=366 * 86400, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class Model(BaseModel):
    """A part of queues.yaml: unknown keys are faults."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Retention(Model):
    """How long what is left of a job is kept, counted from its end (the key: from its acceptance)."""

    record_s: Seconds = 86400
    result_s: Seconds = 86400
    idempotency_s: Seconds = 86400


class Lease(Model):
    """For how long a worker process owns what it holds after its last sign of life."""

    duration_s: Seconds = 8
    renew_every_s: Seconds = 2

    @model_validator(mode="after")
    def _can_be_renewed(self) -> "Lease":
        if self.renew_every_s > self.duration_s / 3:
            raise ValueError(
                "renew_every_s: must be at most a third of duration_s, or one slow renewal loses the lease"
            )
        return self


class Retry(Model):
    """How often and how far apart a failed job is tried: see `worker.outcome.decide`."""

    max_attempts: Count = 3
    backoff_s: Seconds = 2
    backoff_max_s: Seconds = 60
    jitter: Share = 0.2

    @model_validator(mode="after")
    def _grows(self) -> "Retry":
        if self.backoff_s > self.backoff_max_s:
            raise ValueError("backoff_s: must be at most backoff_max_s")
        return self


class Batch(Model):
    """When gathered jobs are sent off together."""

    max_jobs: Annotated[int, Field(ge=1, le=2048)] = 64
    max_wait_s: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.05


def _off(value: Any) -> Any:
    return 0 if value in ("off", False) else value


class Queue(Model):
    """A lane: one queue and the workers that serve it."""

    name: Name
    description: str = ""
    task: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]
    pool: Literal["threads", "prefork", "solo"]
    concurrency: Annotated[int, Field(ge=1, le=4096)] = 1
    prefetch_multiplier: Annotated[int, Field(ge=0, le=1000), BeforeValidator(_off)] = 1
    max_tasks_per_worker: Count | None = None
    max_memory_mib: Count | None = None
    max_tasks_per_child: Count | None = None
    max_memory_per_child_mib: Count | None = None
    max_length: Annotated[int, Field(ge=0)] = 0
    max_payload_bytes: Annotated[int, Field(ge=1024, le=512 * 1024 * 1024)] = 262144
    time_limit_s: Seconds = 300
    batch: Batch | None = None
    rows_per_job: Count | None = None
    tables: tuple[str, ...] | None = None
    retry: Retry = Retry()

    @model_validator(mode="before")
    @classmethod
    def _recycle_children(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("pool") == "prefork":
            return {"max_tasks_per_child": 1000, **given}
        return given

    @model_validator(mode="after")
    def _fits_its_pool(self) -> "Queue":
        foreign = {
            "threads": ("max_tasks_per_child", "max_memory_per_child_mib"),
            "prefork": ("max_tasks_per_worker", "max_memory_mib", "batch"),
            "solo": ("max_tasks_per_child", "max_memory_per_child_mib", "batch"),
        }[self.pool]
        wrong = [key for key in foreign if getattr(self, key) is not None]
        if wrong:
            raise ValueError(f"{wrong[0]}: does not apply to pool {self.pool}; leave it out or change the pool")
        return self


class Policy(Model):
    """The whole of queues.yaml with the environment's overrides."""

    retention: Retention = Retention()
    lease: Lease = Lease()
    queues: dict[Name, Queue] = Field(min_length=1)

    def queue(self, name: str) -> Queue:
        """Return a declared queue. Raises `ConfigurationError` naming the nearest one."""
        if name in self.queues:
            return self.queues[name]
        nearest = get_close_matches(name, self.queues, n=1)
        known = ", ".join(self.queues)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ConfigurationError([f"queue {name!r} is not declared; queues.yaml has {known}{hint}"])

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
    for name, queue in (read.values.get("queues") or {}).items():
        if isinstance(queue, dict):
            queue["name"] = name
    try:
        policy = Policy.model_validate(read.values)
    except ValidationError as error:
        raise ConfigurationError(
            read.faults + [_fault(read, each) for each in error.errors(include_url=False)]
        ) from None
    if read.faults:
        raise ConfigurationError(read.faults)
    return policy, read


def _fault(read: queuefile.Reading, error: Any) -> str:
    """Return a pydantic error as one line: where, key, value, what is wrong, the nearest known name."""
    path = [str(part) for part in error["loc"] if part != "[key]"]
    text = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    field, _, rest = text.partition(": ")
    if error["type"] == "value_error" and rest:  # a check of ours across the keys of one part
        path.append(field)
        value, text = (value.get(field) if isinstance(value, dict) else value), rest
    if error["type"] == "extra_forbidden":
        known = sorted(_known_keys(path[:-1]))
        nearest = get_close_matches(path[-1], known, n=1)
        text = f"unknown key; known are {', '.join(known)}" + (f"; did you mean {nearest[0]}?" if nearest else "")
    if error["type"] == "missing":
        return f"{read.where(path[:-1])}: {'.'.join(path)}: is required"
    shown = repr(value)
    return f"{read.where(path)}: {'.'.join(path)}: {shown[:80]}: {text[0].lower()}{text[1:]}"


def _known_keys(path: list[str]) -> set[str]:
    model: type[Model] = Policy
    parts = {"retention": Retention, "lease": Lease, "batch": Batch, "retry": Retry}
    for part in path:
        model = parts.get(part, Queue)
    return set(model.model_fields) - {"name"}


def _leaves(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{path}{key}.")
        else:
            found.append((f"{path}{key}", value))
    return found


__all__ = ["Batch", "ForebayError", "Lease", "Policy", "Queue", "Retention", "Retry", "effective", "load"]
