"""What users of Celery and kombu expect of a transport, with ours in its place."""

import base64
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kombu import Connection

import celeryconfig
from dev import stack
from tasks import Job, enqueue
from tests.eventually import eventually
from tests.integration import probes
from tests.workers import Workers
from worker.records import broker as brokers
from worker.records import message
from worker.records.broker import Broker
from worker.runtime.transport import Transport

PLAIN = """
from celery import Celery
app = Celery(broker={broker!r}, backend={backend!r})
result = app.send_task("tasks.embedding", kwargs={{"text": "from afar", "key": "plain"}}, queue="embedding", {more})
print(result.id)
print(result.get(timeout=60)["key"])
"""


BODYLESS = (
    b'{"headers": {"id": "i", "task": "tasks.chat"}, "body": "%a", "properties": '
    b'{"delivery_info": {}, "delivery_tag": "t", "body_encoding": "base64"}}'
)


def plain_producer(machine: stack.Started, more: str, folder: Path) -> list[str]:
    """Run a producer that knows neither our transport nor our settings."""
    addresses = machine.addresses
    program = PLAIN.format(broker=addresses["CELERY_BROKER_URL"], backend=addresses["CELERY_RESULT_BACKEND"], more=more)
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )
    return said.stdout.split()


def test_jobs_of_a_plain_celery_producer_run(
    machine: stack.Started, workers: Workers, broker: Broker, tmp_path: Path
) -> None:
    workers.start("embedding")
    for more in ("", "countdown=1", "priority=9", "expires=3600"):
        job_id, key = plain_producer(machine, more, tmp_path)
        assert key == "plain", more
        record = eventually(lambda job_id=job_id: broker.redis.hgetall(broker.keys.job(job_id)))
        eventually(lambda job_id=job_id: broker.redis.hget(broker.keys.job(job_id), "state") == b"succeeded")
        assert record[b"queue"] == b"embedding", more


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_plain_worker_command_works_as_any_celery_user_expects(workers: Workers, pool: str) -> None:
    command = "-m celery -A worker.app worker -Q chat,embedding -c 2 --pool"
    worker = workers.run([sys.executable, *command.split(), pool])
    assert enqueue.chat("Say yes.", max_tokens=4).result(60)["text"]
    assert [enqueue.embedding(f"text {number}").result(60)["dimensions"] for number in range(3)] == [384] * 3
    assert worker.terminate() == 0


def test_celery_inspect_and_control_answer(workers: Workers) -> None:
    from worker.app import app

    workers.start("chat")
    answers = app.control.inspect(timeout=5).ping()
    assert [answer for node, answer in answers.items() if node.startswith("chat@")] == [{"ok": "pong"}]


def test_simple_queues_lease_and_acknowledge(broker: Broker) -> None:
    with connection() as connected:
        queue = connected.SimpleQueue("letters")
        queue.put({"a": 1})
        received = queue.get(timeout=5)
        assert received.payload == {"a": 1}
        assert broker.redis.zcard(broker.keys.leased("letters")) == 1
        received.ack()
        assert broker.redis.zcard(broker.keys.leased("letters")) == 0
        queue.close()


def test_what_fetches_and_what_runs_share_their_connections(broker: Broker) -> None:
    with probes.app.connection_for_read() as connected:
        assert connected.default_channel.broker is brokers.connect(probes.app.conf.broker_url)


def test_closing_a_connection_gives_back_what_was_not_acknowledged(broker: Broker) -> None:
    with connection() as connected:
        queue = connected.SimpleQueue("letters")
        queue.put("a letter")
        queue.get(timeout=5)
    assert broker.redis.llen("letters") == 1
    with connection() as connected:
        again = connected.SimpleQueue("letters").get(timeout=5)
        assert again.payload == "a letter"
        assert again.delivery_info["redelivered"]
        again.reject()
    assert broker.redis.zcard(broker.keys.dead()) == 1


def test_a_rejected_and_requeued_message_comes_again(broker: Broker) -> None:
    with connection() as connected:
        queue = connected.SimpleQueue("letters")
        queue.put("a letter")
        queue.get(timeout=5).requeue()
        assert queue.get(timeout=5).payload == "a letter"


def test_purging_a_queue_cancels_its_jobs(broker: Broker) -> None:
    jobs = [enqueue.chat(f"question {number}") for number in range(70)]
    with connection() as connected:
        assert connected.default_channel.queue_purge("chat") == 70
    assert {job.status for job in jobs} == {"REVOKED"}
    assert broker.redis.hget(broker.keys.stats("chat"), "cancelled") == b"70"


def task_message(**changes: object) -> bytes:
    """Return a good message with parts of it replaced; None removes a header."""
    envelope = json.loads(message.write("tasks.embedding", "a-bad-one", "embedding", 0, {"text": "hello"}))
    for part, value in changes.items():
        if part in envelope["headers"]:
            envelope["headers"][part] = value
            if value is None:
                del envelope["headers"][part]
        elif part == "base64":
            envelope["body"] = base64.b64encode(str(value).encode()).decode()
            envelope["properties"]["body_encoding"] = "base64"
        else:
            envelope[part.replace("_", "-")] = value
    return json.dumps(envelope).encode()


