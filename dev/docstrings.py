"""Real input that every Python carries: its standard library's docstrings and the Unicode character database."""

import ast
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from pathlib import Path

UNICODE_COLUMNS = (
    "codepoint",
    "character",
    "name",
    "category",
    "bidirectional",
    "combining",
    "mirrored",
    "numeric",
)
SHORTEST, LONGEST = 60, 600


def unicode_rows() -> Iterator[list[object]]:
    """Yield one row for each named character, in the order of `UNICODE_COLUMNS`."""
    for codepoint in range(sys.maxunicode + 1):
        character = chr(codepoint)
        name = unicodedata.name(character, None)
        if name is not None:
            yield [
                codepoint,
                character,
                name,
                unicodedata.category(character),
                unicodedata.bidirectional(character),
                unicodedata.combining(character),
                bool(unicodedata.mirrored(character)),
                unicodedata.numeric(character, None),
            ]


def standard_library(most: int) -> list[tuple[str, str]]:
    """Return up to ``most`` docstrings as (dotted name, text), read from the sources, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in {"site-packages", "test", "idlelib", "lib2to3", "turtledemo"} or "tests" in parts:
            continue
        for name, text in _docstrings(path):
            if SHORTEST <= len(text) <= LONGEST and "\x00" not in text:
                found.setdefault(".".join((*parts, name)), text)
                if len(found) == most:
                    return list(found.items())
    return list(found.items())


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield node.name, text
