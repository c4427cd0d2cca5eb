"""Get values: from memory, from Redis, from whoever computes them just now, or by computing them.

No caller waits while others may wait for it: it first computes what it claimed, then waits for what other processes
claimed, and only then, leading nothing any more, for other threads. So no two batches can wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar
from uuid import uuid4

from cache.errors import Away, Full, GivenUp
from cache.flight import ALONE, RETRY, VALUE, Flight, Flights
from cache.memory import Memory
from cache.remote import Remote
from cache.statistics import Tally, Worth

T = TypeVar("T")

#: How often one who waits for another process looks whether that still lives.
LIVES_S = 1.0


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How a value becomes bytes and back. ``encode`` returns None for one that is not to be kept."""

    encode: Callable[[T], bytes | None]
    decode: Callable[[bytes], T]
    worth: Callable[[T], Worth] = lambda _: Worth()


class Found(NamedTuple, Generic[T]):
    """A value and how it was got: ``hits_memory``, ``hits_redis``, ``shared`` or ``misses`` (computed)."""

    value: T
    how: str

    @property
    def is_new(self) -> bool:
        return self.how == "misses"


class Tiers(NamedTuple):
    """What one process has of a cache."""

    memory: Memory
    remote: Remote
    flights: Flights
    tally: Tally


