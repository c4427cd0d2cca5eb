"""Effects that happen once or not at all: whatever is cut off, repeated, or asked of somebody else in between."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import celeryconfig
from db import changes, conversations, receipts
from db.changes import Change
from db.engine import transaction
from dev import stack
from dev.faulty_provider import FaultyProvider
from tasks import BulkInsert, Embedding, enqueue, llm
from tasks.enqueue import Options
from tasks.payloads import check
from tests.eventually import eventually
from tests.integration import probes
from tests.integration.test_jobs import run_again, scalar
from tests.integration.test_records import submission
from tests.integration.test_transport import Cutter
from tests.workers import Workers
from worker import gates
from worker.broker import Broker, connect
from worker.errors import QueueFull
from worker.gate_policy import Bucket, Gate
from worker.gates import Meter
from worker.policy import load as load_policy
from worker.queue_policy import Fallback
from worker.transport import Transport

TABLE = "unicode_characters"
COLUMNS = ("codepoint", "name")
COUNT = "SELECT count(*) FROM unicode_characters"
HELLO = [{"role": "user", "content": "hello"}]
FIRST, SECOND = "a-model", "a-second-model"


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
    assert len(conversations.history("twice")) == 2


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


# The gate of one account and the calls of another.


@pytest.fixture
def gated(broker: Broker, faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch) -> Meter:
    """Give the meter of a run behind a gate that holds 10 calls and 1000 tokens and hardly fills."""
    gate = Gate(requests=Bucket(rate=0.001, burst=10), tokens=Bucket(rate=0.001, burst=1000))
    policy = load_policy().model_copy(update={"gates": {"g": gate, "provider": Gate()}})
    monkeypatch.setattr(gates, "load_policy", lambda: policy)
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "the first key")
    monkeypatch.setenv("OPENAI_CHAT_MODEL", FIRST)
    monkeypatch.setenv("OTHER_URL", faulty.base_url)
    monkeypatch.setenv("OTHER_KEY", "another key")
    faulty.fault("unknown_model", model=FIRST)  # it is not asked again, and not charged
    return Meter(broker, load_policy().queue("chat").model_copy(update={"gate": "g"}), 0, None)


def of_gate(broker: Broker) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in broker.redis.hgetall(broker.keys.gate("g")).items()}


def levels(broker: Broker) -> tuple[float, float]:
    gate = of_gate(broker)
    return float(gate["calls"]), float(gate["cost"])


def ask(meter: Meter, **provider: str) -> llm.Completion:
    fallback = Fallback(model=SECOND, **provider)
    return llm.chat(HELLO, timeout_s=60, max_tokens=50, meter=meter, fallbacks=[fallback])


OTHER = {"base_url_env": "OTHER_URL", "api_key_env": "OTHER_KEY"}
#: The same address with another key, and another address with the same key: each is another account.
OTHERS = [OTHER, {"api_key_env": "OTHER_KEY"}, {"base_url_env": "OTHER_URL"}]


@pytest.mark.parametrize("provider", OTHERS)
def test_another_account_s_answer_takes_no_permit_and_settles_nothing(
    broker: Broker, faulty: FaultyProvider, gated: Meter, monkeypatch: pytest.MonkeyPatch, provider: dict[str, str]
) -> None:
    monkeypatch.setenv("OTHER_URL", other_address(faulty, provider))
    assert ask(gated, **provider).model == SECOND
    assert [each.status for each in faulty.log()] == [404, 200]
    assert levels(broker) == pytest.approx((9, 1000), abs=0.1), "the first account's call, refused, cost no tokens"


@pytest.mark.parametrize("provider", OTHERS)
def test_another_account_s_refusal_does_not_shut_the_gate(
    broker: Broker, faulty: FaultyProvider, gated: Meter, monkeypatch: pytest.MonkeyPatch, provider: dict[str, str]
) -> None:
    monkeypatch.setenv("OTHER_URL", other_address(faulty, provider))
    faulty.fault("rate_limit", model=SECOND, retry_after="30")
    with pytest.raises(llm.ProviderBusy):
        ask(gated, **provider)
    assert [each.status for each in faulty.log()] == [404, 429]
    assert "shut_until" not in of_gate(broker)
    assert levels(broker) == pytest.approx((9, 1000), abs=0.1)


def other_address(faulty: FaultyProvider, provider: dict[str, str]) -> str:
    """Name the same provider by another address, unless the key alone makes the difference."""
    return faulty.base_url if "api_key_env" in provider else faulty.base_url.replace("127.0.0.1", "localhost")


def test_a_fallback_on_the_same_account_goes_through_its_gate(
    broker: Broker, faulty: FaultyProvider, gated: Meter
) -> None:
    answer = ask(gated)
    assert levels(broker) == pytest.approx((8, 1000 - answer.total_tokens), abs=0.1)
    faulty.fault("rate_limit", model=SECOND, retry_after="30")
    with pytest.raises(llm.ProviderBusy):
        ask(gated)
    assert float(of_gate(broker)["shut_until"]) > broker.redis.time()[0]


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
