"""The whole of queues.yaml with the environment's overrides, and how it is loaded."""

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationError, ValidationInfo, field_validator

from worker.errors import ConfigurationError, nearest
from worker.policy import faults, queue_file
from worker.policy.gate import Bucket, Gate
from worker.policy.model import Kept, Model, Real, Seconds, Whole, switch
from worker.policy.queue import Batch, Breaker, Fallback, Queue, Retry
from worker.policy.queue_file import Setting

DEFAULT_FILE = Path(__file__).resolve().parents[2] / "queues.yaml"


def _queue_name(name: str) -> str:
    if len(name) > 60 or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError("must be a queue's name: a-z first, then a-z, 0-9 and _, at most 60 characters")
    return name


class Retention(Model):
    """How long what is left of a job is kept, counted from its end (the key: from its acceptance)."""

    record_s: Kept = 86400
    result_s: Kept = 86400
    idempotency_s: Kept = 86400
    dead_s: Kept = 30 * 86400
    stream_s: Kept = 3600


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


class Price(Model):
    """What 1,000 tokens of a model cost, in whatever currency the bill is in."""

    prompt: Annotated[Real, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0
    completion: Annotated[Real, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0


class Cache(Model):
    """Which answers of models are kept, for how long, and how much of them in each process."""

    enabled: Annotated[bool, Strict(), BeforeValidator(switch)] = True
    analysis_ttl_s: Kept = 86400
    embedding_ttl_s: Kept = 7 * 86400
    model_ttl_s: Kept = 3600
    max_temperature: Annotated[Real, Field(ge=0, le=0.3, allow_inf_nan=False)] = 0.3
    memory_entries: Annotated[Whole, Field(ge=0, le=10_000_000)] = 10_000
    memory_mib: Annotated[Whole, Field(ge=0, le=1_000_000)] = 64
    memory_ttl_s: Kept = 300
    prices: dict[str, Price] = {}


class Policy(Model):
    """The whole of queues.yaml with the environment's overrides."""

    retention: Retention = Retention()
    lease: Lease = Lease()
    cache: Cache = Cache()
    gates: dict[Annotated[str, AfterValidator(_queue_name)], Gate] = {}
    queues: dict[Annotated[str, AfterValidator(_queue_name)], Queue] = Field(min_length=1)

    @field_validator("queues")
    @classmethod
    def _name_declared_gates(cls, queues: dict[str, Queue], info: ValidationInfo) -> dict[str, Queue]:
        gates: dict[str, Gate] = info.data.get("gates", {})
        for queue in queues.values():
            if queue.gate is None:
                continue
            if queue.gate not in gates:
                raise ValueError(
                    f"{queue.name}.gate: {queue.gate!r} is not declared; gates has "
                    f"{', '.join(gates) or 'none'}{nearest(queue.gate, gates)}"
                )
            if gates[queue.gate].is_limited and not queue.batch and queue.prefetch_multiplier != 1:
                raise ValueError(
                    f"{queue.name}.prefetch_multiplier: must be 1 behind gate {queue.gate}, "
                    "for what is fetched is charged and is to run at once"
                )
        return queues

    def queue(self, name: str) -> Queue:
        """Return a declared queue. Raises `ConfigurationError` naming the nearest one."""
        if name in self.queues:
            return self.queues[name]
        known = ", ".join(self.queues)
        raise ConfigurationError(
            [f"queue {name!r} is not declared; queues.yaml has {known}{nearest(name, self.queues)}"]
        )

    def lane_of(self, queue: str, task: str) -> Queue | None:
        """Return the queue that a message came through, else the one that declares its task, or None.

        Whoever decides about a run asks here: the task in its thread or child, and the worker when that is lost.
        """
        return self.queues.get(queue) or self.queue_of_task(task)

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


def _load(path: Path | None, environ: Mapping[str, str]) -> tuple[Policy, queue_file.Reading]:
    source = path or Path(environ.get("FOREBAY_QUEUES") or DEFAULT_FILE)
    read = queue_file.read(source, environ)
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
        raise ConfigurationError(read.faults + faults.explained(read, error, _known_keys)) from None
    if read.faults:
        raise ConfigurationError(read.faults)
    return policy, read


def _known_keys(path: list[str]) -> set[str]:
    parts: dict[str, type[Model]] = {
        "retention": Retention,
        "lease": Lease,
        "cache": Cache,
        "batch": Batch,
        "retry": Retry,
        "breaker": Breaker,
        **dict.fromkeys(("requests", "tokens", "rows"), Bucket),
    }
    match path:
        case []:
            model: type[Model] = Policy
        case ["queues", _]:
            model = Queue
        case ["gates", _]:
            model = Gate
        case ["queues", _, "fallbacks", _]:
            model = Fallback
        case ["cache", "prices", _]:
            model = Price
        case _:
            model = parts[path[-1]]
    return set(model.model_fields) - {"name"}


def _leaves(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{path}{key}.")
        else:
            found.append((f"{path}{key}", value))
    return found
