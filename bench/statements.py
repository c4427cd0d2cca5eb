"""What it costs that each statement is timed."""

import time
from collections.abc import Iterator

from sqlalchemy import text

from bench.line import Line
from bench.stage import Stage, quantile, setting
from db import engine

TIMES, ROUNDS = 2000, 5


def run(_: Stage) -> Iterator[Line]:
    """Run the shortest statement with and without the clock, in turn."""
    rates: dict[str, list[float]] = {"true": [], "false": []}
    for _round in range(ROUNDS):
        for timed, of in rates.items():
            with setting("QUERY_SLOW_ENABLED", timed):
                of.append(_rate())
    measured, compared = (quantile(of, 0.5) for of in rates.values())
    yield Line("statements", "SELECT 1, timed", measured, compared, "/s", "not timed")


def _rate() -> float:
    with engine.engine().connect() as connection:
        connection.execute(text("SELECT 1"))
        began = time.monotonic()
        for _ in range(TIMES):
            connection.execute(text("SELECT 1"))
        return TIMES / (time.monotonic() - began)
