"""The cache: two tiers, flights and statistics behind one object that may be shared between threads and over a fork."""

from __future__ import annotations

import atexit
import inspect
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast
from uuid import uuid4

from cache import keys, statistics
from cache.errors import Away, CacheError, Unhashable
from cache.fetch import Codec, Fetch, Found, Tiers
from cache.flight import Flights
from cache.memory import Memory
from cache.remote import Remote
from cache.settings import Settings
from cache.statistics import Progress, Report, Tally

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

#: A process that has nothing to say says so with every fifth tick.
IDLE_TICKS = 5
FOR_EVER_S = 10 * 366 * 86400.0
#: Values that JSON can say.
JSON: Codec[Any] = Codec(lambda value: json.dumps(value).encode(), json.loads)


class Cache:
    """Values by kind and key. Redis is asked with the first value, by each process with connections of its own.

    A cleared kind is forgotten by the memories of other processes with their next tick (`Settings.tick_s`, and what
    a slow Redis adds); while Redis is away, they serve what they have until `Settings.memory_ttl_s` is over.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._of_process: dict[int, Process] = {}

    def key(self, kind: str, who: Any, what: Any) -> str:
        """Return the key of what is asked, given who answers and how. Raises `Unhashable`, and `CacheError`."""
        self.settings.ttl_of(kind)
        return keys.key(kind, who, what, self.settings.prefix)

    def versioned_key(self, kind: str, name: str, versions: Mapping[str, str]) -> str:
        """Return the key of a named value as it is under these versions. Raises `CacheError`."""
        self.settings.ttl_of(kind)
        return keys.versioned(kind, name, keys.digest(dict(versions)), self.settings.prefix)

    def remote(self) -> Remote:
        """Return this process's way to Redis, which is looked after in the background."""
        return self._process().tiers.remote

    def fetch(
        self,
        kind: str,
        key: str,
        make: Callable[[], T],
        codec: Codec[T] = JSON,
        *,
        over: threading.Event | None = None,
        wait_s: float = FOR_EVER_S,
    ) -> Found[T]:
        """Return a value, computed at most once at a time by all processes together. See `fetch_many`."""
        return self.fetch_many(kind, [key], lambda _: [make()], codec, over=over, wait_s=wait_s)[0]

    def fetch_many(
        self,
        kind: str,
        wanted: Sequence[str],
        make: Callable[[Sequence[str]], Sequence[T]],
        codec: Codec[T] = JSON,
        *,
        over: threading.Event | None = None,
        wait_s: float = FOR_EVER_S,
    ) -> list[Found[T]]:
        """Return a value for each key, in order; ``make`` gets those keys that are to be computed, each once.

        What others compute just now is waited for, ``wait_s`` at most, then it is computed here. Raises what ``make``
        raises: the others then try one after the other. Raises `GivenUp` when ``over`` is set while this waits.
        """
        self.settings.ttl_of(kind)
        if not self.settings.enabled:
            return [Found(value, "misses") for value in make(wanted)]
        until = time.monotonic() + wait_s
        fetched = Fetch(self._process().tiers, kind, make, codec, over, until).run(wanted)
        return [fetched[key] for key in wanted]

    def get_many(self, kind: str, wanted: Sequence[str]) -> list[bytes | None]:
        """Return the values that there are, in order, None for the others, with at most one round trip."""
        self.settings.ttl_of(kind)
        if not self.settings.enabled:
            return [None] * len(wanted)
        memory, remote, _, tally = self._process().tiers
        found = {key: value for key in dict.fromkeys(wanted) if (value := memory.get(key)) is not None}
        in_memory = len(found)
        missing = [key for key in dict.fromkeys(wanted) if key not in found]
        with suppress(Away):
            found |= remote.read(missing) if missing else {}
        tally.add(kind, hits_memory=in_memory, hits_redis=len(found) - in_memory, misses=len(set(wanted)) - len(found))
        return [found.get(key) for key in wanted]

    def set_many(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Keep values for their kind's lifetime, with one round trip. A Redis that is away is done without."""
        ttl_s = self.settings.ttl_of(kind)
        small = {key: value for key, value in values.items() if len(value) <= self.settings.value_bytes}
        if not self.settings.enabled or not small:
            return
        memory, remote, _, _ = self._process().tiers
        for key, value in small.items():
            memory.put(kind, key, value, min(ttl_s, self.settings.memory_ttl_s))
        with suppress(Away):
            remote.write(small, ttl_s)

    def clear(self, kind: str, progress: Progress | None = None) -> int:
        """Forget all values of a kind, everywhere, and return how many Redis had. Raises `Away`.

        Answers on their way at that moment are not kept either.
        """
        self.settings.ttl_of(kind)
        memory, remote, _, _ = self._process().tiers
        generation = uuid4().hex
        remote.begin(kind, generation)
        memory.learn(kind, generation)
        cleared = 0
        for page in statistics.pages(remote, kind, progress):
            remote.ask(partial(_unlink, page))
            cleared += sum(not key.endswith(keys.FLIGHT.encode()) for key in page)
        return cleared

    def report(self, prices: Mapping[str, tuple[float, float]], progress: Progress | None = None) -> Report:
        """Return what all processes counted, up to about a tick ago, and the sizes of both tiers. Raises `Away`."""
        return statistics.read(self._process().tiers.remote, prices, progress)

    def flush(self) -> None:
        """Do now what is done in the background with every tick."""
        self._process().tick()

    def close(self) -> None:
        """Flush what was counted and look after this process no more; the next use begins anew."""
        process = self._of_process.pop(os.getpid(), None)
        if process is not None:
            process.leave()

    def cached(
        self,
        *,
        kind: str,
        key: Callable[P, Any] | None = None,
        codec: Codec[Any] = JSON,
    ) -> Callable[[Callable[P, T]], Callable[P, T]]:
        """Return a decorator that keeps what a function returns; see `cached`."""
        return cached(lambda: self, kind=kind, key=key, codec=codec)

    def _process(self) -> Process:
        pid = os.getpid()
        found = self._of_process.get(pid)
        if found is None:
            found = self._of_process.setdefault(pid, Process(self.settings))
        found.start()
        return found


def _unlink(page: list[bytes], client: Any) -> None:
    client.unlink(*page)


class Process:
    """What one process has of a cache, and the thread that looks after it."""

    def __init__(self, settings: Settings) -> None:
        memory = Memory(settings.memory_entries, settings.memory_bytes)
        self.tiers = Tiers(memory, Remote(settings), Flights(), Tally())
        self._pid = os.getpid()
        self._tick_s = settings.tick_s
        self._stopped = threading.Event()
        self._started = False
        self._starting = threading.Lock()

    def start(self) -> None:
        """Look after the process from now on, in the background, until it ends. Cheap when it does already."""
        if self._started:
            return
        with self._starting:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="forebay-cache", daemon=True).start()
                atexit.register(self.leave)

    def tick(self) -> None:
        """Renew flights, hear of cleared kinds, flush statistics. Raises `Away`."""
        memory, remote, flights, tally = self.tiers
        remote.probe()
        for token, held in flights.held().items():
            remote.renew(token, held)
        self._hear()
        tally.flush(remote, memory)

    def _hear(self) -> None:
        """Hear of cleared kinds: the one thing that an idle process asks with every tick."""
        memory, remote, _, _ = self.tiers
        for kind, generation in remote.generations(remote.settings.kinds).items():
            memory.learn(kind, generation)

    def _is_busy(self) -> bool:
        _, remote, flights, tally = self.tiers
        return remote.is_away or remote.is_full or bool(flights.held()) or tally.has_counts

    def leave(self) -> None:
        """Flush what was counted, at the end of the process."""
        atexit.unregister(self.leave)
        self._stopped.set()
        if os.getpid() != self._pid:  # a fork that ends as its parent would
            return
        with suppress(Away):
            self.tiers.tally.flush(self.tiers.remote, self.tiers.memory)
            self.tiers.tally.leave(self.tiers.remote)

    def _run(self) -> None:
        for ticks in itertools.count(1):
            if self._stopped.wait(self._tick_s):
                return
            try:
                with suppress(Away):
                    if ticks % IDLE_TICKS == 0 or self._is_busy():
                        self.tick()
                    else:
                        self._hear()
            except Exception:
                logger.exception("looking after the cache failed; it is tried again")


