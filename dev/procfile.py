"""The Procfile: one named process per line, no shell logic."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from dev.errors import StackError

_LINE = re.compile(r"^([A-Za-z0-9_-]+):\s*(\S.*)$")
_SINGLE_QUOTED = re.compile(r"'[^']*'")
_SHELL_LOGIC = re.compile(r"[|&;<>$`]")


@dataclass(frozen=True)
class Entry:
    """A process's name and its command, split into words."""

    name: str
    argv: tuple[str, ...]


def parse(text: str, source: str = "Procfile") -> tuple[Entry, ...]:
    """Return the entries in their order; empty lines and comments (`#`) are skipped.

    Raises StackError that names each faulty line.
    """
    entries: dict[str, Entry] = {}
    faults: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            entry = _entry(line)
        except ValueError as fault:
            faults.append(f"{source}, line {number}: {fault}: {line!r}")
            continue
        if entry.name in entries:
            faults.append(f"{source}, line {number}: the name {entry.name!r} is used twice")
        entries[entry.name] = entry
    if faults:
        raise StackError("\n".join(faults))
    return tuple(entries.values())


def read(path: Path) -> tuple[Entry, ...]:
    """Return the entries of a file; raise StackError when it cannot be read or is faulty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StackError(f"cannot read {path}: {error}") from error
    return parse(text, str(path))


def _entry(line: str) -> Entry:
    found = _LINE.match(line)
    if not found:
        raise ValueError("expected `name: command`, the name of letters, digits, - and _")
    name, command = found.groups()
    if logic := _SHELL_LOGIC.search(_SINGLE_QUOTED.sub("", command)):
        raise ValueError(f"{logic.group()!r} is shell logic, and no shell runs here; put it into a script of its own")
    try:
        return Entry(name, tuple(shlex.split(command)))
    except ValueError as fault:
        raise ValueError(f"{fault}".lower()) from fault
