"""Workers of both releases on one lane: through kills, an upgrade and its way back nothing is lost or done twice."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from db.engine import transaction
from dev.faulty.process import FaultyProvider
from tests.eventually import eventually
from tests.upgrade.release import Release
from tests.workers import Worker
from worker.records.broker import Broker

#: So little at once that each worker of a lane gets its part.
SMALL = {
    "FOREBAY_CHAT_CONCURRENCY": "4",
    "FOREBAY_EMBEDDING_BATCH_MAX_JOBS": "8",
    "FOREBAY_BULK_INSERT_BATCH_MAX_JOBS": "8",
}
#: Where each job of a lane leaves one row. A second effect is another row, or fails on the primary key.
EFFECTS = {
    "chat": ["messages WHERE role = 'user'", "messages WHERE role = 'assistant'"],
    "embedding": ["documents"],
    "bulk_insert": ["unicode_characters", "receipts"],
}


class Sent:
    """The jobs that both releases sent to a lane. Several threads may add to it."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.ids: list[str] = []
        self._numbers = itertools.count()

    def add(self, release: Release, many: int = 1) -> None:
        numbers = list(itertools.islice(self._numbers, many))
        self.ids += release.producer("send_many", *self._payloads(numbers))

    def _payloads(self, numbers: list[int]) -> tuple[str, list[dict[str, object]]]:
        if self.lane == "chat":
            return "Chat", [{"message": f"m {number}", "conversation": f"c {number}"} for number in numbers]
        if self.lane == "embedding":
            return "Embedding", [{"text": f"text {number}"} for number in numbers]
        table = {"table": "unicode_characters", "columns": ["codepoint", "name"]}
        return "BulkInsert", [{**table, "rows": [[number, "one"]]} for number in numbers]

    def of(self, broker: Broker, *fields: str) -> list[list[bytes | None]]:
        """Return fields of every job's record."""
        pipeline = broker.redis.pipeline(transaction=False)
        for job_id in self.ids:
            pipeline.hmget(broker.keys.job(job_id), *fields)
        return pipeline.execute()

    def started_by(self, broker: Broker, worker: Worker) -> list[str]:
        """Return the jobs that run in a worker now."""
        owners = broker.redis.zrange(broker.keys.owners(), 0, -1)
        pids = {each: broker.redis.hget(broker.keys.owner(each.decode()), "pid") for each in owners}
        own = str(worker.process.pid).encode()
        records = zip(self.ids, self.of(broker, "state", "owner"), strict=True)
        return [job for job, (state, owner) in records if state == b"started" and pids.get(owner) == own]

    def all_succeed_once(self, broker: Broker, *releases: Release) -> None:
        """Wait for every job's success; hold the database, and the audits of both releases, to their number."""
        expected = len(self.ids)
        eventually(lambda: counter(broker, self.lane, "completed") >= expected)
        assert {state for (state,) in self.of(broker, "state")} == {b"succeeded"}
        assert {table: count(table) for table in EFFECTS[self.lane]} == dict.fromkeys(EFFECTS[self.lane], expected)
        for release in releases:
            balance = release.audit()[self.lane]
            assert (balance["accepted"], balance["succeeded"]) == (expected, expected), release.name


def count(table: str) -> int:
    with transaction() as session:
        return int(session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def counter(broker: Broker, lane: str, name: str) -> int:
    return int(broker.redis.hget(broker.keys.stats(lane), name) or 0)


@contextmanager
def held_up(lane: str, faulty: FaultyProvider) -> Iterator[None]:
    """Let no job of the lane end within the block, or hardly: its provider is slow, or its table is locked."""
    if lane == "bulk_insert":
        with transaction() as session:
            session.execute(text("LOCK TABLE unicode_characters IN SHARE MODE"))
            yield
        return
    faulty.set(chat_s=2, embedding_s=2)
    yield
    faulty.set(chat_s=0, embedding_s=0)


@pytest.mark.parametrize("lane", ["chat", "embedding", "bulk_insert"])
def test_each_release_rescues_what_the_other_ran_when_it_was_killed(
    old: Release, new: Release, broker: Broker, faulty: FaultyProvider, lane: str
) -> None:
    sent = Sent(lane)
    running = {release.name: release.workers.start(lane, **SMALL) for release in (old, new)}
    for victim in (old, new):
        worker = running[victim.name]
        with held_up(lane, faulty):
            for release in (old, new):
                sent.add(release, 60)
            eventually(lambda worker=worker: sent.started_by(broker, worker))
            before = counter(broker, lane, "rescued")
            held = sent.started_by(broker, worker)
            worker.kill()
        sent.all_succeed_once(broker, old, new)
        assert counter(broker, lane, "rescued") > before
        orphaned = dict(zip(sent.ids, sent.of(broker, "orphaned"), strict=True))
        assert [b"1"] in [orphaned[job] for job in held]
        if victim is old:
            running["old"] = old.workers.start(lane, **SMALL)


@pytest.mark.parametrize("lane", ["embedding", "bulk_insert"])
def test_an_upgrade_and_its_way_back_lose_nothing(old: Release, new: Release, broker: Broker, lane: str) -> None:
    """Replace one worker after the other, each stopped by SIGTERM, while both releases enqueue; then back again."""
    # Longer than the test: what a worker that stops does not give back itself nobody rescues in time.
    settings = {**SMALL, "FOREBAY_LEASE_DURATION_S": "120"}
    sent, enough = Sent(lane), threading.Event()

    def keep_sending(release: Release) -> int:
        for rounds in itertools.count(1):
            sent.add(release)
            if enough.wait(0.1):
                return rounds
        raise AssertionError

    fleet = [old.workers.start(lane, **settings) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        sending = [threads.submit(keep_sending, release) for release in (old, new)]
        try:
            for release in (new, new, old, old):
                goes_on(broker, lane)
                leaving = fleet.pop(0)
                assert leaving.terminate() == 0, leaving.said()
                fleet.append(release.workers.start(lane, **settings))
            goes_on(broker, lane)
        finally:
            enough.set()
        assert min(each.result() for each in sending) > 1
    sent.all_succeed_once(broker, old, new)
    assert counter(broker, lane, "rescued") == 0


def goes_on(broker: Broker, lane: str) -> None:
    """Wait until more jobs of the lane have ended."""
    enough = counter(broker, lane, "completed") + 10
    eventually(lambda: counter(broker, lane, "completed") >= enough)
