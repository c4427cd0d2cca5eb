"""Builds and drops indexes while the table is written to, also after an earlier build was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, text

# CREATE INDEX CONCURRENTLY commits the index first and fills it then: what breaks it off leaves it behind, INVALID,
# which no query uses and every write pays for.
_IS_VALID = text("""
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = :name AND c.relnamespace = 'public'::regnamespace
""")


def build(connection: Connection, name: str, definition: str, unique: bool = False) -> bool:
    """Build the index `name` by CREATE INDEX CONCURRENTLY; return False when it stands already.

    `definition` is what follows the name, as "ON messages USING gin (search)". The connection is outside of any
    transaction (autocommit). An index of this name that an interrupted build left INVALID is dropped and built again.
    The build waits for older transactions, however long they last, and meanwhile locks out nobody but other changes of
    the table's schema.
    """
    quoted = connection.dialect.identifier_preparer.quote(name)
    with _patient(connection):
        is_valid = connection.scalar(_IS_VALID, {"name": name})
        if is_valid:
            return False
        if is_valid is False:
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS public.{quoted}")
        kind = "UNIQUE INDEX" if unique else "INDEX"
        # A definition may hold a per cent sign, which the driver would take for a parameter's.
        build = f"CREATE {kind} CONCURRENTLY {quoted} {definition}"
        connection.exec_driver_sql(build, execution_options={"no_parameters": True})
    return True


def drop(connection: Connection, name: str) -> None:
    """Drop the index, if it is there, without locking out those who write; outside of any transaction."""
    quoted = connection.dialect.identifier_preparer.quote(name)
    with _patient(connection):
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS public.{quoted}")


@contextmanager
def _patient(connection: Connection) -> Iterator[None]:
    """Take off the lock timeout: these statements wait, but make nobody else wait for them."""
    before = connection.scalar(text("SHOW lock_timeout"))
    connection.exec_driver_sql("SET lock_timeout = 0")
    yield  # after an error the connection is not used again
    connection.execute(text("SELECT set_config('lock_timeout', :before, false)"), {"before": before})
