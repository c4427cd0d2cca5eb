"""The kinds of query results that are kept, for how long, and what is never kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from db.errors import QueryCacheError
from db.variables import Variables

DAY_S = 86400.0
#: A value must not outlive the tokens of the versions that it was kept under, which live 400 days.
LONGEST_S = 365 * DAY_S
#: Kind -> seconds, unless CACHE_<KIND>_TTL says otherwise. A prompt is kept until its table changes.
DEFAULTS_S: Mapping[str, float] = {
    "default": 300,
    "search": 3600,
    "metadata": 300,
    "session": 300,
    "statistics": 900,
    "preferences": DAY_S / 2,
    "configuration": 600,
    "feed": 30,
    "prompt": LONGEST_S,
}
#: Kinds whose results must be those of this moment, and tables that such results are read from.
NEVER = ("message", "messages", "user_check", "user_checks", "tool_result", "tool_results")
NEVER_TABLES = ("messages",)


@dataclass(frozen=True)
class Settings:
    """``stale_s``: so long a process may not have heard of another's commit. Without a ``url`` nothing is kept."""

    url: str
    prefix: str
    master: str
    enabled: bool
    ttl_s: Mapping[str, float]
    stale_s: float


def settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from the environment. Raises SettingError that names every faulty variable."""
    variables = Variables(environment)
    found = read(variables)
    variables.check()
    return found


def read(variables: Variables) -> Settings:
    """Read the settings; what is wrong is among the variables' faults."""
    url = variables.text("CACHE_URL") or variables.text("CELERY_BROKER_URL")
    return Settings(
        url=url,
        prefix=variables.text("FOREBAY_KEY_PREFIX") + "query:",
        master=variables.text("REDIS_SENTINEL_MASTER"),
        enabled=variables.switch("QUERY_CACHE_ENABLED") and bool(url),
        ttl_s={
            kind: variables.seconds(f"CACHE_{kind.upper()}_TTL", ttl_s, 1, LONGEST_S)
            for kind, ttl_s in DEFAULTS_S.items()
        },
        stale_s=variables.seconds("QUERY_CACHE_STALE_S", 0.2, 0, 60),
    )


def check(kind: str, tables: Sequence[str]) -> None:
    """Raise QueryCacheError for a kind or a table whose results are not to be kept."""
    if kind in NEVER:
        raise QueryCacheError(f"kind {kind!r} is never kept: read it from the database each time")
    if kind not in DEFAULTS_S:
        near = get_close_matches(kind, list(DEFAULTS_S), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise QueryCacheError(f"kind {kind!r} is not known; known are {', '.join(DEFAULTS_S)}{hint}")
    if isinstance(tables, str) or not tables:
        raise QueryCacheError(f"tables={tables!r}: name all tables that the result is read from, as a tuple")
    if never := [table for table in tables if table in NEVER_TABLES]:
        raise QueryCacheError(
            f"a result that depends on the table {never[0]!r} is never kept: read it from the database each time"
        )
