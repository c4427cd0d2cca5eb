"""The whole stack on one machine: what the environment does not name is started in order, and stopped in reverse."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from dev import addresses, leftovers, ports, postgres, procfile, state, valkey
from dev.addresses import FLOWER, NAMED_BY, PORT_VARIABLES, SERVERS, without_services
from dev.errors import StackError
from dev.processes import RUNNER, Command, InterruptedStart, Log, Process, Runner
from dev.provider import process as provider

__all__ = [
    "Stack",
    "StackError",
    "Started",
    "from_environment",
    "run",
    "running_environment",
    "servers",
    "started",
    "temporary_home",
    "without_services",
]

PROCESSES_STOP_WITHIN_S = 45.0
SERVERS_STOP_WITHIN_S = 15.0

Migrate = Callable[[Mapping[str, str]], None]


@dataclass(frozen=True)
class Stack:
    """Where a stack keeps its data, and what the environment says about it."""

    root: Path
    home: Path
    environ: Mapping[str, str]
    durable: bool = True  # False: nothing is synced to disk, for tests
    only: frozenset[str] = frozenset(SERVERS)  # the servers that may be started

    @property
    def embedded(self) -> tuple[str, ...]:
        """Return the names of the servers to start here, in their order."""
        return tuple(name for name in SERVERS if name in self.only and not self.environ.get(NAMED_BY[name]))


@dataclass(frozen=True)
class Started:
    """A stack that runs: its addresses for clients, and a handle to each process."""

    environment: dict[str, str]  # everything that a process of ours needs, PATH and PYTHONPATH included
    addresses: dict[str, str]  # the service variables and FLOWER_PORT alone
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def flower_url(self) -> str:
        """Return the address of Flower's pages."""
        return f"http://{ports.LOOPBACK}:{self.addresses['FLOWER_PORT']}"


def from_environment(
    root: Path,
    environ: Mapping[str, str] | None = None,
    *,
    home: Path | None = None,
    durable: bool = True,
    only: Collection[str] = SERVERS,
) -> Stack:
    """Return the stack of a checkout; data goes to `home`, else FOREBAY_HOME, else `.forebay/` in the checkout."""
    environ = dict(os.environ if environ is None else environ)
    chosen = home or Path(environ.get("FOREBAY_HOME") or root / ".forebay")
    return Stack(root.resolve(), chosen.absolute(), environ, durable, frozenset(only))


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """Give a directory for a stack's data, and remove it with all that was kept for it elsewhere."""
    home = Path(tempfile.mkdtemp(prefix="forebay-"))
    home.chmod(0o711)  # PostgreSQL may run as another user, who has to pass through
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(postgres.outside_place(home), ignore_errors=True)


@contextlib.contextmanager
def started(
    stack: Stack,
    *,
    processes: bool | Collection[str] = False,
    migrate: Migrate | None = None,
    restart: bool = True,
    log: Log | None = None,
    stop_within_s: float = PROCESSES_STOP_WITHIN_S,
) -> Iterator[Started]:
    """Start the servers, call `migrate`, start the Procfile's processes (all, or those named), stop all at exit.

    Without a log each process's output goes to a file in `home/log`. Raises StackError.
    """
    with state.held(stack.home), _log_or_files(stack, log) as sink:
        runner = _Session(stack, sink, restart=restart)
        ended = threading.Event()
        watcher = threading.Thread(target=runner.watch, args=(ended,), name="process watcher", daemon=True)
        try:
            running = runner.start(processes, migrate)
            watcher.start()
            yield running
        finally:
            try:
                runner.stop(stop_within_s)
            except KeyboardInterrupt:
                runner.processes.stop_now.set()
                runner.stop(0.0)
                raise
            finally:
                # Not before: the kernel ends what the watcher restarted together with the watcher's thread.
                ended.set()
                if watcher.is_alive():
                    watcher.join()
                runner.close()


