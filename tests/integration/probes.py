"""Tasks of a plain Celery user, for the tests: none of them knows Forebay."""

import os
import sys
from typing import Any

from worker.app import app


@app.task(name="probe.add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(name="probe.fail")
def fail() -> None:
    raise ValueError("this task always fails")


@app.task(name="probe.leave")
def leave() -> None:
    sys.exit(3)


@app.task(name="probe.vanish")
def vanish() -> None:
    os._exit(3)


@app.task(name="probe.hunger")
def hunger() -> None:
    raise MemoryError


@app.task(name="probe.retry", bind=True)
def retry(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.1)
    return int(self.request.retries)


@app.task(name="probe.replace", bind=True)
def replace(self: Any) -> None:
    raise self.replace(add.s(20, 22))
