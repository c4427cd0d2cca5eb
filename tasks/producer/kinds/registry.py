"""All kinds of jobs: every payload that a file of this folder declares."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from tasks.producer import kinds
from tasks.producer.kinds.payload import JobPayload


@cache
def by_task() -> dict[str, type[JobPayload]]:
    """Return each kind's payload by the name of its task. A new file in this folder is a new kind."""
    found: dict[str, type[JobPayload]] = {}
    for module in iter_modules(kinds.__path__):
        declared = vars(import_module(f"{kinds.__name__}.{module.name}")).values()
        payloads = [each for each in declared if isinstance(each, type) and issubclass(each, JobPayload)]
        found.update({each.task: each for each in payloads if each is not JobPayload})
    return found
