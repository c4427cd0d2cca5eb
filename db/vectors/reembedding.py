"""Takes documents from one model's vectors to another's, without a moment in which one is not found.

Write the new vectors beside the old ones (`missing`, then `documents.add`), read with `neighbours.nearest_of`
meanwhile, and `retire` the old ones when `progress` says that none is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from db.engine import transaction
from db.errors import VectorError
from db.query_cache import results as query_cache

_COUNT = text("""
    SELECT count(*), count(*) FILTER (WHERE EXISTS (
        SELECT FROM documents other WHERE other.key = documents.key AND other.model = :new))
    FROM documents WHERE model = :old
""")
_MISSING = text("""
    SELECT key, content FROM documents
    WHERE model = :old AND key > :after
      AND NOT EXISTS (SELECT FROM documents other WHERE other.key = documents.key AND other.model = :new)
    ORDER BY key LIMIT :limit
""")
# By key, so that no two who retire lock crosswise.
_RETIRE = text("""
    DELETE FROM documents WHERE model = :old AND key IN (
        SELECT key FROM documents old WHERE model = :old
          AND EXISTS (SELECT FROM documents new WHERE new.key = old.key AND new.model = :new)
        ORDER BY key LIMIT :limit FOR UPDATE)
""")


@dataclass(frozen=True)
class Progress:
    """How many documents have a vector of the old model, and how many of these have one of the new."""

    old: int
    done: int

    @property
    def is_complete(self) -> bool:
        return self.done == self.old


def progress(old: str, new: str) -> Progress:
    """Count how far the change from one model to another is. Kept until documents change: it reads all of them."""
    _check(old, new)
    return _progress(old, new)


def missing(old: str, new: str, limit: int = 1000, after: str = "") -> list[tuple[str, str]]:
    """Return documents, as (key, text), that have a vector of the old model and none of the new, in order of keys.

    Go on with the last key as `after`: what could not be embedded would else come again.
    """
    _check(old, new)
    if limit < 1:
        raise VectorError(f"limit={limit}: a whole number from 1")
    with transaction() as session:
        rows = session.execute(_MISSING, {"old": old, "new": new, "limit": limit, "after": after})
        return [(key, content) for key, content in rows]


def retire(old: str, new: str, chunk: int = 1000) -> int:
    """Delete the old model's vectors of documents that have a new one, and return how many. Others stay."""
    _check(old, new)
    deleted = 0
    while True:
        with transaction() as session:
            result = session.execute(_RETIRE, {"old": old, "new": new, "limit": chunk})
            count = int(getattr(result, "rowcount", 0))
        deleted += count
        if count < chunk:
            return deleted


@query_cache.cached(
    "statistics",
    tables=("documents",),
    key=lambda old, new: f"documents:progress:{query_cache.part(old)}:{query_cache.part(new)}",
)
def _progress(old: str, new: str) -> Progress:
    with transaction() as session:
        row = session.execute(_COUNT, {"old": old, "new": new}).one()
    return Progress(*row)


def _check(old: str, new: str) -> None:
    if old == new:
        raise VectorError(f"old and new model are both {old!r}: name two")
