"""What this process has of the query cache: the values, and the versions of the tables that they depend on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cache.settings import Settings
from cache.statistics import Report
from cache.store import Cache
from cache.versions import Versions
from db.query_cache import kinds as query_kinds


@dataclass(frozen=True)
class Kept:
    """Values of this process, and the versions that they depend on."""

    cache: Cache
    versions: Versions


# By process id, as the engines: a fork has neither its parent's threads nor what those owe.
_of_process: dict[int, Kept | None] = {}


def of_process() -> Kept | None:
    """Return what this process has of the query cache, None when that is off. Raises SettingError."""
    pid = os.getpid()
    if pid not in _of_process:
        given = query_kinds.settings()
        _of_process.setdefault(pid, _make(given) if given.enabled else None)
    return _of_process[pid]


def is_enabled() -> bool:
    return of_process() is not None


def close() -> None:
    """Let go of everything; the next use reads the environment again."""
    found = _of_process.pop(os.getpid(), None)
    if found is not None:
        found.cache.close()


def of_table(name: str) -> str:
    """Return the name of a table's version."""
    return f"table:{name}"


def of_keys(prefix: str) -> str:
    """Return the name of the version of all keys that begin with some whole parts."""
    return f"keys:{prefix}"


def read(key: str, tables: Iterable[str], found: Kept) -> Mapping[str, str]:
    """Return the versions that a key's value depends on. Raises `Away`."""
    parts = key.split(":")
    prefixes = [of_keys(":".join(parts[:count])) for count in range(1, len(parts) + 1)]
    return found.versions.read([*map(of_table, tables), *prefixes[:2]], prefixes[2:])


def end(names: Iterable[str]) -> None:
    """End versions. Those of an id or a variant of one are marks: see `Versions`."""
    found = of_process()
    if found is not None:
        ending = set(names)
        marks = {name for name in ending if name.startswith("keys:") and name.count(":") > 2}
        found.versions.end(sorted(ending - marks), sorted(marks))


def report() -> Report | None:
    """Return what all processes counted, None when the query cache is off. Raises `Away`."""
    found = of_process()
    return None if found is None else found.cache.report({})


def _make(given: query_kinds.Settings) -> Kept:
    cache = Cache(Settings(url=given.url, ttl_s=given.ttl_s, prefix=given.prefix, master=given.master))
    return Kept(cache, Versions(cache.remote, given.stale_s))
