"""End a worker's pool children with the worker: at once when it is killed, in their own time when it is stopped.

A prefork child whose parent got SIGKILL would finish its job while the rescued job runs elsewhere. Effects are written
once either way, but the work would be done twice.
"""

import ctypes
import os
import signal
import sys

from worker import cancellation

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def outlive_signals(**_: object) -> None:
    """Let a running job end although somebody sent SIGTERM to the whole group, as supervisors do.

    An idle child ends as before: Celery itself ends idle ones with SIGTERM.
    """
    signal.signal(signal.SIGTERM, _on_sigterm)


def _on_sigterm(*_: object) -> None:
    if not cancellation.any_running():
        os._exit(os.EX_OK)


def die_with_parent(**_: object) -> None:
    """Ask the kernel to kill this child when its parent ends. Elsewhere than on Linux there is no such thing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent == 1 or os.getppid() != parent:  # it died before we asked
        os._exit(1)
