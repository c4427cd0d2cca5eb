"""All that PostgreSQL does: rows are loaded, conversations read, documents found, results kept, statements timed."""

from collections.abc import Iterator

from bench import load, query_cache, statements, store
from bench.line import Line
from bench.stage import Stage


def run(stage: Stage) -> Iterator[Line]:
    """Measure one after the other."""
    yield from load.run(stage)
    yield from store.run(stage)
    yield from query_cache.run(stage)
    yield from statements.run(stage)
