"""The chaos suite finds what was lost or doubled, and under the most telling faults there is nothing to find."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.chaos import verdict as chaos_verdict
from cli.chaos.verdict import Accepted, Found, judge, second_opinion
from db.vectors import documents
from db.vectors.documents import Document
from tasks import enqueue
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
TELLING = (
    "sigkill-worker",
    "commit-then-lost-settle",
    "malformed",
    "valkey-client-kill",
    "postgres-terminate-backends",
)


def chaos(*arguments: str, code: int = 0, given: str = "") -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "cli", "chaos", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        input=given,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + (ended.stderr if code else "")


def test_the_most_telling_faults_lose_and_double_nothing() -> None:
    verdicts = json.loads(chaos("--json", "--seconds", "3", *(word for name in TELLING for word in ("--fault", name))))
    assert [(each["fault"], each["complaints"]) for each in verdicts] == [(name, []) for name in TELLING]
    for each in verdicts:
        assert each["accepted"] == sum(each[end] for end in ("succeeded", "cancelled", "expired"))
        assert each["strokes"]


PLAIN = Accepted("j", "plain")
POISON = Accepted("j", "plain", rows=0, ends=("dead",), reasons=("poison",))
CANCELLED = Accepted("j", "question", ends=("cancelled",))


@pytest.mark.parametrize(
    ("found", "lost", "doubled", "complaint"),
    [
        (Found(PLAIN, "succeeded", rows=1), 0, 0, ""),
        (Found(PLAIN, "", placed=False), 1, 0, "lost: plain j: no record"),
        (Found(PLAIN, "queued", placed=False), 1, 0, "lost: plain j: queued, in no list"),
        (Found(PLAIN, "succeeded"), 1, 0, "lost: plain j: succeeded, 0 of 1 rows"),
        (Found(PLAIN, "succeeded", rows=2), 0, 1, "doubled: plain j: succeeded, 2 of 1 rows"),
        (Found(PLAIN, "started"), 0, 0, "not ended: plain j: started"),
        (Found(PLAIN, "dead", reason="poison"), 0, 0, "ended wrongly: plain j: dead (poison)"),
        (Found(POISON, "dead", reason="poison"), 0, 0, ""),
        (Found(POISON, "dead", reason="failed"), 0, 0, "ended wrongly: plain j: dead (failed)"),
        (Found(POISON, "dead", reason="poison", rows=1), 0, 0, "ended wrongly: plain j: dead (poison), 1 of 0"),
        (Found(POISON, "succeeded", rows=1), 0, 0, "ended wrongly: plain j: succeeded"),
        (Found(CANCELLED, "cancelled"), 1, 0, "lost: question j: cancelled, 0 of 1"),
        (Found(Accepted("j", "plain", rows=20), "succeeded", rows=19), 1, 0, "lost: plain j: succeeded, 19 of 20"),
    ],
)
def test_a_job_is_judged_by_its_record_and_its_rows(found: Found, lost: int, doubled: int, complaint: str) -> None:
    verdict = judge("a fault", [found])
    assert (verdict.lost, verdict.doubled) == (lost, doubled)
    assert verdict.passed == (not complaint)
    assert not complaint or any(each.startswith(complaint) for each in verdict.complaints)


def test_nothing_accepted_proves_nothing() -> None:
    assert judge("a fault", []).complaints == ["nothing was accepted, so nothing is proved"]


def test_counters_that_differ_from_the_records_are_a_complaint() -> None:
    verdict = judge("a fault", [Found(PLAIN, "succeeded", rows=1)])
    assert second_opinion({"submitted": 5}, {"submitted": 6, "completed": 1}, verdict, strangers=0) == []
    assert second_opinion({"submitted": 5}, {"submitted": 7, "completed": 1}, verdict, strangers=0) == [
        "counters: submitted is 2, the records say 1"
    ]


def test_what_is_lost_and_doubled_is_found_in_redis_and_postgresql(broker: Broker, database: None) -> None:
    def jobs(*names: str) -> dict[str, Accepted]:
        return {name: Accepted(enqueue.embedding(name).id, "embedding") for name in names}

    sent = jobs("good", "without effect", "doubled")
    for fetched in broker.fetch("a worker", 60, ["embedding"], 3):
        broker.start(fetched.delivery)
        broker.done(fetched.delivery)
    for name, copies in {"good": 1, "doubled": 2}.items():
        documents.store([Document(f"{name} {copy}", name, [1.0], "m", sent[name].id) for copy in range(copies)])
    sent |= jobs("without message")
    broker.redis.delete(broker.keys.waiting("embedding", 0))
    sent |= jobs("waiting", "without record")
    broker.redis.delete(broker.keys.job(sent["without record"].id))
    found = dict(zip(sent, chaos_verdict.find(broker, list(sent.values()), ["embedding"]), strict=True))
    assert {name for name, each in found.items() if each.lost} == {
        "without effect",
        "without message",
        "without record",
    }
    assert {name for name, each in found.items() if each.doubled} == {"doubled"}
    assert chaos_verdict.open_jobs(broker, list(sent.values())) == 2


def test_the_faults_are_listed_and_an_unknown_one_is_refused() -> None:
    listed: list[dict[str, Any]] = json.loads(chaos("--list", "--json"))
    assert set(TELLING) <= {each["fault"] for each in listed}
    assert "'sigkil' is unknown; use sigkill-child, " in chaos("--fault", "sigkil", code=1)


def test_a_stack_of_others_is_left_alone_without_a_yes() -> None:
    assert "Aborted" in chaos("--here", code=1, given="n\n")


def test_a_shifted_clock_is_wrong_by_what_was_asked() -> None:
    program = (
        "from dev import shifted_clock; shifted_clock.shift(-7200)\n"
        "import time; from datetime import datetime, UTC\n"
        "print(time.time(), time.time_ns() / 1e9, datetime.now(UTC).timestamp(), datetime.now().timestamp())"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [round((float(moment) - time.time()) / 3600) for moment in said.split()] == [-2] * 4
