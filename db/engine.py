"""The one engine of this process, its pool, and transactions on it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from db.errors import SettingError
from db.pool import FairPool, PoolState
from db.query_cache import touched
from db.tuning import statements
from db.tuning.statements import Limits
from db.variables import Reading, Variables

_SCHEMES = {"postgresql", "postgresql+psycopg2"}
# By process id: a forked child finds none of its own, and must never use or close its parent's connections.
_engines: dict[int, Engine] = {}
_session: ContextVar[Session | None] = ContextVar("session", default=None)


@dataclass(frozen=True)
class Settings:
    """How to reach the database, from the environment.

    With `pgbouncer` the URL leads to a PgBouncer in transaction mode. `direct_url` leads past it to the server, for
    migrations, which hold a lock of their session; without one it is `url`.
    """

    url: URL
    direct_url: URL | None
    pgbouncer: bool
    pool_size: int
    pool_overflow: int
    pool_recycle_s: int
    pool_timeout_s: float
    pool_pre_ping: bool
    pool_lifo: bool
    connect_timeout_s: int
    statement_timeout_s: float
    lock_timeout_s: float  # of migrations alone
    keepalives_idle_s: int
    keepalives_interval_s: int
    keepalives_count: int
    statements: Limits  # from when on a statement is slow


def settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from the environment.

    Raises SettingError that names every faulty variable, its value and what is allowed.
    """
    variables = Variables(environment)
    found = read(variables)
    variables.check()
    return found


def read(variables: Variables) -> Settings:
    """Read the settings; what is wrong is among the variables' faults."""
    whole, seconds, switch = variables.whole, variables.seconds, variables.switch

    def address(name: str) -> URL | None:
        try:
            url = _url(name, variables.text(name))
        except SettingError as error:
            variables.faults.append(str(error))
            return None
        # Not its query, which may hold secrets too; as text a URL hides its password.
        variables.readings.append(Reading(name, str(url.set(query={})), is_given=True))
        return url

    return Settings(
        url=address("DATABASE_URL") or URL.create("postgresql+psycopg2"),
        direct_url=address("DATABASE_DIRECT_URL") if variables.text("DATABASE_DIRECT_URL") else None,
        pgbouncer=switch("DATABASE_PGBOUNCER", False),
        pool_size=whole("DATABASE_POOL_SIZE", 10, 1),
        pool_overflow=whole("DATABASE_POOL_OVERFLOW", 20, 0),
        pool_recycle_s=whole("DATABASE_POOL_RECYCLE_S", 3600, 1),
        pool_timeout_s=seconds("DATABASE_POOL_TIMEOUT_S", 30.0, 0.0),
        pool_pre_ping=switch("DATABASE_POOL_PRE_PING"),
        pool_lifo=switch("DATABASE_POOL_LIFO"),
        connect_timeout_s=whole("DATABASE_CONNECT_TIMEOUT_S", 10, 1),
        statement_timeout_s=seconds("DATABASE_STATEMENT_TIMEOUT_S", 30.0, 0.0),
        lock_timeout_s=seconds("DATABASE_LOCK_TIMEOUT_S", 5.0, 0.001),
        keepalives_idle_s=whole("DATABASE_KEEPALIVES_IDLE_S", 30, 1),
        keepalives_interval_s=whole("DATABASE_KEEPALIVES_INTERVAL_S", 10, 1),
        keepalives_count=whole("DATABASE_KEEPALIVES_COUNT", 5, 1),
        statements=Limits(
            slow_s=seconds("QUERY_SLOW_THRESHOLD", 0.1, 0.0),
            warning_s=seconds("QUERY_SLOW_WARNING", 0.5, 0.0),
            error_s=seconds("QUERY_SLOW_ERROR", 1.0, 0.0),
            is_on=switch("QUERY_SLOW_ENABLED"),
        ),
    )


