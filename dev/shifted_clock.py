"""Run a module with a clock that is wrong: ``python -m dev.shifted_clock 3600 cli worker chat``."""

import datetime as dt
import runpy
import sys
import time
from datetime import datetime
from typing import Any


class _IsDatetime(type):
    """Let every datetime count as one of the shifted class: those that C code makes are of the real one."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


def shift(seconds: int) -> None:
    """Let Python's wall clock be off by so many seconds; what counts from a start (`time.monotonic`) is right."""
    right, right_ns = time.time, time.time_ns

    class Shifted(datetime, metaclass=_IsDatetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(dt.UTC).replace(tzinfo=None)

    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + seconds * 10**9
    dt.datetime = Shifted  # type: ignore[misc]


if __name__ == "__main__":
    shift(int(sys.argv[1]))
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
