"""Moves rows into a table through COPY, by way of a temporary table where they meet rows that are there."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import psycopg2
from psycopg2 import sql
from sqlalchemy.orm import Session

from db import schema
from db.bulk import copy_text
from db.errors import Fault, RowError, TableError, fault_of, place_of
from db.query_cache import touched
from db.schema import Column
from db.tuning import statements

_CHUNK_BYTES = 65536
_NAME = "forebay_staging"
_STAGING = sql.Identifier("pg_temp", _NAME)
Rows = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Counts:
    """Rows inserted, updated, deleted; skipped are those that changed nothing."""

    inserted: int = 0
    updated: int = 0
    skipped: int = 0
    deleted: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.inserted + other.inserted,
            self.updated + other.updated,
            self.skipped + other.skipped,
            self.deleted + other.deleted,
        )


def insert(session: Session, table: str, columns: Sequence[Column], rows: Rows) -> Counts:
    """Copy the rows into the table. Raises RowError, TableError, as all of this module's functions do."""
    data = copy_text.encode(columns, rows)
    with _cursor(session, table, table, columns) as cursor:
        inserted = _copy(cursor, sql.Identifier("public", table), columns, data)
    return Counts(inserted=inserted, skipped=len(rows) - inserted)


def insert_new(session: Session, table: str, columns: Sequence[Column], rows: Rows, key: Sequence[str]) -> Counts:
    """Insert the rows whose key is not there yet; without a key, those that break no unique index."""
    with _staged(session, table, columns, rows) as (cursor, line):
        order = [*map(sql.Identifier, key), line]
        cursor.execute(
            sql.SQL(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} ORDER BY {} ON CONFLICT {} DO NOTHING"
            ).format(
                sql.Identifier("public", table),
                _names(columns),
                _names(columns),
                _STAGING,
                sql.SQL(", ").join(order),
                sql.SQL("({})").format(_listed(key)) if key else sql.SQL(""),
            )
        )
        inserted = cursor.rowcount
    return Counts(inserted=inserted, skipped=len(rows) - inserted)


def upsert(session: Session, table: str, columns: Sequence[Column], rows: Rows, key: Sequence[str]) -> Counts:
    """Insert the rows, or update those whose key is there."""
    others = [column.name for column in columns if column.name not in key]
    if not others:
        return insert_new(session, table, columns, rows, key)
    with _staged(session, table, columns, rows) as (cursor, line):
        cursor.execute(
            sql.SQL(
                "WITH done AS (INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} ORDER BY {} "
                "ON CONFLICT ({}) DO UPDATE SET {} "
                "RETURNING xmax = 0 AS is_new) "  # a row that was updated carries the lock of that
                "SELECT count(*) FILTER (WHERE is_new), count(*) FROM done"
            ).format(
                sql.Identifier("public", table),
                _names(columns),
                _names(columns),
                _last(key, line),
                _listed(key),
                _listed(key),
                sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others),
            )
        )
        inserted, done = cast("tuple[int, int]", cursor.fetchone())
    return Counts(inserted=inserted, updated=done - inserted, skipped=len(rows) - done)


def update(session: Session, table: str, columns: Sequence[Column], rows: Rows, key: Sequence[str]) -> Counts:
    """Update the rows whose key is there."""
    others = [column.name for column in columns if column.name not in key]
    with _staged(session, table, columns, rows) as (cursor, line):
        _lock(cursor, table, key)
        cursor.execute(
            sql.SQL("UPDATE {} AS target SET {} FROM {} WHERE {}").format(
                sql.Identifier("public", table),
                sql.SQL(", ").join(sql.SQL("{0} = given.{0}").format(sql.Identifier(name)) for name in others),
                _last(key, line),
                _same(key),
            )
        )
        updated = cursor.rowcount
    return Counts(updated=updated, skipped=len(rows) - updated)


def delete(session: Session, table: str, columns: Sequence[Column], rows: Rows, key: Sequence[str]) -> Counts:
    """Delete the rows whose key is given."""
    with _staged(session, table, columns, rows) as (cursor, _):
        _lock(cursor, table, key)
        cursor.execute(
            sql.SQL("DELETE FROM {} AS target USING {} AS given WHERE {}").format(
                sql.Identifier("public", table), _STAGING, _same(key)
            )
        )
        deleted = cursor.rowcount
    return Counts(deleted=deleted, skipped=len(rows) - deleted)


