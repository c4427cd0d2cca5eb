"""Brings the schema to a revision, one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg2.errors
import sqlalchemy
import sqlalchemy.exc
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, NullPool

from db import engine
from db.errors import MigrationError
from db.models import Base, is_ours

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK_KEY = 0x666F726562617900  # "forebay": advisory locks are numbers, shared by all users of a database
_LOCK_POLL_S = 0.05
_HOLDER = sqlalchemy.text("""
    SELECT concat_ws(' ', 'server process', pid, application_name, client_addr, 'connected since', backend_start)
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32 | objid::bigint) = :key LIMIT 1
""")
Say = Callable[[str], None]


def upgrade(revision: str = "head", lock_timeout_s: float = 300.0, say: Say = lambda _: None) -> list[str]:
    """Apply the revisions that are pending, up to `revision`, and return those that this call applied.

    `say` is told, once, that another process is migrating and which. Raises MigrationError when that takes longer than
    `lock_timeout_s`, when a table stays locked by others, or when the database is of a revision that this code does
    not know.
    """
    with separate_engine() as own, _lock(own, lock_timeout_s, say), own.connect() as connection:
        before = _pending(connection)
        _run(connection, lambda config: command.upgrade(config, revision))
        after = _pending(connection)
    return [name for name in before if name not in after]


def downgrade(revision: str, lock_timeout_s: float = 300.0, say: Say = lambda _: None) -> list[str]:
    """Take back the revisions above `revision`; "base" takes back all, and with them all that is stored.

    Returns the revisions that were taken back, the newest first. Raises MigrationError as `upgrade` does, and when
    `revision` is unknown.
    """
    with separate_engine() as own, _lock(own, lock_timeout_s, say), own.connect() as connection:
        before = _pending(connection)
        _run(connection, lambda config: command.downgrade(config, revision))
        after = _pending(connection)
    return [name for name in after if name not in before][::-1]


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


def differences() -> list[str]:
    """Return what the models say and the database does not have, or the reverse, one line each.

    Of a database without pending revisions it is what a model changed and no revision does. What alembic cannot
    compare (check constraints, generated columns) the tests do.
    """
    with engine.engine().connect() as connection:
        options = {"compare_server_default": True, "include_object": is_ours}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)
        connection.rollback()
    # A change of a column comes as a list of changes.
    changes = [each for change in found for each in (change if isinstance(change, list) else [change])]
    return [" ".join(str(part) for part in change if part is not None) for change in changes]


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
def separate_engine() -> Iterator[Engine]:
    """Give an engine without pool and statement timeout: a migration may take as long as it needs.

    It does not wait long for a table, though: whoever comes after it would wait in line behind it.
    """
    given = engine.settings()
    if given.pgbouncer and given.direct_url is None:
        raise MigrationError(
            "DATABASE_PGBOUNCER is on, and a migration needs a session of its own: set DATABASE_DIRECT_URL to the "
            "address of PostgreSQL itself"
        )
    given = replace(given, url=given.direct_url or given.url, pgbouncer=False, statement_timeout_s=0)
    arguments = engine.connect_arguments(given)
    arguments["options"] = f"-c lock_timeout={round(given.lock_timeout_s * 1000)} {arguments['options']}"
    own = sqlalchemy.create_engine(given.url, poolclass=NullPool, connect_args=arguments)
    try:
        yield own
    finally:
        own.dispose()


@contextmanager
def _lock(own: Engine, timeout_s: float, say: Say) -> Iterator[None]:
    """Hold the advisory lock on a connection of its own, outside any transaction.

    Those who wait ask again and again instead of blocking: a blocked statement holds a snapshot, and
    CREATE INDEX CONCURRENTLY would wait for it while it waits for the lock.
    """
    with own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        give_up_at, said = time.monotonic() + timeout_s, False
        while not connection.scalar(sqlalchemy.select(sqlalchemy.func.pg_try_advisory_lock(_LOCK_KEY))):
            if time.monotonic() >= give_up_at:
                raise MigrationError(
                    f"another process has been migrating this database for over {timeout_s:g} s"
                    f"{_holder(connection)}: wait for it or end it"
                )
            if not said:
                said = True
                say(f"waiting up to {timeout_s:g} s: another process migrates this database{_holder(connection)}")
            time.sleep(_LOCK_POLL_S)
        yield  # closing the connection releases the lock, whatever happened


def _run(connection: Connection, step: Callable[[Config], None]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        step(config)
    except CommandError as error:
        known = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
        raise MigrationError(
            f"{error}; known revisions are {', '.join(known)}, base is before them, -1 is a step back"
        ) from error
    except sqlalchemy.exc.PendingRollbackError as error:  # alembic leaving an index build that the server broke off
        cause = error.__context__
        raise MigrationError(f"the migration broke off ({cause}): run it again, it goes on from there") from error
    except sqlalchemy.exc.OperationalError as error:
        if not isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise
        raise MigrationError(
            f"a table was not free within DATABASE_LOCK_TIMEOUT_S={engine.settings().lock_timeout_s:g}; the revision "
            "that needs it was not applied: run it again when the database is quieter, or raise the limit"
        ) from error


def _holder(connection: Connection) -> str:
    found = connection.scalar(_HOLDER, {"key": _LOCK_KEY})
    return f" ({found})" if found else ""
