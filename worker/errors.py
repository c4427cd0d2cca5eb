"""Errors that users of Forebay meet. Each says what was given, what is allowed and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

#: Characters of a refused value that an error's text shows.
SHOWN = 80


class ForebayError(Exception):
    """Anything that Forebay raises on purpose."""


class ConfigurationError(ForebayError):
    """queues.yaml or a variable that overrides it is wrong. ``faults`` holds every fault, one line each."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = [_one_line(fault) for fault in faults]
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class JobRefused(ForebayError):
    """A job that was not sent: ``field`` has ``value``, and ``remedy`` says what it must be."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)  # the arguments, so that it can be pickled
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.field}: {shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + '...'} {self.remedy}"


class QueueFull(JobRefused):
    """The queue holds as many jobs as it may; the job was not accepted."""


class BrokerUnavailable(ForebayError):
    """The broker does not answer or takes no jobs; whether a job was accepted may be unknown, so send it again."""


class UnknownJob(ForebayError):
    """No job of this id was ever accepted, or its record is past its retention."""


class ResultTimeout(ForebayError, TimeoutError):
    """The job has not ended in the time given; it goes on."""


class JobFailed(ForebayError):
    """The job ended without a result: ``state`` is dead, cancelled or expired, ``error`` says why."""

    def __init__(self, job_id: str, state: str, error: str) -> None:
        super().__init__(job_id, state, error)
        self.job_id = job_id
        self.state = state
        self.error = error

    def __str__(self) -> str:
        return f"job {self.job_id} is {self.state}" + (f": {self.error}" if self.error else "")


def nearest(given: str, known: Iterable[str]) -> str:
    """Return the end of a refusal: the known name nearest to the given one, or nothing when none is near."""
    found = get_close_matches(given, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _one_line(text: str) -> str:
    """Return a text with what a key or a value could break a line or a terminal with written as an escape."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
