"""Wait for what other processes bring about, without guessing how long it takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(check: Callable[[], T], timeout_s: float = 60) -> T:
    """Ask until the answer is truthy and return it; fail after ``timeout_s``, or at once on a failed assertion."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            answer = check()
            if answer:
                return answer
            last: object = answer
        except AssertionError:
            raise
        except Exception as error:
            last = error
        if time.monotonic() > until:
            raise AssertionError(f"not within {timeout_s} s; the last answer was {last!r}")
        time.sleep(0.02)
