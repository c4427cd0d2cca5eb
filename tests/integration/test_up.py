"""``./forebay up`` and the Procfile alone, from start to stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev import ports, stack
from tasks import enqueue
from tests.eventually import eventually
from worker.inspection import overview
from worker.records.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
LANES = ["bulk_insert", "chat", "embedding"]


def forebay(*arguments: str, environment: dict[str, str]) -> Any:
    """Run a command and return the JSON that it printed, None while it fails."""
    ended = subprocess.run(
        [str(ROOT / "forebay"), *arguments, "--json"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return json.loads(ended.stdout) if ended.returncode == 0 else None


@pytest.fixture
def outside() -> Iterator[dict[str, str]]:
    """Give an environment that names no service, with a home of its own."""
    with stack.temporary_home() as home:
        yield {**stack.without_services(os.environ), "FOREBAY_HOME": str(home)}


def test_up_starts_everything_and_sigterm_stops_it_in_order(outside: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(ROOT / "forebay"), "up"], env=outside, cwd="/", stdout=output, stderr=subprocess.STDOUT
        )
    try:

        def ready() -> bool:
            said = log.read_text(encoding="utf-8")
            assert process.poll() is None, said
            return said.count(" ready.") >= len(LANES)

        def lanes() -> bool:
            shown = forebay("queues", environment=outside)
            return bool(shown) and sorted(name for each in shown["workers"] for name in each["queues"]) == LANES

        eventually(ready, timeout_s=90)  # asked of the log: a command each time would take the cores from the start
        eventually(lanes)
        job = forebay("enqueue", "chat", "Say yes.", environment=outside)
        ended = forebay("job", job["id"], "--wait", "60", environment=outside)
        assert ended["status"] == "SUCCESS"
        assert forebay("env", environment=outside)["FLOWER_PORT"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0
    finally:
        if process.poll() is None:
            process.kill()
    said = log.read_text(encoding="utf-8")
    assert "killed" not in said
    assert said.index("stopping worker-chat") < said.index("all stopped")
    assert forebay("env", environment=outside) is None


def test_the_procfile_alone_works_against_outside_services(
    machine: stack.Started, broker: Broker, tmp_path: Path
) -> None:
    environment = {**machine.environment, "FLOWER_PORT": str(ports.free_port())}
    with (tmp_path / "honcho.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "honcho", "start", "-f", str(ROOT / "Procfile")],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        # the test's own process may hold a lease too, from channels that other tests opened in it
        eventually(
            lambda: (
                sorted(each.queues[0] for each in overview.workers(broker) if "@" in each.node and each.queues) == LANES
            ),
            timeout_s=90,
        )
        job = enqueue.embedding("a text")
        assert job.result(timeout=60)["dimensions"] == 384
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert [each.node for each in overview.workers(broker) if "@" in each.node] == [], "every lane has left"
