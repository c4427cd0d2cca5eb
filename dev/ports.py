"""Ports on loopback: which are free, and which one a server had the last time."""

import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path

from dev.errors import StackError

LOOPBACK = "127.0.0.1"
# Below the range from which kernels take ports for outgoing connections, so that a port that is free when it is
# chosen is still free when the server binds it a second later.
CHOICE = range(20_000, 32_000)
# Not the module's own: two processes that seed it alike, as parallel tests do, would choose the same port.
_CHANCE = random.SystemRandom()


def is_free(port: int) -> bool:
    """Tell whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(taken: frozenset[int] = frozenset()) -> int:
    """Return a free port that is not in `taken`; raise StackError when there is none."""
    for port in _CHANCE.sample(CHOICE, k=500):
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port found between {CHOICE.start} and {CHOICE.stop} on {LOOPBACK}; close some servers")


def choose(names: Mapping[str, str], environ: Mapping[str, str], memory: Path) -> dict[str, int]:
    """Return a port for each name: from its environment variable, else the remembered one, else a free one.

    `names` maps a server's name to its environment variable. The choice is written to `memory` (JSON). Raises
    StackError when a port that the environment demands is not a port or is taken.
    """
    remembered = _read(memory)
    chosen: dict[str, int] = {}
    for name, variable in names.items():
        if given := environ.get(variable):
            chosen[name] = _demanded(variable, given)
    for name in names:
        if name in chosen:
            continue
        port = remembered.get(name)
        taken = frozenset(chosen.values())
        chosen[name] = port if port and port not in taken and is_free(port) else free_port(taken)
    memory.write_text(json.dumps({**remembered, **chosen}, indent=2) + "\n", encoding="utf-8")
    return chosen


def _demanded(variable: str, given: str) -> int:
    if not given.isdecimal() or not 0 < int(given) < 65_536:
        raise StackError(f"{variable}={given!r} is not a port; give a number from 1 to 65535, or unset it")
    if not is_free(int(given)):
        raise StackError(f"port {given} ({variable}) is taken; end its owner, name another, or unset {variable}")
    return int(given)


def _read(memory: Path) -> dict[str, int]:
    try:
        stored = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the first start, or a file cut short by a kill: choose anew
    return {name: port for name, port in stored.items() if isinstance(port, int)}
