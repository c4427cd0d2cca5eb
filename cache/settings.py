"""Say what a cache is told when it is made: where Redis is, how long and how much is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from cache.errors import CacheError


@dataclass(frozen=True)
class Settings:
    """``ttl_s`` names each kind of value with its lifetime in seconds; ``master`` is for ``sentinel://`` URLs."""

    url: str
    ttl_s: Mapping[str, float]
    enabled: bool = True
    prefix: str = ""
    master: str = ""
    memory_entries: int = 10_000
    memory_bytes: int = 64 * 1024 * 1024
    memory_ttl_s: float = 300
    #: A larger value is kept nowhere.
    value_bytes: int = 1024 * 1024
    #: A leader that gives no sign of life for so long has its flight taken over.
    lease_s: float = 5
    #: Redis is given so long for an answer; then it is left alone until it answers a ping in the background.
    timeout_s: float = 2
    #: How often flights are renewed, statistics flushed and generations read, all in the background.
    tick_s: float = 1.0
    #: Of a Redis that never evicts, values take part of the memory only while less than this share is used.
    share_of_memory: float = 0.7

    @property
    def kinds(self) -> list[str]:
        return sorted(self.ttl_s)

    def ttl_of(self, kind: str) -> float:
        """Return a kind's lifetime. Raises `CacheError` naming the nearest kind."""
        if kind in self.ttl_s:
            return self.ttl_s[kind]
        near = get_close_matches(kind, list(self.ttl_s), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CacheError(f"kind {kind!r} is not known; known are {', '.join(sorted(self.ttl_s))}{hint}")
