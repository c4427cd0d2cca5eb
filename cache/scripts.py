"""Load the cache's Lua scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis
    from redis.commands.core import Script

FOLDER = Path(__file__).parent
#: Name -> flags. Those that end or keep what was begun may run when Redis is out of memory.
FLAGS = {"claim": "", "land": "", "leave": "allow-oom", "renew": "allow-oom", "versions": ""}


def load(client: redis.Redis) -> dict[str, Script]:
    """Bind every script to a client. Nothing is sent: Redis is told a script when it first lacks it."""
    return {name: client.register_script(source(name)) for name in FLAGS}


def source(name: str) -> str:
    """Return a script's text as Redis gets it."""
    return f"#!lua flags={FLAGS[name]}\n" + (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
