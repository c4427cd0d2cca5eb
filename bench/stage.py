"""What a benchmark runs on: servers of its own, a provider whose latency and limits are set, workers of both kinds."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import text

from db import engine
from db.engine import transaction
from db.query_cache import table_versions
from dev.errors import StackError
from dev.faulty.process import FaultyProvider
from dev.fleet import Fleet
from dev.processes import Command, Log, Process
from tasks import Chat, enqueue
from worker.inspection import overview
from worker.records import broker as brokers

PLAIN_READY_WITHIN_S = 60.0
STUCK_S = 60.0
TABLES = ("DROP TABLE IF EXISTS bench_rows", "CREATE TABLE bench_rows (number int NOT NULL, text text NOT NULL)")


class Stage:
    """Workers come and go with their benchmark; the servers stay."""

    def __init__(self, root: Path, environment: Mapping[str, str], provider: FaultyProvider, log: Log) -> None:
        self.root = root
        self.environment = dict(environment)
        self.provider = provider
        self.broker = brokers.connect()
        self._log = log
        for statement in TABLES:
            execute(statement)

    @contextlib.contextmanager
    def workers(
        self, lane: str, how_many: int = 1, settings: Mapping[str, str] | None = None
    ) -> Iterator[list[Process]]:
        """Run a lane's workers as ``./forebay worker LANE`` does."""
        fleet = Fleet(self.root, self.environment, (lane,), self._fetching, self._log)
        try:
            for _ in range(how_many):
                fleet.start(lane, settings=settings)
            fleet.wait()
            yield list(fleet.workers)
        finally:
            fleet.stop()

    @contextlib.contextmanager
    def plain(self, pool: str, concurrency: int) -> Iterator[tuple[Any, Process]]:
        """Run a worker of plain Celery on kombu's own transport; give its app, which sends to it."""
        os.environ.update(self._of_plain())
        from bench.plain import app

        words = f"-m celery -A bench.plain worker -P {pool} -c {concurrency} --loglevel WARNING --without-mingle"
        environment = {**self.environment, **self._of_plain()}
        worker = Process(
            Command("plain", (sys.executable, *words.split()), environment, self.root), self._log, restart=False
        )
        worker.start()
        try:
            until = time.monotonic() + PLAIN_READY_WITHIN_S
            while not app.control.ping(timeout=0.5):
                if time.monotonic() > until or not worker.is_alive:
                    raise StackError("the worker of plain Celery was not ready; it said:\n" + "\n".join(worker.tail))
            yield app, worker
        finally:
            worker.kill_group()
            worker.close()

    def completed(self, queue: str) -> int:
        """Return how many jobs of a queue have succeeded so far."""
        return int(self.broker.redis.hget(self.broker.keys.stats(queue), "completed") or 0)

    def answer(self, chats: int) -> list[str]:
        """Have so many chats answered, each in a conversation of its own, and return their jobs' ids."""
        before = self.completed("chat")
        sent = enqueue.many([Chat(message=f"What is {n}?", conversation=uuid4().hex) for n in range(chats)])
        until(lambda: self.completed("chat"), before + chats, "chats")
        return [job.id for job in sent]

    def times(self, job_ids: Sequence[str]) -> list[tuple[float, float]]:
        """Return of each job when it was accepted and when it ended, by Redis' clock. Raises unless all succeeded."""
        pipeline = self.broker.redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hmget(self.broker.keys.job(job_id), "state", "accepted_at", "ended_at")
        found = []
        for job_id, (state, accepted_at, ended_at) in zip(job_ids, pipeline.execute(), strict=True):
            if state != b"succeeded":
                raise StackError(f"job {job_id} of a benchmark is {(state or b'unknown').decode()}")
            found.append((float(accepted_at), float(ended_at)))
        return found

    def _of_plain(self) -> dict[str, str]:
        # a database of its own: kombu's keys have the names of ours
        broker = self.environment["CELERY_BROKER_URL"].rpartition("/")[0] + "/7"
        database = self.environment["DATABASE_URL"].replace("postgresql+psycopg2://", "postgresql://")
        return {"PLAIN_BROKER_URL": broker, "PLAIN_DATABASE_URL": database}

    def _fetching(self) -> set[int]:
        return {each.pid for each in overview.workers(self.broker)}


def until(count: Callable[[], int], wanted: int, what: str) -> float:
    """Wait until a count is reached; return the moment. Raises `StackError` when it stands still for long."""
    seen, seen_at = count(), time.monotonic()
    while True:
        now = count()
        if now >= wanted:
            return time.monotonic()
        if now > seen:
            seen, seen_at = now, time.monotonic()
        if time.monotonic() - seen_at > STUCK_S:
            raise StackError(f"{now} of {wanted} {what} after {STUCK_S:g} s without another")
        time.sleep(0.02)


def resident_mib(process: Process) -> float:
    """Return the memory of a worker with its children."""
    parent = psutil.Process(process.pid)
    return sum(each.memory_info().rss for each in (parent, *parent.children(recursive=True))) / 1024**2


def rows() -> int:
    """Return how many rows the benchmarks' table has."""
    with transaction() as session:
        return int(session.execute(text("SELECT count(*) FROM bench_rows")).scalar_one())


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """Have this process' database engine and query cache begin anew with a setting, and without it behind the block."""
    before = os.environ.get(name)
    try:
        os.environ[name] = value
        _begin_anew()
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        _begin_anew()


def _begin_anew() -> None:
    table_versions.close()
    engine.close()


def execute(statement: str) -> None:
    with transaction() as session:
        session.execute(text(statement))


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that such a share of the others does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
