"""One release of Forebay beside another: its producer, its workers and its commands, all run from its own folder."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commands import Cli
from tests.workers import Workers
from worker.broker import Broker

PRODUCER = Path(__file__).with_name("producer.py")


class Raised(Exception):
    """What a call raised in the producer's process: its class and text."""


class Producer:
    """A process of its own that calls a release's API. Several threads may use it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(PRODUCER)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.log = log
        self._one_at_a_time = threading.Lock()

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Call a function of `tests.upgrade.producer` and return what it returned. Raises `Raised`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._one_at_a_time:
            self.process.stdin.write(json.dumps([name, arguments, options]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        assert line, self.log.read_text(encoding="utf-8", errors="replace")
        reply = json.loads(line)
        if "raised" in reply:
            raise Raised(reply["raised"])
        return reply["returned"]

    def stop(self) -> None:
        self.process.communicate(timeout=60)  # closes stdin, which ends it


@dataclass(frozen=True)
class Release:
    """A release that runs. Tests read its name in failures: ``old`` is the archive, ``new`` this checkout."""

    name: str
    root: Path
    producer: Producer
    workers: Workers
    cli: Cli

    def audit(self) -> dict[str, dict[str, Any]]:
        """Return the audit's balance of each queue, by this release's own command, which fails on a finding."""
        return {each["queue"]: each for each in self.cli.json("audit")["balances"]}


@contextmanager
def running(name: str, root: Path, environment: dict[str, str], broker: Broker, folder: Path) -> Iterator[Release]:
    """Give a release from its folder; end its processes at exit. PYTHONSAFEPATH: no other code where a test stands."""
    folder.mkdir()
    own = {**os.environ, **environment, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    producer = Producer(own, folder / "producer.log")
    workers = Workers(root, own, broker, folder)
    try:
        assert Path(producer("folder")).is_relative_to(root)
        yield Release(name, root, producer, workers, Cli(own))
    finally:
        workers.stop()
        producer.stop()
