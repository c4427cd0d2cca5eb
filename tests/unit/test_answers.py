"""What each job of a batch gets when the batch's one call breaks off or answers wrongly."""

from collections.abc import Sequence
from typing import Any

import pytest

from worker.runtime.batching import BatchJob, answers
from worker.runtime.task import BodyFailed

JOBS = [("a", {"text": "good"}), ("b", {"text": "bad"}), ("c", {"text": "good"})]


class Calls(BatchJob):
    """A batch that meets an error at a bad text, and notes how many jobs each call had."""

    abstract = True
    name = "calls"
    error: BaseException = ValueError()

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        self.sizes.append(len(jobs))
        if any(kwargs["text"] == "bad" for _, kwargs in jobs):
            raise self.error
        return [job_id for job_id, _ in jobs]


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(3), KeyboardInterrupt()])
def test_a_call_that_breaks_off_is_made_again_job_by_job(error: BaseException) -> None:
    task = Calls()
    task.error = error
    (first,), (second,), (third,) = answers(task, JOBS)
    assert (first, third) == ("a", "c")
    assert isinstance(second, BodyFailed)
    assert task.sizes == [3, 1, 1, 1]


def test_an_error_of_the_call_is_every_jobs() -> None:
    task = Calls()
    assert answers(task, JOBS) == [[task.error]] * 3
    assert task.sizes == [3]


def test_answers_that_do_not_match_the_jobs_are_an_error_of_each() -> None:
    class Short(Calls):
        abstract = True

        def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
            return ["only one"]

    for (answer,) in answers(Short(), JOBS):
        assert str(answer) == "calls gave 1 answers to 3 jobs"
