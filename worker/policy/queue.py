"""What queues.yaml may say of a queue and the workers that serve it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from worker.errors import nearest
from worker.policy.model import Count, Model, Real, Seconds, Share, Whole, off
from worker.policy.priority import Priority

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


def _at_least(name: str, value: float, info: ValidationInfo) -> float:
    """Return a longest time, unless it is shorter than the first one, which the field ``name`` holds."""
    first = info.data.get(name)
    if first is not None and first > value:
        raise ValueError(f"must be at least {name}, which is {first:g}")
    return value


class Retry(Model):
    """How often and how far apart a failed job is tried: see `worker.runtime.outcome.decide`."""

    max_attempts: Count = 3
    backoff_s: Seconds = 2
    backoff_max_s: Seconds = Field(default=60, validate_default=True)
    jitter: Share = 0.2

    @field_validator("backoff_max_s")
    @classmethod
    def _grows(cls, backoff_max_s: float, info: ValidationInfo) -> float:
        return _at_least("backoff_s", backoff_max_s, info)


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
    """When a provider's model is left alone, and for how long: see `worker.limits.breaker`.

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
        return _at_least("open_s", open_max_s, info)


class Fallback(Model):
    """A model that is asked when those before it cannot answer now, and the variables that name its provider."""

    model: Annotated[str, Field(min_length=1, max_length=200)]
    base_url_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "OPENAI_BASE_URL"
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] = "OPENAI_API_KEY"


class Queue(Model):
    """A lane: one queue and the workers that serve it."""

    name: str
    description: str = ""
    task: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*$")]
    pool: Literal["threads", "prefork", "solo"]
    default_priority: str = "NORMAL"
    concurrency: Annotated[Whole, Field(ge=1, le=4096)] = 1
    prefetch_multiplier: Annotated[Whole, Field(ge=0, le=1000), BeforeValidator(off)] = 1
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

    @field_validator("default_priority")
    @classmethod
    def _is_a_priority(cls, name: str) -> str:
        if name.lower() not in PRIORITIES:
            raise ValueError(f"is no priority; known are {', '.join(PRIORITIES)}{nearest(name.lower(), PRIORITIES)}")
        return name.upper()

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
