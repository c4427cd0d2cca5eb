"""The deciding function and its backoff."""

from hypothesis import given
from hypothesis import strategies as st

from worker.policy.queue import Retry as Policy
from worker.runtime.outcome import Dead, Fault, Retry, Snooze, decide

policies = st.builds(
    lambda attempts, backoff, extra, jitter: Policy(
        max_attempts=attempts, backoff_s=backoff, backoff_max_s=backoff + extra, jitter=jitter
    ),
    st.integers(1, 50),
    st.floats(0.01, 100),
    st.floats(0, 1000),
    st.floats(0, 1),
)
chances = st.floats(0, 1, exclude_max=True)
attempts = st.integers(0, 10_000)


@given(attempts, policies, chances)
def test_fatal_faults_are_buried_at_once(spent: int, policy: Policy, chance: float) -> None:
    assert decide(Fault.FATAL, spent, policy, chance) == Dead("failed")


@given(attempts, policies, chances)
def test_waiting_for_a_service_never_ends_a_job(spent: int, policy: Policy, chance: float) -> None:
    outcome = decide(Fault.AWAY, spent, policy, chance)
    assert isinstance(outcome, Snooze)
    assert 0 <= outcome.after_s <= policy.backoff_max_s * (1 + policy.jitter)


@given(attempts, policies, chances)
def test_passing_faults_are_tried_max_attempts_times(spent: int, policy: Policy, chance: float) -> None:
    outcome = decide(Fault.PASSING, spent, policy, chance)
    if spent + 1 >= policy.max_attempts:
        assert outcome == Dead("attempts spent")
    else:
        assert isinstance(outcome, Retry)
        assert 0 <= outcome.after_s <= policy.backoff_max_s * (1 + policy.jitter)


@given(policies, st.integers(0, 30))
def test_backoff_doubles_until_its_bound(policy: Policy, spent: int) -> None:
    middle = 0.5  # no jitter either way
    patient = policy.model_copy(update={"max_attempts": 100})
    now, later = (decide(Fault.PASSING, spent + more, patient, middle) for more in (0, 1))
    assert isinstance(now, Retry)
    assert isinstance(later, Retry)
    bound = patient.backoff_max_s
    assert (
        later.after_s == min(bound, now.after_s * 2) or abs(later.after_s - min(bound, now.after_s * 2)) < 1e-9 * bound
    )


@given(attempts, policies, chances, st.floats(0, 10_000))
def test_a_service_that_says_when_it_is_back_is_asked_no_earlier(
    spent: int, policy: Policy, chance: float, after_s: float
) -> None:
    outcome = decide(Fault.AWAY, spent, policy, chance, after_s)
    assert isinstance(outcome, Snooze)
    assert after_s <= outcome.after_s <= after_s * (1 + policy.jitter)
