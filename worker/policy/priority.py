"""Name the five priorities and say where each waits in the broker.

kombu keeps one list per priority step; its numbers mean the reverse on Redis of what they mean on RabbitMQ, so nobody
but this module handles them. Step 0 is the list that ``redis-cli llen QUEUE`` shows and that a producer lands in which
names no priority, so it is NORMAL, and the order of fetching is not the order of the steps. Steps 0, 3, 6 and 9 are
kombu's own, so that every list that a plain Celery producer can push to is read.
"""

from enum import Enum

from worker.errors import JobRefused, nearest


class Priority(Enum):
    """How urgent a job is: CRITICAL at once, HIGH when a user waits, NORMAL, LOW for upkeep, BATCH for bulk."""

    CRITICAL = 1
    HIGH = 3
    NORMAL = 0
    LOW = 6
    BATCH = 9

    @property
    def step(self) -> int:
        """The priority step of kombu's list."""
        return self.value


FETCH_ORDER: tuple[int, ...] = tuple(priority.step for priority in Priority)
STEPS: tuple[int, ...] = tuple(sorted(FETCH_ORDER))
NAMES = tuple(priority.name for priority in Priority)


def parse(given: object) -> Priority:
    """Return a priority by its name, in any case. Raises `JobRefused` naming the allowed and the nearest ones."""
    if isinstance(given, Priority):
        return given
    name = given.strip().upper() if isinstance(given, str) else ""
    if name in NAMES:
        return Priority[name]
    raise JobRefused("priority", given, f"must be one of {', '.join(NAMES)}{nearest(name, NAMES)}")


def of_step(step: int) -> Priority:
    """Return the priority that waits in a step's list. Raises `ValueError` for a step that is none of ours."""
    return Priority(step)
