"""The five priorities, their lists and their names."""

import pytest
from kombu.transport.redis import PRIORITY_STEPS

from worker.errors import JobRefused
from worker.policy.priority import FETCH_ORDER, STEPS, Priority, of_step, parse

URGENT_FIRST = ["CRITICAL", "HIGH", "NORMAL", "LOW", "BATCH"]


def test_fetching_goes_by_urgency_and_not_by_the_number_of_the_step() -> None:
    assert [of_step(step).name for step in FETCH_ORDER] == URGENT_FIRST
    assert list(FETCH_ORDER) != sorted(FETCH_ORDER)


def test_steps_are_sorted_as_kombu_bisects_them() -> None:
    assert list(STEPS) == sorted(set(FETCH_ORDER))
    assert len(STEPS) == len(Priority)


def test_a_producer_that_names_no_priority_is_normal() -> None:
    assert Priority.NORMAL.step == 0


def test_every_list_that_a_plain_celery_producer_pushes_to_is_fetched() -> None:
    assert set(PRIORITY_STEPS) <= set(STEPS)


@pytest.mark.parametrize("priority", Priority)
def test_a_priority_is_known_by_its_name_in_any_case_and_by_its_step(priority: Priority) -> None:
    for given in (priority, priority.name, priority.name.lower(), priority.name.title(), f" {priority.name}\n"):
        assert parse(given) is priority
    assert of_step(priority.step) is priority


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("critcal", "CRITICAL"), ("hihg", "HIGH"), ("Normall", "NORMAL"), ("bach", "BATCH"), ("lo", "LOW")],
)
def test_a_misspelt_priority_is_refused_with_the_nearest_name(given: str, nearest: str) -> None:
    with pytest.raises(JobRefused) as refused:
        parse(given)
    assert refused.value.field == "priority"
    assert refused.value.value == given
    assert repr(given) in str(refused.value)
    assert ", ".join(URGENT_FIRST) in str(refused.value)
    assert f"did you mean {nearest}?" in str(refused.value)


@pytest.mark.parametrize("given", ["", "xyz", "0", 0, 5, True, None, ["HIGH"], b"HIGH", 1.5])
def test_what_resembles_no_priority_is_refused_without_a_guess(given: object) -> None:
    with pytest.raises(JobRefused) as refused:
        parse(given)
    assert "did you mean" not in str(refused.value)
    assert ", ".join(URGENT_FIRST) in str(refused.value)


@pytest.mark.parametrize("step", sorted(set(range(-1, 11)) - set(STEPS)))
def test_a_step_between_ours_is_no_priority(step: int) -> None:
    with pytest.raises(ValueError, match=str(step)):
        of_step(step)
