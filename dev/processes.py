"""Run named commands: start in order, prefix their output, restart what dies, stop within a stated time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dev.errors import StackError

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.05
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_AFTER_S = 20.0  # a process that ran for so long is well again: its backoff starts anew
RUNNER = "forebay"  # the name in front of the runner's own lines

_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)


class InterruptedStart(Exception):
    """The start was given up because a stop was asked for."""


class Log(Protocol):
    """Take one line of output of the named process."""

    def __call__(self, name: str, line: str) -> None: ...


@dataclass(frozen=True)
class Command:
    """What to run under a name, and how to know that it is ready."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    is_ready: Callable[[int], bool] | None = None  # asked with the process's pid until it says yes
    ready_within_s: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL  # what the kernel sends when the runner itself dies
    user: tuple[int, int] | None = None  # uid and gid, when not the runner's own


class Process:
    """A command that runs, through all its restarts."""

    def __init__(self, command: Command, log: Log, *, restart: bool) -> None:
        """Hold the command; `start` runs it."""
        self.command = command
        self.name = command.name
        self.restart = restart
        self.restarts = 0
        self.tail: deque[str] = deque(maxlen=20)
        self._log = log
        self._popen: subprocess.Popen[bytes] | None = None
        self._pump: threading.Thread | None = None
        self._started_at = 0.0
        self._backoff_s = BACKOFF_FIRST_S
        self._start_again_at: float | None = None

    @property
    def pid(self) -> int:
        """Return the pid of the last start (0 before the first), which is also its process group's id."""
        return self._popen.pid if self._popen else 0

    @property
    def is_alive(self) -> bool:
        """Tell whether the process runs now."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of the last start; None while it runs, negative for a signal."""
        return self._popen.poll() if self._popen else None

    def start(self) -> None:
        """Run the command in a session of its own, so that a terminal's Ctrl-C does not reach it.

        The kernel's death signal follows the *thread* that starts the process: it has to live as long as the runner.
        """
        command = self.command
        user = "{}:{}".format(*command.user) if command.user else "-"
        guarded = [
            sys.executable,
            "-I",
            "-S",
            str(GUARD),
            str(int(command.death_signal)),
            str(os.getpid()),
            user,
        ]
        self._popen = subprocess.Popen(
            [*guarded, *command.argv],
            env=dict(command.environment),
            cwd=command.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._started_at = time.monotonic()
        self._start_again_at = None
        assert self._popen.stdout is not None
        self._pump = threading.Thread(
            target=self._read_output, args=(self._popen.stdout,), name=f"output of {self.name}", daemon=True
        )
        self._pump.start()

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal to the process itself, not to its children; do nothing when it is gone."""
        if self._popen is not None:
            self._popen.send_signal(signal_number)

    def kill(self) -> int:
        """Send SIGKILL to the process alone, as the kernel's OOM killer would; return its pid."""
        pid = self.pid
        self.send(signal.SIGKILL)
        return pid

    def kill_group(self) -> None:
        """Send SIGKILL to the process and to everything that it started."""
        if self._popen is None:
            return
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # none left; macOS says EPERM for a group of zombies
            return

    def close(self) -> None:
        """Reap the process and sweep the children that outlived it."""
        if self._popen is None:
            return
        self._popen.wait()
        self.kill_group()
        if self._pump is not None:
            self._pump.join(timeout=2)

    def revive(self) -> bool:
        """Start a dead process again once its backoff has passed; return True when it was started now."""
        if self.is_alive or not self.restart:
            return False
        now = time.monotonic()
        if self._start_again_at is None:
            self.close()
            if now - self._started_at >= STEADY_AFTER_S:
                self._backoff_s = BACKOFF_FIRST_S
            self._start_again_at = now + self._backoff_s
            self._log(RUNNER, f"{self.name} {describe_exit(self.exit_code)}; again in {self._backoff_s:g} s")
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
        if now < self._start_again_at:
            return False
        self.restarts += 1
        self.start()
        return True

    def _read_output(self, stream: IO[bytes]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode("utf-8", errors="replace").rstrip()
                self.tail.append(line)
                self._log(self.name, line)


class Runner:
    """Start, watch and stop processes; not to be used from several threads at once, but for `watch`."""

    def __init__(self, log: Log, *, restart: bool = True, changed: Callable[[], None] = lambda: None) -> None:
        """Take the log, whether dead processes are started again, and what to call after each start."""
        self.processes: dict[str, Process] = {}
        self.stop_now = threading.Event()  # set: no more waiting for a graceful end
        self._log = log
        self._restart = restart
        self._changed = changed
        self._lock = threading.Lock()  # between a revival in `watch` and a stop

    def start(self, command: Command, interrupted: Callable[[], bool] = lambda: False) -> Process:
        """Start a command and wait until it is ready.

        Raises StackError when it ends or is not ready in time, with its last lines; InterruptedStart when
        `interrupted` says so.
        """
        process = Process(command, self._log, restart=self._restart)
        with self._lock:
            self.processes[command.name] = process
            process.start()
        self._changed()
        deadline = time.monotonic() + command.ready_within_s
        while command.is_ready is not None:
            if not process.is_alive:
                process.close()
                raise StackError(f"{command.name} {describe_exit(process.exit_code)} at its start{_tail(process)}")
            if command.is_ready(process.pid):
                break
            if interrupted():
                raise InterruptedStart(command.name)
            if time.monotonic() > deadline:
                raise StackError(f"{command.name} was not ready within {command.ready_within_s:g} s{_tail(process)}")
            time.sleep(POLL_S)
        return process

    def watch(self, until: threading.Event) -> None:
        """Start dead processes again until the event is set."""
        while not until.wait(POLL_S):
            with self._lock:
                revived = [process for process in self.processes.values() if process.revive()]
            if revived:
                self._changed()

    def stop(self, names: Iterable[str], within_s: float) -> list[str]:
        """Stop processes together, gracefully within the time, then with SIGKILL to their groups.

        Returns the names of those that had to be killed.
        """
        with self._lock:
            stopping = [self.processes.pop(name) for name in names if name in self.processes]
        for process in stopping:
            process.restart = False
            process.send(process.command.stop_signal)
        deadline = time.monotonic() + within_s
        try:
            while any(process.is_alive for process in stopping) and time.monotonic() < deadline:
                if self.stop_now.wait(POLL_S):
                    break
        finally:  # also when Ctrl-C interrupts the waiting
            killed = [process for process in stopping if process.is_alive]
            for process in killed:
                process.kill_group()
            for process in stopping:
                process.close()
        return [process.name for process in killed]


def describe_exit(code: int | None) -> str:
    """Say in words how a process ended."""
    if code is None:
        return "still runs"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def terminal_log(stream: IO[str]) -> Log:
    """Return a log that writes lines with a name in front: coloured on a terminal, plain elsewhere."""
    colours: dict[str, int] = {}
    lock = threading.Lock()
    coloured = stream.isatty() and "NO_COLOR" not in os.environ

    def write(name: str, line: str) -> None:
        prefix = f"{name:<16} |"
        with lock:
            if coloured:
                colour = colours.setdefault(name, _COLOURS[len(colours) % len(_COLOURS)])
                prefix = f"\x1b[{colour}m{prefix}\x1b[0m"
            try:
                stream.write(f"{prefix} {line}\n")
                stream.flush()
            except (OSError, ValueError):  # the reader has gone: the processes matter more than their lines
                return

    return write


def _tail(process: Process) -> str:
    lines = "\n".join(f"  {line}" for line in process.tail)
    return f". Its last lines:\n{lines}" if lines else ", without a word"
