"""One release of Forebay beside another: its producer, its workers and its commands, all run from its own folder."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.workers import Workers

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

    def cli(self, *arguments: str) -> str:
        """Run a command of ``./forebay`` and return what it printed; it must succeed."""
        code, printed, errors = self.producer("command", *arguments)
        assert code == 0, printed + errors
        return str(printed)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json"))

    def audit(self) -> dict[str, dict[str, Any]]:
        """Return the audit's balance of each queue, by this release's own command, which fails on a finding."""
        return {each["queue"]: each for each in self.json("audit")["balances"]}


def environment(root: Path, services: Mapping[str, str]) -> dict[str, str]:
    """Return what runs a release's code from its folder, and with PYTHONSAFEPATH no code from where a test stands."""
    return {**os.environ, **services, "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}


@contextmanager
def producing(root: Path, services: Mapping[str, str], log: Path) -> Iterator[Producer]:
    """Give a release's producer, which must have loaded that release's code."""
    producer = Producer(environment(root, services), log)
    try:
        assert Path(producer("folder")).is_relative_to(root)
        yield producer
    finally:
        producer.stop()
