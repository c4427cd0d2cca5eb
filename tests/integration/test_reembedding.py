"""A change of the embedding model through the queue: nothing is unfindable meanwhile, and no newer text is lost."""

from sqlalchemy import text

from db.engine import transaction
from db.vectors import documents, reembedding
from db.vectors.documents import Document
from dev.provider.process import EMBEDDING_MODEL
from tests.commands import Cli
from tests.eventually import eventually
from tests.workers import Workers

COUNT = 40


def kept(key: str) -> list[tuple[str, str]]:
    with transaction() as session:
        found = session.execute(
            text("SELECT model, content FROM documents WHERE key = :key ORDER BY model"), {"key": key}
        )
        return [(model, content) for model, content in found]


def test_documents_get_a_vector_of_the_new_model(cli: Cli, workers: Workers) -> None:
    documents.store([Document(f"k{n:02}", f"text {n}", [float(n), 1.0], "old") for n in range(COUNT)])
    assert cli.json("vectors", "reembed", "old", EMBEDDING_MODEL) == {"jobs": COUNT}
    assert cli.json("vectors", "reembed", "old", EMBEDDING_MODEL) == {"jobs": COUNT}, "the same jobs"
    documents.store([Document("k07", "a newer text", [1.0], "old")])
    workers.start("embedding")
    eventually(lambda: reembedding.progress("old", EMBEDDING_MODEL).done == COUNT - 1)
    assert kept("k06") == [(EMBEDDING_MODEL, "text 6"), ("old", "text 6")]
    assert kept("k07") == [("old", "a newer text")]
    cli("vectors", "progress", "old", EMBEDDING_MODEL, code=1)
    assert cli.json("vectors", "reembed", "old", EMBEDDING_MODEL) == {"jobs": 1}
    eventually(lambda: reembedding.progress("old", EMBEDDING_MODEL).is_complete)
    cli("vectors", "retire", "old", EMBEDDING_MODEL)
    assert kept("k07") == [(EMBEDDING_MODEL, "a newer text")]
