"""What people do to jobs: dead letters, cancelled jobs and bulk groups of one release, in the hands of the other."""

from pathlib import Path

import pytest

from db import migration
from dev.faulty.process import FaultyProvider
from tests.eventually import eventually
from tests.upgrade.release import Raised, Release
from worker.records.broker import Broker

Pair = tuple[Release, Release]


def test_dead_letters_of_one_release_are_found_and_replayed_by_the_other(
    pair: Pair, broker: Broker, faulty: FaultyProvider
) -> None:
    writer, reader = pair
    faulty.fault("unknown_model", model="no-such-model")
    worker = writer.workers.start("embedding")
    broker.redis.lpush("embedding", b"not \xff json")
    (dead,) = reader.producer("send", "embedding", "a text", model="no-such-model")
    for each in pair:
        with pytest.raises(Raised, match="JobFailed: .*no-such-model"):
            each.producer("result", dead)
    eventually(lambda: broker.redis.zcard(broker.keys.dead()) == 2)
    assert {each["reason"] for each in reader.json("dead", "list")} == {"malformed", "failed"}
    assert found(reader) == found(writer)
    shown = reader.json("dead", "show", dead, "--payload")
    assert shown["payload"]["text"] == "a text"
    assert f'"{writer.root}/tasks/' in shown["traceback"], "the worker ran the code of its release"
    assert f'"{reader.root}/tasks/' not in shown["traceback"]
    assert worker.terminate() == 0
    faulty.heal()
    reader.workers.start("embedding")
    reader.cli("dead", "replay", dead)
    assert [each.producer("result", dead)["key"] for each in pair] == [dead] * 2
    (malformed,) = found(writer)
    reader.cli("dead", "purge", malformed, "--yes")
    audits = [each.audit()["embedding"] for each in pair]
    assert audits[0] == audits[1]
    assert (audits[0]["accepted"], audits[0]["succeeded"], audits[0]["dead"]) == (2, 1, 1)


def found(release: Release) -> dict[str, str]:
    """Return the fingerprints of the dead letters, by job, as a release lists them."""
    groups = release.json("dead", "groups")
    return {each["example"]["id"]: each["fingerprint"] for each in groups}


def test_a_job_that_runs_in_one_release_is_cancelled_by_the_other(pair: Pair, faulty: FaultyProvider) -> None:
    runner, other = pair
    faulty.set(chat_s=60)
    (waiting,) = runner.producer("send", "chat", "later", delay=3600)
    (running,) = runner.producer("send", "chat", "now", conversation="c")
    assert other.producer("cancel", waiting)
    runner.workers.start("chat")
    eventually(lambda: other.producer("status", running) == "STARTED" and faulty.counts().in_flight)
    assert other.producer("cancel", running)
    eventually(lambda: [each.producer("status", running) for each in pair] == ["REVOKED"] * 2)
    for job in (waiting, running):
        for each in pair:
            assert not each.producer("cancel", job)
            with pytest.raises(Raised, match="JobFailed: .*cancelled"):
                each.producer("result", job)
    audits = [each.audit()["chat"] for each in pair]
    assert audits[0] == audits[1]
    assert (audits[0]["accepted"], audits[0]["cancelled"]) == (2, 2)


def test_the_old_release_works_on_the_schema_of_the_new(old: Release, new: Release, tmp_path: Path) -> None:
    assert migration.pending() == []
    new.cli("migrate", "--check")
    old.workers.start("bulk_insert")
    file = tmp_path / "rows.csv"
    file.write_text("codepoint,name\n" + "".join(f"{number},row\n" for number in range(2500)), encoding="utf-8")
    load = ("enqueue", "bulk", "unicode_characters", str(file), "--group", "load", "--wait", "60")
    assert "2,500" in old.cli(*load)
    assert new.json("group", "load") == old.json("group", "load")
    new.cli(*load)  # a repeat of what is done
    assert new.audit()["bulk_insert"]["accepted"] == 3
    for command in (["indexes"], ["queries", "slow"], ["config"]):
        old.cli(*command)
