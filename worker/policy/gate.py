"""What queues.yaml may say of a gate: what one provider's key, or one database, takes from all workers together."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from worker.policy.model import Count, Model, Real, Seconds

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
