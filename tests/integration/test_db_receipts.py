"""Receipts: one per job, decided by the primary key."""

from __future__ import annotations

import threading
import uuid

import pytest
from sqlalchemy import text

from db import receipts
from db.engine import transaction
from db.errors import TextError
from tests.eventually import eventually

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def job_id() -> str:
    return uuid.uuid4().hex


def test_the_first_receipt_stays(job_id: str) -> None:
    with transaction() as session:
        assert receipts.of(session, job_id) is None
        assert receipts.write(session, job_id, "bulk_insert", {"rows": 3})
    with transaction() as session:
        assert not receipts.write(session, job_id, "bulk_insert", {"rows": 4})
        assert receipts.of(session, job_id) == {"rows": 3}


def waits() -> bool:
    """Say whether a run waits for another one."""
    with transaction() as session:
        return bool(session.execute(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")).scalar_one())


@pytest.mark.parametrize("commits", [True, False])
def test_a_second_run_waits_for_the_first(job_id: str, commits: bool) -> None:
    written: list[bool] = []

    def second() -> None:
        with transaction() as session:
            written.append(receipts.write(session, job_id, "bulk_insert", {}))

    other = threading.Thread(target=second)
    with transaction() as session:
        assert receipts.write(session, job_id, "bulk_insert", {})
        other.start()
        eventually(waits)
        assert written == []
        if not commits:
            session.rollback()
    other.join(10)
    assert written == [not commits]


def test_a_job_id_that_cannot_be_stored_is_named() -> None:
    with transaction() as session, pytest.raises(TextError, match="job_id"):
        receipts.write(session, "a\0", "bulk_insert", {})


def test_of_many_receipts_only_the_new_ones_are_written(job_id: str) -> None:
    first, second, third = (f"{job_id}-{number}" for number in range(3))
    with transaction() as session:
        assert receipts.write_all(session, "embedding", {second: {"key": "é \\u0041"}, first: {"key": "a"}}) == {}
    with transaction() as session:
        earlier = receipts.write_all(session, "embedding", {third: {"key": "c"}, second: {"key": "other"}})
        assert earlier == {second: {"key": "é \\u0041"}}
        assert receipts.of(session, third) == {"key": "c"}
        assert receipts.write_all(session, "embedding", {}) == {}


def test_two_batches_with_jobs_in_common_do_not_lock_each_other_out(job_id: str) -> None:
    first, second = f"{job_id}-1", f"{job_id}-2"
    earlier: list[dict[str, object]] = []

    def other_batch() -> None:
        with transaction() as session:
            earlier.append(receipts.write_all(session, "embedding", {second: {"key": "b"}, first: {"key": "b"}}))

    other = threading.Thread(target=other_batch)
    with transaction() as session:
        assert receipts.write(session, first, "embedding", {"key": "a"})
        other.start()
        eventually(waits)
        # the other batch waits for the first receipt and holds no later one, or this would be a deadlock
        assert receipts.write(session, second, "embedding", {"key": "a"})
    other.join(30)
    assert earlier == [{first: {"key": "a"}, second: {"key": "a"}}]
