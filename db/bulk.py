"""Puts many rows into one table through COPY, once per job."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import psycopg2
from psycopg2 import sql
from sqlalchemy.orm import Session

from db import copy_text, receipts, schema
from db.engine import transaction
from db.errors import Fault, RowError, TableError, fault_of
from db.schema import Column

_CHUNK_BYTES = 65536


@dataclass(frozen=True)
class Inserted:
    """How many rows the job put in, and whether an earlier run of it did that."""

    rows: int
    repeated: bool


def insert(job_id: str | None, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Inserted:
    """Insert the rows into an ordinary table of the schema public, all or none.

    The job's receipt commits in the same transaction, so a second run, also one at the same time, adds
    nothing and returns the count of the first. Without a job id every call inserts. What values may be:
    `copy_text.encode`.

    Raises TableError for an unknown table or column, RowError for a row that cannot be encoded or that the
    server refuses; `errors.fault_of` tells what any other error means.
    """
    return insert_all(table, columns, [(job_id, rows)])[0]


def insert_all(
    table: str, columns: Sequence[str], jobs: Sequence[tuple[str | None, Sequence[Sequence[object]]]]
) -> list[Inserted]:
    """Do `insert` for many jobs (id, rows) in one COPY and one transaction, all or none; return what each came to."""
    given = {job_id: {"rows": len(rows)} for job_id, rows in jobs if job_id is not None}
    with transaction() as session:
        # The receipts come first: a second run ends here, or waits here while the first one still runs.
        earlier = receipts.write_all(session, "bulk_insert", given) if given else {}
        new = [row for job_id, rows in jobs if job_id not in earlier for row in rows]
        found = schema.columns(session, table, columns)
        if new:
            _copy(session, table, found, copy_text.encode(found, new))
    return [
        Inserted(int(earlier[job_id].get("rows", 0)), repeated=True)
        if job_id is not None and job_id in earlier
        else Inserted(len(rows), repeated=False)
        for job_id, rows in jobs
    ]


def _copy(session: Session, table: str, columns: Sequence[Column], data: bytes) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT text, ENCODING 'UTF8')").format(
        sql.Identifier("public", table),
        sql.SQL(", ").join(sql.Identifier(column.name) for column in columns),
    )
    connection = cast("psycopg2.extensions.connection", session.connection().connection.driver_connection)
    with connection.cursor() as cursor:
        try:
            cursor.copy_expert(statement, io.BytesIO(data), _CHUNK_BYTES)
        except psycopg2.Error as error:
            if fault_of(error) is not Fault.INPUT:
                raise
            schema.forget(session, table)
            raise _refused(error, table, columns) from error


def _refused(error: psycopg2.Error, table: str, columns: Sequence[Column]) -> RowError | TableError:
    """Find the row and the column in what the server said.

    It says so in the context, as "COPY table, line 3, column name: ..."; a broken NOT NULL names its column
    apart.
    """
    said = error.diag
    reason = "; ".join(filter(None, [said.message_primary or str(error).strip(), said.message_detail]))
    if (error.pgcode or "").startswith("42"):  # no row's fault: the table changed, or may not be written
        return TableError(f"table {table!r}: {reason}")
    line, column = None, said.column_name
    for context in (said.context or "").splitlines():
        if not context.startswith(f"COPY {table}, "):
            continue
        place = re.match(r"\w+ (\d+)(?:, \w+ (.*))?", context.removeprefix(f"COPY {table}, "))
        if place is not None:
            line = int(place[1])
            rest = place[2] or ""
            column = column or next((each.name for each in columns if rest.startswith(f"{each.name}:")), None)
    return RowError(line, column, reason)
