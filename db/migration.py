"""Brings the schema to a revision, one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, NullPool

from db import engine
from db.errors import MigrationError

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x666F726562617900  # "forebay": advisory locks are numbers, shared by all users of a database
_LOCK_POLL_S = 0.05


def upgrade(revision: str = "head", lock_timeout_s: float = 300.0) -> list[str]:
    """Apply the revisions that are pending, up to `revision`, and return those that this call applied.

    Raises MigrationError when another process migrates for longer than `lock_timeout_s`, or when the database
    is of a revision that this code does not know.
    """
    with _separate_engine() as own, _lock(own, lock_timeout_s), own.connect() as connection:
        before = _pending(connection)
        _run(connection, lambda config: command.upgrade(config, revision))
        after = _pending(connection)
    return [name for name in before if name not in after]


def downgrade(revision: str, lock_timeout_s: float = 300.0) -> None:
    """Take back the revisions above `revision`; "base" takes back all, and with them all that is stored.

    Raises MigrationError as `upgrade` does, and when `revision` is unknown.
    """
    with _separate_engine() as own, _lock(own, lock_timeout_s), own.connect() as connection:
        _run(connection, lambda config: command.downgrade(config, revision))


def current() -> str | None:
    """Return the revision of the database, or None when nothing was applied yet."""
    with engine.engine().connect() as connection:
        return _current(connection)


def pending() -> list[str]:
    """Return the revisions that are not applied yet, in the order of application.

    Raises MigrationError when the database is of a revision that this code does not know.
    """
    with engine.engine().connect() as connection:
        return _pending(connection)


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _pending(connection: Connection) -> list[str]:
    scripts = ScriptDirectory.from_config(_config())
    try:
        applied = _current(connection) or "base"
        found = [script.revision for script in scripts.iterate_revisions("head", applied)]
    except RevisionError as error:
        raise MigrationError(f"{error}: this database was migrated by a newer version of the code") from error
    finally:
        connection.rollback()  # ends the transaction that reading began
    return found[::-1]


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _separate_engine() -> Iterator[Engine]:
    """Give an engine without pool and statement timeout: a migration may take as long as it needs."""
    given = replace(engine.settings(), statement_timeout_s=0)
    own = sqlalchemy.create_engine(given.url, poolclass=NullPool, connect_args=engine.connect_arguments(given))
    try:
        yield own
    finally:
        own.dispose()


@contextmanager
def _lock(own: Engine, timeout_s: float) -> Iterator[None]:
    """Hold the advisory lock on a connection of its own, outside any transaction.

    Those who wait ask again and again instead of blocking: a blocked statement holds a snapshot, and
    CREATE INDEX CONCURRENTLY would wait for it while it waits for the lock.
    """
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        give_up_at = time.monotonic() + timeout_s
        while not connection.scalar(sqlalchemy.select(sqlalchemy.func.pg_try_advisory_lock(_LOCK_KEY))):
            if time.monotonic() >= give_up_at:
                raise MigrationError(
                    f"another process has been migrating this database for over {timeout_s:g} s: wait for it or end it"
                )
            time.sleep(_LOCK_POLL_S)
        yield  # closing the connection releases the lock, whatever happened


def _run(connection: Connection, step: Callable[[Config], None]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        step(config)
    except CommandError as error:
        raise MigrationError(str(error)) from error