BAD = [
    (b"not json", b"malformed"),
    (b"\xff\xfe\x00", b"malformed"),
    (b'{"headers": {"id": "shapeless"}}', b"malformed"),
    (BODYLESS, b"malformed"),
    (BODYLESS.replace(b'"i"', b'"j"').replace(b'"base64"', b'"rot13"'), b"malformed"),
    (BODYLESS.replace(b'"i"', b'"k"').replace(b'"%a"', b"7"), b"malformed"),
    (task_message(id="a", task="no.such.task"), b"unknown task"),
    (task_message(id="b", task=None), b"no task named"),
    (task_message(id=None), b"malformed"),
    (task_message(id="c", eta="yesterday, perhaps"), b"malformed"),
    (task_message(id="d", body='"not a triple"'), b"malformed"),
    (task_message(id="e", base64="[[], {}]"), b"malformed"),
    (task_message(id="f", body="{not json"), b"undecodable"),
    (task_message(id="g", base64="{not json"), b"undecodable"),
    (task_message(id="h", content_type="application/x-python-serialize"), b"invalid task"),
    (task_message(id="l", body='[[], {"text": 7}, {}]'), b"failed"),
    (task_message(id="m", base64='[[], {"text": 7}, {}]'), b"failed"),
    (task_message(id="n", body='[[], {"__type__": "no such", "__value__": 1}, {}]'), b"undecodable"),
]


def test_bad_messages_are_dead_lettered_untouched_and_the_next_job_runs(workers: Workers, broker: Broker) -> None:
    broker.redis.lpush("embedding", BAD[0][0])  # the first thing that a worker meets
    worker = workers.start("embedding")
    for raw, _ in BAD[1:]:
        broker.redis.lpush("embedding", raw)
        assert enqueue.embedding("a good text").result(60)["dimensions"] == 384
    dead = eventually(
        lambda: (found := broker.redis.zrange(broker.keys.dead(), 0, -1)) and len(found) == len(BAD) and found
    )
    records = [broker.redis.hgetall(broker.keys.job(each.decode())) for each in dead]
    assert {record[b"message"]: record[b"reason"] for record in records} == dict(BAD)
    assert worker.process.poll() is None


def test_an_idle_worker_starts_a_job_without_waiting_for_its_poll(workers: Workers, broker: Broker) -> None:
    workers.start("embedding", FOREBAY_EMBEDDING_BATCH_MAX_WAIT_S="0")
    enqueue.embedding("warm up").result(60)
    waits = []
    for number in range(20):
        job = enqueue.embedding(f"text {number}")
        job.result(60)
        record = job.record()
        waits.append(float(record["started_at"]) - float(record["accepted_at"]))
    assert sorted(waits)[10] < 0.5  # half of the poll's period: the bell was heard


def test_an_idle_worker_asks_redis_for_little(workers: Workers, broker: Broker) -> None:
    workers.start("chat")
    seconds = 5

    def commands() -> int:
        stats = broker.redis.info("commandstats")
        return sum(int(of["calls"]) for name, of in stats.items() if name.split("_")[1] in ("brpop", "evalsha"))

    began, before = broker.redis.time()[0], commands()
    eventually(lambda: broker.redis.time()[0] - began > seconds)
    assert 0 < commands() - before < 10 * seconds


def test_the_envelope_of_our_producers_is_readable_by_kombu(broker: Broker) -> None:
    job = enqueue.chat("hello")
    raw = json.loads(broker.redis.lindex("chat\x06\x163", 0))
    assert raw["headers"]["id"] == job.id
    with connection() as connected:
        received = connected.default_channel.basic_get("chat")
        assert received.payload[1]["message"] == "hello"
        received.requeue()
    job.cancel()


def connection() -> Connection:
    return Connection(
        os.environ["CELERY_BROKER_URL"],
        transport=Transport,
        transport_options=celeryconfig.broker_transport_options,
    )


class Cutter:
    """A way to the broker that cuts, once, the connection on which a reply with ``mark`` in it comes back."""

    def __init__(self, url: str, mark: bytes) -> None:
        there = urlsplit(url)
        self.to = (there.hostname or "", there.port or 6379)
        self.mark = mark
        self.cut = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}{there.path}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed with the test
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.to)
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while True:
                for ready in select.select([near, far], [], [])[0]:
                    read = ready.recv(1 << 20)
                    if ready is far and self.mark in read and not self.cut.is_set():
                        self.cut.set()
                        return
                    if not read:
                        return
                    (far if ready is near else near).sendall(read)


def test_a_fetch_whose_reply_is_cut_off_strands_no_job(
    machine: stack.Started, workers: Workers, broker: Broker
) -> None:
    cutter = Cutter(machine.addresses["CELERY_BROKER_URL"], b'"probe.add"')
    try:
        workers.probes("threads", CELERY_BROKER_URL=cutter.url)
        cut = Job(probes.add.apply_async((1, 2)).id)
        assert cutter.cut.wait(30)
        eventually(lambda: cut.status == "SUCCESS")  # its worker lives and renews: no lease runs out
        assert cut.record()["delivery"] == "2"
        assert broker.redis.hget(broker.keys.stats("chat"), "rescued") is None
    finally:
        cutter.listener.close()
