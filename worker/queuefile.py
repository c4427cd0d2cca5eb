"""Read queues.yaml as plain values, remember on which line each stands, and lay the environment over it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from worker.errors import ConfigurationError

LARGEST_BYTES = 1024 * 1024

#: FOREBAY_* variables that are not overrides of queues.yaml.
OTHERS = frozenset(
    f"FOREBAY_{name}"
    for name in (
        "HOME", "INSTALL", "KEY_PREFIX", "NODE", "QUEUES",
        "VALKEY_PORT", "POSTGRES_PORT", "PROVIDER_PORT", "FLOWER_PORT",
    )
)  # fmt: skip

#: Celery's own names, which hold for every queue that they apply to.
CELERY = {
    "CELERY_WORKER_PREFETCH_MULTIPLIER": "prefetch_multiplier",
    "CELERY_WORKER_MAX_TASKS_PER_CHILD": "max_tasks_per_child",
}
SCALARS = (
    "concurrency", "prefetch_multiplier", "max_tasks_per_worker", "max_memory_mib", "max_tasks_per_child",
    "max_memory_per_child_mib", "max_length", "max_payload_bytes", "time_limit_s", "rows_per_job", "pool",
    "batch.max_jobs", "batch.max_wait_s",
    "retry.max_attempts", "retry.backoff_s", "retry.backoff_max_s", "retry.jitter",
)  # fmt: skip
COMMON = (
    "retention.record_s", "retention.result_s", "retention.idempotency_s", "lease.duration_s", "lease.renew_every_s",
)  # fmt: skip


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

    reading = Reading(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            [f"{path}: cannot be read: {error.strerror}; set FOREBAY_QUEUES to your file"]
        ) from None
    if len(content) > LARGEST_BYTES:
        raise ConfigurationError([f"{path}: has {len(content)} bytes; at most {LARGEST_BYTES} are read"])
    try:
        for event in yaml.parse(content, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigurationError([f"{path}:{event.start_mark.line + 1}: aliases (*name) are not allowed"])
        node = yaml.compose(content, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigurationError([f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}"]) from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError([f"{path}: must be a mapping with the key queues"])
    reading.values = _mapping(node, "", reading)
    _override(reading, environ)
    return reading


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
        return [_value(each, prefix, reading) for each in node.value]
    try:
        return yaml.SafeLoader("").construct_object(node)  # type: ignore[no-untyped-call]
    except (ConstructorError, ValueError) as error:
        reading.faults.append(
            f"{reading.path}:{node.start_mark.line + 1}: {prefix.rstrip('.')}: {node.value!r}: "
            f"{getattr(error, 'problem', None) or error}"
        )
        return None


def _override(reading: Reading, environ: Mapping[str, str]) -> None:
    """Lay variables over the file's values; name those that look like overrides and are none."""
    queues = reading.values.get("queues")
    names = [name for name, value in queues.items() if isinstance(value, dict)] if isinstance(queues, dict) else []
    known = {_variable(key): key for key in COMMON}
    known |= {_variable(f"{name}.{key}"): f"queues.{name}.{key}" for name in names for key in SCALARS}
    for variable, value in sorted(environ.items()):
        if variable in known:
            _put(reading, known[variable], value, variable)
        elif variable in CELERY:
            for name in names:
                if CELERY[variable] == "prefetch_multiplier" or queues[name].get("pool") == "prefork":
                    _put(
                        reading,
                        f"queues.{name}.{CELERY[variable]}",
                        value,
                        variable,
                        _variable(name + "." + CELERY[variable]) in environ,
                    )
        elif re.match(r"FOREBAY_[A-Z]", variable) and variable not in OTHERS:
            nearest = get_close_matches(variable, [*known, *OTHERS], n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            reading.faults.append(f"environment: {variable}: {value!r}: overrides nothing{hint}")


def _variable(key: str) -> str:
    return "FOREBAY_" + key.upper().replace(".", "_")


def _put(reading: Reading, key: str, value: str, variable: str, outdone: bool = False) -> None:
    if outdone:  # the variable of the queue itself wins over the one for all queues
        return
    *path, last = key.split(".")
    part = reading.values
    for each in path:
        part = part.setdefault(each, {})
        if not isinstance(part, dict):
            return
    part[last] = value
    reading.sources[key] = f"environment variable {variable}"
