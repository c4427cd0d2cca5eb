"""Celery's pool of children, which forgets runs when a connection is lost: here each is heard to its end.

Celery drops every run that its child has not reported as begun, for the broker will deliver it again. Here the child
itself begins it in the job's record, and what has begun is not given back.
"""

from collections.abc import Callable
from functools import partial

from celery.concurrency import prefork

from worker.runtime.batching import Flight


class TaskPool(prefork.TaskPool):  # type: ignore[misc]
    """``--pool prefork``, see `worker.app`."""

    flush: Callable[[], None] | None  # Celery sets it when the pool starts; None without an event loop

    def on_start(self) -> None:
        super().on_start()
        flush_all = self.flush
        if flush_all:
            self.flush = partial(self._flush, flush_all)

    def _flush(self, flush_all: Callable[[], None]) -> None:
        dropped = []
        for run in tuple(self._pool._cache.values()):
            if run._write_to is not None:
                run._accepted = True
            elif isinstance(run._error_callback, Flight):
                dropped.append(run._error_callback)
        flush_all()
        for flight in dropped:
            flight.ended()
