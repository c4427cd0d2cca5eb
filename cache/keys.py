"""Make the keys of cached values: equal questions get equal keys, whatever the order in which they were put."""

import hashlib
import json
import math
from typing import Any

from cache.errors import Unhashable

#: Hex digits of each hash: 128 bits. Of 10**12 values two then collide with a chance of about 10**-15.
DIGITS = 32
#: Whole numbers beyond it are not all floats (IEEE 754).
EXACT = 2**53

VERSION = "v1"
FLIGHT = ":flight"


def key(kind: str, who: Any, what: Any, prefix: str = "") -> str:
    """Return ``ai:<kind>:v1:<hash of who answers, and how>:<hash of what is asked>``. Raises `Unhashable`."""
    return f"{prefix}ai:{kind}:{VERSION}:{digest(who)}:{digest(what)}"


def versioned(kind: str, name: str, stamp: str, prefix: str = "") -> str:
    """Return ``ai:<kind>:v1:<name>:<stamp>``: the key of a value under the versions that it depends on."""
    return f"{prefix}ai:{kind}:{VERSION}:{name}:{stamp}"


def version(name: str, prefix: str = "") -> str:
    """Return the key of a version's token."""
    return f"{prefix}ai:version:{name}"


def digest(value: Any) -> str:
    """Return 128 bits of the SHA-256 of a value's canonical JSON, in hex. Raises `Unhashable`."""
    return hashlib.sha256(canonical(value)).hexdigest()[:DIGITS]


def canonical(value: Any) -> bytes:
    """Return JSON that is equal exactly for values that JSON holds equal: keys sorted, 1.0 written as 1.

    Raises `Unhashable` for what JSON has not: other types, names that are no text, NaN and infinities.
    """
    try:
        return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    except RecursionError as error:
        raise Unhashable("nested too deep for a key") from error


def pattern(kind: str, prefix: str = "") -> str:
    """Return the SCAN pattern of a kind's values and flights."""
    escaped = "".join(f"\\{each}" if each in "*?[]\\^" else each for each in prefix)
    return f"{escaped}ai:{kind}:{VERSION}:*"


def generation(kind: str, prefix: str = "") -> str:
    """Return the key that names a kind's generation: an opaque text, another after each `clear`."""
    return f"{prefix}ai:generation:{kind}"


def landed(token: str, prefix: str = "") -> str:
    """Return the list that a leader's end is announced on."""
    return f"{prefix}ai:landed:{token}"


def statistics(prefix: str = "") -> str:
    """Return the hash of counters."""
    return f"{prefix}ai:statistics"


def memories(prefix: str = "") -> str:
    """Return the hash in which each process says how much it keeps."""
    return f"{prefix}ai:memories"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unhashable(f"{value!r} has no canonical form; give a finite number")
        return int(value) if value.is_integer() and abs(value) <= EXACT else float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise Unhashable(f"name {name!r} in a mapping must be text")
        return {name: _plain(each) for name, each in value.items()}
    raise Unhashable(f"{type(value).__name__} has no canonical form; give what JSON can say")
