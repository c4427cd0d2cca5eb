"""Receipts: one per job, decided by the primary key."""

from __future__ import annotations

import threading
import uuid

import pytest

from db import receipts
from db.engine import transaction
from db.errors import TextError

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
        other.join(0.2)
        assert other.is_alive()
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
