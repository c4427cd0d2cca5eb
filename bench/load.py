"""Many rows through the queue, against COPY itself, plain Celery with COPY, and the ORM."""

import csv
import io
import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg2
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import JSON

from bench.line import Line
from bench.stage import Stage, execute, resident_mib, until
from db.engine import engine, transaction
from tasks import enqueue

ROWS, ROWS_PER_JOB, ROUNDS = 200_000, 1000, 3
JOBS = ROWS // ROWS_PER_JOB
ORM_ROWS = 10_000
COLUMNS = ["id", "text", "number", "moment", "data"]
TABLE = """
    CREATE TABLE bench_load (id bigint PRIMARY KEY, text text, number int, moment timestamp, data jsonb)
"""
Row = tuple[int, str, int, str, dict[str, Any]]


class Base(DeclarativeBase):
    """Of this benchmark's one table."""


class Loaded(Base):
    """A row, as the ORM writes it."""

    __tablename__ = "bench_load"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    number: Mapped[int]
    moment: Mapped[datetime]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


def run(stage: Stage) -> Iterator[Line]:
    """Load the same rows in four ways: two workers with two children each, as many of plain Celery, COPY, the ORM."""
    execute("DROP TABLE IF EXISTS bench_load")
    execute(TABLE)
    rows = [_row(number) for number in range(ROWS)]
    orm, plain = ORM_ROWS / _orm_s(rows[:ORM_ROWS]), ROWS / _plain_s(stage, rows)
    rounds: list[tuple[float, float]] = []
    with stage.workers("bulk_insert", 2) as workers:
        _ours_s(stage, rows[: ROWS // 10])
        warm_mib = sum(map(resident_mib, workers))
        for _ in range(ROUNDS):  # in turn, since the machine is not always as fast
            copied_s = _copied_s(stage, rows)
            rounds.append((ROWS / _ours_s(stage, rows), ROWS / copied_s))
        full_mib = sum(map(resident_mib, workers))
    ours, copy = sorted(rounds, key=lambda each: each[0] / each[1])[ROUNDS // 2]
    what, unit = f"{ROWS:,} rows in {JOBS} jobs", "rows/s"
    yield Line("load", what, ours, copy, unit, f"COPY in {JOBS} transactions, the median of {ROUNDS} rounds", aim=0.6)
    yield Line("load", what, ours, plain, unit, "plain Celery with copy_expert")
    yield Line("load", what, ours, orm, unit, f"add_all, by {ORM_ROWS:,} rows")
    yield Line("load", "memory of two workers after it", full_mib, warm_mib, "MiB", "after a tenth", 1.1, is_cost=True)


def _ours_s(stage: Stage, rows: list[Row]) -> float:
    execute("TRUNCATE bench_load")
    wanted = stage.completed("bulk_insert") + len(rows) // ROWS_PER_JOB
    began = time.monotonic()
    enqueue.bulk_insert("bench_load", rows, columns=COLUMNS)
    return until(lambda: stage.completed("bulk_insert"), wanted, "jobs") - began


def _plain_s(stage: Stage, rows: list[Row]) -> float:
    execute("TRUNCATE bench_load")
    with stage.plain("prefork", 4) as (app, _):
        began = time.monotonic()
        for at in range(0, ROWS, ROWS_PER_JOB):
            app.send_task("plain.load", (rows[at : at + ROWS_PER_JOB],), ignore_result=True)
        until(lambda: -_waiting(app), 0, "jobs")  # to count the rows takes the server's time from COPY
        return until(_loaded, ROWS, "rows") - began


def _row(number: int) -> Row:
    moment = datetime(2026, 1, 1) + timedelta(seconds=number)  # noqa: DTZ001  the column has no time zone
    return number, f"row {number} " + "x" * 90, number % 1000, moment.isoformat(), {"n": number, "tags": ["a", "b"]}


def _copied_s(stage: Stage, rows: list[Row]) -> float:
    """Return how long COPY takes from CSV that is written beforehand, as psql reads it from a file."""
    files = []
    for at in range(0, ROWS, ROWS_PER_JOB):
        file = io.StringIO()
        csv.writer(file).writerows((*row[:4], json.dumps(row[4])) for row in rows[at : at + ROWS_PER_JOB])
        file.seek(0)
        files.append(file)
    execute("TRUNCATE bench_load")
    url = stage.environment["DATABASE_URL"].replace("postgresql+psycopg2://", "postgresql://")
    connection = psycopg2.connect(url)
    try:
        began = time.monotonic()
        for file in files:
            with connection, connection.cursor() as cursor:
                cursor.copy_expert("COPY bench_load FROM STDIN (FORMAT csv)", file)
        return time.monotonic() - began
    finally:
        connection.close()


def _orm_s(rows: list[Row]) -> float:
    execute("TRUNCATE bench_load")
    began = time.monotonic()
    for at in range(0, len(rows), ROWS_PER_JOB):
        with Session(engine()) as session, session.begin():
            session.add_all(
                Loaded(id=row[0], text=row[1], number=row[2], moment=datetime.fromisoformat(row[3]), data=row[4])
                for row in rows[at : at + ROWS_PER_JOB]
            )
    return time.monotonic() - began


def _waiting(app: Any) -> int:
    with app.connection_for_read() as connection:
        return int(connection.default_channel.client.llen("celery"))


def _loaded() -> int:
    with transaction() as session:
        return int(session.execute(text("SELECT count(*) FROM bench_load")).scalar_one())
