"""Do something at a moment to come: one thread for all alarms of a process, not one for each."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import cache

logger = logging.getLogger(__name__)


class Alarm:
    """Something that is due at a moment of the monotonic clock, unless it is cancelled before."""

    def __init__(self, do: Callable[[], None]) -> None:
        self._do: Callable[[], None] | None = do

    def cancel(self) -> None:
        """Forget it. One that goes off at this moment may still be on its way."""
        self._do = None

    def go_off(self) -> None:
        do = self._do
        try:
            if do is not None:
                do()
        except Exception:
            logger.exception("an alarm failed")


class _Clock:
    def __init__(self) -> None:
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="forebay-alarms", daemon=True).start()

    def set(self, at: float, alarm: Alarm) -> None:
        with self._changed:
            heapq.heappush(self._alarms, (at, next(self._numbers), alarm))
            if self._alarms[0][2] is alarm:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            self._next().go_off()

    def _next(self) -> Alarm:
        """Wait for the first alarm and return it."""
        with self._changed:
            while not self._alarms or self._alarms[0][0] > time.monotonic():
                self._changed.wait(self._alarms[0][0] - time.monotonic() if self._alarms else None)
            return heapq.heappop(self._alarms)[2]


def after(seconds: float, do: Callable[[], None]) -> Alarm:
    """Do something in so many seconds, in a thread that all alarms share: it must not wait for anything."""
    alarm = Alarm(do)
    _of_process(os.getpid()).set(time.monotonic() + seconds, alarm)
    return alarm


@cache
def _of_process(_pid: int) -> _Clock:
    return _Clock()
