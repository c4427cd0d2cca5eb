"""Which indexes nobody has used."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from db.engine import transaction


@dataclass(frozen=True)
class Index:
    """An index with its size, how often it was scanned since the statistics began, and whether it may be used."""

    name: str
    table: str
    size_bytes: int
    scans: int
    last_used_at: datetime | None
    is_valid: bool
    since: datetime | None


# An index that keeps rows apart, or that a constraint stands on, works at every write, scanned or not.
_INDEXES = text("""
    SELECT s.indexrelname, s.relname, pg_relation_size(s.indexrelid), s.idx_scan, s.last_idx_scan, i.indisvalid,
           (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database())
    FROM pg_stat_user_indexes s JOIN pg_index i USING (indexrelid)
    WHERE s.schemaname = 'public' AND NOT i.indisunique AND NOT i.indisexclusion
    ORDER BY s.relname, s.indexrelname
""")


def listed() -> list[Index]:
    """Return the indexes that only reads need: those that keep rows unique are left out.

    Scans are counted on the server that is asked: an index that only a standby uses looks unused here.
    """
    with transaction() as session:
        return [Index(*row) for row in session.execute(_INDEXES)]


def unused() -> list[Index]:
    """Return those never scanned since the statistics began, and those that an interrupted build left over."""
    return [index for index in listed() if not index.scans or not index.is_valid]
