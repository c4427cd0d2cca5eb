"""A fleet of worker processes for chaos and benchmarks, and the supervisor that starts a dead one again."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dev.errors import StackError
from dev.processes import Command, Log, Process

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 20.0


class Fleet:
    """Real worker processes. To be used from one thread: the kernel ends them with the thread that started them."""

    def __init__(
        self, root: Path, environment: Mapping[str, str], lanes: Sequence[str], ready: Callable[[], set[int]], log: Log
    ) -> None:
        """``ready`` gives the pids of the workers that fetch."""
        self.root = root
        self.environment = dict(environment)
        self.lanes = tuple(lanes)
        self.ready = ready
        self.workers: list[Process] = []
        self._log = log

    def start(self, lane: str, before: Sequence[str] = ("cli",), settings: Mapping[str, str] | None = None) -> Process:
        """Start a lane's worker, with more variables, or through the modules ``before`` it; do not wait for it."""
        argv = (sys.executable, "-m", *before, "worker", lane, "--loglevel", "WARNING")
        command = Command(lane, argv, {**self.environment, **(settings or {})}, self.root)
        worker = Process(command, self._log, restart=False)
        self.workers.append(worker)
        worker.start()
        return worker

    def start_all(self, before: Sequence[str] = ("cli",), settings: Mapping[str, str] | None = None) -> None:
        """Start one worker for each lane and wait for them."""
        for lane in self.lanes:
            self.start(lane, before, settings)
        self.wait()

    def of(self, lane: str) -> Process:
        """Return the first worker of a lane."""
        return next(worker for worker in self.workers if worker.name == lane)

    def mend(self) -> None:
        """Start every dead worker again, at once."""
        for worker in self.workers:
            if not worker.is_alive:
                worker.close()
                worker.start()

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until every worker fetches. Raises `StackError`."""
        until = time.monotonic() + READY_WITHIN_S
        while True:
            ready = self.ready()
            late = [worker for worker in self.workers if worker.pid not in ready]
            if not late:
                return
            if time.monotonic() > until:
                words = "\n".join(late[0].tail)
                raise StackError(
                    f"the worker of {late[0].name} was not ready within {READY_WITHIN_S:g} s; it said:\n{words}"
                )
            meanwhile()
            time.sleep(0.05)

    def stop(self, workers: Sequence[Process] | None = None) -> list[str]:
        """Stop workers, by default all, with SIGTERM; return the names of those that had to be killed."""
        stopping = list(self.workers if workers is None else workers)
        self.workers = [worker for worker in self.workers if worker not in stopping]
        for worker in stopping:
            worker.send(worker.command.stop_signal)
        until = time.monotonic() + STOP_WITHIN_S
        while any(worker.is_alive for worker in stopping) and time.monotonic() < until:
            time.sleep(0.05)
        killed = [worker.name for worker in stopping if worker.is_alive]
        for worker in stopping:
            worker.kill_group()
            worker.close()
        return killed
