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

from worker.policy.policy import load as load_policy
from worker.runtime import lease

logger = logging.getLogger(__name__)

#: How long giving back may take after the grace.
GIVE_BACK_S = 10.0

_begun = threading.Event()


def begin(then: Callable[[], None] | None = None, **_: Any) -> None:
    """Start the grace, once. ``then`` is called when it is over and does not return; by default the process exits."""
    if not _begun.is_set():
        _begun.set()
        threading.Thread(target=_run, args=(then or _exit,), name="forebay-drain", daemon=True).start()


def _run(then: Callable[[], None]) -> None:
    threading.Event().wait(_grace_s())
    # whatever hangs below, the process ends: what it cannot give back comes back with its lease
    hard = threading.Timer(GIVE_BACK_S, os._exit, (os.EX_SOFTWARE,))
    hard.daemon = True
    hard.start()
    try:
        logger.warning("the grace is over: running jobs are given back, and the process ends")
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
        lease.leave_all()
        then()
    except BaseException:
        logger.exception("the process could not end in order")
        os._exit(os.EX_SOFTWARE)


def _grace_s() -> float:
    """Return the longest grace of the lanes that this process serves."""
    queues = load_policy().queues
    return max((queues[name].drain_s for name in lease.queues_of_process() if name in queues), default=0.0)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(os.EX_OK)