def connect_arguments(given: Settings) -> dict[str, str | int]:
    """Return libpq's connection parameters; those that the URL itself names stay as they are there."""
    wanted: dict[str, str | int] = {
        "application_name": "forebay",
        "connect_timeout": given.connect_timeout_s,
        "keepalives": 1,
        "keepalives_idle": given.keepalives_idle_s,
        "keepalives_interval": given.keepalives_interval_s,
        "keepalives_count": given.keepalives_count,
    }
    in_url = given.url.query
    arguments = {name: value for name, value in wanted.items() if name not in in_url}
    # Options of the URL come last, because the server lets the last one win. Zero means no limit.
    # PgBouncer refuses options, or drops them: there each transaction sets its own limit.
    own = [] if given.pgbouncer else [f"-c statement_timeout={_milliseconds(given.statement_timeout_s)}"]
    options = in_url.get("options", "")
    found = " ".join([*own, *([options] if isinstance(options, str) else options)]).strip()
    return arguments | ({"options": found} if found else {})


def engine() -> Engine:
    """Return this process's engine; the first call in a process, forked or not, makes it.

    No connection is opened before the first statement. Raises SettingError.
    """
    process = os.getpid()
    found = _engines.get(process)
    if found is None:
        for parent in set(_engines) - {process}:
            inherited = _engines.pop(parent, None)
            if inherited is not None:
                inherited.dispose(close=False)
        # Threads may race to this line: the loser's engine has no connection yet and is dropped.
        found = _engines.setdefault(process, _make(settings()))
    return found


def pool_state() -> PoolState:
    """Return what this process's connections are doing, without opening one. Raises SettingError."""
    pool = engine().pool
    assert isinstance(pool, FairPool)
    return pool.state()


def close() -> None:
    """Close the idle connections of this process; the next call of `engine` reads the environment again."""
    found = _engines.pop(os.getpid(), None)
    if found is not None:
        found.dispose()


@contextmanager
def transaction() -> Iterator[Session]:
    """Give a session in one transaction: committed at the end of the block, rolled back by an error.

    A block within another one of the same thread joins it: several steps then cost one connection and one commit.
    """
    outer = _session.get()
    if outer is not None:
        yield outer
        return
    with Session(engine(), expire_on_commit=False) as session, session.begin():
        token = _session.set(session)
        try:
            yield session
        finally:
            _session.reset(token)


def open_session() -> Session | None:
    """Return the session of the `transaction` that this thread is in."""
    return _session.get()


def _make(given: Settings) -> Engine:
    made = sqlalchemy.create_engine(
        given.url,
        poolclass=FairPool,
        pool_size=given.pool_size,
        max_overflow=given.pool_overflow,
        pool_recycle=given.pool_recycle_s,
        pool_timeout=given.pool_timeout_s,
        pool_pre_ping=given.pool_pre_ping,
        pool_use_lifo=given.pool_lifo,
        connect_args=connect_arguments(given),
        hide_parameters=True,  # else prompts and rows would be in every error's text, and so in logs
    )
    if given.pgbouncer:
        limit = f"SET LOCAL statement_timeout = {_milliseconds(given.statement_timeout_s)}"

        def set_limit(connection: Connection) -> None:
            connection.exec_driver_sql(limit)

        event.listen(made, "begin", set_limit)
    aside = sqlalchemy.create_engine(
        given.url, poolclass=NullPool, connect_args=connect_arguments(given), hide_parameters=True
    )
    statements.watch(made, given.statements, aside)
    touched.watch(made)
    return made


def _url(name: str, given: str) -> URL:
    """Parse a database's URL. No message repeats it: it holds a password."""
    remedy = "set it to postgresql://user:password@host:port/database"
    if not given:
        raise SettingError(f"{name} is not set: {remedy}")
    try:
        url = sqlalchemy.make_url(given)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise SettingError(f"{name} is not a URL: {remedy}") from None
    if url.drivername not in _SCHEMES:
        schemes = " or ".join(sorted(_SCHEMES))
        raise SettingError(f"{name} starts with {url.drivername!r}, allowed is {schemes}: {remedy}")
    return url.set(drivername="postgresql+psycopg2")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
