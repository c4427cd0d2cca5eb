"""Keep the values used last in this process, bounded by number, bytes and age."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple


class Entry(NamedTuple):
    """A value; ``until`` is the moment of the clock from which it is gone."""

    value: bytes
    kind: str
    until: float


class Memory:
    """An LRU of bytes. Safe to share between threads; a value is never changed, so it needs no copy."""

    def __init__(self, most_entries: int, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._generations: dict[str, str] = {}
        self._bytes = 0
        self._guard = threading.Lock()

    def get(self, key: str) -> bytes | None:
        """Return a value and count it as used, None when there is none or its time is over."""
        with self._guard:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if self._clock() >= entry.until:
                self._drop(key)
                return None
            self._entries.move_to_end(key)
            return entry.value

    def put(self, kind: str, key: str, value: bytes, ttl_s: float, generation: str | None = None) -> None:
        """Keep a value; what was used longest ago makes room. One larger than all the room is not kept.

        A value that was read or claimed in a ``generation`` which is over is not kept either.
        """
        size_bytes = len(key) + len(value)
        with self._guard:
            self._drop(key)
            if generation is not None and generation != self._generations.setdefault(kind, generation):
                return
            if ttl_s <= 0 or size_bytes > self._most_bytes or not self._most_entries:
                return
            self._entries[key] = Entry(value, kind, self._clock() + ttl_s)
            self._bytes += size_bytes
            while len(self._entries) > self._most_entries or self._bytes > self._most_bytes:
                self._drop(next(iter(self._entries)))

    def drop(self, key: str) -> None:
        """Forget one value."""
        with self._guard:
            self._drop(key)

    def learn(self, kind: str, generation: str) -> None:
        """Hear which generation a kind is in; after another one, all values of the kind are forgotten."""
        with self._guard:
            if self._generations.get(kind) == generation:
                return
            self._generations[kind] = generation
            for key in [key for key, entry in self._entries.items() if entry.kind == kind]:
                self._drop(key)

    def kinds(self) -> list[str]:
        """Return the kinds whose generation was heard of."""
        with self._guard:
            return list(self._generations)

    def size(self) -> tuple[int, int]:
        """Return how many values there are, and the bytes of keys and values together."""
        with self._guard:
            return len(self._entries), self._bytes

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(key) + len(entry.value)
