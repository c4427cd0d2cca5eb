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
    """The queue holds ``length`` jobs, as many as it may; the job was not accepted.

    ``lasts_s``: for how long they will keep the workers busy at the last minute's pace; None when none has ended.
    """

    def __init__(self, queue: str, length: int, max_length: int, lasts_s: float | None) -> None:
        pace = f"are worked off in about {_duration(lasts_s)} at this pace" if lasts_s else "none ended within a minute"
        super().__init__("queue", queue, f"is full: {length} jobs of at most {max_length}, {pace}; send it again later")
        self.args = (queue, length, max_length, lasts_s)
        self.length = length
        self.max_length = max_length
        self.lasts_s = lasts_s


class BrokerUnavailable(ForebayError):
    """The broker does not answer or takes no jobs; whether a job was accepted may be unknown, so send it again."""


class NoPermit(ForebayError):
    """A gate lets no further call through now, in ``retry_after_s`` it does; None: the call is too large for it."""

    def __init__(self, gate: str, retry_after_s: float | None) -> None:
        super().__init__(gate, retry_after_s)
        self.gate = gate
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        if self.retry_after_s is None:
            return f"gate {self.gate} never lets so costly a call through; raise its burst in queues.yaml"
        return f"gate {self.gate} lets no further call through for {self.retry_after_s:.1f} s"


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


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1, seconds):.0f} seconds"
