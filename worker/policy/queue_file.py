"""Read queues.yaml as plain values, remember on which line each stands, and lay the environment over it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.errors import SHOWN, ConfigurationError, nearest

LARGEST_BYTES = 1024 * 1024
MOST_FORBIDDEN = 20  # aliases and tags that are listed; a bomb holds a million
DEEPEST = 20  # the schema has 4 levels; a file of brackets alone would exhaust Python's stack

#: FOREBAY_* variables that are not overrides of queues.yaml.
OTHERS = frozenset(
    f"FOREBAY_{name}"
    for name in (
        "HOME", "INSTALL", "KEY_PREFIX", "NODE", "QUEUES",
        "VALKEY_PORT", "POSTGRES_PORT", "PROVIDER_PORT", "FLOWER_PORT",
    )
)  # fmt: skip

#: Names without a queue's, Celery's own among them, which hold for every queue that they apply to.
SHARED = {
    "BULK_INSERT_CHUNK_SIZE": "rows_per_job",
    "CELERY_WORKER_PREFETCH_MULTIPLIER": "prefetch_multiplier",
    "CELERY_WORKER_MAX_TASKS_PER_CHILD": "max_tasks_per_child",
}
SCALARS = (
    "concurrency", "prefetch_multiplier", "max_tasks_per_worker", "max_memory_mib", "max_tasks_per_child",
    "max_memory_per_child_mib", "max_length", "max_payload_bytes", "time_limit_s", "drain_s", "max_orphaned",
    "wedged_after_s", "rows_per_job", "pool", "gate", "max_in_flight", "answer_tokens", "default_priority",
    "batch.max_jobs", "batch.max_tokens", "batch.max_rows", "batch.max_wait_s",
    "retry.max_attempts", "retry.backoff_s", "retry.backoff_max_s", "retry.jitter",
    "breaker.failures", "breaker.within_s", "breaker.open_s", "breaker.open_max_s",
)  # fmt: skip
GATE = (
    "max_shut_s",
    *(f"{bucket}.{key}" for bucket in ("requests", "tokens", "rows") for key in ("limit", "rate", "per", "burst")),
)
COMMON = (
    "retention.record_s", "retention.result_s", "retention.idempotency_s", "retention.dead_s",
    "retention.stream_s", "lease.duration_s", "lease.renew_every_s",
    "cache.enabled", "cache.analysis_ttl_s", "cache.embedding_ttl_s", "cache.model_ttl_s", "cache.max_temperature",
    "cache.memory_entries", "cache.memory_mib", "cache.memory_ttl_s",
)  # fmt: skip
#: The names that caches of answers usually have; FOREBAY_CACHE_* is the same.
CACHE = {
    "CACHE_ENABLED": "cache.enabled",
    "CACHE_ANALYSIS_TTL": "cache.analysis_ttl_s",
    "CACHE_EMBEDDING_TTL": "cache.embedding_ttl_s",
    "CACHE_MODEL_TTL": "cache.model_ttl_s",
}


@dataclass(frozen=True)
class Setting:
    """One effective value, and where it came from."""

    key: str
    value: Any
    source: str


@dataclass
class Reading:
    """What a file says: its values, the source of each dotted key, and the faults found on the way."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)  # keys whose values are faults already

    def where(self, path: list[str]) -> str:
        """Return the source of a key, or of the nearest part around it that the file has."""
        for length in range(len(path), 0, -1):
            key = ".".join(path[:length])
            if key in self.sources:
                return self.sources[key]
        return str(self.path)


def read(path: Path, environ: Mapping[str, str]) -> Reading:
    """Read a file and the variables that override it. Raises `ConfigurationError` when it is no YAML mapping."""
    import yaml

    text = _text(path)
    try:
        faults = _forbidden(text, path)
        node = None if faults else yaml.compose(text, yaml.SafeLoader)
    except yaml.reader.ReaderError as error:  # of a text; its position counts characters
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError([f"{path}:{line}: not YAML: {chr(int(error.character))!r} is not allowed"]) from None
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise ConfigurationError([f"{place}: not YAML: {error.problem}"]) from None
    if faults:
        raise ConfigurationError(faults)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError([f"{path}: must be a mapping with the key queues"])
    reading = Reading(path)
    reading.values = _mapping(node, "", reading)
    _override(reading, {variable: value for variable, value in environ.items() if value.strip()})
    return reading


