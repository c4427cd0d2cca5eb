"""Effects that happen once or not at all: whatever is cut off, repeated, or asked of somebody else in between."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

import celeryconfig
from db import receipts
from db.bulk import changes
from db.bulk.changes import Change
from db.conversations import turns
from db.engine import transaction
from dev import stack
from dev.faulty.process import FaultyProvider
from tasks import BulkInsert, Embedding, enqueue, fault
from tasks.producer.enqueue import Options
from tasks.producer.kinds.payload import check
from tests.eventually import eventually
from tests.integration import probes
from tests.integration.test_jobs import run_again, scalar
from tests.integration.test_records import submission
from tests.integration.test_transport import Cutter
from tests.workers import Workers
from worker.errors import QueueFull
from worker.records.broker import Broker, connect
from worker.runtime.outcome import Fault
from worker.runtime.transport import Transport

TABLE = "unicode_characters"
COLUMNS = ("codepoint", "name")
COUNT = "SELECT count(*) FROM unicode_characters"
FIRST = "a-model"


# Refused rows and their receipt.


@pytest.fixture
def cut_off(database: None) -> Iterator[None]:
    """Let the server end the connection at the moment when the refused rows are written to a receipt."""
    function = """
        CREATE FUNCTION cut_off() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$
    """
    trigger = """
        CREATE TRIGGER cut_off BEFORE INSERT OR UPDATE ON receipts FOR EACH ROW
        WHEN (NEW.result ? 'rejected') EXECUTE FUNCTION cut_off()
    """
    with transaction() as session:
        session.execute(text(function))
        session.execute(text(trigger))
    yield
    restore()


def restore() -> None:
    with transaction() as session:
        session.execute(text("DROP FUNCTION IF EXISTS cut_off CASCADE"))


def test_refused_rows_their_receipt_and_the_good_rows_commit_together(cut_off: None) -> None:
    change = Change(TABLE, COLUMNS)
    rows: list[list[object]] = [[1, "a"], ["bad", "b"], [3, "c"]]
    with pytest.raises(OperationalError):
        changes.apply(change, rows, "a-job")
    with transaction() as session:
        assert receipts.of(session, "a-job") is None, "a second run would take the first for done"
    assert scalar(COUNT) == 0
    restore()
    second = changes.apply(change, rows, "a-job")
    assert ([each.line for each in second.rejected], second.repeated, scalar(COUNT)) == ([2], False, 2)
    third = changes.apply(change, rows, "a-job")
    assert (third.rejected, third.repeated, scalar(COUNT)) == (second.rejected, True, 2)


@pytest.mark.parametrize(
    ("state", "said"),
    [("40P01", Fault.PASSING), ("40001", Fault.PASSING), ("57P03", Fault.AWAY), ("23505", Fault.FATAL)],
)
def test_what_the_server_refuses_says_whether_to_try_again(database: None, state: str, said: Fault) -> None:
    with pytest.raises(DBAPIError) as raised, transaction() as session:
        session.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END $$"))
    assert fault.of(raised.value) is said


# A second run calls nobody.


def test_a_second_run_of_a_chat_makes_no_second_call(workers: Workers, broker: Broker, faulty: FaultyProvider) -> None:
    workers.start("chat", OPENAI_BASE_URL=faulty.base_url, OPENAI_CHAT_MODEL=FIRST)
    job = enqueue.chat("hello", conversation="twice")
    first = job.result(60)
    assert len(faulty.log()) == 1
    run_again(broker, job.id, "tasks.chat", "chat", {"message": "hello", "conversation": "twice"})
    eventually(lambda: job.record()["state"] == "succeeded")
    assert job.record()["delivery"] == "1", "it is a run of its own"
    assert job.result(60) == first
    assert len(faulty.log()) == 1
    assert len(turns.history("twice")) == 2


def test_a_notice_is_no_answer_that_would_save_the_call(
    workers: Workers, broker: Broker, faulty: FaultyProvider
) -> None:
    faulty.fault("rate_limit", next=1, retry_after="0")
    workers.start("chat", OPENAI_BASE_URL=faulty.base_url, OPENAI_CHAT_MODEL=FIRST)
    job = enqueue.chat("hello", conversation="noticed")
    assert job.result(60)["model"] == FIRST
    assert [each.status for each in faulty.log()] == [429, 200]


# Replies of accept that never come.


@pytest.fixture
def cutter(machine: stack.Started, broker: Broker) -> Iterator[Cutter]:
    """Give a way to the broker on which the first reply that says ``accepted`` is cut off, after the script ran."""
    made = Cutter(machine.addresses["CELERY_BROKER_URL"], b"accepted")
    yield made
    made.listener.close()


def test_a_lost_reply_of_accept_leaves_one_job_and_no_error(
    broker: Broker, cutter: Cutter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", cutter.url)
    options = [Options(job_id="named"), Options(idempotency_key="order 7"), Options()]
    jobs = enqueue.many([(Embedding(text="a text"), each) for each in options])
    assert cutter.cut.is_set()
    assert jobs[0].id == "named"
    assert [job.record()["state"] for job in jobs] == ["queued"] * 3
    assert len({job.id for job in jobs}) == 3
    waiting = [json.loads(each)["headers"]["id"] for each in broker.redis.lrange("embedding", 0, -1)]
    assert sorted(waiting) == sorted(job.id for job in jobs)
    assert broker.redis.hget(broker.keys.stats("embedding"), "submitted") == b"3"


def test_a_lost_reply_of_the_job_that_filled_its_queue_is_no_refusal(broker: Broker, cutter: Cutter) -> None:
    cut = connect(cutter.url)
    assert cut.accept(submission("a", max_length=1)) == "a"
    assert cutter.cut.is_set()
    with pytest.raises(QueueFull):
        cut.accept(submission("b", max_length=1))
    assert broker.redis.llen("chat") == 1


def test_a_lost_reply_leaves_a_plain_celery_producer_one_job_and_no_error(broker: Broker, cutter: Cutter) -> None:
    options: dict[str, Any] = celeryconfig.broker_transport_options
    with Connection(cutter.url, transport=Transport, transport_options=options) as connection:
        sent = probes.add.apply_async((1, 2), connection=connection, retry=True)
    assert cutter.cut.is_set()
    assert broker.redis.hget(broker.keys.job(sent.id), "state") == b"queued"
    assert broker.redis.llen("chat") == 1
    assert broker.redis.hget(broker.keys.stats("chat"), "submitted") == b"1"


# What was sent on in an earlier run.


def test_refused_rows_are_sent_on_once_however_often_their_job_runs(workers: Workers, broker: Broker) -> None:
    workers.start("bulk_insert")
    rows = [[1, "a"], ["bad", "b"]]
    payload = check(BulkInsert, table=TABLE, columns=list(COLUMNS), rows=rows)
    (job,) = enqueue.many([(payload, Options(job_id="partly"))])
    rejected = job.result(60)["rejected_job"]
    key = broker.keys.job(rejected)
    eventually(lambda: broker.redis.hget(key, "state") == b"dead")
    before = broker.redis.hgetall(key)
    kwargs: dict[str, object] = {"table": TABLE, "columns": list(COLUMNS), "rows": rows}
    run_again(broker, job.id, "tasks.bulk_insert", "bulk_insert", kwargs)
    eventually(lambda: job.record()["state"] == "succeeded")
    assert job.record()["delivery"] == "1", "it is a run of its own"
    assert broker.redis.hgetall(key) == before
    assert len(list(broker.redis.scan_iter(broker.keys.job("*")))) == 2, "the job, and the one of its refused rows"
    assert scalar(COUNT) == 1
