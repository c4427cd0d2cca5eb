"""The programs in examples/ run as their README says, and do what they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

from db.conversations import history
from dev import stack
from tests.integration.test_jobs import scalar
from tests.workers import Workers
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


def run(machine: stack.Started, *command: str, folder: Path = ROOT) -> str:
    """Run a program with nothing in its environment but what `./forebay env` gives; return what it printed."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ} | machine.addresses
    ended = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not ended.stderr
    return ended.stdout


def test_the_readme_names_every_example() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"python (?:-m examples\.|examples/)(\w+)", readme))
    assert named == {path.stem for path in EXAMPLES.glob("*.py")}
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f"examples.{name}" in tested or f"{name}.py" in tested for name in named)


def test_a_chat_is_answered_and_another_is_streamed(machine: stack.Started, workers: Workers) -> None:
    workers.start("chat")
    printed = run(machine, "-m", "examples.chat_and_stream")
    conversation = re.search(r"^conversation: (\S+)$", printed, re.MULTILINE)
    assert conversation, printed
    question, answer, wish, story = history.page("example", conversation[1]).items
    assert (question.role, answer.role, wish.role, story.role) == ("user", "assistant", "user", "assistant")
    assert answer.content
    assert f"\nanswer: {answer.content}\n" in printed
    assert f"\nstory: {story.content}\n" in printed
    assert int(printed.split()[-1]) > 0


def test_many_texts_are_embedded_and_a_repeat_adds_no_job(
    machine: stack.Started, workers: Workers, broker: Broker
) -> None:
    workers.start("embedding")
    first = run(machine, "-m", "examples.many_embeddings")
    assert first.endswith("84 documents of 384 numbers by all-minilm-l6-v2\n")
    assert run(machine, "-m", "examples.many_embeddings") == first
    assert broker.redis.hget(broker.keys.stats("embedding"), "submitted") == b"84"
    assert scalar("SELECT count(*) FROM documents WHERE key LIKE 'examples/%'") == 84


def test_rows_are_loaded_and_loaded_again(machine: stack.Started, workers: Workers) -> None:
    workers.start("bulk_insert")
    first = run(machine, "-m", "examples.bulk_rows")
    loaded = scalar("SELECT count(*) FROM unicode_characters")
    assert loaded > 1000
    assert f"sent: {loaded}\njobs: {-(-loaded // 1000)}\nrows: {loaded} of these updated: 0\n" in first
    assert f"rows: {loaded} of these updated: {loaded}\n" in run(machine, "-m", "examples.bulk_rows")
    assert scalar("SELECT count(*) FROM unicode_characters") == loaded


def test_a_producer_of_plain_celery_knows_the_addresses_alone(
    machine: stack.Started, workers: Workers, broker: Broker, tmp_path: Path
) -> None:
    workers.start("embedding")
    printed = run(machine, str(EXAMPLES / "plain_celery_producer.py"), folder=tmp_path)
    job_id, key = re.findall(r": (\S+)$", printed, re.MULTILINE)
    assert key == "examples/plain"
    assert scalar("SELECT dimensions FROM documents WHERE key = 'examples/plain'") == 384
    record = broker.redis.hgetall(broker.keys.job(job_id))
    assert (record[b"queue"], record[b"step"]) == (b"embedding", b"3")
