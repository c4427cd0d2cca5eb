"""What is seen of a provider that cannot answer: notices, fallbacks, breakers, and an answer all the same."""

from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from db.conversations import turns
from dev.faulty.process import FaultyProvider
from tasks import Embedding, enqueue
from tasks.producer.enqueue import Options
from tasks.provider import llm
from tests.eventually import eventually
from tests.integration.test_cli import Cli
from tests.workers import Workers
from worker.limits.breaker import breakers
from worker.records.broker import Broker

SECOND = "a-second-model"


@pytest.fixture
def fleet(workers: Workers, faulty: FaultyProvider, tmp_path: Path, broker: Broker, database: None) -> Workers:
    """Give workers of a provider with faults to order, which retry at once and know a fallback."""
    policy = yaml.safe_load((workers.root / "queues.yaml").read_text())
    policy["gates"]["provider"]["max_shut_s"] = 1
    for name in ("chat", "embedding"):
        policy["queues"][name]["retry"] |= {"backoff_s": 0.2, "backoff_max_s": 0.5}
        policy["queues"][name]["breaker"] = {"failures": 3, "open_s": 0.5, "open_max_s": 1}
    policy["queues"]["chat"]["fallbacks"] = [{"model": SECOND}]
    (tmp_path / "queues.yaml").write_text(yaml.safe_dump(policy))
    own = {"FOREBAY_QUEUES": str(tmp_path / "queues.yaml"), "OPENAI_BASE_URL": faulty.base_url}
    workers.environment |= own | {"OPENAI_CHAT_MODEL": "a-model", "OPENAI_EMBEDDING_MODEL": "a-model"}
    return workers


def notice(conversation: str) -> str | None:
    """Return the cause that stands where the answer will be."""
    return next((each.notice for each in turns.history(conversation) if each.role == "assistant"), None)


def test_a_busy_provider_s_answer_comes_late_in_the_place_of_a_notice(
    fleet: Workers, faulty: FaultyProvider, broker: Broker
) -> None:
    faulty.fault("rate_limit", retry_after=None)
    fleet.start("chat")
    conversation = uuid4().hex
    job = enqueue.chat("hello", conversation=conversation)
    eventually(lambda: notice(conversation) == "busy")
    assert broker.redis.hget(broker.keys.gate("provider"), "shut_until") is not None
    faulty.heal()
    assert job.result(timeout=30)["text"]
    said = turns.history(conversation)
    assert [(each.role, each.notice) for each in said] == [("user", None), ("assistant", None)]
    assert said[1].content == job.result()["text"]
    assert job.record().get("attempts", "0") == "0"


def test_a_model_that_fails_is_followed_by_the_next_and_left_alone(
    fleet: Workers, faulty: FaultyProvider, broker: Broker
) -> None:
    faulty.fault("unknown_model", model="a-model")
    fleet.start("chat")
    assert enqueue.chat("hello").result(timeout=30)["model"] == SECOND
    faulty.clear()
    faulty.fault("server_error")
    conversation = uuid4().hex
    late = enqueue.chat("hello", conversation=conversation)
    eventually(lambda: any(each.state == "open" for each in breakers(broker)))
    eventually(lambda: notice(conversation) == "unavailable")
    cli = Cli(dict(fleet.environment))
    # half open is seen now and then too: the breaker tries again twice a second
    eventually(lambda: any(each["state"] == "open" and each["trips"] for each in cli.json("queues")["breakers"]))
    eventually(lambda: "tries again in" in cli("queues"))
    faulty.heal()
    assert late.result(timeout=30)["model"] in ("a-model", SECOND)  # whichever was tried again first
    assert notice(conversation) is None
    eventually(lambda: enqueue.chat("hello").result(timeout=30)["model"] == "a-model")


def test_one_refused_text_of_a_batch_dies_alone_and_spoilt_vectors_are_asked_for_again(
    fleet: Workers, faulty: FaultyProvider
) -> None:
    faulty.fault("invalid_input", containing="refuse me")
    for spoilt in ("vectors_missing", "vectors_extra", "vectors_nan", "vectors_shuffled"):
        faulty.fault(spoilt, next=1)
    texts = ["refuse me", *(f"text {number}" for number in range(7))]
    jobs = enqueue.many([Embedding(text=text, key=text) for text in texts], options=Options(delay=0.5))
    fleet.start("embedding")
    eventually(lambda: all(job.status in ("FAILURE", "SUCCESS") for job in jobs))
    assert [job.status for job in jobs] == ["FAILURE", *["SUCCESS"] * 7]
    assert jobs[0].record()["reason"] == "failed"
    counted = faulty.counts().faults
    assert all(counted[spoilt] == 1 for spoilt in ("vectors_missing", "vectors_extra", "vectors_nan"))


def test_a_model_whose_dimension_has_changed_for_good_is_believed_in_the_end(
    faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    monkeypatch.setattr(llm, "_dimensions", {"changing": (3, 0)})
    monkeypatch.setattr(llm, "CHANGED", 1)
    faulty.set(dimensions=4)
    assert len(llm.embed(["a text"], timeout_s=30, model="changing").vectors[0]) == 4
    with pytest.raises(llm.ProviderAway, match="those of changing have 4"):
        llm._check_vectors([[1.0]], 1, "changing")