def whole_number(environ: Mapping[str, str], variable: str, default: int, least: int, most: int) -> int:
    """Return a variable's whole number; empty is as good as unset. Raises `ConfigurationError` saying the bounds."""
    given = environ.get(variable, "").strip()
    if not given:
        return default
    if re.fullmatch(r"[0-9]{1,18}", given) and least <= int(given) <= most:
        return int(given)
    shown = given if len(given) <= SHOWN else given[: SHOWN - 3] + "..."
    raise ConfigurationError(
        [f"environment variable {variable}: {shown!r}: must be a whole number from {least} to {most}"]
    )


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError([f"{path}: cannot be read: {reason}; set FOREBAY_QUEUES to your file"]) from None
    if len(content) > LARGEST_BYTES:
        raise ConfigurationError([f"{path}: has {len(content)} bytes; at most {LARGEST_BYTES} are read"])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError([f"{path}:{line}: not UTF-8: byte 0x{content[error.start]:02x}"]) from None


def _forbidden(text: str, path: Path) -> list[str]:
    """Return a fault for each part of YAML that hides what a file says, or what it costs to read."""
    import yaml

    faults: list[str] = []
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        place = f"{path}:{event.start_mark.line + 1}" if event.start_mark else str(path)
        if isinstance(event, yaml.AliasEvent):
            faults.append(f"{place}: aliases (*name) are not allowed; repeat what they stand for")
        elif getattr(event, "tag", None):
            faults.append(f"{place}: tags (!name) are not allowed; write the value alone")
        if len(faults) == MOST_FORBIDDEN:
            return faults
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                return [*faults, f"{place}: is nested more than {DEEPEST} levels deep"]
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return faults


def _mapping(node: Any, prefix: str, reading: Reading) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        name = str(key_node.value)
        key = f"{prefix}{name}"
        where = f"{reading.path}:{key_node.start_mark.line + 1}"
        if name in values:
            reading.faults.append(f"{where}: {key}: stands here a second time; it is on {reading.sources[key]} already")
        reading.sources[key] = where
        values[name] = _value(value_node, f"{key}.", reading)
    return values


def _value(node: Any, prefix: str, reading: Reading) -> Any:
    import yaml
    from yaml.constructor import ConstructorError

    if isinstance(node, yaml.MappingNode):
        return _mapping(node, prefix, reading)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, f"{prefix}{number}.", reading) for number, each in enumerate(node.value)]
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (ConstructorError, ValueError) as error:
        key = prefix.removesuffix(".")
        shown = node.value if len(node.value) <= SHOWN else node.value[: SHOWN - 3] + "..."
        reading.faults.append(
            f"{reading.path}:{node.start_mark.line + 1}: {key}: {shown!r}: {getattr(error, 'problem', None) or error}"
        )
        reading.unread.add(key)
        return None


def _override(reading: Reading, environ: Mapping[str, str]) -> None:
    """Lay variables over the file's values; name those that look like overrides and are none."""
    declared = reading.values.get("queues")
    queues = declared if isinstance(declared, dict) else {}
    names = [name for name, value in queues.items() if isinstance(value, dict)]
    known = {_variable(key): key for key in COMMON} | CACHE
    known |= {_variable(f"{name}.{key}"): f"queues.{name}.{key}" for name in names for key in SCALARS}
    gates = reading.values.get("gates")
    for name in gates if isinstance(gates, dict) else ():
        known |= {_variable(f"gates.{name}.{key}"): f"gates.{name}.{key}" for key in GATE}
    for variable, value in sorted(environ.items()):  # FOREBAY_* last, so that a queue's own variable wins
        if variable in known:
            _put(reading, known[variable], value, variable)
        elif variable in SHARED:
            key = SHARED[variable]
            for name in names:
                pool = environ.get(_variable(f"{name}.pool"), queues[name].get("pool"))
                applies = {"max_tasks_per_child": pool == "prefork", "rows_per_job": "rows_per_job" in queues[name]}
                if applies.get(key, True):
                    _put(reading, f"queues.{name}.{key}", value, variable)
        elif re.match(r"FOREBAY_[A-Z]", variable) and variable not in OTHERS:
            hint = nearest(variable, [*known, *OTHERS])
            reading.faults.append(f"environment: {variable}: {value!r}: overrides nothing{hint}")


def _variable(key: str) -> str:
    return "FOREBAY_" + key.upper().replace(".", "_")


def _put(reading: Reading, key: str, value: str, variable: str) -> None:
    *path, last = key.split(".")
    part = reading.values
    for each in path:
        if part.get(each) is None:
            part[each] = {}
        part = part[each]
        if not isinstance(part, dict):
            return  # that is a fault of the file, named there
    part[last] = _scalar(value)
    reading.sources[key] = f"environment variable {variable}"
    reading.unread.discard(key)


def _scalar(text: str) -> int | float | str:
    """Return a variable's text as the number it spells: a variable has no other way to say one, the file has."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text.strip()
