"""The engine, its pool and transactions against a real server."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection

import pytest
import sqlalchemy
from sqlalchemy import text

from db import engine
from db.conversations import turns
from db.engine import transaction
from db.errors import Fault, PoolFullError, fault_of
from db.pool import PoolState

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def fresh_engine(database: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let each test set the environment before the engine is made, and leave none of it behind."""
    engine.close()
    yield monkeypatch
    engine.close()


def backend() -> int:
    with transaction() as session:
        return int(session.scalar(text("SELECT pg_backend_pid()")) or 0)


def end_backend(process: int) -> None:
    """End a server process over a connection outside the pool, and return when it is gone."""
    outside = sqlalchemy.create_engine(engine.settings().url, poolclass=sqlalchemy.NullPool)
    with outside.connect() as connection:
        assert connection.scalar(text("SELECT pg_terminate_backend(:process, 5000)"), {"process": process})


def insert_and_fail() -> None:
    with transaction() as session:
        session.execute(text("INSERT INTO scratch_commit VALUES (1)"))
        session.execute(text("SELECT 1 / 0"))


def lose_the_connection() -> None:
    with transaction() as session:
        end_backend(int(session.scalar(text("SELECT pg_backend_pid()")) or 0))
        session.execute(text("SELECT 1"))


def test_a_transaction_commits_or_rolls_back() -> None:
    with transaction() as session:
        session.execute(text("CREATE TABLE scratch_commit (n int)"))
    with pytest.raises(sqlalchemy.exc.DataError):
        insert_and_fail()
    with transaction() as session:
        assert session.scalar(text("SELECT count(*) FROM scratch_commit")) == 0
        session.execute(text("DROP TABLE scratch_commit"))


def test_the_session_has_its_timeouts_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT_S", "7.5")
    with transaction() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "7500ms"
        assert session.scalar(text("SHOW application_name")) == "forebay"


def test_a_statement_over_its_timeout_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT_S", "0.05")
    with pytest.raises(sqlalchemy.exc.OperationalError) as raised, transaction() as session:
        session.execute(text("SELECT pg_sleep(10)"))
    assert fault_of(raised.value) is Fault.BUSY


def test_parameters_stay_out_of_error_texts() -> None:
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised, transaction() as session:
        session.execute(text("SELECT 1 / :zero, CAST(:prompt AS text)"), {"zero": 0, "prompt": "my secret"})
    assert "my secret" not in str(raised.value)


def test_a_full_pool_says_so_and_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_POOL_OVERFLOW", "0")
    monkeypatch.setenv("DATABASE_POOL_TIMEOUT_S", "0.01")
    with engine.engine().connect():
        with pytest.raises(PoolFullError, match="all 1 database connections") as raised:
            backend()
    assert fault_of(raised.value) is Fault.AWAY


def test_thirty_hold_and_the_next_is_told_which_settings_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_TIMEOUT_S", "0.01")
    with ExitStack() as holders:
        for _ in range(30):
            holders.enter_context(engine.engine().connect()).execute(text("SELECT 1"))
        assert engine.pool_state() == PoolState(in_use=30, idle=0, limit=30)
        assert engine.pool_state().is_exhausted
        wanted = r"all 30 .* within 0.01 s: raise DATABASE_POOL_SIZE=10 or DATABASE_POOL_OVERFLOW=20.*POOL_TIMEOUT_S"
        with pytest.raises(PoolFullError, match=wanted):
            backend()
    assert engine.pool_state() == PoolState(in_use=0, idle=10, limit=30)
    assert backend() > 0


def test_a_hundred_users_share_thirty_connections() -> None:
    most, users = threading.Semaphore(30), threading.Barrier(100)
    crowded: list[int] = []

    def use(_: int) -> int:
        users.wait(30)
        with transaction() as session:
            found = int(session.scalar(text("SELECT pg_backend_pid()")) or 0)
            assert most.acquire(blocking=False), "more than thirty connections at once"
            crowded.append(engine.pool_state().in_use)
            session.execute(text("SELECT pg_sleep(0.02)"))  # so that all thirty are wanted at once
            most.release()
        return found

    with ThreadPoolExecutor(100) as threads:
        backends = list(threads.map(use, range(100)))
    assert len(backends) == 100
    assert 10 < max(crowded) <= 30
    assert engine.pool_state() == PoolState(in_use=0, idle=10, limit=30)


def test_who_waits_for_a_connection_gets_it_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_POOL_OVERFLOW", "0")
    users, rounds = 8, 40
    together, turns = threading.Barrier(users), list[int]()

    def use(user: int) -> None:
        together.wait(30)
        for _ in range(rounds):
            with engine.engine().connect() as connection:
                turns.append(user)
                connection.execute(text("SELECT 1"))

    with ThreadPoolExecutor(users) as threads:
        list(threads.map(use, range(users)))
    assert set(turns[: 3 * users]) == set(range(users)), turns
    assert engine.pool_state() == PoolState(in_use=0, idle=1, limit=1)


def test_behind_pgbouncer_each_transaction_sets_its_limit_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_STATEMENT_TIMEOUT_S", "7.5")
    monkeypatch.setenv("DATABASE_PGBOUNCER", "true")
    with transaction() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "7500ms"
    with engine.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("COMMIT")  # whatever a session would keep is still there
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "0"


def test_a_connection_lost_while_idle_is_replaced() -> None:
    first = backend()
    assert backend() == first
    end_backend(first)
    assert backend() != first


def test_a_connection_lost_in_a_transaction_is_away() -> None:
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised:
        lose_the_connection()
    assert fault_of(raised.value) is Fault.AWAY
    assert backend() > 0


def test_a_server_that_is_not_there_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DATABASE_URL", f"postgresql://postgres@127.0.0.1:{unused.getsockname()[1]}/none")
        engine.engine()  # opens nothing
        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            backend()
    assert fault_of(raised.value) is Fault.AWAY


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ("53300", Fault.AWAY),
        ("57P01", Fault.AWAY),
        ("08006", Fault.AWAY),
        ("40001", Fault.BUSY),
        ("40P01", Fault.BUSY),
        ("55P03", Fault.BUSY),
        ("22P02", Fault.INPUT),
        ("23505", Fault.INPUT),
        ("42P01", Fault.INPUT),
        ("42501", Fault.INPUT),
        ("XX000", Fault.UNKNOWN),
        ("P0001", Fault.INPUT),
    ],
)
def test_sqlstates(state: str, fault: Fault) -> None:
    with pytest.raises(sqlalchemy.exc.DBAPIError) as raised, transaction() as session:
        session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$"))
    assert fault_of(raised.value) is fault
    assert raised.value.orig is not None
    assert fault_of(raised.value.orig) is fault


def report_backend(to_parent: Connection) -> None:
    to_parent.send((backend(), backend()))


def test_a_forked_child_has_connections_of_its_own() -> None:
    before = backend()
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    child = fork.Process(target=report_backend, args=(there,))
    child.start()
    assert here.poll(20)
    first, second = here.recv()
    child.join(20)
    assert child.exitcode == 0
    assert first == second != before
    assert backend() == before  # the child's end has not closed what is the parent's


def test_a_transaction_within_another_joins_it(database: None) -> None:
    def broken_off() -> None:
        with transaction() as outer:
            with transaction() as inner:
                assert inner is outer
            turns.store_user_message("joined", "c-joined", "hello")
            assert len(turns.history("c-joined")) == 1
            raise RuntimeError("rolls back both")

    with pytest.raises(RuntimeError):
        broken_off()
    assert turns.history("c-joined") == []
    with transaction() as first:
        pass
    with transaction() as second:
        assert second is not first
