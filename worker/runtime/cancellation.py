"""Tell a running job that it was cancelled, so that it can let go of what it waits for.

The broker's answer to a renewal names the jobs cancelled while they ran here; the lease's thread passes it on.
A job on a thread cannot be ended from outside: it registers what to close, which makes its own call fail at once.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_guard = threading.Lock()
_closers: dict[str, list[Callable[[], None]]] = {}
_cancelled: set[str] = set()


@contextmanager
def running(job_id: str) -> Iterator[None]:
    """Mark a job as running in this process for as long as the block lasts."""
    with _guard:
        _closers.setdefault(job_id, [])
    try:
        yield
    finally:
        with _guard:
            _closers.pop(job_id, None)
            _cancelled.discard(job_id)


@contextmanager
def closing(job_id: str, close: Callable[[], None]) -> Iterator[None]:
    """Have ``close`` called from another thread, once, when the job is cancelled inside the block.

    A job that was cancelled before calls it at once. Outside of a worker the job is not known and nothing is called.
    """
    with _guard:
        closers = _closers.get(job_id)
        too_late = job_id in _cancelled
        if closers is not None:
            closers.append(close)
    try:
        if too_late:
            close()
        yield
    finally:
        with _guard:
            if closers is not None and close in closers:
                closers.remove(close)


def is_cancelled(job_id: str) -> bool:
    """Say whether a job that runs here was cancelled."""
    return job_id in _cancelled


def cancel(job_id: str) -> bool:
    """Note that a job was cancelled and close what it waits for; return whether it runs in this process."""
    with _guard:
        closers = _closers.get(job_id)
        if closers is None:
            return False
        if job_id in _cancelled:
            return True
        _cancelled.add(job_id)
        to_call = list(closers)
    for close in to_call:
        try:
            close()
        except Exception:  # what is closed from outside may be at any point of its own end
            logger.debug("closing what job %s waits for failed", job_id, exc_info=True)
    return True
