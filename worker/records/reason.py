"""Why a job is a dead letter: the closed list, with an explanation and a next step for each."""

import re
from enum import StrEnum


class Reason(StrEnum):
    """A reason of a dead letter. The value is what a record holds; a script writes ``REASON.POISON`` for it."""

    FAILED = "failed"
    ATTEMPTS_SPENT = "attempts spent"
    WORKER_LOST = "worker lost"
    POISON = "poison"
    TIME_LIMIT = "time limit"
    REJECTED = "rejected"
    MALFORMED = "malformed"
    UNDECODABLE = "undecodable"
    NO_TASK = "no task named"
    UNKNOWN_TASK = "unknown task"
    INVALID_TASK = "invalid task"
    TOO_COSTLY = "too costly"
    NOT_REPLACED = "replacement never came"

    @property
    def explanation(self) -> str:
        """One sentence for people."""
        return _ABOUT[self][0]

    @property
    def next_step(self) -> str:
        """What to do about the letter."""
        return _ABOUT[self][1]


def named(value: str) -> Reason | None:
    """Return the reason that a record names, None for one that this release does not know."""
    return next((each for each in Reason if each.value == value), None)


_ABOUT = {
    Reason.FAILED: ("The task raised an error that another attempt would meet again.", "Mend the cause, then replay."),
    Reason.ATTEMPTS_SPENT: (
        "The task failed in each of the attempts that its queue allows.",
        "See the last error; replay when its cause has gone.",
    ),
    Reason.WORKER_LOST: (
        "The pool child that ran it died in each attempt.",
        "Look for memory or a crash in the worker's log before you replay.",
    ),
    Reason.POISON: (
        "Its worker vanished or hung again and again while it ran.",
        "Find out what the job does to its process; do not replay it before.",
    ),
    Reason.TIME_LIMIT: ("It ran for longer than its queue's time_limit_s.", "Cut the job, or raise time_limit_s."),
    Reason.REJECTED: ("The task or a consumer rejected the message.", "Ask the task's author; replay if it may run."),
    Reason.MALFORMED: ("The message is no task message: the error names the part.", "Edit the message, then replay."),
    Reason.UNDECODABLE: ("The body cannot be read as its headers say.", "Edit the message, then replay."),
    Reason.NO_TASK: ("The message names no task.", "Edit the message's task header, then replay."),
    Reason.UNKNOWN_TASK: (
        "No worker of this queue knows the task.",
        "Deploy the task or correct its name, then replay.",
    ),
    Reason.INVALID_TASK: ("Celery refuses the message's headers.", "Edit the message, then replay."),
    Reason.TOO_COSTLY: (
        "It costs more than its gate ever lets through at once.",
        "Send less at a time, or raise the gate's burst in queues.yaml; then replay.",
    ),
    Reason.NOT_REPLACED: (
        "The canvas that the task put in its place did not end in time.",
        "Look for the canvas' own jobs; replay to begin anew.",
    ),
}


def spelled(script: str) -> str:
    """Return a script with the text in the place of each ``REASON.NAME``. Raises `KeyError` for an unknown name."""
    return re.sub(r"\bREASON\.(\w+)", lambda found: f"'{Reason[found[1]].value}'", script)
