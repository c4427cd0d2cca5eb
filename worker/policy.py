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
from worker.errors import ConfigurationError, nearest
from worker.priority import Priority
from worker.queuefile import Setting

DEFAULT_FILE = Path(__file__).resolve().parent.parent / "queues.yaml"

#: Keys that say something about one pool alone.
ONLY_FOR = {
    "max_tasks_per_worker": "threads",
    "max_memory_mib": "threads",
    "max_tasks_per_child": "prefork",
    "max_memory_per_child_mib": "prefork",
}


PRIORITIES = tuple(priority.name.lower() for priority in Priority)
#: The most that shares may set aside for the less urgent.
MOST_SHARED = 0.5


def _off(value: Any) -> Any:
    return 0 if value is False or str(value).strip().lower() == "off" else value


def _switch(value: Any) -> Any:
    """Return the yes or no that a variable spells: it has no other way to say one, the file has."""
    spelled = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    return spelled.get(str(value).strip().lower(), value)


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
    """How far jobs are gathered into one call: by number, by what they cost, by how long the first has waited."""

    max_jobs: Annotated[Whole, Field(ge=1, le=2048)] = 64
    max_tokens: Annotated[Whole, Field(ge=1, le=100_000_000)] | None = None
    max_rows: Annotated[Whole, Field(ge=1, le=100_000_000)] | None = None
    max_wait_s: Annotated[Real, Field(ge=0, le=60, allow_inf_nan=False)] = 0.05

    @field_validator("max_rows")
    @classmethod
    def _counts_one_thing(cls, max_rows: int | None, info: ValidationInfo) -> int | None:
        if max_rows is not None and info.data.get("max_tokens") is not None:
            raise ValueError("a batch counts max_tokens or max_rows, not both")
        return max_rows


class Breaker(Model):
    """When a provider's model is left alone, and for how long: see `worker.breaker`.

    It opens after so many ``failures`` in a row within ``within_s``, for ``open_s``, then twice as long each time up to
    ``open_max_s``.
    """

    failures: Annotated[Whole, Field(ge=1, le=1000)] = 5
    within_s: Seconds = 30
    open_s: Annotated[Real, Field(gt=0, le=1800, allow_inf_nan=False)] = 10
    open_max_s: Annotated[Real, Field(gt=0, le=1800, allow_inf_nan=False)] = Field(default=120, validate_default=True)

    @field_validator("open_max_s")
    @classmethod
    def _grows(cls, open_max_s: float, info: ValidationInfo) -> float:
        open_s = info.data.get("open_s")
        if open_s is not None and open_s > open_max_s:
            raise ValueError(f"must be at least open_s, which is {open_s:g}")
        return open_max_s


