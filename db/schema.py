"""The tables and columns that are really there, read from the server's catalogue."""

from __future__ import annotations

import difflib
import enum
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import TableError


class Kind(enum.Enum):
    """What a column takes of lists, dicts and bytes; a str always goes to the server as it is."""

    SCALAR = "neither lists, dicts nor bytes"
    ARRAY = "lists, nested for more dimensions"
    JSON = "lists and dicts"
    JSON_ARRAY = "lists whose elements are JSON"
    VECTOR = "lists of numbers"
    BYTES = "bytes"


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its type as SQL spells it, and what that takes."""

    name: str
    type: str
    kind: Kind


_FRESH_S = 10.0
# relkind r: ordinary tables. Views, foreign tables and other schemas than public are not for bulk jobs.
_COLUMNS = text("""
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), t.typname, t.typcategory, e.typname
    FROM pg_attribute a
    JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_type d ON d.oid = a.atttypid
    JOIN pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
    LEFT JOIN pg_type e ON e.oid = t.typelem
    WHERE c.relname = :table AND c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
      AND a.attnum > 0 AND NOT a.attisdropped
""")
# Those that ON CONFLICT can name by their columns, and that tell any two rows apart.
_KEYS = text("""
    SELECT array_agg(a.attname::text ORDER BY a.attnum)
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indrelid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
    WHERE c.relname = :table AND c.relnamespace = 'public'::regnamespace
      AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    GROUP BY i.indexrelid
""")
_TABLES = text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'")


def columns(session: Session, table: str, names: Sequence[str]) -> list[Column]:
    """Return the named columns of an ordinary table in the schema public, in the order given.

    What was read is kept with the connection for a few seconds, since reading takes as long as copying a
    hundred rows. A name that is not among it is looked up again; `forget` after the server refused
    something.

    Raises TableError that names what is not there, what is, and the nearest of it.
    """
    kept = session.connection().info
    read_at, found = kept.get((__name__, table), (-math.inf, {}))
    if time.monotonic() - read_at > _FRESH_S or not found.keys() >= set(names):
        found = _read(session, table)
        kept[__name__, table] = (time.monotonic(), found)
    if not found:
        near = _nearest(table, list(session.scalars(_TABLES)))
        raise TableError(f"table {table!r} is not an ordinary table in the schema public{near}")
    for name in names:
        if name not in found:
            known = f"it has {', '.join(found)}{_nearest(name, list(found))}"
            raise TableError(f"table {table!r} has no column {name!r}; {known}")
    if not names:
        raise TableError(f"table {table!r}: no columns were given; it has {', '.join(found)}")
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise TableError(f"table {table!r}: column {twice!r} was given twice")
    return [found[name] for name in names]


def check_key(session: Session, table: str, key: Sequence[str]) -> None:
    """Raise TableError unless the columns are those of a unique index of the table."""
    kept = session.connection().info
    read_at, found = kept.get((__name__, table, "keys"), (-math.inf, []))
    if time.monotonic() - read_at > _FRESH_S or set(key) not in found:
        found = [set(names) for names in session.scalars(_KEYS, {"table": table})]
        kept[__name__, table, "keys"] = (time.monotonic(), found)
    if set(key) not in found or len(set(key)) < len(key):
        known = " or ".join(f"({', '.join(sorted(each))})" for each in found) or "none"
        raise TableError(f"table {table!r}: key ({', '.join(key)}) is of no unique index; it has {known}")


def forget(session: Session, table: str) -> None:
    """Read the table's columns and keys again at the next call."""
    kept = session.connection().info
    kept.pop((__name__, table), None)
    kept.pop((__name__, table, "keys"), None)


def _read(session: Session, table: str) -> dict[str, Column]:
    if "\0" in table:
        raise TableError(f"table {table!r}: a name cannot hold U+0000")
    rows = session.execute(_COLUMNS, {"table": table})
    return {
        name: Column(name, spelled, _kind(base, category, element)) for name, spelled, base, category, element in rows
    }


def _kind(base: str, category: str, element: str | None) -> Kind:
    if base in ("json", "jsonb"):
        return Kind.JSON
    if base in ("vector", "halfvec"):
        return Kind.VECTOR
    if base == "bytea":
        return Kind.BYTES
    if category == "A":
        return Kind.JSON_ARRAY if element in ("json", "jsonb") else Kind.ARRAY
    return Kind.SCALAR


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