@dataclass
class Fetch(Generic[T]):
    """One question, or several in a batch. ``make`` computes the values of the keys that it is given, in order."""

    tiers: Tiers
    kind: str
    make: Callable[[Sequence[str]], Sequence[T]]
    codec: Codec[T]
    over: threading.Event | None
    until: float
    found: dict[str, Found[T]] = field(default_factory=dict)
    calls: int = 0

    def run(self, wanted: Sequence[str]) -> dict[str, Found[T]]:
        """Return every value. Raises what ``make`` raises, and `GivenUp`."""
        missing = list(dict.fromkeys(wanted))
        for key in missing:
            value = self.tiers.memory.get(key)
            if value is not None:
                self._take(key, value, "hits_memory")
        try:
            while missing := [key for key in missing if key not in self.found]:
                self._round(missing)
        finally:
            self._count(wanted)
        return self.found

    def _round(self, missing: Sequence[str]) -> None:
        known, led, followed = self.tiers.flights.join(missing, self.tiers.memory.get)
        try:
            for key, value in known.items():
                self._take(key, value, "hits_memory")
            if led:
                self._lead(list(led))
        finally:
            for key in led:
                self.tiers.flights.end(key, RETRY)
        alone = [key for key in known if key not in self.found]  # what cannot be read
        for key, flight in followed.items():
            if self._follow(key, flight) not in (VALUE, RETRY):
                alone.append(key)
        self._compute_alone([key for key in alone if key not in self.found])

    def _follow(self, key: str, flight: Flight) -> str:
        mark = flight.wait(self.over, self.until)
        self._check_wanted()
        if mark == VALUE and flight.value is not None and not self._take(key, flight.value, "shared"):
            return ALONE
        return mark

    def _lead(self, led: list[str]) -> None:
        """Get what this thread leads in its process: claim it, compute what was claimed, wait for the rest."""
        waiting, alone = led, []
        how = "hits_redis"
        while waiting:
            token = uuid4().hex
            try:
                claims = self.tiers.remote.claim(self.kind, waiting, token)
            except Full:
                alone += self._read(waiting)
                break
            except Away:
                alone += waiting
                break
            self.tiers.memory.learn(self.kind, claims.generation)
            for key, (value, left_s) in claims.values.items():
                if self._take(key, value, how):
                    self._keep(key, value, left_s, claims.generation)
                else:
                    alone.append(key)
            if claims.mine:
                self._compute_claimed(token, claims.mine, claims.generation)
            how = "shared"
            waiting, more = self._wait(claims.others)
            alone += more
        self._compute_alone(alone)

    def _wait(self, others: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Wait for other processes; return the keys to claim again, and those to compute at once."""
        again: list[str] = []
        alone: list[str] = []
        for token in dict.fromkeys(others.values()):
            held = [key for key, holder in others.items() if holder == token]
            mark = self._mark_of(token)
            enough = mark == ALONE or time.monotonic() >= self.until
            (alone if enough else again).extend(held)
        return again, alone

    def _mark_of(self, token: str) -> str:
        look_at = min(self.until, time.monotonic() + LIVES_S)
        mark = ""
        while not mark and time.monotonic() < look_at:
            self._check_wanted()
            try:
                mark = self.tiers.remote.wait(token)
            except Away:
                return ALONE
        self._check_wanted()
        return mark

    def _compute_claimed(self, token: str, mine: list[str], generation: str) -> None:
        remote, flights = self.tiers.remote, self.tiers.flights
        flights.hold(token, mine)
        try:
            made = self._compute(mine)
        except BaseException:
            flights.let_go(token)
            for key in mine:
                flights.end(key, RETRY)
            self._leave(token, mine, RETRY)
            raise
        flights.let_go(token)
        try:
            if any(value is not None for value in made.values()):
                remote.land(self.kind, token, generation, made, self._ttl_s)
            else:
                remote.leave(token, mine, ALONE)
        except Full:
            self._leave(token, mine, ALONE)
        except Away:
            pass
        self._share(made, generation)

    def _compute_alone(self, alone: Sequence[str]) -> None:
        """Compute what is shared with nobody else but the threads that wait for it here."""
        if not alone:
            return
        made = self._compute(alone)
        self.tiers.tally.add(self.kind, unshared=len(alone))
        kept = {key: value for key, value in made.items() if value is not None}
        with suppress(Away):
            if kept:
                self.tiers.remote.write(kept, self._ttl_s)
        self._share(made, None)

    def _compute(self, wanted: Sequence[str]) -> dict[str, bytes | None]:
        self._check_wanted()
        self.calls += 1
        made: dict[str, bytes | None] = {}
        for key, value in zip(wanted, self.make(wanted), strict=True):
            self.found[key] = Found(value, "misses")
            encoded = self.codec.encode(value)
            largest = self.tiers.remote.settings.value_bytes
            made[key] = None if encoded is None or len(encoded) > largest else encoded
        return made

    def _share(self, made: Mapping[str, bytes | None], generation: str | None) -> None:
        for key, value in made.items():
            if value is not None:
                self._keep(key, value, self._ttl_s, generation)
            self.tiers.flights.end(key, ALONE if value is None else VALUE, value)

    def _read(self, wanted: list[str]) -> list[str]:
        """Take what a Redis without memory still has; return the rest."""
        with suppress(Away):
            for key, value in self.tiers.remote.read(wanted).items():
                if self._take(key, value, "hits_redis"):
                    self.tiers.flights.end(key, VALUE, value)
        return [key for key in wanted if key not in self.found]

    def _take(self, key: str, value: bytes, how: str) -> bool:
        """Take a value that was computed before; say whether it can be read: another version may have written it."""
        try:
            self.found[key] = Found(self.codec.decode(value), how)
        except (ValueError, TypeError, LookupError, AttributeError):
            self.tiers.memory.drop(key)
            return False
        return True

    def _keep(self, key: str, value: bytes, left_s: float, generation: str | None) -> None:
        ttl_s = min(left_s, self.tiers.remote.settings.memory_ttl_s)
        self.tiers.memory.put(self.kind, key, value, ttl_s, generation)
        self.tiers.flights.end(key, VALUE, value)

    def _leave(self, token: str, held: Sequence[str], mark: str) -> None:
        with suppress(Away):  # the lease ends by itself
            self.tiers.remote.leave(token, held, mark)

    def _check_wanted(self) -> None:
        if self.over is not None and self.over.is_set():
            raise GivenUp("nobody waits for the value any more")

    @property
    def _ttl_s(self) -> float:
        return self.tiers.remote.settings.ttl_of(self.kind)

    def _count(self, wanted: Sequence[str]) -> None:
        hows: dict[str, int] = {}
        seen: set[str] = set()
        for key in wanted:
            if key in self.found:
                value, how = self.found[key]
                how = "shared" if key in seen and how == "misses" else how
                hows[how] = hows.get(how, 0) + 1
                if how != "misses":
                    self.tiers.tally.save(self.kind, self.codec.worth(value))
                seen.add(key)
        saved = int(not self.calls and len(seen) == len(set(wanted)) > 0)
        self.tiers.tally.add(self.kind, calls=self.calls, calls_saved=saved, **hows)
