"""Keep results of queries until a commit changes a table that they were read from.

A result is kept under the versions that its tables had before it was read, and found only while they are the same. So
one that was read before a commit and kept after it is never found. In this process a commit is seen from the moment at
which it returns; other processes see it `QUERY_CACHE_STALE_S` later at most.
"""

from __future__ import annotations

import inspect
import logging
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from pydantic import TypeAdapter

from cache import keys
from cache.errors import Away
from cache.store import Codec
from db import engine
from db.errors import QueryCacheError
from db.query_cache import kinds as query_kinds
from db.query_cache import table_versions, touched

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

MOST_PART, PARTS = 64, 4
_PART = re.compile(rf"[A-Za-z0-9_.@=~-]{{1,{MOST_PART}}}")
_FORM = (
    f"namespace:resource:id:variant, each of 1 to {MOST_PART} of A-Z a-z 0-9 _ . @ = -; query_cache.part() makes one"
)


@dataclass(frozen=True)
class Warmed:
    """How many of the calls ended well, and how many did not; the log says why."""

    done: int
    failed: int


def cached(kind: str, *, tables: tuple[str, ...], key: Callable[P, str]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that keeps what a function returns; its annotation says what that is, and it becomes JSON.

    ``tables``: all that the result is read from; a statement that reads another of ours is refused. ``key`` gets the
    function's arguments and returns ``namespace:resource:id:variant``; name in it all that the result depends on.
    Within a `transaction` the function is always called: it has to see what is not committed yet::

        @cached("statistics", tables=("documents",), key=lambda model: f"documents:count:{part(model)}:all")
        def count(model: str) -> int: ...

    Raises QueryCacheError for what is never kept.
    """
    query_kinds.check(kind, tables)

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        if inspect.signature(function).return_annotation is inspect.Signature.empty:
            raise QueryCacheError(
                f"{function.__qualname__} does not say what it returns: annotate it, for what is kept is read from JSON"
            )

        @cache
        def returned() -> Any:
            return typing.get_type_hints(function)["return"]

        @wraps(function)
        def ask(*args: P.args, **kwargs: P.kwargs) -> T:
            name = key(*args, **kwargs)
            found: T = through(kind, name, lambda: function(*args, **kwargs), tables=tables, type_=returned())
            return found

        return ask

    return decorate


def through(kind: str, key: str, make: Callable[[], T], *, tables: tuple[str, ...], type_: Any) -> T:
    """Return what is kept under a key, else what ``make`` returns, and keep that; all processes make it once at a time.

    ``type_`` is what it is read back as. While Redis is away, it is made each time. Raises QueryCacheError, and what
    ``make`` raises.
    """
    query_kinds.check(kind, tables)
    check(key)
    found = table_versions.of_process()
    if found is None or engine.open_session() is not None:
        return make()

    def read() -> T:
        with touched.declared(tables):
            return make()

    try:
        versions = table_versions.read(key, tables, found)
    except Away:
        return read()
    codec: Codec[T] = _codec(type_)
    return found.cache.fetch(kind, found.cache.versioned_key(kind, key, versions), read, codec).value


def get(kind: str, key: str, *, tables: tuple[str, ...], type_: Any, default: Any = None) -> Any:
    """Return what is kept under a key, or the default; nothing is computed. Raises QueryCacheError."""
    query_kinds.check(kind, tables)
    check(key)
    found = table_versions.of_process()
    if found is None or engine.open_session() is not None:
        return default
    try:
        versions = table_versions.read(key, tables, found)
    except Away:
        return default
    kept = found.cache.get_many(kind, [found.cache.versioned_key(kind, key, versions)])[0]
    try:
        return default if kept is None else _codec(type_).decode(kept)
    except ValueError:  # another version of the code has kept it
        return default


def forget(pattern: str) -> None:
    """Forget one key, or with ``namespace:*``, ``namespace:resource:*`` or ``namespace:resource:id:*`` all such keys.

    Within a `transaction` they are forgotten with its commit. Raises QueryCacheError.
    """
    prefix = pattern.removesuffix(":*")
    parts = prefix.split(":")
    if not all(map(_PART.fullmatch, parts)) or (len(parts) < PARTS) == (prefix == pattern) or len(parts) > PARTS:
        raise QueryCacheError(f"pattern {pattern[:100]!r}: {_FORM}; or its first parts, and * for all others")
    session = engine.open_session()
    if table_versions.is_enabled() and session is not None:
        touched.names(session, table_versions.of_keys(prefix))
    else:
        table_versions.end([table_versions.of_keys(prefix)])


def warm(calls: Iterable[Callable[[], object]], at_once: int = 4) -> Warmed:
    """Call functions whose results are kept, some at once: fewer than there are connections. None ends the others."""
    if at_once < 1:
        raise QueryCacheError(f"at_once={at_once}: a whole number from 1")
    with ThreadPoolExecutor(at_once, thread_name_prefix="forebay-warm") as threads:
        went: Sequence[bool] = list(threads.map(_went_well, calls))
    return Warmed(sum(went), len(went) - sum(went))


def part(given: object) -> str:
    """Return a text as a part of a key: itself where it can be one, else a hash of it."""
    text = str(given)
    return text if _PART.fullmatch(text) and "~" not in text else "~" + keys.digest(text)


def check(key: str) -> None:
    """Raise QueryCacheError for what is no key."""
    parts = key.split(":")
    if len(parts) != PARTS or not all(map(_PART.fullmatch, parts)):
        raise QueryCacheError(f"key {key[:100]!r}: {_FORM}")


def _went_well(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:
        logger.exception("a call to warm the query cache failed")
        return False
    return True


@cache
def _codec(type_: Any) -> Codec[Any]:
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    return Codec(adapter.dump_json, adapter.validate_json)
