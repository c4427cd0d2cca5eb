"""What the errors say, and that they survive the way from one process to another."""

import pickle

import pytest

from worker import errors
from worker.errors import (
    SHOWN,
    BrokerUnavailable,
    ConfigurationError,
    ForebayError,
    JobFailed,
    JobRefused,
    NoPermit,
    QueueFull,
    ResultTimeout,
    UnknownJob,
)

EACH = [
    ForebayError("text"),
    ConfigurationError(["one", "two"]),
    JobRefused("priority", "urgent", "must be HIGH"),
    QueueFull("chat", 5, 5, 90.0),
    BrokerUnavailable("away"),
    UnknownJob("an-id"),
    ResultTimeout("an-id"),
    JobFailed("an-id", "dead", "ValueError: no"),
    NoPermit("provider", 1.5),
    NoPermit("provider", None),
]


def test_every_error_is_in_this_list() -> None:
    public = {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)}
    assert {type(each) for each in EACH} == public


@pytest.mark.parametrize("error", EACH, ids=lambda error: type(error).__name__)
def test_an_error_of_ours_is_caught_by_one_name_and_can_be_pickled(error: ForebayError) -> None:
    assert isinstance(error, ForebayError)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error) != ""
    assert vars(again) == vars(error)


def test_a_full_queue_is_a_refusal_and_a_result_late_is_a_timeout() -> None:
    assert issubclass(QueueFull, JobRefused)
    assert issubclass(ResultTimeout, TimeoutError)


def test_every_fault_of_a_configuration_has_a_line_of_its_own() -> None:
    error = ConfigurationError(["a: first", "b: 'two\nlines\r\x1b[31m\u2028'", "ü: third"])
    assert str(error).splitlines() == error.faults
    assert error.faults == ["a: first", "b: 'two\\nlines\\r\\x1b[31m\\u2028'", "ü: third"]


def test_a_refusal_says_field_value_and_remedy() -> None:
    assert str(JobRefused("priority", "urgent", "must be HIGH")) == "priority: 'urgent' must be HIGH"


@pytest.mark.parametrize(("length", "shown"), [(SHOWN - 2, SHOWN), (SHOWN - 1, SHOWN), (10_000, SHOWN)])
def test_a_refused_value_is_cut(length: int, shown: int) -> None:
    error = JobRefused("message", "x" * length, "is too long")
    text = str(error).removeprefix("message: ").removesuffix(" is too long")
    assert len(text) == shown
    assert text.endswith("..." if length > SHOWN - 2 else "x'")
    assert error.value == "x" * length


def test_a_failed_job_says_its_state_and_why() -> None:
    assert str(JobFailed("an-id", "dead", "ValueError: no")) == "job an-id is dead: ValueError: no"
    assert str(JobFailed("an-id", "cancelled", "")) == "job an-id is cancelled"


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    assert errors.nearest("caht", ["chat", "embedding"]) == "; did you mean chat?"
    assert errors.nearest("x", ["chat", "embedding"]) == ""