def cached(
    of: Callable[[], Cache],
    *,
    kind: str,
    key: Callable[P, Any] | None = None,
    codec: Codec[Any] = JSON,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Keep what a function returns, and let equal calls at the same time share one.

    ``of`` returns the cache, and is asked with the first call. ``kind`` sets the lifetime. ``key`` gets the function's
    arguments and returns what identifies the call (whatever JSON can say); without it, that is all arguments.
    ``codec`` says how a value becomes bytes; by default it must be what JSON can say, and tuples come back as lists.
    Arguments that JSON cannot say are not looked up: the function is called. What it raises is not kept::

        @cached(results, kind="model", key=lambda text, model: [model, text.strip()])
        def summarize(text: str, model: str) -> str: ...
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        who = [function.__module__, function.__qualname__]

        @wraps(function)
        def ask(*args: P.args, **kwargs: P.kwargs) -> T:
            cache = of()
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            try:
                made = cache.key(kind, who, key(*args, **kwargs) if key else dict(bound.arguments))
            except Unhashable:
                return function(*args, **kwargs)
            return cast("T", cache.fetch(kind, made, lambda: function(*args, **kwargs), codec).value)

        return ask

    return decorate


__all__ = ["JSON", "Cache", "CacheError", "Codec", "Found", "Settings", "cached"]
