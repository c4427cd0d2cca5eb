"""Builds the index of the nearest documents, one for each model and length of its vectors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, text

from db import index_builds, models
from db.errors import VectorError
from db.migration import separate_engine
from db.vectors import documents
from db.vectors.neighbours import INDEXED_AS_HALF, indexed_as


@dataclass(frozen=True)
class Indexed:
    """The index for vectors of one model and length; `is_new` if it was built by this call."""

    name: str
    model: str
    dimensions: int
    is_new: bool


def build(model: str) -> list[Indexed]:
    """Build an HNSW index by cosine distance for each length of vectors that the model made.

    Vectors have no fixed length, and an index needs one: so it is one of an expression, for the rows of one model and
    length, and readers ask by the same. Vectors of more than 2,000 dimensions are indexed with half the precision, and
    more than 4,000 not at all. Writers and readers go on meanwhile. One that stands already is left alone.

    Raises VectorError for a model that has made none, or only such as are too long.
    """
    with separate_engine() as own, own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        lengths = _lengths(connection, model)
        if not lengths:
            raise VectorError(f"model {model!r} has made no stored vector; {_others()}")
        if min(lengths) > INDEXED_AS_HALF:
            raise VectorError(f"vectors of {min(lengths)} dimensions: an index takes at most {INDEXED_AS_HALF}")
        return [_build(connection, model, each) for each in lengths if each <= INDEXED_AS_HALF]


def drop(model: str) -> list[str]:
    """Drop the model's indexes, and return their names."""
    with separate_engine() as own, own.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found = text("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND starts_with(indexname, :stem)")
        names = list(connection.scalars(found, {"stem": _stem(model)}))
        for name in names:
            index_builds.drop(connection, name)
    return names


def _build(connection: Connection, model: str, dimensions: int) -> Indexed:
    as_type = indexed_as(dimensions)
    assert as_type is not None
    operators = f"{as_type.partition('(')[0]}_cosine_ops"
    quoted = connection.scalar(text("SELECT quote_literal(:model)"), {"model": model})
    name = f"{_stem(model)}{dimensions}"
    definition = (
        f"ON documents USING hnsw ((embedding::{as_type}) {operators})"
        f" WHERE model = {quoted} AND dimensions = {dimensions}"
    )
    return Indexed(name, model, dimensions, index_builds.build(connection, name, definition))


def _lengths(connection: Connection, model: str) -> list[int]:
    query = text("SELECT DISTINCT dimensions FROM documents WHERE model = :model ORDER BY dimensions")
    return list(connection.scalars(query, {"model": model}))


def _others() -> str:
    found = documents.models()
    return f"name one that has: {', '.join(found)}" if found else "no model has: embed documents first"


def _stem(model: str) -> str:
    """Return how the names of a model's indexes begin; a model's own name may be too long, or no name for an index."""
    return f"{models.ON_DEMAND}{hashlib.sha256(model.encode()).hexdigest()[:12]}_"
