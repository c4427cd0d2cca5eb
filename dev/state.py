"""A stack's home directory: one runner at a time holds it, and a note there tells others what runs."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from dev import leftovers
from dev.errors import StackError

_NOTE = "stack.json"
_LOCK = "lock"
_PATIENCE_S = 0.5  # longer than another process needs to ask whether the lock is held


@dataclass(frozen=True)
class State:
    """What runs: the runner, the addresses for clients, and a trace of each process."""

    pid: int
    addresses: dict[str, str]
    processes: tuple[leftovers.Trace, ...]


def read(home: Path) -> State | None:
    """Return the note in a home; None when there is none, or none that can be read."""
    try:
        stored = json.loads((home / _NOTE).read_text(encoding="utf-8"))
        traces = tuple(leftovers.Trace(**known) for known in stored["processes"])
        return State(int(stored["pid"]), dict(stored["addresses"]), traces)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(home: Path, addresses: Mapping[str, str], processes: Mapping[str, tuple[int, int]]) -> None:
    """Note what runs, whole or not at all; `processes` maps a name to its pid and stop signal.

    The file is readable by its owner alone, since addresses may hold passwords.
    """
    known = [leftovers.trace(name, pid, stop_signal) for name, (pid, stop_signal) in processes.items() if pid]
    state = State(os.getpid(), dict(addresses), tuple(one for one in known if one is not None))
    target = home / _NOTE
    unfinished = target.with_suffix(".unfinished")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(target)


def remove(home: Path) -> None:
    """Take the note away: nothing runs any more."""
    (home / _NOTE).unlink(missing_ok=True)


def is_held(home: Path) -> bool:
    """Tell whether a runner holds this home now."""
    try:
        with (home / _LOCK).open(encoding="ascii") as lock:
            return not _lock(lock, fcntl.LOCK_SH)
    except OSError:
        return False


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the home for one runner; the kernel lets go of it when the runner ends, however that happens.

    Raises StackError when another runner holds it, or when it is not ours to write to.
    """
    with _lock_file(home) as lock:
        deadline = time.monotonic() + _PATIENCE_S
        while not _lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise StackError(_already_runs(home))
            time.sleep(0.02)
        yield


def _lock_file(home: Path) -> IO[str]:
    try:
        home.mkdir(parents=True, exist_ok=True)
        owner = home.stat().st_uid
        if owner != os.geteuid():
            raise StackError(
                f"{home} belongs to the user with uid {owner}, this is uid {os.geteuid()}; "
                "run as that user, or set FOREBAY_HOME to a directory of your own"
            )
        return (home / _LOCK).open("w", encoding="ascii")
    except OSError as error:
        raise StackError(
            f"cannot write to {home}: {error.strerror}; set FOREBAY_HOME to a directory of your own"
        ) from error


def _lock(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _already_runs(home: Path) -> str:
    holder = read(home)
    whose = f"pid {holder.pid}: stop it with Ctrl-C there or `kill {holder.pid}`" if holder else "it is just starting"
    return f"a stack already runs on {home} ({whose}), or set FOREBAY_HOME to another directory for a second one"
