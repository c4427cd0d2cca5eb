"""Revisions up and down, and their agreement with the models."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from db import engine, migration
from db.errors import MigrationError
from db.models import Base

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def empty_database(database: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Point DATABASE_URL at an empty database of the same server, dropped at the end."""
    url = engine.settings().url
    name = f"migrating_{uuid.uuid4().hex[:12]}"
    server = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.close()
    monkeypatch.setenv("DATABASE_URL", url.set(database=name).render_as_string(hide_password=False))
    yield
    engine.close()
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


def tables() -> set[str]:
    return set(inspect(engine.engine()).get_table_names()) - {"alembic_version"}


def test_up_down_and_up_again() -> None:
    assert (migration.current(), tables()) == (None, set())
    waiting = migration.pending()
    assert waiting[0] == "0001"
    assert migration.upgrade() == waiting
    assert (migration.current(), migration.pending()) == (waiting[-1], [])
    assert tables() == set(Base.metadata.tables)
    migration.downgrade("base")
    assert (migration.current(), tables()) == (None, set())
    assert migration.upgrade() == waiting


def test_a_second_upgrade_changes_nothing() -> None:
    migration.upgrade()
    assert migration.upgrade() == []


def test_each_revision_goes_down_and_up() -> None:
    for revision in migration.pending():
        assert migration.upgrade(revision) == [revision]
        migration.downgrade("-1")
        assert migration.upgrade(revision) == [revision]


def test_models_and_migrations_agree() -> None:
    migration.upgrade()
    with engine.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def constraints() -> dict[str, list[str]]:
    """Return what alembic does not compare: constraints, index definitions and generated columns, as SQL."""
    queries = {
        "constraints": "SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND conname NOT LIKE 'alembic%'",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'",
        "columns": "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, is_identity,"
        " identity_generation, column_default, generation_expression) FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version'",
    }
    with engine.engine().connect() as connection:
        return {what: sorted(connection.scalars(text(query))) for what, query in queries.items()}


def test_models_alone_would_make_the_same_schema() -> None:
    migration.upgrade()
    migrated = constraints()
    migration.downgrade("base")
    Base.metadata.create_all(engine.engine())
    assert constraints() == migrated


def test_several_at_once_apply_each_revision_once() -> None:
    waiting = migration.pending()
    applied: list[str] = []
    faults: list[Exception] = []

    def upgrade() -> None:
        try:
            applied.extend(migration.upgrade())
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=upgrade) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert applied == waiting


def test_one_that_waits_too_long_gives_up() -> None:
    with engine.engine().connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": migration._LOCK_KEY})
        with pytest.raises(MigrationError, match="another process has been migrating"):
            migration.upgrade(lock_timeout_s=0)
    assert migration.upgrade() != []


def test_a_database_of_a_newer_version_is_refused() -> None:
    migration.upgrade()
    with engine.transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'tomorrow'"))
    with pytest.raises(MigrationError, match=r"tomorrow.*newer version"):
        migration.pending()
    with pytest.raises(MigrationError, match="tomorrow"):
        migration.upgrade()


def test_an_unknown_revision_is_refused() -> None:
    migration.upgrade()
    with pytest.raises(MigrationError, match="yesterday"):
        migration.downgrade("yesterday")
