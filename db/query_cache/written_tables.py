"""Find the tables that a statement's text writes, and those that it reads.

All statements go this way, SQLAlchemy's as well as text, so that a table in a WITH is found too. What is taken for a
written table and is none does no harm: a version of it ends that nobody reads. A table that a function or a trigger
writes is not in the text: whoever runs such a statement tells `touched.tables`.

Not by sqlglot: each process would load it (0.1 s, 8 MiB), and its parser refuses what PostgreSQL takes (a COPY with
ENCODING) and sees nothing within DO. Patterns find too much rather than too little.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_QUALIFIED = rf"{_NAME}(?:\s*\.\s*{_NAME})?"
_WRITE = re.compile(
    r"\b(?P<verb>insert\s+into|update|delete\s+from|merge\s+into|truncate(?:\s+table)?"
    r"|alter\s+table(?:\s+if\s+exists)?|drop\s+table(?:\s+if\s+exists)?|copy)"
    rf'(?:\s+only\b)?(?=[\s"(])[\s(]*(?P<names>{_QUALIFIED}(?:[\s*)]*,\s*(?:only\b[\s(]*)?{_QUALIFIED})*)',
    re.IGNORECASE,
)
_READ = re.compile(
    rf"(?:\bfrom\b|\bjoin\b|,)\s*(?:lateral\s+|only\s+|\()*(?P<name>{_QUALIFIED})(?!\w)(?!\s*[.(])", re.IGNORECASE
)
_NO_WRITE = re.compile(r"\b(?:for\s+(?:no\s+key\s+)?update|do\s+update)\b", re.IGNORECASE)
_COMMENT = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_ONE = re.compile(rf"(?:only\s+)?({_QUALIFIED})", re.IGNORECASE)
_LAST = re.compile(rf"{_NAME}$")


@lru_cache(maxsize=1024)
def written(statement: str) -> frozenset[str]:
    """Return the tables, without their schema, that a statement may write; with those that a foreign key changes."""
    found: set[str] = set()
    # A comment may stand between two words, and what looks like one may be a part of a value: both are looked at.
    for given in {_NO_WRITE.sub(" ", statement), _NO_WRITE.sub(" ", _COMMENT.sub(" ", statement))}:
        for match in _WRITE.finditer(given):
            names = {_name(each[1]) for each in _ONE.finditer(match["names"])}
            is_insert = match["verb"].lower().startswith(("insert", "copy"))
            found |= names if is_insert else with_dependents(names)
    return frozenset(found)


@lru_cache(maxsize=1024)
def read(statement: str) -> frozenset[str]:
    """Return those of our tables that a statement reads; behind a comma, a column of a table's name counts as one."""
    bare = _COMMENT.sub(" ", statement)
    return frozenset({_name(match["name"]) for match in _READ.finditer(bare)} & _dependents().keys())


@lru_cache(maxsize=1024)
def is_one_change(statement: str) -> bool:
    """Say whether the driver's count of rows is all that a statement changes: no other is in a WITH or behind it."""
    begins = re.match(r"\s*(?:insert|update|delete)\b", statement, re.IGNORECASE) is not None
    return begins and ";" not in statement and re.search(r"\bwith\b", statement, re.IGNORECASE) is None


def with_dependents(names: set[str]) -> set[str]:
    """Return the tables and those whose rows go or change with theirs, by foreign keys."""
    found, new = set(names), set(names)
    while new:
        new = {child for name in new for child in _dependents().get(name, ())} - found
        found |= new
    return found


def _name(qualified: str) -> str:
    match = _LAST.search(qualified)
    name = match[0] if match else qualified
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()


@cache
def _dependents() -> dict[str, set[str]]:
    from db import models  # engine imports this module

    tables = models.Base.metadata.tables.values()
    found: dict[str, set[str]] = {table.name: set() for table in tables}
    for table in tables:
        for key in table.foreign_keys:
            if key.ondelete or key.onupdate:
                found[key.column.table.name].add(table.name)
    return found
