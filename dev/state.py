"""A stack's home directory: one runner at a time holds it, and a note there tells others what runs."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from dev import leftovers
from dev.errors import StackError

_NOTE = "stack.json"


@dataclass(frozen=True)
class State:
    """What runs: the runner, the addresses for clients, and a trace of each process."""

    pid: int
    created: float  # when the runner's process was made, seconds since the epoch
    addresses: dict[str, str]
    processes: tuple[leftovers.Trace, ...]

    @property
    def is_alive(self) -> bool:
        """Tell whether the runner that wrote this still runs."""
        return leftovers.is_alive(self.pid, self.created)


def read(home: Path) -> State | None:
    """Return the note in a home; None when there is none, or none that can be read."""
    try:
        stored = json.loads((home / _NOTE).read_text(encoding="utf-8"))
        traces = tuple(leftovers.Trace(**known) for known in stored["processes"])
        return State(int(stored["pid"]), float(stored["created"]), dict(stored["addresses"]), traces)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(home: Path, addresses: Mapping[str, str], processes: Mapping[str, tuple[int, int]]) -> None:
    """Note what runs, whole or not at all; `processes` maps a name to its pid and stop signal.

    The file is readable by its owner alone, since addresses may hold passwords.
    """
    own = leftovers.trace("runner", os.getpid(), 0)
    known = [leftovers.trace(name, pid, stop_signal) for name, (pid, stop_signal) in processes.items() if pid]
    state = State(
        os.getpid(), own.created if own else 0.0, dict(addresses), tuple(one for one in known if one is not None)
    )
    target = home / _NOTE
    unfinished = target.with_suffix(".unfinished")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(target)


def remove(home: Path) -> None:
    """Take the note away: nothing runs any more."""
    (home / _NOTE).unlink(missing_ok=True)


@contextlib.contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the home for one runner; the kernel lets go of it when the runner ends, however that happens.

    Raises StackError when another runner holds it, or when it is not ours to write to.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        owner = home.stat().st_uid
        if owner != os.geteuid():
            raise StackError(
                f"{home} belongs to the user with uid {owner}, this is uid {os.geteuid()}; "
                "run as that user, or set FOREBAY_HOME to a directory of your own"
            )
        lock = (home / "lock").open("w", encoding="ascii")
    except OSError as error:
        raise StackError(
            f"cannot write to {home}: {error.strerror}; set FOREBAY_HOME to a directory of your own"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = read(home)
            pid = f"pid {holder.pid}" if holder else "it is just starting or stopping"
            raise StackError(
                f"a stack already runs on {home} ({pid}); stop it first (Ctrl-C in its terminal, or `kill` its pid), "
                "or set FOREBAY_HOME to another directory"
            ) from error
        yield
