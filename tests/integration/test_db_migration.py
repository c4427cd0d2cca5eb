"""Revisions up and down, and their agreement with the models."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Integer, Table, inspect, text
from typer.testing import CliRunner

from cli.app import app
from db import engine, migration
from db.errors import MigrationError
from db.models import Base
from tests.eventually import eventually

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
    assert migration.differences() == []


def test_a_model_without_its_migration_is_found() -> None:
    migration.upgrade()
    Table("things_without_a_migration", Base.metadata, Column("id", Integer, primary_key=True))
    extra = Column("mood", Integer)
    Base.metadata.tables["receipts"].append_column(extra)
    try:
        assert [line.split()[0] for line in migration.differences()] == ["add_table", "add_column"]
        done = CliRunner().invoke(app, ["migrate", "--check"])
    finally:
        Base.metadata.remove(Base.metadata.tables["things_without_a_migration"])
        Base.metadata.tables["receipts"]._columns.remove(extra)
    assert (done.exit_code, "no migration for: add_column receipts" in done.output) == (1, True)
    assert CliRunner().invoke(app, ["migrate", "--check"]).exit_code == 0


def test_the_command_goes_down_after_a_yes_and_up_again() -> None:
    migration.upgrade()
    newest = migration.current()
    asked = CliRunner().invoke(app, ["migrate", "--down", "0002"], input="n\n")
    assert (asked.exit_code, migration.current()) == (1, newest)
    done = CliRunner().invoke(app, ["migrate", "--down", "0002", "--yes"])
    assert (done.exit_code, migration.current()) == (0, "0002")
    assert done.output.startswith("took back")
    assert "0005, 0004, 0003" in done.output
    waiting = CliRunner().invoke(app, ["migrate", "--check"])
    assert (waiting.exit_code, "migration 0003 is pending" in waiting.output) == (1, True)
    assert "0003, 0004, 0005" in CliRunner().invoke(app, ["migrate"]).output


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


def test_one_that_waits_says_for_whom_and_gives_up_in_the_end() -> None:
    said: list[str] = []
    with engine.engine().connect() as holder:
        holder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": migration._LOCK_KEY})
        whose = f"server process {holder.scalar(text('SELECT pg_backend_pid()'))} forebay"
        with pytest.raises(MigrationError, match=rf"another process has been migrating.*\({whose}.*: wait for it"):
            migration.upgrade(lock_timeout_s=0)
        with pytest.raises(MigrationError, match="another process"):
            migration.upgrade(lock_timeout_s=0.2, say=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"waiting up to 0.2 s: another process migrates this database ({whose}")
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


def execute(statement: str, **given: object) -> None:
    with engine.transaction() as session:
        session.execute(text(statement), given)


def value(query: str) -> object:
    with engine.engine().connect() as connection:
        return connection.scalar(text(query))


def indexes() -> dict[str, bool]:
    """Return which indexes there are, and whether each may be used."""
    query = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
    with engine.engine().connect() as connection:
        return dict(connection.execute(text(f"{query} WHERE c.relname LIKE 'ix_%'")).all())


def test_data_survives_the_way_up_and_down() -> None:
    migration.upgrade("0002")
    execute("INSERT INTO conversations (id, user_id) VALUES ('c', 'ada')")
    execute("INSERT INTO messages (conversation_id, role, content, job_id) VALUES ('c', 'user', 'Running late', 'j')")
    execute("INSERT INTO documents (key, content, embedding, model) VALUES ('k', 'text', '[1,0]', 'm')")
    migration.upgrade()
    found = "SELECT content FROM messages WHERE search @@ websearch_to_tsquery('english', 'run')"
    assert value(found) == "Running late"
    migration.downgrade("0004")
    execute("INSERT INTO documents (key, content, embedding, model) VALUES ('l', 'text', '[1]', 'm')")
    moment = "SELECT created_at FROM documents WHERE key = 'k'"
    migration.upgrade()
    assert value(moment) == value("SELECT updated_at FROM documents WHERE key = 'k'")
    execute("INSERT INTO documents (key, content, embedding, model) VALUES ('l', 'text', '[2]', 'newer')")
    migration.downgrade("0004")
    assert value("SELECT string_agg(key || embedding, ' ' ORDER BY key) FROM documents") == "k[1,0] l[2]"
    execute("DELETE FROM documents WHERE key = 'l'")
    migration.downgrade("0002")
    assert "search" not in {column["name"] for column in inspect(engine.engine()).get_columns("messages")}
    assert value("SELECT content || job_id FROM messages") == "Running latej"
    assert value("SELECT key || embedding FROM documents") == "k[1,0]"
    migration.upgrade()
    assert value(found) == "Running late"


def test_an_index_whose_build_was_interrupted_is_built_again() -> None:
    migration.upgrade("0003")
    interrupted: list[MigrationError] = []

    def build() -> None:
        try:
            migration.upgrade("0004")
        except MigrationError as error:
            interrupted.append(error)

    with engine.engine().connect() as older:  # the build waits for a transaction that writes to the table
        older.execute(text("INSERT INTO conversations (id) VALUES ('c')"))
        builder = threading.Thread(target=build)
        builder.start()
        eventually(lambda: indexes().get("ix_conversations_user") is False)
        running = "FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND datname = current_database()"
        eventually(lambda: value(f"SELECT bool_or(pg_terminate_backend(pid)) {running}"))
        builder.join(30)
    assert [str(error).startswith("the migration broke off (") for error in interrupted] == [True]
    assert (indexes()["ix_conversations_user"], migration.current()) == (False, "0003")
    assert migration.upgrade("0004") == ["0004"]
    assert indexes()["ix_conversations_user"] is True
    assert indexes()["ix_messages_search"] is True


def test_an_index_that_stands_already_is_not_built_again() -> None:
    migration.upgrade("0003")
    execute("CREATE INDEX ix_messages_search ON messages USING gin (search)")
    before = value("SELECT 'ix_messages_search'::regclass::oid")
    migration.upgrade("0004")
    assert value("SELECT 'ix_messages_search'::regclass::oid") == before


def test_a_table_that_others_hold_is_given_up_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    migration.upgrade("0002")
    monkeypatch.setenv("DATABASE_LOCK_TIMEOUT_S", "0.05")
    with engine.transaction() as session:
        session.execute(text("LOCK TABLE messages IN ACCESS SHARE MODE"))
        with pytest.raises(MigrationError, match=r"DATABASE_LOCK_TIMEOUT_S=0.05; the revision .* was not applied"):
            migration.upgrade("0003")
    assert migration.current() == "0002"
    assert migration.upgrade("0003") == ["0003"]


def test_a_migration_does_not_go_through_pgbouncer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PGBOUNCER", "true")
    with pytest.raises(MigrationError, match="set DATABASE_DIRECT_URL"):
        migration.upgrade()
    monkeypatch.setenv("DATABASE_DIRECT_URL", os.environ["DATABASE_URL"])
    assert migration.upgrade("0001") == ["0001"]
