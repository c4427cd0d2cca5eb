"""The documents nearest to a vector: through an index where there is one, and exactly where that finds too few."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text as statement
from sqlalchemy.orm import Session

from db import text
from db.engine import transaction
from db.errors import VectorError
from db.query_cache import results as query_cache
from db.vectors.documents import literal

#: pgvector's limits: HNSW takes vectors of so many dimensions, and half as exact ones of twice as many.
INDEXED, INDEXED_AS_HALF = 2000, 4000
# How many candidates a search keeps. Measured on docstrings: bench/store.py.
EF_SEARCH, MOST_EF_SEARCH = 100, 1000
_SETTINGS = statement(
    "SELECT set_config('hnsw.ef_search', :candidates, true), set_config('hnsw.iterative_scan', 'relaxed_order', true)"
)


@dataclass(frozen=True)
class Neighbour:
    """A stored document and its cosine distance: 0 the same direction, 1 at right angles, 2 opposite."""

    key: str
    content: str
    distance: float


@dataclass(frozen=True)
class _Wanted:
    """What is searched for; `better` are models whose vector of a document counts before this one's."""

    embedding: Sequence[float]
    limit: int
    model: str | None
    key_prefix: str | None = None
    created_after: datetime | None = None
    better: Sequence[str] = ()

    def where(self) -> str:
        conditions = ["dimensions = :dimensions"]
        conditions += ["model = :model"] if self.model is not None else []
        conditions += ["key LIKE :key_pattern"] if self.key_prefix else []
        conditions += ["created_at > :created_after"] if self.created_after is not None else []
        if self.better:
            better = "SELECT FROM documents other WHERE other.key = documents.key AND other.model = ANY(:better)"
            conditions.append(f"NOT EXISTS ({better})")
        return " AND ".join(conditions)

    def parameters(self) -> dict[str, Any]:
        prefix = (self.key_prefix or "").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return {
            "embedding": literal(self.embedding, "the vector asked for"),
            "dimensions": len(self.embedding),
            "limit": self.limit,
            "model": self.model,
            "key_pattern": f"{prefix}%",
            "created_after": self.created_after,
            "better": list(self.better),
        }


def nearest(
    embedding: Sequence[float],
    limit: int = 5,
    model: str | None = None,
    *,
    key_prefix: str | None = None,
    created_after: datetime | None = None,
    exact: bool = False,
) -> list[Neighbour]:
    """Return the stored documents nearest to a vector by cosine distance, the nearest first.

    Only vectors of the same length are compared, and with `model` only those that it made: vectors of different models
    have nothing in common. With an index for the model (`vector_indexes.build`) some of the nearest may be missed,
    unless `exact`; but as many as match the filters are returned, up to `limit`. What was found is kept until
    documents change (`query_cache`).

    Raises VectorError for a vector that is empty or not of finite numbers, and for a limit below 1.
    """
    wanted = _Wanted(embedding, limit, model, key_prefix, created_after)
    _check(wanted)
    asked = {**wanted.parameters(), "created_after": created_after and created_after.isoformat(), "exact": exact}
    digest = query_cache.part(json.dumps(asked))

    def find() -> list[Neighbour]:
        with transaction() as session:
            return _find(session, wanted, exact)

    return query_cache.through(
        "search", f"documents:nearest:{digest}:{limit}", find, tables=("documents",), type_=list[Neighbour]
    )


def nearest_in(
    session: Session,
    embedding: Sequence[float],
    limit: int,
    model: str | None,
    *,
    key_prefix: str | None = None,
    created_after: datetime | None = None,
    exact: bool = False,
) -> list[Neighbour]:
    """Do as `nearest` in a transaction of the caller's."""
    wanted = _Wanted(embedding, limit, model, key_prefix, created_after)
    _check(wanted)
    return _find(session, wanted, exact)


def nearest_of(
    embeddings: Sequence[tuple[str, Sequence[float]]],
    limit: int = 5,
    *,
    key_prefix: str | None = None,
    created_after: datetime | None = None,
) -> list[Neighbour]:
    """Return what is nearest while documents go from one model to another: a reader without a gap.

    `embeddings` are (model, its vector of what is asked), the new model first. Each document counts once, by the vector
    of the first model that has one of it: so it changes over when its new vector is there. Distances of two models are
    compared as they are, which is good enough until all have changed over.

    Raises VectorError as `nearest`, and when no model or the same one twice is given.
    """
    models = [model for model, _ in embeddings]
    if not models or len(set(models)) < len(models):
        raise VectorError(f"models={models}: give each model once, with its vector, and one at least")
    wanted = [
        _Wanted(embedding, limit, model, key_prefix, created_after, better=models[:place])
        for place, (model, embedding) in enumerate(embeddings)
    ]
    for one in wanted:
        _check(one)
    found: dict[str, Neighbour] = {}
    with transaction() as session:
        # The old model first: what changes over between two statements is found twice then, and not missed.
        for one in reversed(wanted):
            found |= {each.key: each for each in _find(session, one, exact=False)}
    return sorted(found.values(), key=lambda each: (each.distance, each.key))[:limit]


def indexed_as(dimensions: int) -> str | None:
    """Return the type as which vectors of a length are indexed, or None when they are too long for that."""
    if dimensions <= INDEXED:
        return f"vector({dimensions})"
    return f"halfvec({dimensions})" if dimensions <= INDEXED_AS_HALF else None


def _check(wanted: _Wanted) -> None:
    literal(wanted.embedding, "the vector asked for")
    text.check(model=wanted.model, key_prefix=wanted.key_prefix)
    if wanted.limit < 1:
        raise VectorError(f"limit={wanted.limit}: a whole number from 1")


def _find(session: Session, wanted: _Wanted, exact: bool) -> list[Neighbour]:
    as_type = indexed_as(len(wanted.embedding))
    if not exact and wanted.model is not None and as_type is not None and wanted.limit <= MOST_EF_SEARCH:
        session.execute(_SETTINGS, {"candidates": str(max(EF_SEARCH, wanted.limit))})
        # The expression and the conditions are those of the index.
        order = f"(embedding::{as_type}) <=> CAST(:embedding AS {as_type})"
        found = _rows(session, wanted, order)
        if len(found) == wanted.limit:
            return found
    return _rows(session, wanted, "embedding <=> CAST(:embedding AS vector), key")


def _rows(session: Session, wanted: _Wanted, order: str) -> list[Neighbour]:
    candidates = f"SELECT key, content, embedding FROM documents WHERE {wanted.where()} ORDER BY {order} LIMIT :limit"  # noqa: S608 - all parts are ours
    distance = "embedding <=> CAST(:embedding AS vector) AS distance"
    query = f"SELECT key, content, {distance} FROM ({candidates}) nearest ORDER BY distance, key"  # noqa: S608
    return [Neighbour(*row) for row in session.execute(statement(query), wanted.parameters())]
