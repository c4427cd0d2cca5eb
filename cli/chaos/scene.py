"""What a fault finds when it strikes: workers, load, servers and provider."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from cli.chaos.load import Load
from cli.chaos.verdict import counters
from dev.faulty.process import FaultyProvider
from dev.fleet import Fleet
from dev.processes import Process
from worker.errors import ForebayError
from worker.records.broker import Broker

WITHIN_S = 30.0


@dataclass
class Scene:
    """What a fault finds: workers, the load, the servers that the suite has started."""

    broker: Broker
    fleet: Fleet
    load: Load
    servers: Mapping[str, Process]
    lease_s: float
    provider: FaultyProvider
    strokes: int = 0
    strangers: list[bytes] = field(default_factory=list)  # messages that no producer sent
    struck_at: float | None = None
    rescue_s: float | None = None
    rescued_before: int = 0
    show: Callable[[], None] = lambda: None

    def watch(self) -> None:
        """Do what is done all the time: start dead workers again, notice the first rescue."""
        self.fleet.mend()
        self.show()
        if self.struck_at is None or self.rescue_s is not None:
            return
        with suppress(RedisError):  # it may be what the fault has taken away
            if counters(self.broker, self.fleet.lanes).get("rescued", 0) > self.rescued_before:
                self.rescue_s = time.monotonic() - self.struck_at

    def until(self, check: Callable[[], object], what: str, within_s: float = WITHIN_S) -> None:
        """Wait until something is so. Raises `ForebayError` that says what was waited for."""
        end = time.monotonic() + within_s
        while not check():
            if time.monotonic() > end:
                raise ForebayError(f"not within {within_s:g} s: {what}")
            self.watch()
            time.sleep(0.05)

    def pause(self, seconds: float) -> None:
        """Let time pass while dead workers are started again."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "the end of a pause", seconds + WITHIN_S)

    def any_worker(self) -> Process:
        """Return the workers in turn, one with each stroke."""
        return self.fleet.workers[self.strokes % len(self.fleet.workers)]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong. ``strike`` does it once and takes back what has to be taken back."""

    name: str
    what: str
    strike: Callable[[Scene], None]
    every_s: float = 3.0
    most: int = 1000  # strokes
    rescues: bool = False  # it leaves jobs that only a sweep brings back, within `RESCUE_WITHIN_S`
    servers: tuple[str, ...] = ()  # the servers that the suite must have started itself
    settings: Mapping[str, str] = field(default_factory=dict)  # with which the workers are started anew
    before: Sequence[str] = ("cli",)  # the modules through which they are


# Workers that die or stand still.
