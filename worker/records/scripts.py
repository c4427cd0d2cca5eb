"""Load the Lua scripts that change a job's record: each file is one step of a job's life."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.policy.priority import FETCH_ORDER, STEPS
from worker.records import keys, reason

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

#: One folder for each part of a job's life; a script's name is its file's.
FILES = {path.stem: path for path in sorted((Path(__file__).parent / "lua").rglob("*.lua"))}

#: Scripts that may run when Redis is out of memory: they drain it.
DRAINING = frozenset(
    {
        "fetch",
        "start",
        "confirm",
        "follow",
        "replacing",
        "done",
        "reschedule",
        "bury",
        "release",
        "drop",
        "cancel",
        "renew",
        "reclaim",
        "leave",
        "sweep",
        "bind",
        "tally",
        "publish",
        "replay",
        "purge",
        "edit",
        "permit",
        "put_back",
        "depart",
        "shut",
        "breaker_ask",
        "breaker_tell",
    }
)
#: Scripts that only look.
READING = frozenset({"sizes", "audit_jobs", "audit_list", "breaker_list"})
#: Scripts that Redis refuses when it is out of memory.
REFUSED = frozenset({"accept", "stream_append"})
NAMES = DRAINING | READING | REFUSED
#: What a running job publishes is accepted also when Redis is out of memory: it would not end otherwise.
SAME = {"publish": "accept"}

#: What stands before every script, and what before one of them.
SHARED = ("moments", "gate", "prelude")
PARTS = {"fetch": ("admission",)}


@cache
def source(name: str) -> str:
    """Return the whole text of a script as Redis gets it: flags, key builders, prelude, body."""
    flags = f"#!lua flags={_flags(name)}\n"
    orders = f"local STEPS = {_table(STEPS)}\nlocal ORDER = {_table(FETCH_ORDER)}\n"
    return flags + keys.lua() + orders + reason.spelled("".join(map(_read, (*SHARED, *PARTS.get(name, ()), name))))


def load(client: redis.Redis) -> dict[str, Script]:
    """Bind every script to a client. Nothing is sent: Redis is told a script when it first lacks it."""
    return {name: client.register_script(source(name)) for name in sorted(NAMES)}


def run_all(client: redis.Redis, calls: Iterable[tuple[Script, Sequence[Any], Sequence[Any]]]) -> list[Any]:
    """Run scripts, each with keys and arguments, in one round trip; they must be such as may be run again.

    redis-py's pipeline asks with every execution whether Redis knows the scripts; this finds out when it does not.
    """
    from redis.exceptions import NoScriptError

    wanted = list(calls)
    for knows in (False, True):
        pipeline = client.pipeline(transaction=False)
        for script, named, args in wanted:
            pipeline.evalsha(script.sha, len(named), *named, *args)
        try:
            return list(pipeline.execute())
        except NoScriptError:
            if knows:
                raise
            for text in {script.script for script, _, _ in wanted}:
                client.script_load(text)
    raise AssertionError("unreachable")


def _flags(name: str) -> str:
    return "allow-oom" if name in DRAINING else "no-writes" if name in READING else ""


def _read(name: str) -> str:
    return FILES[SAME.get(name, name)].read_text(encoding="utf-8")


def _table(steps: tuple[int, ...]) -> str:
    return "{" + ", ".join(f"'{step}'" for step in steps) + "}"
