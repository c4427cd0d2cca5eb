"""Processes that outlived a killed runner: recorded while they run, ended at the next start."""

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_WITHIN_S = 15.0
_CLOCK_TOLERANCE_S = 1.0


@dataclass(frozen=True)
class Trace:
    """What identifies a process beyond doubt although pids are used again."""

    name: str
    pid: int
    created: float  # seconds since the epoch
    stop_signal: int


def trace(name: str, pid: int, stop_signal: int) -> Trace | None:
    """Return the trace of a running process, None when it has ended."""
    try:
        return Trace(name, pid, psutil.Process(pid).create_time(), stop_signal)
    except psutil.Error:
        return None


def is_alive(pid: int, created: float) -> bool:
    """Tell whether the process that was created then still runs."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _CLOCK_TOLERANCE_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(traces: Iterable[Trace]) -> list[str]:
    """End what is left of the recorded processes and of their sessions; return the names of what was found.

    Each process was a session's leader. Its own stop signal comes first, so that a database closes its files,
    then SIGKILL for whatever remains.
    """
    found: dict[str, list[psutil.Process]] = {}
    for known in traces:
        members = _session(known)
        if members:
            found[known.name] = members
        if is_alive(known.pid, known.created):
            _signal(known.pid, known.stop_signal)
    remaining = [member for members in found.values() for member in members]
    servers_done = psutil.wait_procs(remaining, timeout=_WITHIN_S if remaining else 0)
    for process in servers_done[1]:
        _signal(process.pid, signal.SIGKILL)
    psutil.wait_procs(servers_done[1], timeout=5)
    return list(found)


def _session(known: Trace) -> list[psutil.Process]:
    if psutil.pid_exists(known.pid) and not is_alive(known.pid, known.created):
        return []  # the pid names another process now, and with it another session
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == known.pid and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (OSError, psutil.Error):
            continue
    return members


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
