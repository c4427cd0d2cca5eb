"""End a worker's pool children when the worker itself is killed.

A prefork child whose parent got SIGKILL would finish its job while the rescued job runs elsewhere. Effects are written
once either way, but the work would be done twice.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(**_: object) -> None:
    """Ask the kernel to kill this child when its parent ends. Elsewhere than on Linux there is no such thing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent == 1 or os.getppid() != parent:  # it died before we asked
        os._exit(1)
