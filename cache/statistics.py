"""Count what the cache did, in this process, and add it up for all processes in Redis."""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from cache import keys
from cache.memory import Memory
from cache.remote import SCAN_COUNT, Remote

#: Counters are kept for so long after the last change.
KEPT_S = 90 * 86400
#: A process that has said nothing for so long is gone.
SILENT_S = 10.0

#: hits_memory, hits_redis: values found; shared: answers of somebody else's call under way; misses: values computed;
#: calls: computations begun; calls_saved: questions answered without one; unshared: computed while Redis was away.
COUNTED = ("hits_memory", "hits_redis", "shared", "misses", "calls", "calls_saved", "unshared")


class Worth(NamedTuple):
    """What a value cost when it was computed."""

    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Tally:
    """Counts of one process that were not flushed yet. Safe to share between threads."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._guard = threading.Lock()
        self._me = f"{socket.gethostname()}:{os.getpid()}"

    @property
    def has_counts(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._counts)

    def add(self, kind: str, **counts: int) -> None:
        with self._guard:
            for name, count in counts.items():
                if count:
                    self._counts[kind, name] += count

    def save(self, kind: str, worth: Worth) -> None:
        """Count the tokens of a value that was not computed again."""
        with self._guard:
            for name in ("prompt_tokens", "completion_tokens"):
                if getattr(worth, name):
                    self._counts[kind, name, worth.model] += getattr(worth, name)

    def flush(self, remote: Remote, memory: Memory) -> None:
        """Add the counts to those of all processes and say how much this one keeps. Raises `Away`; counts stay then."""
        with self._guard:
            counts, self._counts = self._counts, Counter()
        prefix = remote.settings.prefix

        def send(client: Any) -> None:
            pipeline = client.pipeline(transaction=True)
            for name, count in counts.items():
                pipeline.hincrby(keys.statistics(prefix), json.dumps(name), count)
            if counts:
                pipeline.expire(keys.statistics(prefix), KEPT_S)
            pipeline.hset(keys.memories(prefix), self._me, json.dumps([time.time(), *memory.size()]))
            pipeline.expire(keys.memories(prefix), 3600)
            pipeline.execute()

        try:
            remote.ask(send)
        except Exception:
            with self._guard:
                self._counts.update(counts)
            raise

    def leave(self, remote: Remote) -> None:
        """Take back what this process said that it keeps."""
        remote.ask(lambda client: client.hdel(keys.memories(remote.settings.prefix), self._me))


@dataclass
class Kind:
    """What the cache did for one kind of value. ``cost_saved`` is None where no model has a price."""

    kind: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)
    cost_saved: float | None = None
    redis_entries: int = 0
    redis_bytes: int = 0

    @property
    def hit_rate(self) -> float | None:
        """The share of values that were not computed."""
        hits = sum(self.counts[name] for name in ("hits_memory", "hits_redis", "shared"))
        asked = hits + self.counts["misses"]
        return hits / asked if asked else None

    def as_dict(self) -> dict[str, Any]:
        """Return all figures under their names."""
        return {
            "kind": self.kind,
            **self.counts,
            "hit_rate": self.hit_rate,
            "tokens_saved": sum(sum(each) for each in self.tokens.values()),
            "cost_saved": self.cost_saved,
            "redis_entries": self.redis_entries,
            "redis_bytes": self.redis_bytes,
        }


@dataclass(frozen=True)
class Report:
    """All kinds, and what living processes keep in memory, together."""

    kinds: list[Kind]
    processes: int
    memory_entries: int
    memory_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return all figures under their names."""
        return {**vars(self), "kinds": [kind.as_dict() for kind in self.kinds]}


#: (seen, total) while keys are looked through.
Progress = Callable[[int, int], None]


def read(
    remote: Remote,
    prices: Mapping[str, tuple[float, float]],
    progress: Progress | None = None,
) -> Report:
    """Return what all processes counted, and the sizes of both tiers. Raises `Away`.

    ``prices``: model -> price of 1,000 prompt tokens and of 1,000 completion tokens.
    """
    prefix = remote.settings.prefix
    kinds = {name: Kind(name) for name in sorted(remote.settings.ttl_s)}
    for name, count in remote.ask(lambda client: client.hgetall(keys.statistics(prefix))).items():
        kind, what, *model = json.loads(name)
        each = kinds.setdefault(kind, Kind(kind))
        if model:
            prompt, completion = each.tokens.get(model[0], (0, 0))
            more = int(count)
            each.tokens[model[0]] = (
                (prompt + more, completion) if what == "prompt_tokens" else (prompt, completion + more)
            )
        else:
            each.counts[what] = int(count)
    for each in kinds.values():
        each.cost_saved = _cost(each.tokens, prices)
        each.redis_entries, each.redis_bytes = _size(remote, each.kind, progress)
    alive = _memories(remote)
    return Report(
        list(kinds.values()), len(alive), int(sum(each[1] for each in alive)), int(sum(each[2] for each in alive))
    )


def _cost(tokens: Mapping[str, tuple[int, int]], prices: Mapping[str, tuple[float, float]]) -> float | None:
    costs = [
        (prompt * prices[model][0] + completion * prices[model][1]) / 1000
        for model, (prompt, completion) in tokens.items()
        if model in prices
    ]
    return sum(costs) if costs else None


def _size(remote: Remote, kind: str, progress: Progress | None) -> tuple[int, int]:
    entries = size_bytes = 0
    for page in pages(remote, kind, progress):
        values = [key for key in page if not key.endswith(keys.FLIGHT.encode())]
        entries += len(values)
        size_bytes += sum(remote.ask(partial(_lengths, values)))
    return entries, size_bytes


def _lengths(values: list[bytes], client: Any) -> list[int]:
    pipeline = client.pipeline(transaction=False)
    for key in values:
        pipeline.strlen(key)
    return list(pipeline.execute())


def pages(remote: Remote, kind: str, progress: Progress | None) -> Iterator[list[bytes]]:
    """Give the keys of a kind's values and flights, a bounded step at a time. Raises `Away`."""
    pattern = keys.pattern(kind, remote.settings.prefix)
    total = remote.ask(lambda client: client.dbsize())
    cursor, seen = 0, 0
    while True:
        cursor, page = remote.ask(partial(_page, pattern, cursor))
        seen = min(total, seen + SCAN_COUNT)
        if page:
            yield page
        if progress:
            progress(seen if cursor else total, total)
        if not cursor:
            return


def _page(pattern: str, cursor: int, client: Any) -> tuple[int, list[bytes]]:
    page: tuple[int, list[bytes]] = client.scan(cursor, match=pattern, count=SCAN_COUNT)
    return page


def _memories(remote: Remote) -> list[list[float]]:
    """Return (when, entries, bytes) of each living process, and forget the others."""
    name = keys.memories(remote.settings.prefix)
    said = {who: json.loads(what) for who, what in remote.ask(lambda client: client.hgetall(name)).items()}
    gone = [who for who, (at, *_) in said.items() if time.time() - at > SILENT_S]
    if gone:
        remote.ask(lambda client: client.hdel(name, *gone))
    return [what for who, what in said.items() if who not in gone]
