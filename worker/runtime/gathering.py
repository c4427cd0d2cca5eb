"""Say how many batches this process has room for, and hand each over whole: what one fetch brings is one batch.

Batches are gathered in the broker, by the fetch script: nothing waits for company in a worker's memory, and what a
gate charges for as one call is one call.
"""

import threading
from collections.abc import Callable
from typing import Any


class Gatherer:
    """The batches of one queue in this process. Requests come from the main loop, ends of batches from the threads.

    ``task``: the name of the one that does them. ``slots``: how many batches run at a time. ``ahead``: how many may be
    here beyond that, so that the next one is at hand when a slot is free. ``send`` gives a batch to the pool.
    """

    def __init__(self, task: str, slots: int, ahead: int, send: Callable[[list[Any]], None]) -> None:
        self.task = task
        self._free = slots
        self._room = slots + ahead
        self._send = send
        self._arriving: list[Any] = []
        self._waiting: list[list[Any]] = []
        self._guard = threading.Lock()

    @property
    def room(self) -> int:
        """How many more batches this process takes."""
        return self._room

    def add(self, request: Any) -> None:
        """Take one request of the batch that is being handed over."""
        self._arriving.append(request)

    def close(self) -> None:
        """Note that the batch has been handed over as far as it was fit to be."""
        if not self._arriving:
            return
        with self._guard:
            self._room -= 1
            self._waiting.append(self._arriving)
            self._arriving = []
        self._send_off()

    def ended(self) -> None:
        """Note that a batch has ended: its slot is free."""
        with self._guard:
            self._free += 1
            self._room += 1
        self._send_off()

    def _send_off(self) -> None:
        """Send what there are slots for; not under the guard, for a batch that nobody wants any more ends at once."""
        while (batch := self._next()) is not None:
            self._send(batch)

    def _next(self) -> list[Any] | None:
        with self._guard:
            if not (self._free and self._waiting):
                return None
            self._free -= 1
            return self._waiting.pop(0)


#: Queue -> its gatherer in this process.
of_queue: dict[str, Gatherer] = {}


def close_all() -> None:
    """Note that what one fetch brought has been handed over."""
    for gatherer in of_queue.values():
        gatherer.close()