@contextlib.contextmanager
def servers(stack: Stack, *, log: Log | None = None) -> Iterator[Started]:
    """Start the servers alone; see `started`."""
    with started(stack, log=log) as running:
        yield running


def run(stack: Stack, *, log: Log, migrate: Migrate | None = None, processes: bool | Collection[str] = True) -> None:
    """Run the stack in the foreground until SIGINT, SIGTERM or SIGHUP; a second one ends everything at once.

    To be called in the main thread. Raises StackError.
    """
    with state.held(stack.home):
        runner = _Session(stack, log, restart=True)
        asked_to_stop = threading.Event()

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if asked_to_stop.is_set():
                runner.processes.stop_now.set()
            asked_to_stop.set()

        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # nohup
        handled = (signal.SIGINT, signal.SIGTERM, *hang_up)
        before = {number: signal.signal(number, on_signal) for number in handled}
        try:
            running = runner.start(processes, migrate, asked_to_stop.is_set)
            for line in _summary(running, stack):
                log(RUNNER, line)
            runner.watch(asked_to_stop)
        except InterruptedStart:
            log(RUNNER, "stopped while it started")
        finally:
            runner.stop(PROCESSES_STOP_WITHIN_S)
            runner.close()
            for number, handler in before.items():
                signal.signal(number, handler)


