"""All that PostgreSQL does: rows are loaded, conversations read, documents found, statements timed."""

from collections.abc import Iterator

from bench import load, statements, store
from bench.line import Line
from bench.stage import Stage


def run(stage: Stage) -> Iterator[Line]:
    """Measure one after the other."""
    yield from load.run(stage)
    yield from store.run(stage)
    yield from statements.run(stage)