class Fallback(Model):
    """A model that is asked when those before it cannot answer now, and the variables that name its provider."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    base_url_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "OPENAI_BASE_URL"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "OPENAI_API_KEY"


WINDOWS_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


class Bucket(Model):
    """How much may go in a window: a token bucket that holds ``burst`` and is filled so that no window has more.

    Either ``limit``, the most in any window, which counts the burst in; or ``rate``, with which it is filled, and the
    most in any window is then rate and burst together.
    """

    limit: Annotated[Real, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    rate: Annotated[Real, Field(gt=0, le=1e12, allow_inf_nan=False)] | None = None
    per: Literal["second", "minute", "hour", "day"] = "minute"
    burst: Count | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> "Bucket":
        if (self.limit is None) == (self.rate is None):
            raise ValueError("must have either limit (the most in any window) or rate (with which it is filled)")
        if self.limit is not None and self.capacity > max(1.0, self.limit - 1):
            raise ValueError(f"burst counts inside the limit: it must be less than limit, which is {self.limit:g}")
        return self

    @property
    def window_s(self) -> float:
        return WINDOWS_S[self.per]

    @property
    def capacity(self) -> float:
        """What may go at once."""
        return self.burst or max(1.0, float(int((self.limit or self.rate or 0) * BURST_SHARE)))

    def filled_per_s(self, smallest: float = 0) -> float:
        """Return with how much it is filled each second, when nothing less than ``smallest`` is ever taken.

        Calls that start within one window may arrive within a shorter one: the window is stretched by a hundredth, at
        most by a second, to allow for that.
        """
        if self.limit is None:
            return (self.rate or 0) / self.window_s
        return (self.limit - self.capacity + smallest) / (self.window_s + min(1.0, self.window_s / 100))


#: The burst where none is declared: this much of a window's limit.
BURST_SHARE = 0.1


class Gate(Model):
    """What one provider's key, or one database, takes from all workers together, and how a refusal is heeded."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    rows: Bucket | None = None
    max_shut_s: Seconds = 120

    @field_validator("rows")
    @classmethod
    def _counts_one_thing(cls, rows: Bucket | None, info: ValidationInfo) -> Bucket | None:
        if rows is not None and info.data.get("tokens") is not None:
            raise ValueError("a gate counts tokens or rows, not both; declare two gates")
        return rows

    @property
    def is_limited(self) -> bool:
        """Whether it charges for anything: one without buckets only shuts when its provider refuses."""
        return bool(self.requests or self.cost)

    @property
    def cost(self) -> Bucket | None:
        """The bucket that a job's own cost is taken from."""
        return self.tokens or self.rows


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
    gate: str | None = None
    max_in_flight: Count | None = None
    shares: dict[str, Annotated[Real, Field(gt=0, lt=1, allow_inf_nan=False)]] = {}
    answer_tokens: Count = 500
    batch: Batch | None = None
    rows_per_job: Count | None = None
    tables: tuple[str, ...] | None = None
    retry: Retry = Retry()
    breaker: Breaker = Breaker()
    fallbacks: tuple[Fallback, ...] = ()
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

    @field_validator("batch")
    @classmethod
    def _is_run_by_a_pool(cls, batch: Batch | None, info: ValidationInfo) -> Batch | None:
        if batch is not None and info.data.get("pool") == "solo":
            raise ValueError("applies to pools threads and prefork; leave it out or change the pool")
        return batch

    @field_validator("wedged_after_s")
    @classmethod
    def _outlasts_the_time_limit(cls, wedged_after_s: float, info: ValidationInfo) -> float:
        limit_s = info.data.get("time_limit_s")
        if limit_s is not None and wedged_after_s <= limit_s:
            raise ValueError(f"must be more than time_limit_s, which is {limit_s:g}")
        return wedged_after_s

    @field_validator("shares")
    @classmethod
    def _are_of_priorities(cls, shares: dict[str, float]) -> dict[str, float]:
        for name in shares:
            if name not in PRIORITIES:
                raise ValueError(
                    f"{name!r} is no priority; known are {', '.join(PRIORITIES)}{nearest(name, PRIORITIES)}"
                )
        if sum(shares.values()) > MOST_SHARED:
            raise ValueError(f"add up to {sum(shares.values()):g}; at most {MOST_SHARED:g} may be set aside")
        return shares

    @field_validator("fallbacks")
    @classmethod
    def _answers_alone(cls, fallbacks: tuple[Fallback, ...], info: ValidationInfo) -> tuple[Fallback, ...]:
        if fallbacks and info.data.get("batch"):
            raise ValueError("do not apply to a queue with batch: vectors of different models do not mix; leave it out")
        return fallbacks

    @field_validator(*ONLY_FOR)
    @classmethod
    def _fits_its_pool(cls, value: Any, info: ValidationInfo) -> Any:
        pool, only = info.data.get("pool"), ONLY_FOR[str(info.field_name)]
        if value is not None and pool not in (None, only):
            raise ValueError(f"applies to pool {only} only, and this pool is {pool}; leave it out or change the pool")
        return value


class Price(Model):
    """What 1,000 tokens of a model cost, in whatever currency the bill is in."""

    prompt: Annotated[Real, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0
    completion: Annotated[Real, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0


class Cache(Model):
    """Which answers of models are kept, for how long, and how much of them in each process."""

    enabled: Annotated[bool, Strict(), BeforeValidator(_switch)] = True
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
    "bool_type": "must be true or false",
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


__all__ = [
    "Batch",
    "Breaker",
    "Bucket",
    "Cache",
    "Fallback",
    "Gate",
    "Policy",
    "Queue",
    "Retention",
    "Retry",
    "effective",
    "load",
]
