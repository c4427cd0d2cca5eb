"""Start real worker processes, wait for them, kill them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.eventually import eventually
from worker.inspection import overview
from worker.records.broker import Broker


class Worker:
    """One worker process with its process group."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    def kill(self) -> None:
        """Kill the whole worker with SIGKILL, pool children included, and wait for its end."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """Ask for a warm shutdown and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def said(self) -> str:
        """Return what the worker logged."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Workers:
    """The worker processes of one test."""

    def __init__(self, root: Path, environment: dict[str, str], broker: Broker, folder: Path) -> None:
        self.root = root
        self.environment = environment
        self.broker = broker
        self.folder = folder
        self.running: list[Worker] = []

    def start(self, lane: str, **settings: str) -> Worker:
        """Start a lane's worker as ``./forebay worker LANE`` does, with more variables; wait until ready."""
        return self.run([sys.executable, "-m", "cli", "worker", lane], **settings)

    def probes(self, pool: str, concurrency: int = 2, queues: str = "chat", **settings: str) -> Worker:
        """Start a worker as any Celery user does, of the chat queue, for the tasks of `tests.integration.probes`."""
        command = f"-m celery -A tests.integration.probes:app worker -Q {queues} -c {concurrency} --pool {pool}"
        return self.run([sys.executable, *command.split()], **settings)

    def run(self, command: list[str], **settings: str) -> Worker:
        """Start any worker command and wait until a new lease shows that it fetches."""
        log = self.folder / f"worker-{len(self.running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, **self.environment, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, log)
        self.running.append(worker)

        def fetches() -> bool:
            assert process.poll() is None, worker.said()
            return process.pid in {each.pid for each in overview.workers(self.broker)}

        eventually(fetches)
        return worker

    def stop(self) -> None:
        """End what still runs."""
        for worker in self.running:
            if worker.process.poll() is None:
                worker.kill()
