"""Decide what becomes of a job whose run raised: a pure function from error, attempts and policy to an outcome."""

from dataclasses import dataclass
from enum import Enum

from worker.policy.queue import Retry as RetryPolicy
from worker.records.reason import Reason


class Fault(Enum):
    """What an error says about the next attempt."""

    PASSING = "passing"  # a moment may heal it: try again, at most so often
    AWAY = "away"  # a service that every job needs is away: wait for it, spend no attempt
    FATAL = "fatal"  # trying again gives the same


@dataclass(frozen=True)
class Retry:
    """Run again after ``after_s`` seconds; one attempt is spent."""

    after_s: float


@dataclass(frozen=True)
class Snooze:
    """Run again after ``after_s`` seconds; no attempt is spent."""

    after_s: float


@dataclass(frozen=True)
class Dead:
    """Bury the job for ``reason``."""

    reason: Reason


Outcome = Retry | Snooze | Dead


def decide(fault: Fault, attempts: int, policy: RetryPolicy, chance: float, after_s: float | None = None) -> Outcome:
    """Return the outcome of a failed run.

    ``attempts`` have been spent before this run (0 on the first); ``chance`` in [0, 1) places the delay within its
    jitter. Backoff is exponential: ``backoff_s * 2 ** attempts``, bounded by ``backoff_max_s``, then moved by up to
    ``jitter`` of itself either way. ``after_s`` says in how many seconds a service that is away may be back: it
    is asked no earlier.
    """
    match fault:
        case Fault.FATAL:
            return Dead(Reason.FAILED)
        case Fault.AWAY if after_s is not None:
            return Snooze(after_s * (1 + policy.jitter * chance))
        case Fault.AWAY:
            return Snooze(_moved(policy.backoff_max_s, policy.jitter, chance))
        case Fault.PASSING if attempts + 1 >= policy.max_attempts:
            return Dead(Reason.ATTEMPTS_SPENT)
        case Fault.PASSING:
            # beyond 2**63 the bound has long won; the exponent stays small enough for a float
            delay_s = min(policy.backoff_max_s, policy.backoff_s * 2.0 ** min(attempts, 63))
            return Retry(_moved(delay_s, policy.jitter, chance))


def _moved(delay_s: float, jitter: float, chance: float) -> float:
    return delay_s * (1 - jitter + 2 * jitter * chance)