@contextmanager
def _staged(
    session: Session, table: str, columns: Sequence[Column], rows: Rows
) -> Iterator[tuple[Any, sql.Identifier]]:
    """Give a cursor with the rows in the temporary table, and the column that numbers them."""
    data = copy_text.encode(columns, rows)
    taken = {column.name for column in columns}
    line = sql.Identifier(next(name for number in range(len(taken) + 1) if (name := f"line_{number}") not in taken))
    with _cursor(session, table, _NAME, columns) as cursor:
        cursor.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier(_NAME), _names(columns), sql.Identifier("public", table)
            )
        )
        cursor.execute(sql.SQL("ALTER TABLE {} ADD {} bigint GENERATED ALWAYS AS IDENTITY").format(_STAGING, line))
        _copy(cursor, _STAGING, columns, data)
        yield cursor, line
        cursor.execute(sql.SQL("DROP TABLE {}").format(_STAGING))


@contextmanager
def _cursor(session: Session, table: str, copied: str, columns: Sequence[Column]) -> Iterator[Any]:
    touched.tables(session, table)
    connection = cast("psycopg2.extensions.connection", session.connection().connection.driver_connection)
    with connection.cursor() as cursor:
        try:
            yield cursor
            # What would be checked at the commit is checked here, where the row at fault can still be set apart.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg2.Error as error:
            if fault_of(error) is not Fault.INPUT:
                raise
            schema.forget(session, table)
            raise _refused(error, table, copied, columns) from error


def _copy(cursor: Any, into: sql.Identifier, columns: Sequence[Column], data: bytes) -> int:
    """Return how many rows went in: all but those that a trigger left out."""
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT text, ENCODING 'UTF8')").format(into, _names(columns))
    with statements.timed(statement.as_string(cursor)):
        cursor.copy_expert(statement, io.BytesIO(data), _CHUNK_BYTES)
    return cast("int", cursor.rowcount)


def _lock(cursor: Any, table: str, key: Sequence[str]) -> None:
    """Lock the rows in the order of their key, which an UPDATE or DELETE does not promise."""
    cursor.execute(
        sql.SQL(
            "SELECT count(*) FROM (SELECT FROM {} AS target JOIN {} AS given ON {} ORDER BY {} FOR UPDATE OF target) _"
        ).format(
            sql.Identifier("public", table),
            _STAGING,
            _same(key),
            sql.SQL(", ").join(sql.Identifier("target", name) for name in key),
        )
    )


def _last(key: Sequence[str], line: sql.Identifier) -> sql.Composed:
    """Select the staged rows, of those with the same key the last; a key with a NULL is like no other.

    Where an index takes NULLs as equal, such rows meet in the table, are refused, and go in one by one.
    """
    unknown = sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(name)) for name in key)
    return sql.SQL(
        "(SELECT DISTINCT ON ({0}, CASE WHEN {1} THEN {2} END) * FROM {3} "
        "ORDER BY {0}, CASE WHEN {1} THEN {2} END, {2} DESC) AS given"
    ).format(_listed(key), unknown, line, _STAGING)


def _same(key: Sequence[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("target.{0} = given.{0}").format(sql.Identifier(name)) for name in key)


def _names(columns: Sequence[Column]) -> sql.Composed:
    return _listed([column.name for column in columns])


def _listed(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _refused(error: psycopg2.Error, table: str, copied: str, columns: Sequence[Column]) -> RowError | TableError:
    """Say in which row and column of the rows copied the server found the fault."""
    said = error.diag
    reason = "; ".join(filter(None, [said.message_primary or str(error).strip(), said.message_detail]))
    if (error.pgcode or "").startswith("42"):  # no row's fault: the table changed, or may not be written
        return TableError(f"table {table!r}: {reason}")
    if error.pgcode == "23505" and copied == table:  # a plain insert
        reason += "; to take rows that are there, skip or update them on conflict"
    line, column = place_of(said.context or "", copied, [each.name for each in columns])
    return RowError(line, said.column_name or column, reason)
