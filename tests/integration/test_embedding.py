"""Batches of embedding jobs: each job's answer is its own, and each job's document is written once."""

from typing import Any

import pytest
from sqlalchemy import select

from db import models
from db.engine import transaction
from dev.faulty.process import FaultyProvider
from dev.provider.process import EMBEDDING_MODEL
from tasks.provider.llm import ProviderAway, ProviderBusy, ProviderRejected
from worker.errors import JobRefused
from worker.runtime.batching import BatchJob

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def embedding() -> BatchJob:
    from tasks.embedding import embedding

    assert isinstance(embedding, BatchJob)
    return embedding


def kept() -> dict[str, str]:
    with transaction() as session:
        rows = session.execute(select(models.Document.key, models.Document.content))
        return {row.key: row.content for row in rows}


def test_whatever_a_job_holds_fails_that_job_alone(embedding: BatchJob) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "kind": {"text": "text", "kind": "Embedding"},
        "self": {"text": "text", "self": 1},
        "unhashable": {"text": "text", "model": ["a", "list"]},
        "typed": {"text": {"not": "text"}},
        "empty": {},
        "half": {"text": "\ud800"},
        "model": {"text": "text", "model": "no-such-model"},
        "id\0": {"text": "its id cannot be stored"},
    }
    good = {f"good {number}": {"text": f"text {number}"} for number in range(3)}
    jobs = [*wrong.items(), *good.items()]
    answers = dict(zip((job_id for job_id, _ in jobs), embedding.run_batch(jobs), strict=True))
    for job_id in good:
        assert answers[job_id] == {"key": job_id, "model": EMBEDDING_MODEL, "dimensions": 384}
    assert kept().keys() == good.keys()
    assert isinstance(answers["model"], ProviderRejected)
    assert "U+0000" in str(answers["id\0"])
    for job_id in set(wrong) - {"model", "id\0"}:
        assert isinstance(answers[job_id], JobRefused)


def test_a_second_delivery_replaces_no_newer_document(embedding: BatchJob) -> None:
    first = embedding.run_batch([("a", {"text": "older", "key": "k"})])
    embedding.run_batch([("b", {"text": "newer", "key": "k"})])
    again = embedding.run_batch([("a", {"text": "older", "key": "k"}), ("c", {"text": "other"})])
    assert again[0] == first[0]
    assert kept() == {"k": "newer", "c": "other"}


def test_of_one_key_the_last_job_of_a_batch_counts_whatever_its_model(embedding: BatchJob) -> None:
    named = [None, EMBEDDING_MODEL, None]
    jobs = [(f"job {n}", {"text": f"text {n}", "key": "k", "model": model}) for n, model in enumerate(named)]
    assert [answer["key"] for answer in embedding.run_batch(jobs)] == ["k"] * 3
    assert kept() == {"k": "text 2"}
    assert embedding.run_batch(jobs[:1])[0]["key"] == "k"
    assert kept() == {"k": "text 2"}


def test_a_provider_that_is_away_is_no_fault_of_a_job(embedding: BatchJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("FOREBAY_EMBEDDING_TIME_LIMIT_S", "1")  # less than the pause before a second try
    answers = embedding.run_batch([("a", {"text": "text"}), ("b", {"text": "text"})])
    assert all(isinstance(answer, ProviderAway) for answer in answers)
    assert kept() == {}


def test_what_may_pass_is_every_job_s_error_and_one_call(
    embedding: BatchJob, faulty: FaultyProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", faulty.base_url)
    faulty.fault("rate_limit")
    answers = embedding.run_batch([(f"job {number}", {"text": f"text {number}"}) for number in range(4)])
    assert [type(answer) for answer in answers] == [ProviderBusy] * 4
    assert [each.inputs for each in faulty.log()] in ([0], [4]), "a batch that is refused for now is not halved"


def test_called_directly_it_keeps_one_document_a_call(embedding: Any) -> None:
    keys = [embedding(text="text")["key"] for _ in range(2)]
    assert kept() == dict.fromkeys(keys, "text")
    assert len(set(keys)) == 2
