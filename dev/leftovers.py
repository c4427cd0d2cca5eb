"""Processes that outlived a killed runner: recorded while they run, ended at the next start."""

import os
import signal
import time
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


def end(traces: Iterable[Trace]) -> list[str]:
    """End what is left of the recorded processes and of their sessions; return the names of what was found.

    Each process was a session's leader. Its own stop signal comes first, so that a database closes its files,
    then SIGKILL for whatever remains.
    """
    sessions = {known: _session(known) for known in traces}
    for known, members in sessions.items():
        if any(member.pid == known.pid for member in members):
            _signal(known.pid, known.stop_signal)
        else:  # without its leader a session has nobody who could stop it in good order
            for member in members:
                _signal(member.pid, signal.SIGKILL)
    everyone = [member for members in sessions.values() for member in members]
    for process in _still_running(everyone, _WITHIN_S):
        _signal(process.pid, signal.SIGKILL)
    _still_running(everyone, _WITHIN_S)
    return [known.name for known, members in sessions.items() if members]


def _still_running(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Wait for the processes' end and return those that run on; a zombie has ended, though nobody may reap it."""
    deadline = time.monotonic() + within_s
    while True:
        running = [process for process in processes if process.is_running() and not _is_zombie(process)]
        if not running or time.monotonic() > deadline:
            return running
        time.sleep(0.05)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _session(known: Trace) -> list[psutil.Process]:
    """Return the processes of a session that still run, its leader among them or not."""
    try:
        if abs(psutil.Process(known.pid).create_time() - known.created) > _CLOCK_TOLERANCE_S:
            return []  # the pid names another process now, and with it another session
    except psutil.NoSuchProcess:
        pass  # the leader has ended, its session may go on
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == known.pid and not _is_zombie(process):
                members.append(process)
        except OSError:
            continue
    return members


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
