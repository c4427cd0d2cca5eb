"""Do many jobs at once, and find the one at fault when that fails."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tasks import fault
from tasks.producer.kinds.payload import Payload, check
from worker.runtime.batching import Answer
from worker.runtime.outcome import Fault

T = TypeVar("T")


def readable(
    kind: type[Payload], jobs: Sequence[tuple[str, dict[str, Any]]]
) -> tuple[list[tuple[str, Payload]], dict[str, Answer]]:
    """Return the jobs whose arguments fit, and the errors of the others: a producer may send anything."""
    fit, errors = [], {}
    for job_id, arguments in jobs:
        try:
            fit.append((job_id, check(kind, **arguments)))
        except Exception as error:
            errors[job_id] = error
    return fit, errors


def apart(do: Callable[[Sequence[T]], Sequence[Answer]], several: Sequence[T]) -> list[Answer]:
    """Do several at once; return one answer for each: a value, or the error of one that fails also on its own.

    What fails for good is halved until the one at fault stands alone; what may pass is every one's error. For none,
    nothing is done.
    """
    if not several:
        return []
    try:
        return list(do(several))
    except Exception as error:
        if len(several) == 1 or fault.of(error) is not Fault.FATAL:
            return [error] * len(several)
    middle = len(several) // 2
    return [*apart(do, several[:middle]), *apart(do, several[middle:])]
