"""Documents with their vectors, one of each model."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import TextClause
from sqlalchemy import text as statement
from sqlalchemy.orm import Session

from db import receipts, text
from db.engine import transaction
from db.errors import VectorError


@dataclass(frozen=True)
class Document:
    """A text under its key, with the vector that `model` made of it in the job `job_id`."""

    key: str
    content: str
    embedding: Sequence[float]
    model: str
    job_id: str | None = None


# Writers of one document go one after the other, in the order of the keys: the statement after it sees what the other
# has written.
_LOCK = statement("""
    SELECT 1 FROM (SELECT key FROM unnest(CAST(:keys AS text[])) AS given (key) ORDER BY key) AS given
    CROSS JOIN LATERAL (
        SELECT FROM documents WHERE documents.key = given.key ORDER BY model FOR UPDATE
    ) AS kept
""")
# One statement whose text does not depend on the number of documents: compiled and parsed once.
_GIVEN = """
    WITH given AS (
        SELECT * FROM unnest(CAST(:keys AS text[]), CAST(:contents AS text[]), CAST(:embeddings AS text[]),
                             CAST(:models AS text[]), CAST(:job_ids AS text[]))
            AS given (key, content, embedding, model, job_id)
    )
"""
# What another model made of another text of this document is of no more use. By OFFSET 0, each key is looked up in the
# index: before there are statistics, the planner expects that a key has many documents, and would read all of them.
_STORE = statement(f"""{_GIVEN}, outdated AS (
        DELETE FROM documents WHERE ctid = ANY (ARRAY(
            SELECT old.place FROM given CROSS JOIN LATERAL (
                SELECT ctid AS place FROM documents
                WHERE documents.key = given.key AND documents.model <> given.model
                  AND documents.content <> given.content
                OFFSET 0
            ) AS old
        ))
    )
    INSERT INTO documents (key, content, embedding, model, job_id)
    SELECT key, content, embedding::vector, model, job_id FROM given
    ON CONFLICT (key, model) DO UPDATE
    SET content = excluded.content, embedding = excluded.embedding, model = excluded.model,
        job_id = excluded.job_id, updated_at = now()
    RETURNING key
""")  # noqa: S608 - both parts are ours
_ADD = statement(f"""{_GIVEN}
    INSERT INTO documents (key, content, embedding, model, job_id, created_at)
    SELECT key, content, embedding::vector, model, job_id, kept.created_at
    FROM given CROSS JOIN LATERAL (
        SELECT min(created_at) AS created_at, bool_or(documents.content = given.content) AS is_same
        FROM documents WHERE documents.key = given.key
    ) AS kept
    WHERE kept.is_same
    ON CONFLICT (key, model) DO NOTHING
    RETURNING key
""")  # noqa: S608


def store(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Insert or replace the documents by key and model, and return each one's ``{"key", "model", "dimensions"}``.

    The vector of another model stays beside it as long as it is of the same text.

    A job's receipt commits in the same transaction: what an earlier run of the job has stored is not stored again,
    since another job may have replaced it meanwhile, and the receipt is returned. Of several with one key, the last
    counts. Raises VectorError naming the key of a vector that is empty or holds something else than finite numbers,
    TextError naming a field that PostgreSQL cannot store.
    """
    for document in documents:
        text.check(key=document.key, content=document.content, model=document.model, job_id=document.job_id)
    results = [{"key": each.key, "model": each.model, "dimensions": len(each.embedding)} for each in documents]
    by_job = {each.job_id: result for each, result in zip(documents, results, strict=True) if each.job_id is not None}
    with transaction() as session:
        earlier = receipts.write_all(session, "embedding", by_job)
        new = [each for each in documents if each.job_id not in earlier]
        last = {each.key: each.content for each in new}
        _write(session, _STORE, [each for each in new if each.content == last[each.key]])
    return [earlier.get(each.job_id or "", result) for each, result in zip(documents, results, strict=True)]


def add(documents: Sequence[Document]) -> int:
    """Write vectors of a further model beside those that are there, and return how many were written.

    A document whose text has changed meanwhile, or that is gone, or that has a vector of this model, is left as it is.
    Raises as `store` does.
    """
    for document in documents:
        text.check(key=document.key, content=document.content, model=document.model, job_id=document.job_id)
    with transaction() as session:
        return len(_write(session, _ADD, documents))


def _write(session: Session, write: TextClause, documents: Sequence[Document]) -> list[str]:
    by_key = {(each.key, each.model): each for each in documents}
    # In the order of the keys, so that two batches with keys in common cannot lock them crosswise.
    batch = [document for _, document in sorted(by_key.items())]
    keys = [document.key for document in batch]
    columns = {
        "keys": keys,
        "contents": [document.content for document in batch],
        "embeddings": [literal(document.embedding, f"document {document.key!r}") for document in batch],
        "models": [document.model for document in batch],
        "job_ids": [document.job_id for document in batch],
    }
    session.execute(_LOCK, {"keys": keys})
    return list(session.scalars(write, columns))


def models() -> list[str]:
    """Return the models whose vectors are stored. It reads all documents."""
    with transaction() as session:
        return list(session.scalars(statement("SELECT DISTINCT model FROM documents ORDER BY model")))


def literal(embedding: Sequence[float], whose: str) -> str:
    """Write a vector as pgvector reads it, which keeps numbers of 4 bytes: nine digits tell them apart.

    Raises VectorError for one that is empty or not of finite numbers of that size.
    """
    try:
        numbers = array("f", embedding)
    except (TypeError, OverflowError):
        numbers = array("f")
    if not numbers or not math.isfinite(sum(numbers)):  # in 8 bytes the sum of finite numbers is finite
        raise VectorError(f"{whose} has a vector that is empty or not of finite numbers within 3.4e38")
    return f"[{','.join(['%.9g'] * len(numbers)) % tuple(numbers)}]"
