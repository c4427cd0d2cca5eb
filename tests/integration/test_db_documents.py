"""Documents under their keys, and the nearest of them."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select, text

from db import models
from db.engine import transaction
from db.errors import StoreError, TextError, VectorError
from db.vectors import documents, neighbours
from db.vectors.documents import Document
from db.vectors.neighbours import Neighbour
from tests.plans import recorded

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def model() -> str:
    """Name a model, so that a test finds its own documents only."""
    return f"model-{uuid.uuid4().hex}"


def test_the_nearest_come_first(model: str) -> None:
    store = [
        Document(f"{model}-east", "east", [2, 0], model),
        Document(f"{model}-north", "north", [0, 1], model),
        Document(f"{model}-west", "west", [-1, 0], model),
    ]
    assert documents.store(store)[0] == {"key": f"{model}-east", "model": model, "dimensions": 2}
    assert neighbours.nearest([1, 0], model=model) == [
        Neighbour(f"{model}-east", "east", 0.0),
        Neighbour(f"{model}-north", "north", 1.0),
        Neighbour(f"{model}-west", "west", 2.0),
    ]
    assert [found.content for found in neighbours.nearest([1, 0.1], 2, model)] == ["east", "north"]


@pytest.mark.parametrize("write", [documents.store, documents.add])
def test_writing_reads_no_table_whole_before_statistics_are_there(
    database: None, model: str, write: Callable[[Sequence[Document]], object]
) -> None:
    with transaction() as session:
        session.execute(
            text(
                "INSERT INTO documents (key, content, embedding, model, job_id) "
                "SELECT 'k' || n, repeat('x', 100), '[1, 2]', 'old', 'j' FROM generate_series(1, 20000) n"
            )
        )
    with recorded() as asked:
        write([Document(f"k{number}", "x" * 100, [1, 2], model) for number in range(200)])
    assert {table for each in asked for table in each.scanned_whole()} == set()


def test_only_vectors_of_the_same_length_and_model_are_compared(model: str) -> None:
    documents.store(
        [
            Document(f"{model}-2", "two", [1, 0], model),
            Document(f"{model}-3", "three", [1, 0, 0], model),
            Document(f"{model}-other", "other", [1, 0], "other-" + model),
        ]
    )
    assert [found.content for found in neighbours.nearest([1, 0, 0], model=model)] == ["three"]
    assert [found.content for found in neighbours.nearest([1, 0], model=model)] == ["two"]
    assert neighbours.nearest([1, 0, 0, 0, 0, 0, 0], model=model) == []
    assert {"two", "other"} <= {found.content for found in neighbours.nearest([1, 0], limit=1000)}


def test_a_second_run_gets_the_first_one_s_receipt_and_replaces_nothing_newer(model: str) -> None:
    key, job_id = f"{model}-key", uuid.uuid4().hex
    first = documents.store([Document(key, "old", [1, 0], model, job_id)])
    documents.store([Document(key, "newer", [1, 0], model, uuid.uuid4().hex)])
    again = [Document(key, "old", [1, 0, 0], model, job_id), Document(f"{model}-more", "more", [1, 0], model)]
    assert documents.store(again)[0] == first[0] == {"key": key, "model": model, "dimensions": 2}
    assert {found.content for found in neighbours.nearest([1, 0], model=model)} == {"newer", "more"}


def test_a_batch_that_fails_leaves_no_receipt(model: str) -> None:
    job_id = uuid.uuid4().hex
    with pytest.raises(VectorError):
        documents.store([Document(model, "text", [], model, job_id)])
    documents.store([Document(model, "text", [1], model, job_id)])
    assert [found.content for found in neighbours.nearest([1], model=model)] == ["text"]


def test_a_document_is_replaced_by_its_key(model: str) -> None:
    key = f"{model}-key"
    jobs = [uuid.uuid4().hex, uuid.uuid4().hex]
    documents.store([Document(key, "old", [1, 0], model, jobs[0])])
    documents.store([Document(key, "new", [0, 1, 0], model, jobs[1])])
    with transaction() as session:
        kept = session.scalars(select(models.Document).filter_by(key=key)).one()
        assert (kept.content, kept.job_id, kept.dimensions) == ("new", jobs[1], 3)
        assert list(kept.embedding) == [0, 1, 0]


def test_of_one_key_twice_the_last_counts(model: str) -> None:
    key = f"{model}-key"
    assert len(documents.store([Document(key, "first", [1], model), Document(key, "last", [1], model)])) == 2
    assert [found.content for found in neighbours.nearest([1], model=model)] == ["last"]


def test_no_documents_are_nothing_to_store() -> None:
    assert documents.store([]) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_vectors_arrive_exactly(embedding: list[float]) -> None:
    documents.store([Document("exact", "text", embedding, "exact")])
    with transaction() as session:
        kept = session.scalar(select(models.Document.embedding).filter_by(key="exact"))
    assert kept is not None
    assert np.array_equal(np.array(kept, np.float32), np.array(embedding, np.float32))


@pytest.mark.parametrize("embedding", [[], [1.0, float("nan")], [float("inf")]])
def test_a_vector_that_is_none_is_named(model: str, embedding: list[float]) -> None:
    with pytest.raises(VectorError, match=f"document '{model}'"):
        documents.store([Document(model, "text", embedding, model)])
    with pytest.raises(VectorError, match="the vector asked for"):
        neighbours.nearest(embedding)


def test_text_that_cannot_be_stored_is_named(model: str) -> None:
    with pytest.raises(TextError, match="content holds"):
        documents.store([Document(model, "a\0", [1], model)])


def test_a_limit_below_one_is_named() -> None:
    with pytest.raises(StoreError, match="limit=0"):
        neighbours.nearest([1], limit=0)


def test_batches_with_keys_in_common_do_not_deadlock(model: str) -> None:
    faults: list[Exception] = []

    def store(seed: int) -> None:
        order = random.Random(seed)
        try:
            for _ in range(10):
                keys = order.sample(range(40), 40)
                store = [Document(f"{model}-{key}", f"by {seed}", [order.random()], model) for key in keys]
                shared = [Document(f"{model}-{key}", "late run", [1], model, f"{model}-{key}") for key in keys]
                documents.store([*store, *shared])
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=store, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert len(neighbours.nearest([1], limit=100, model=model)) == 40
