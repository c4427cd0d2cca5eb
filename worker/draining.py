"""Stop in time: what still runs when a worker's grace is over is given back, and the process ends over it.

A warm shutdown of Celery waits for the slowest job without limit, on every pool. Jobs that end meanwhile settle;
what was fetched and not started went back when the consumer closed. When the grace is over, pool children are killed,
running jobs are given back without spending an attempt, and the process ends or starts anew, hung threads and all.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from celery.worker import state

from worker import lease
from worker.policy import load as load_policy

logger = logging.getLogger(__name__)

_begun = threading.Event()


def begin(then: Callable[[], None] | None = None, **_: Any) -> None:
    """Start the grace, once. ``then`` is called when it is over and does not return; by default the process exits."""
    if not _begun.is_set():
        _begun.set()
        threading.Thread(target=_run, args=(then or _exit,), name="forebay-drain", daemon=True).start()


def _run(then: Callable[[], None]) -> None:
    threading.Event().wait(_grace_s())
    left = [request for request in list(state.active_requests) if not request.acknowledged]
    logger.warning("the grace is over: %d running jobs are given back, and the process ends", len(left))
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    for request in left:
        request.give_back()
    lease.leave_all()
    then()


def _grace_s() -> float:
    """Return the longest grace of the lanes that this process serves."""
    queues = load_policy().queues
    return max((queues[name].drain_s for name in lease.queues_of_process() if name in queues), default=0.0)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(os.EX_OK)
