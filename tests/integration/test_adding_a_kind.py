"""What docs/adding-a-kind.md says is all that a new kind of job needs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dev import stack
from tests.workers import Workers
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "adding-a-kind.md"
PARTS = ("worker", "tasks", "db", "cache", "cli", "dev", "bench")


def test_a_kind_is_two_files_and_an_entry(machine: stack.Started, broker: Broker, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    page = PAGE.read_text(encoding="utf-8")
    payload, body, use = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (queue,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shutil.copy(ROOT / "celeryconfig.py", copy)
    (copy / "queues.yaml").write_text((ROOT / "queues.yaml").read_text("utf-8").rstrip() + "\n" + queue, "utf-8")
    (copy / "tasks/producer/kinds/rerank.py").write_text(payload, "utf-8")
    (copy / "tasks/rerank.py").write_text(body, "utf-8")

    workers = Workers(copy, {**machine.environment, "PYTHONPATH": str(copy)}, broker, tmp_path)
    try:
        workers.start("rerank")
        said = subprocess.run(
            [sys.executable, "-c", use],
            cwd=copy,
            env={**os.environ, **workers.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        workers.stop()
    assert said.stdout == "['the tower is tall', 'a ship']\n", said.stderr
    (key,) = broker.redis.scan_iter(broker.keys.job("*"))
    assert broker.redis.hget(key, "step") == b"3"
    broker.redis.flushall()
