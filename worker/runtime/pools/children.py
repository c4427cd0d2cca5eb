"""End a worker's pool children with the worker: at once when it is killed, in their own time when it is stopped.

A prefork child whose parent got SIGKILL would finish its job while the rescued job runs elsewhere. Effects are written
once either way, but the work would be done twice.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from billiard.process import current_process

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def shielded() -> Iterator[None]:
    """Let the job that runs in a pool child end although somebody sent SIGTERM to the whole group, as supervisors do.

    Celery itself ends idle children with SIGTERM, and running ones with SIGKILL behind it.
    """
    if current_process().name == "MainProcess" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage cycles while a batch runs in a pool child.

    Each new list or dict counts towards the next search, and those of a thousand rows are alive: half of the time of a
    large insert went into looking through them. They hold no cycles, so they go with their last reference.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def die_with_parent(**_: object) -> None:
    """Ask the kernel to kill this child when its parent ends. Elsewhere than on Linux there is no such thing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent == 1 or os.getppid() != parent:  # it died before we asked
        os._exit(1)
