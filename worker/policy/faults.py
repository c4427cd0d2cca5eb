"""Say in plain words what is wrong with queues.yaml."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from worker.errors import nearest
from worker.policy.queue_file import Reading

#: pydantic's kinds of error whose own text speaks of Python.
PLAIN = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "too_short": "must declare at least one queue",
    "missing": "is required",
}


def explained(read: Reading, errors: ValidationError, known_keys: Callable[[list[str]], set[str]]) -> list[str]:
    """Return each of pydantic's errors as one line: where, key, value, what is allowed, the nearest known name.

    ``known_keys`` gives those that may stand at a place of the file.
    """
    lines = []
    for error in errors.errors(include_url=False):
        path = [str(part) for part in error["loc"] if part != "[key]"]
        if error["type"] == "missing":
            lines.append(f"{read.where(path[:-1])}: {'.'.join(path)}: {PLAIN['missing']}")
            continue
        key = ".".join(path)
        if key not in read.unread:
            lines.append(
                f"{read.where(path)}: {key}: {_shown(error['input'])}: {_what_is_allowed(error, path, known_keys)}"
            )
    return lines


def _what_is_allowed(error: Any, path: list[str], known_keys: Callable[[list[str]], set[str]]) -> str:
    given = error["input"]
    if error["type"] == "extra_forbidden":
        known = sorted(known_keys(path[:-1]))
        return f"unknown key; known are {', '.join(known)}{nearest(path[-1], known)}"
    if error["type"] == "literal_error":
        allowed = str(error["ctx"]["expected"])
        return f"must be {allowed}{nearest(str(given), allowed.replace(chr(39), '').replace(' or ', ', ').split(', '))}"
    text = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    text = PLAIN.get(error["type"], f"{text[:1].lower()}{text[1:]}")
    return (
        f"{text}, and this is text" if error["type"] in ("int_type", "float_type") and isinstance(given, str) else text
    )


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
