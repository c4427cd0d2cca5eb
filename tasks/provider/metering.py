"""What a provider's call says to whoever keeps to the provider's limits: `worker.limits.gates.Meter` is one."""

from typing import Protocol


class Meter(Protocol):
    """Hears of every call of one run, in order: first `before_call`, then one of the others or, after an error, none.

    That the run's first call has its permit already is the meter's own affair.
    """

    def before_call(self, tokens: int) -> float:
        """Take a permit for a call that is reckoned to cost so many tokens; return in how many seconds it may leave.

        Raises `worker.errors.NoPermit`.
        """

    def used(self, tokens: int) -> None:
        """Note what the call has cost by the provider's own count; 0 when it was refused."""

    def busy(self, retry_after_s: float | None, reason: str = ...) -> float | None:
        """Note that the provider limits the rate, and for how long if it said so."""

    def used_up(self, opens_s: float) -> None:
        """Note that the provider answered, and said that the next call may go in so many seconds."""

    def unused(self) -> None:
        """Note that the call never reached the provider."""


class Unmetered:
    """Lets every call go."""

    def before_call(self, tokens: int) -> float:
        return 0.0

    def used(self, tokens: int) -> None:
        pass

    def busy(self, retry_after_s: float | None, reason: str = "") -> float | None:
        return None

    def used_up(self, opens_s: float) -> None:
        pass

    def unused(self) -> None:
        pass
