"""Documents with their vectors, and the nearest of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy import text as statement
from sqlalchemy.orm import Session

from db import models, receipts, text
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


@dataclass(frozen=True)
class Neighbour:
    """A stored document and its cosine distance: 0 the same direction, 1 at right angles, 2 opposite."""

    key: str
    content: str
    distance: float


# One statement whose text does not depend on the number of documents: compiled and parsed once.
_STORE = statement("""
    INSERT INTO documents (key, content, embedding, model, job_id)
    SELECT key, content, embedding::vector, model, job_id
    FROM unnest(CAST(:keys AS text[]), CAST(:contents AS text[]), CAST(:embeddings AS text[]),
                CAST(:models AS text[]), CAST(:job_ids AS text[]))
         AS given (key, content, embedding, model, job_id)
    ON CONFLICT (key) DO UPDATE
    SET content = excluded.content, embedding = excluded.embedding, model = excluded.model,
        job_id = excluded.job_id, updated_at = now()
""")


def store(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Insert or replace the documents by key, and return each one's ``{"key", "model", "dimensions"}``.

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
        _write(session, {each.key: each for each in documents if each.job_id not in earlier})
    return [earlier.get(each.job_id or "", result) for each, result in zip(documents, results, strict=True)]


def _write(session: Session, by_key: dict[str, Document]) -> None:
    # In the order of the keys, so that two batches with keys in common cannot lock them crosswise.
    batch = [document for _, document in sorted(by_key.items())]
    columns = {
        "keys": [document.key for document in batch],
        "contents": [document.content for document in batch],
        "embeddings": [_literal(document.embedding, f"document {document.key!r}") for document in batch],
        "models": [document.model for document in batch],
        "job_ids": [document.job_id for document in batch],
    }
    session.execute(_STORE, columns)


def nearest(embedding: Sequence[float], limit: int = 5, model: str | None = None) -> list[Neighbour]:
    """Return the stored documents nearest to a vector by cosine distance, the nearest first.

    Only vectors of the same length are compared, and with `model` only those that it made: vectors of
    different models have nothing in common. Raises VectorError for a vector that is empty or not of finite
    numbers, and for a limit below 1.
    """
    document = models.Document
    _literal(embedding, "the vector asked for")
    if limit < 1:
        raise VectorError(f"limit={limit}: a whole number from 1")
    distance = document.embedding.cosine_distance(list(embedding)).label("distance")
    wanted = (
        select(document.key, document.content, distance)
        .where(document.dimensions == len(embedding))
        .order_by(distance, document.key)
        .limit(limit)
    )
    if model is not None:
        wanted = wanted.where(document.model == model)
    with transaction() as session:
        return [Neighbour(*row) for row in session.execute(wanted)]


def _literal(embedding: Sequence[float], whose: str) -> str:
    """Write a vector as pgvector reads it."""
    numbers = [float(number) for number in embedding]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise VectorError(f"{whose} has a vector that is empty or not of finite numbers")
    return f"[{','.join(map(repr, numbers))}]"
