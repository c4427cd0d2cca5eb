"""The errors of this package, and what a database error says about trying again."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence

import psycopg2
import sqlalchemy.exc


class StoreError(Exception):
    """The root of this package's errors.

    Errors of SQLAlchemy and psycopg2 pass through unwrapped: `fault_of` tells what they mean.
    """


class SettingError(StoreError):
    """An environment variable is missing or has a value that is not allowed."""


class PoolFullError(StoreError, sqlalchemy.exc.TimeoutError):
    """All connections of this process are in use."""


class QueryCacheError(StoreError):
    """A result may not be kept, or a key, kind or table of one is not allowed."""


class TableError(StoreError):
    """A table or one of its columns is not there, or may not be written in bulk."""


class TextError(StoreError):
    """A text holds a character that PostgreSQL cannot store."""


class VectorError(StoreError):
    """An embedding is empty or not of finite numbers, or a search among them is not possible."""


class ConversationError(StoreError):
    """A conversation was asked for something that it does not hold."""


class UnknownConversationError(ConversationError):
    """A user has no conversation of this id."""


class ForeignConversationError(ConversationError):
    """A conversation belongs to another user or tenant than the one who writes to it."""


class UnknownStatementError(StoreError):
    """No slow statement has this fingerprint, or several have."""


class PageError(StoreError):
    """A page was asked for that is too large, or that begins at a place that is none."""


class MigrationError(StoreError):
    """The schema could not be changed, or is of a revision that this code does not know."""


class RowError(StoreError):
    """A row was refused, by the encoder or by the server.

    `line` counts the rows given from 1. It is None when the server names no row (a foreign key is checked
    after the last one). `column` is None when the fault is of the whole row.
    """

    def __init__(self, line: int | None, column: str | None, reason: str) -> None:
        # All of it in args: the error crosses process boundaries, pickled or as JSON.
        super().__init__(line, column, reason)
        self.line = line
        self.column = column
        self.reason = reason

    def __str__(self) -> str:
        place = [] if self.line is None else [f"row {self.line}"]
        place += [] if self.column is None else [f"column {self.column}"]
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class Fault(enum.Enum):
    """Whose fault a database error is, and so whether the same input may succeed later."""

    AWAY = "away"  # the server cannot be reached or cannot work: no job is to blame, try later
    BUSY = "busy"  # lost against others, or too slow for a timeout: try again, but not for ever
    INPUT = "input"  # the input: it fails again however often it is tried
    UNKNOWN = "unknown"  # none of these is certain


# https://www.postgresql.org/docs/18/errcodes-appendix.html: whole classes by their first two characters.
_AWAY_CLASSES = frozenset(
    {
        "08",  # connection exceptions
        "53",  # insufficient resources: too many connections, out of memory, disk full
        "58",  # system errors: I/O
    }
)
_AWAY_STATES = frozenset(
    {
        "25006",  # read_only_sql_transaction: a failover left us on the standby
        "40003",  # statement_completion_unknown
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "57P05",  # idle_session_timeout
    }
)
_BUSY_STATES = frozenset(
    {
        "25P03",  # idle_in_transaction_session_timeout
        "25P04",  # transaction_timeout
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55006",  # object_in_use
        "55P03",  # lock_not_available: lock_timeout passed
        "57014",  # query_canceled: statement_timeout passed, mostly while waiting for a lock
    }
)
_INPUT_CLASSES = frozenset(
    {
        "21",  # cardinality violation
        "22",  # data exceptions
        "23",  # integrity constraints
        "42",  # unknown or forbidden table or column, syntax
        "44",  # WITH CHECK OPTION
        "54",  # program limits: a row, a statement or an index entry too large
        "P0",  # PL/pgSQL: a trigger's RAISE EXCEPTION
    }
)


_SCHEMA_STATES = frozenset({"3F000", "42703", "42P01"})  # no such schema, column, table


def fault_of(error: BaseException) -> Fault:
    """Tell whose fault an error of this package, SQLAlchemy or psycopg2 is.

    A failed attempt to connect carries no SQLSTATE, so a wrong password counts as AWAY too. That is wanted: while
    a server is restored or its password changed, every job would be lost to it.
    """
    match error:
        case SettingError() | MigrationError():
            return Fault.UNKNOWN
        case StoreError() if not isinstance(error, PoolFullError):
            return Fault.INPUT
        case sqlalchemy.exc.TimeoutError() | sqlalchemy.exc.DBAPIError(connection_invalidated=True):
            return Fault.AWAY
        case sqlalchemy.exc.DBAPIError(orig=psycopg2.Error() as driver_error):
            return _fault_of_driver(driver_error)
        case psycopg2.Error():
            return _fault_of_driver(error)
        case _:
            return Fault.UNKNOWN


def told(error: BaseException) -> str | None:
    """Return what an error of SQLAlchemy or psycopg2 says to a person, in one line with a remedy.

    None where no remedy is known: then its trace is needed.
    """
    driver_error = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    if not isinstance(driver_error, psycopg2.Error):
        return None
    said = " ".join(str(driver_error).partition("\nLINE ")[0].split()) or type(driver_error).__name__
    if driver_error.pgcode in _SCHEMA_STATES:
        return f"{said}: the database's schema is not the one that this code wants; run ./forebay migrate"
    match fault_of(error):
        case Fault.AWAY:
            return f"PostgreSQL cannot be used; start it, or correct DATABASE_URL: {said}"
        case Fault.BUSY:
            return f"PostgreSQL gave up: {said}; try again, or raise DATABASE_STATEMENT_TIMEOUT_S if it was that"
        case _:
            return None


def _fault_of_driver(error: psycopg2.Error) -> Fault:
    state = error.pgcode
    if state is None:
        # libpq lost the connection or never had one. DatabaseError itself, not a subclass, is how psycopg2
        # reports a connection that broke in the middle of COPY.
        lost = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        return Fault.AWAY if lost or type(error) is psycopg2.DatabaseError else Fault.UNKNOWN
    if state in _AWAY_STATES or state[:2] in _AWAY_CLASSES:
        return Fault.AWAY
    if state in _BUSY_STATES:
        return Fault.BUSY
    return Fault.INPUT if state[:2] in _INPUT_CLASSES else Fault.UNKNOWN


def place_of(context: str, table: str, columns: Sequence[str]) -> tuple[int | None, str | None]:
    """Find the line and the column in the context of COPY's error: "COPY table, line 3, column name: ..."."""
    line, column = None, None
    for each in context.splitlines():
        if not each.startswith(f"COPY {table}, "):
            continue
        place = re.match(r"\w+ (\d+)(?:, \w+ (.*))?", each.removeprefix(f"COPY {table}, "))
        if place is not None:
            line = int(place[1])
            rest = place[2] or ""
            column = column or next((name for name in columns if rest.startswith(f"{name}:")), None)
    return line, column
