"""The disk of the broker is full for a while: new jobs are refused with the remedy, those that were accepted end."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dev import ports, stack, valkey
from dev.faulty.process import FaultyProvider
from tasks import enqueue
from tests.conftest import ROOT
from tests.eventually import eventually
from tests.workers import Workers
from worker.errors import BrokerUnavailable
from worker.records import broker as brokers
from worker.records.broker import Broker

#: Valkey would be ended by the signal that its next byte is too many; a full disk gives it an error instead.
UNSIGNALLED = ("sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    port = ports.free_port()
    command = valkey.command(tmp_path / "valkey", port, durable=True)
    with subprocess.Popen(
        [*UNSIGNALLED, *command.argv], env=command.environment, restore_signals=False, stdout=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: command.is_ready and command.is_ready(process.pid))
            monkeypatch.setenv("CELERY_BROKER_URL", valkey.url(port, 0))
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def fill(server: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Let no file of the server become larger than the log of commands is."""
    size = max(file.stat().st_size for file in folder.rglob("*.aof"))
    psutil.Process(server.pid).rlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def free(server: "subprocess.Popen[bytes]") -> None:
    psutil.Process(server.pid).rlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_jobs_wait_for_the_disk_and_end(
    machine: stack.Started,
    database: None,
    faulty: FaultyProvider,
    server: "subprocess.Popen[bytes]",
    tmp_path: Path,
) -> None:
    broker: Broker = brokers.connect()
    url = os.environ["CELERY_BROKER_URL"]
    workers = Workers(ROOT, {**machine.environment, "CELERY_BROKER_URL": url}, broker, tmp_path)
    try:
        worker = workers.start(
            "embedding", OPENAI_BASE_URL=faulty.base_url, CELERY_RESULT_BACKEND=url[:-1] + "1", CACHE_ENABLED="false"
        )
        faulty.set(embedding_s=2)
        runs = enqueue.embedding("it runs while the disk becomes full")
        eventually(lambda: runs.record()["state"] == "started")
        fill(server, tmp_path)
        refusals: list[str] = []

        def refused() -> bool:
            try:
                enqueue.embedding("is there room?")
            except BrokerUnavailable as error:
                refusals.append(str(error))
            return bool(refusals)

        eventually(refused)
        assert "disk" in refusals[0]
        eventually(lambda: "MISCONF" in worker.said())
        free(server)
        eventually(lambda: broker.redis.zcard(broker.keys.leased("embedding")) == 0, timeout_s=60)
        eventually(lambda: runs.record()["state"] == "succeeded", timeout_s=60)
        counted = {name.decode(): int(n) for name, n in broker.redis.hgetall(broker.keys.stats("embedding")).items()}
        assert counted["completed"] == counted["submitted"]
        assert "dead" not in counted
    finally:
        workers.stop()
