"""Notice which tables a transaction changes, and end their versions once it is committed.

Statements are seen when the server has done them; what a savepoint takes back is forgotten with it, what a rollback
takes back with all. The end comes right behind COMMIT, in the thread that commits and before it goes on. SQLAlchemy
has events for sessions there and none for connections, so the dialect's own steps are wrapped: then a COMMIT whose
answer was lost counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from db.errors import QueryCacheError
from db.query_cache import kinds as query_kinds
from db.query_cache import table_versions, written_tables

_KEY = "forebay_touched"
#: The tables that the result computed just now says that it is read from.
_declared: ContextVar[frozenset[str] | None] = ContextVar("declared", default=None)


def watch(engine: Engine) -> None:
    """Notice what is changed by way of an engine. Without the query cache this costs nothing. Raises SettingError."""
    if not table_versions.is_enabled():
        return
    event.listen(engine, "after_cursor_execute", _executed)
    dialect: Any = engine.dialect
    # The event of a savepoint's begin does not tell its name.
    dialect.do_savepoint = _then(dialect.do_savepoint, _began_savepoint)
    dialect.do_rollback_to_savepoint = _then(dialect.do_rollback_to_savepoint, _rolled_back_savepoint)
    dialect.do_release_savepoint = _then(dialect.do_release_savepoint, _released_savepoint)
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def commit_and_tell(connection: Any) -> None:
        levels = _taken(connection)
        try:
            commit(connection)
        finally:
            _tell({name for _, names in levels for name in names})

    def rollback_and_forget(connection: Any) -> None:
        _taken(connection)
        rollback(connection)

    dialect.do_commit, dialect.do_rollback = commit_and_tell, rollback_and_forget


def tables(session: Session, *names: str) -> None:
    """Say that a transaction changes tables in a way that SQLAlchemy is not told: a function, a trigger, COPY."""
    _note(session.connection(), {table_versions.of_table(name) for name in written_tables.with_dependents({*names})})


def names(session: Session, *ending: str) -> None:
    """End versions with a transaction's commit."""
    _note(session.connection(), {*ending})


@contextmanager
def declared(given: tuple[str, ...]) -> Iterator[None]:
    """Refuse, in the block, statements that read one of our tables which is not given."""
    token = _declared.set(frozenset(given))
    try:
        yield
    finally:
        _declared.reset(token)


def _executed(connection: Connection, cursor: Any, statement: str, _: object, __: object, executemany: bool) -> None:
    given = _declared.get()
    if given is not None and (others := written_tables.read(statement) - given):
        raise QueryCacheError(
            f"a result kept for the tables {', '.join(sorted(given))} was also read from {', '.join(sorted(others))}:"
            " name it in tables=, or keep no such result"
        )
    if not (changed := written_tables.written(statement)):
        return
    # An INSERT that met what is there changed nothing. The count says so of one plain statement only.
    is_plain = written_tables.is_one_change(statement)
    if executemany or not is_plain or cursor.rowcount != 0:
        _note(connection, {table_versions.of_table(name) for name in changed})


def _note(connection: Connection, ending: set[str]) -> None:
    if not table_versions.is_enabled():
        return
    if getattr(connection.connection.driver_connection, "autocommit", False):
        _tell(ending)
        return
    levels = connection.info.setdefault(_KEY, [("", set())])
    levels[-1][1].update(ending)


def _then(step: Callable[..., None], also: Callable[..., None]) -> Callable[[Connection, str], None]:
    def both(connection: Connection, name: str) -> None:
        step(connection, name)
        also(connection, name)

    return both


def _began_savepoint(connection: Connection, name: str) -> None:
    connection.info.setdefault(_KEY, [("", set())]).append((name, set()))


def _rolled_back_savepoint(connection: Connection, name: str) -> None:
    levels = connection.info.get(_KEY, [])
    if name in [each for each, _ in levels]:
        while levels.pop()[0] != name:
            pass


def _released_savepoint(connection: Connection, name: str) -> None:
    levels = connection.info.get(_KEY, [])
    while name in [each for each, _ in levels]:
        _, inner = levels.pop()
        levels[-1][1].update(inner)


def _taken(connection: Any) -> list[tuple[str, set[str]]]:
    try:
        info = connection.info
    except NotImplementedError:  # the first connection of an engine, while the dialect looks at the server
        return []
    return info.pop(_KEY, []) if isinstance(info, dict) else []  # the driver's own has one of another kind


def _tell(ending: set[str]) -> None:
    # Nothing is kept that depends on these, so who writes messages need not wait for Redis.
    if ending := ending - {table_versions.of_table(name) for name in query_kinds.NEVER_TABLES}:
        table_versions.end(ending)