def running_environment(root: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the service variables of the stack that runs in this checkout, {} when none does."""
    home = from_environment(root, environ).home
    found = state.read(home)
    return found.addresses if found and state.is_held(home) else {}


#: How often ports are chosen at a start.
PORT_TRIES = 3


class _Session:
    """One run of a stack: what was started, in which order it stops, and the note that tells others about it."""

    def __init__(self, stack: Stack, log: Log, *, restart: bool) -> None:
        self.processes = Runner(log, restart=restart, changed=self._note_state)
        self._stack = stack
        self._log = log
        self._addresses: dict[str, str] = {}
        self._servers: list[str] = []

    def start(
        self,
        processes: bool | Collection[str],
        migrate: Migrate | None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> Started:
        stack = self._stack
        self._end_leftovers()
        entries = _selected(stack.root, processes)
        environment, handles = self._serve(interrupted)
        if interrupted():
            raise InterruptedStart
        if migrate is not None:
            migrate(environment)
        for entry in entries:
            if interrupted():
                raise InterruptedStart
            command = Command(entry.name, entry.argv, environment, stack.root)
            handles[entry.name] = self.processes.start(command, interrupted)
        return Started(environment, self._addresses, handles)

    def _serve(self, interrupted: Callable[[], bool]) -> tuple[dict[str, str], dict[str, Process]]:
        """Start the servers; return the environment that names them, and their processes.

        Between the choice of a port and its use another stack may take it: then all choose anew.
        """
        stack = self._stack
        for tries_left in reversed(range(PORT_TRIES)):
            chosen, environment = self._choose()
            handles: dict[str, Process] = {}
            try:
                for name in stack.embedded:
                    command = self._server(name, chosen[name], environment)
                    self._servers.append(name)
                    handles[name] = self.processes.start(command, interrupted)
                    self._log(RUNNER, f"{name} is ready on port {chosen[name]}")
            except StackError as error:
                name = self._servers[-1] if self._servers else ""
                if not tries_left or not name or PORT_VARIABLES[name] in stack.environ or ports.is_free(chosen[name]):
                    raise
                self._log(RUNNER, f"{name} found port {chosen[name]} taken, choosing others: {error}")
                self.processes.stop(reversed(self._servers), SERVERS_STOP_WITHIN_S)
                self._servers.clear()
            else:
                break
        return environment, handles

    def _choose(self) -> tuple[dict[str, int], dict[str, str]]:
        stack = self._stack
        wanted = {name: PORT_VARIABLES[name] for name in (*stack.embedded, FLOWER)}
        chosen = ports.choose(wanted, stack.environ, stack.home / "ports.json")
        self._addresses = addresses.of_services(stack.environ, chosen)
        self._note_state()
        environment = {
            **stack.environ,
            **self._addresses,
            **addresses.for_python(stack.root, stack.environ),
            "FOREBAY_HOME": str(stack.home),
        }
        return chosen, environment

    def watch(self, until: threading.Event) -> None:
        self.processes.watch(until)

    def stop(self, processes_within_s: float) -> None:
        """Stop the processes together while their servers still answer, then the servers in reverse order."""
        workers = [name for name in self.processes.processes if name not in self._servers]
        if workers:
            self._log(
                RUNNER,
                f"stopping {', '.join(workers)} (within {processes_within_s:g} s; a second signal ends all at once)",
            )
        killed = self.processes.stop(workers, processes_within_s)
        for server in reversed(self._servers):
            killed += self.processes.stop([server], SERVERS_STOP_WITHIN_S)
        if killed:
            self._log(RUNNER, f"killed, since they had not stopped yet: {', '.join(killed)}")
        if self._servers or workers:
            self._log(RUNNER, "all stopped")

    def close(self) -> None:
        """Take the note away, after everything that might write it has ended."""
        state.remove(self._stack.home)

    def _server(self, name: str, port: int, environment: Mapping[str, str]) -> Command:
        home, durable = self._stack.home, self._stack.durable
        try:
            if name == valkey.NAME:
                return valkey.command(home / valkey.NAME, port, durable=durable)
            if name == postgres.NAME:
                return postgres.command(home, port, durable=durable, say=lambda line: self._log(RUNNER, line))
            return provider.command(self._stack.root, port, environment)
        except OSError as error:
            raise StackError(f"cannot prepare {name} in {home}: {error}; set FOREBAY_HOME to another place") from error

    def _end_leftovers(self) -> None:
        known = state.read(self._stack.home)
        for name in leftovers.end(known.processes if known else ()):
            self._log(RUNNER, f"ended {name}, left over from a runner that was killed")

    def _note_state(self) -> None:
        running = {
            process.name: (process.pid, int(process.command.stop_signal))
            for process in list(self.processes.processes.values())  # the watcher's thread may be here too
        }
        state.write(self._stack.home, addresses.without_secrets(self._addresses), running)


def _selected(root: Path, processes: bool | Collection[str]) -> list[procfile.Entry]:
    if processes is False:
        return []
    entries = procfile.read(root / "Procfile")
    if processes is True:
        return list(entries)
    known = [entry.name for entry in entries]
    if unknown := sorted(set(processes) - set(known)):
        raise StackError(f"no process named {', '.join(unknown)} in the Procfile; it has {', '.join(known)}")
    return [entry for entry in entries if entry.name in processes]


def _summary(running: Started, stack: Stack) -> Iterator[str]:
    if stack.environ.get("OPENAI_API_KEY") and provider.NAME in stack.embedded:
        yield "OPENAI_API_KEY is set without OPENAI_BASE_URL: the local provider answers, nothing leaves this machine"
    elsewhere = [NAMED_BY[name] for name in SERVERS if name not in stack.embedded]
    if elsewhere:
        yield f"named by the environment, not started here: {', '.join(elsewhere)}"
    if FLOWER in running.processes:
        yield f"Flower: {running.flower_url}"
    yield "everything runs; Ctrl-C stops it"


@contextlib.contextmanager
def _log_or_files(stack: Stack, log: Log | None) -> Iterator[Log]:
    if log is not None:
        yield log
        return
    with log_to_files(stack.home / "log") as write:
        yield write


@contextlib.contextmanager
def log_to_files(folder: Path) -> Iterator[Log]:
    """Give a log that writes one file for each process."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        opened: dict[str, IO[str]] = {}

        def write(name: str, line: str) -> None:
            if name not in opened:
                path = folder / f"{name}.log"
                opened[name] = files.enter_context(path.open("a", buffering=1, encoding="utf-8"))
            with contextlib.suppress(ValueError):  # closed: the last words of a process that outlived its stop
                opened[name].write(line + "\n")

        yield write
