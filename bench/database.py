"""All that PostgreSQL does: rows that are loaded, conversations that are read, documents that are found."""

from collections.abc import Iterator

from bench import load, store
from bench.line import Line
from bench.stage import Stage


def run(stage: Stage) -> Iterator[Line]:
    """Measure one after the other."""
    yield from load.run(stage)
    yield from store.run(stage)
