"""Which indexes a statement may want, by what it compares and sorts by. `index_advice` finds out which one helps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlglot
from sqlalchemy import Connection, text
from sqlglot import exp
from sqlglot.errors import SqlglotError

_PLACE = re.compile(r"\$(\d+)")
_EQUAL = (exp.EQ, exp.In)
_RANGES = (exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between)
_COLUMNS = text("""
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relname = ANY (:tables) AND c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
      AND a.attnum > 0 AND NOT a.attisdropped
""")


@dataclass(frozen=True)
class Candidate:
    """Columns of a table that an index may have, in order, those of ``falling`` from high to low."""

    table: str
    columns: tuple[str, ...]
    falling: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Place:
    """A column of a table."""

    table: str
    column: str


@dataclass(frozen=True)
class Names:
    """What the names of a statement stand for: alias -> table, table -> its columns."""

    tables: Mapping[str, str]
    columns: Mapping[str, set[str]]

    def place(self, given: object) -> Place | None:
        """Return the column that an expression is; None if it is none, or may be one of several."""
        if not isinstance(given, exp.Column):
            return None
        among = {self.tables.get(given.table, "")} if given.table else set(self.tables.values())
        owners = [table for table in among if given.name in self.columns.get(table, ())]
        return Place(owners[0], given.name) if len(owners) == 1 else None


def of(connection: Connection, statement: str) -> list[Candidate]:
    """Return the candidates of a statement in its normal form: what is equal first, then an order or a range."""
    try:
        parsed = sqlglot.parse_one(_PLACE.sub(r":p\1", statement), read="postgres")
    except SqlglotError:
        return []
    tables = {table.alias_or_name: table.name for table in parsed.find_all(exp.Table)}
    columns: dict[str, set[str]] = {}
    for table, column in connection.execute(_COLUMNS, {"tables": sorted(set(tables.values()))}):
        columns.setdefault(table, set()).add(column)
    names = Names(tables, columns)
    equal, ranged = list(_compared(parsed, names, _EQUAL)), list(_compared(parsed, names, _RANGES))
    ordered = list(_ordered(parsed, names))
    return list(dict.fromkeys(each for table in columns for each in _combined(table, equal, ranged, ordered)))


def _compared(parsed: exp.Expr, names: Names, kinds: tuple[type[exp.Expr], ...]) -> Iterator[Place]:
    """Yield the columns in comparisons of some kinds; of rows, all of their columns."""
    for condition in parsed.find_all(*kinds):
        for side in (condition.this, condition.args.get("expression")):
            for each in side.expressions if isinstance(side, exp.Tuple) else [side]:
                if (place := names.place(each)) is not None:
                    yield place


def _ordered(parsed: exp.Expr, names: Names) -> Iterator[Candidate]:
    """Yield each ORDER BY of columns of one table."""
    for order in parsed.find_all(exp.Order):
        keys = [(names.place(each.this), bool(each.args.get("desc"))) for each in order.expressions]
        places = [place for place, _ in keys if place]
        if len(places) == len(keys) and len({place.table for place in places}) == 1:
            falling = frozenset(place.column for place, desc in keys if place and desc)
            yield Candidate(places[0].table, tuple(place.column for place in places), falling)


def _combined(table: str, equal: list[Place], ranged: list[Place], ordered: list[Candidate]) -> Iterator[Candidate]:
    same = tuple(dict.fromkeys(place.column for place in equal if place.table == table))
    for order in ordered:
        if order.table == table:
            rest = tuple(column for column in order.columns if column not in same)
            yield Candidate(table, same + rest, order.falling - set(same))
    for place in ranged:
        if place.table == table and place.column not in same:
            yield Candidate(table, (*same, place.column))
    if same:
        yield Candidate(table, same)
    if len(same) > 1:
        for column in same:
            yield Candidate(table, (column,))
