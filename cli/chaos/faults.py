"""The faults of `./forebay chaos`: each is one stroke, repeated while jobs arrive and run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
from redis.exceptions import RedisError

from cli.chaos import provider_faults
from cli.chaos.load import ROWS, Order, submission
from cli.chaos.scene import Fault, Scene
from cli.chaos.verdict import Accepted, open_jobs
from dev.processes import Process
from worker.errors import ForebayError
from worker.records import message
from worker.records.broker import Broker


def sigkill_child(scene: Scene) -> None:
    """SIGKILL a pool child, as the kernel does when memory runs out."""
    worker = psutil.Process(scene.fleet.of("bulk_insert").pid)
    with suppress(psutil.NoSuchProcess):
        random.choice(worker.children() or [worker]).send_signal(signal.SIGKILL)


def sigkill_worker(scene: Scene) -> None:
    scene.any_worker().kill()


def sigkill_all(scene: Scene) -> None:
    for worker in scene.fleet.workers:
        worker.kill()


def sigterm_twice(scene: Scene) -> None:
    worker = scene.any_worker()
    worker.send(signal.SIGTERM)
    scene.pause(0.2)
    worker.send(signal.SIGTERM)


def sigstop(scene: Scene) -> None:
    """Let a worker stand still until its lease is over and a second one has its jobs, then let it go on."""
    second = scene.fleet.start("effects")
    scene.fleet.wait(scene.watch)
    first = scene.fleet.of("effects")
    scene.struck_at = time.monotonic()
    os.killpg(first.pid, signal.SIGSTOP)
    try:
        scene.pause(scene.lease_s * 1.5)
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    scene.pause(1.0)
    scene.fleet.stop([second])


# Jobs that harm.


def greed(scene: Scene) -> None:
    """Send a job to which the kernel refuses memory, and one that takes more than its lane allows a child."""
    dead: dict[str, Any] = {"rows": 0, "ends": ("dead",), "reasons": ("failed", "attempts spent")}
    scene.load.order(
        scene.load.task("chaos.greed", {"limited": True}, "bulk_insert", **dead),
        scene.load.task("chaos.greed", {"limited": False}, "bulk_insert"),
    )


def poison(scene: Scene) -> None:
    """Send jobs that end whatever runs them: a worker on threads, a pool child."""
    dead: dict[str, Any] = {"rows": 0, "ends": ("dead",), "reasons": ("poison", "worker lost")}
    for queue, way in (("effects", "exit"), ("effects", "segfault"), ("bulk_insert", "exit")):
        scene.load.order(scene.load.task("chaos.poison", {"way": way}, queue, **dead))


def deadlock(scene: Scene) -> None:
    """Send two jobs that lock each other out, and see that PostgreSQL had to break one of them off."""
    before = _deadlocks()
    scene.load.order(
        scene.load.task("chaos.deadlock", {"first": 1, "second": 2}, "bulk_insert"),
        scene.load.task("chaos.deadlock", {"first": 2, "second": 1}, "bulk_insert"),
    )
    scene.until(lambda: _deadlocks() > before, "PostgreSQL finds a deadlock")


def _deadlocks() -> int:
    from sqlalchemy import text

    from db.engine import transaction

    with transaction() as session:
        found = session.execute(text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
        return int(found.scalar_one())


def commit_then_die(scene: Scene) -> None:
    order = scene.load.task("chaos.commit_and_die", {"rows": ROWS}, "bulk_insert", kind="bulk insert", rows=ROWS)
    scene.load.order(order)


def malformed(scene: Scene) -> None:
    """Push every kind of message that nobody can handle straight into the lists."""
    lanes = [lane for lane in scene.fleet.lanes if lane != "chat"]
    for number, raw in enumerate(malformed_messages(f"{scene.load.name}-{scene.strokes}")):
        scene.broker.redis.lpush(scene.broker.keys.waiting(lanes[number % len(lanes)], 0), raw)
        scene.strangers.append(raw)


def malformed_messages(name: str) -> list[bytes]:
    """Return a good message broken in every way that Celery drops, loops or dies on."""

    def changed(number: int, part: str, **changes: object) -> bytes:
        envelope = json.loads(message.write("cli.chaos.tasks", f"chaos-{name}-bad-{number}", "effects", 0, {}))
        holder = envelope[part] if part else envelope
        for key, value in changes.items():
            field = key if part else key.replace("_", "-")
            holder.pop(field, None) if value is None else holder.update({field: value})
        return json.dumps(envelope).encode()

    return [
        f"no JSON, {name}".encode(),
        b"\xff\xfe" + name.encode(),
        json.dumps([name]).encode(),
        changed(1, "", properties=None),
        changed(2, "properties", body_encoding="base64"),
        changed(3, "", body="{"),
        changed(4, "", body=json.dumps("no triple")),
        changed(5, "", body=json.dumps([[], {}])),
        changed(6, "", body=json.dumps([7, {}, {}])),
        changed(7, "", content_type="application/x-python-serialize"),
        changed(8, "headers", id=None),
        changed(9, "headers", task=None),
        changed(10, "headers", task="no.such.task"),
        changed(11, "headers", eta="the day before"),
        changed(12, "headers", compression="no-such-compression"),
        changed(13, "headers", retries="many"),
        changed(14, "", body=json.dumps([[], {"no_such_argument": 1}, {}])),
    ]


# Redis.


def valkey_restart(scene: Scene) -> None:
    """SIGKILL the broker; its runner starts it again on the same append-only file and port."""
    _restart(scene, "valkey")
    scene.until(lambda: _answers(scene.broker), "Valkey answers again")


def valkey_client_kill(scene: Scene) -> None:
    if not scene.broker.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"):
        raise ForebayError("no connection to the broker was there to be cut")


def maxmemory(scene: Scene) -> None:
    """Let memory be full until accept is refused with a clear error and all that was accepted has ended."""
    redis, refusals = scene.broker.redis, len(scene.load.refusals)
    before = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", 1)
    try:
        scene.until(lambda: len(scene.load.refusals) > refusals, "a producer hears that memory is full")
        scene.until(lambda: not open_jobs(scene.broker, scene.load.accepted), "jobs drain while memory is full")
    finally:
        redis.config_set("maxmemory", before)
    unclear = [text for text in scene.load.refusals[refusals:] if "memory" not in text]
    if unclear:
        raise ForebayError(f"a refusal does not speak of memory: {unclear[0]}")


def result_backend_refused(scene: Scene) -> None:
    """Take away the Valkey in which results are kept; the broker stays."""
    server = scene.servers["results"]
    server.kill()
    scene.pause(2)
    server.close()
    server.start()


# PostgreSQL.


def postgres_restart(scene: Scene) -> None:
    _restart(scene, "postgres")


def postgres_terminate_backends(_scene: Scene) -> None:
    from sqlalchemy import text

    from db.engine import transaction

    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    with transaction() as session:
        if not session.execute(text(f"SELECT pg_terminate_backend(pid) {others}")).all():
            raise ForebayError("no connection to the database was there to be ended")


# Others.


def nothing(_scene: Scene) -> None:
    """Do nothing: what is wrong is how the workers were started."""


def recycling(scene: Scene) -> None:
    """Wait until every lane works in a process, or with children, that were not there before."""
    before = {worker.name: _generation(scene, worker) for worker in scene.fleet.workers}
    scene.until(
        lambda: all(_generation(scene, worker).isdisjoint(before[worker.name]) for worker in scene.fleet.workers),
        "every lane has been recycled",
    )


def _generation(scene: Scene, worker: Process) -> set[str]:
    """Return what a recycled lane has other ones of: pool children, or on threads the lease."""
    if worker.name == "bulk_insert":
        return {str(child.pid) for child in psutil.Process(worker.pid).children()}
    owners = (owner.decode() for owner in scene.broker.redis.zrange(scene.broker.keys.owners(), 0, -1))
    return {owner for owner in owners if f":{worker.pid}:" in owner}


def enqueue_cut(scene: Scene) -> None:
    """Kill a producer process in the middle of a large pipeline, then send the same jobs again."""
    prefix, count = scene.load.new_id("cut"), 1500
    call = f"from cli.chaos.faults import produce; produce({prefix!r}, {count})"
    producer = subprocess.Popen(
        [sys.executable, "-c", call], env=scene.fleet.environment, cwd=scene.fleet.root, stdout=subprocess.PIPE
    )
    assert producer.stdout is not None
    told = int(producer.stdout.readline())
    producer.kill()
    told = max([told, *(int(line) for line in producer.stdout.read().split())])
    producer.stdout.close()
    producer.wait()
    if told == count:
        raise ForebayError("the producer was through before it was cut; let it send more jobs")
    jobs = [Accepted(f"{prefix}-{number}", "plain") for number in range(count)]
    scene.load.accepted += jobs[:told]  # whatever comes now, these were accepted

    def repeat() -> None:
        scene.broker.accept_many([submission(job.id) for job in jobs])
        scene.load.accepted += jobs[told:-1]

    scene.load.order(Order(jobs[-1], repeat))


def produce(prefix: str, count: int) -> None:
    """Accept many jobs and print after each pipeline how many are in."""
    from worker.records import broker

    jobs = [submission(f"{prefix}-{number}") for number in range(count)]
    broker.connect().accept_many(jobs, lambda done: print(done, flush=True))


def _restart(scene: Scene, name: str) -> None:
    server = scene.servers[name]
    restarts = server.restarts
    server.kill()
    scene.until(lambda: server.restarts > restarts, f"{name} is started again")


def _answers(broker: Broker) -> bool:
    try:
        return bool(broker.redis.ping())
    except RedisError:
        return False


def _recycled() -> dict[str, str]:
    lanes: dict[str, Any] = {"CHAT": 20, "EMBEDDING": 40, "EFFECTS": 20}
    threads = {f"FOREBAY_{lane}_MAX_TASKS_PER_WORKER": str(most) for lane, most in lanes.items()}
    return {**threads, "FOREBAY_BULK_INSERT_MAX_TASKS_PER_CHILD": "3"}


_WRONG_CLOCK = "dev.shifted_clock"

FAULTS = (
    Fault("sigkill-child", "A pool child is killed with SIGKILL.", sigkill_child, every_s=1.5),
    Fault("sigkill-worker", "A worker's main process is killed with SIGKILL.", sigkill_worker, every_s=5, rescues=True),
    Fault("sigkill-all", "All workers are killed at once; new ones start.", sigkill_all, every_s=10, rescues=True),
    Fault("sigkill-repeatedly", "One worker after the other is killed.", sigkill_worker, every_s=1.5, rescues=True),
    Fault("sigterm-short-grace", "A worker gets SIGTERM and at once a second one.", sigterm_twice),
    Fault("sigstop", "A worker stands still beyond its lease, then goes on.", sigstop, every_s=5, rescues=True),
    Fault("out-of-memory", "Jobs take more memory than there is, and more than their lane's ceiling.", greed),
    Fault("poison", "Jobs end the process that runs them, among good ones.", poison, most=1),
    Fault("recycling", "Workers and children are recycled every few jobs.", recycling, settings=_recycled()),
    Fault(
        "valkey-restart",
        "The broker is killed with SIGKILL and starts again from its append-only file.",
        valkey_restart,
        every_s=6,
        servers=("valkey",),
    ),
    Fault("valkey-client-kill", "Every connection to the broker is cut.", valkey_client_kill, every_s=1.5),
    Fault("maxmemory", "The broker's memory is full for a while.", maxmemory),
    Fault(
        "postgres-restart",
        "The database is killed with SIGKILL and starts again.",
        postgres_restart,
        every_s=6,
        servers=("postgres",),
    ),
    Fault(
        "postgres-terminate-backends",
        "Every connection to the database is ended.",
        postgres_terminate_backends,
        every_s=1.5,
    ),
    Fault("deadlock", "Two jobs lock the same rows crosswise.", deadlock),
    Fault(
        "commit-then-lost-settle",
        "A worker dies between a job's commit and its settle.",
        commit_then_die,
        every_s=4,
        rescues=True,
    ),
    Fault("malformed", "Messages that nobody can handle are pushed into the lists.", malformed),
    Fault("clock-ahead", "The workers' clocks are an hour ahead.", nothing, before=(_WRONG_CLOCK, "3600", "cli")),
    Fault("clock-behind", "The workers' clocks are an hour late.", nothing, before=(_WRONG_CLOCK, "-3600", "cli")),
    Fault(
        "enqueue-cut",
        "A producer is killed in the middle of a pipeline; its jobs are sent again.",
        enqueue_cut,
        most=2,
    ),
    Fault(
        "result-backend-refused",
        "The server that keeps results is away for a while; the broker is not.",
        result_backend_refused,
        every_s=6,
        servers=("results",),
    ),
    Fault("provider-429", "The provider limits the rate, and lies about for how long.", provider_faults.rate_limited),
    Fault("provider-5xx", "The provider fails with 500, 502, 503 or 529.", provider_faults.failing),
    Fault("provider-hang", "The provider does not answer.", provider_faults.hanging, every_s=8),
    Fault("provider-reset", "The provider resets connections before and within answers.", provider_faults.resetting),
    Fault(
        "provider-cut-stream", "Streams end or stall half way, or hold an error.", provider_faults.cutting, every_s=8
    ),
    Fault("provider-wrong-vectors", "Vectors are missing, too many or no numbers.", provider_faults.miscounting),
    Fault("provider-malformed", "Answers are HTML, broken JSON or empty.", provider_faults.garbling),
    Fault("provider-refuses", "Single texts are refused, also within batches.", provider_faults.refusing),
)
