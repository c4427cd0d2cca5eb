"""Streams of answers: what readers see while the model writes, and after its worker, its run or Redis failed."""

import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import SimpleQueue

import pytest

from tasks import enqueue
from tasks.producer.job import Job
from tasks.producer.stream import End, Event, Restart, Text
from tasks.stream_writer import Writer
from tests.eventually import eventually
from tests.integration.test_llm import HEAD, part
from tests.workers import Workers
from worker.errors import JobFailed, JobRefused, ResultTimeout, UnknownJob
from worker.records import message
from worker.records.broker import Broker, Delivery, Submission

DONE = part(finish_reason="stop") + b"data: [DONE]\n\n"


class Told:
    """A provider that says what the test puts in, to whoever asked last."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[socket.socket] = SimpleQueue()
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                request = b""
                while b'"stream_options"' not in request or not request.endswith(b"}"):  # unread, a close would reset
                    request += connection.recv(65536)
                connection.sendall(HEAD)
                self.asked.put(connection)

    def call(self) -> socket.socket:
        return self.asked.get(timeout=30)


@pytest.fixture
def provider() -> Iterator[Told]:
    started = Told()
    yield started
    for each in (started.listener, *started.connections):
        each.close()


def say(call: socket.socket, *texts: str, done: bool = False) -> None:
    call.sendall(b"".join(part(content=text) for text in texts) + (DONE if done else b""))
    if done:
        call.close()


def last_run(events: list[Event]) -> str:
    """Put together what a reader is left with, and hold the offsets to it."""
    text = ""
    for event in events:
        if isinstance(event, Restart):
            text = ""
        if isinstance(event, Text):
            assert event.offset == len(text)
            text += event.text
    return text


def running(broker: Broker, job_id: str) -> Delivery:
    text = message.write("tasks.chat", job_id, "chat", 0, {})
    broker.accept(Submission(job_id, "chat", 0, "tasks.chat", text))
    (fetched,) = broker.fetch("owner", 60, ["chat"], 1)
    assert broker.start(fetched.delivery) == "started"
    return fetched.delivery


def test_text_comes_while_the_model_writes(workers: Workers, broker: Broker, provider: Told) -> None:
    worker = workers.start("chat", OPENAI_BASE_URL=provider.url)
    job = enqueue.chat("hello", stream=True)
    call = provider.call()
    say(call, "[b]one :smile: ")
    follower = [sys.executable, "-m", "cli", "job", job.id, "--follow"]
    with subprocess.Popen(follower, cwd=workers.root, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.read(15) == "[b]one :smile: "  # before the job has ended
        assert job.status == "STARTED"
        say(call, "two \ud83d", "\ude00", done=True)
        assert other.stdout.read() == "two \U0001f600\n"
    events = list(job.stream(timeout=30))
    assert isinstance(events[-1], End)
    assert last_run(events) == job.result(30)["text"] == "[b]one :smile: two \U0001f600"
    assert events[-1].usage == job.result()["usage"]
    assert 0 < broker.redis.ttl(broker.keys.stream(job.id)) <= 3600

    cancelled = enqueue.chat("hello", stream=True)
    say(provider.call(), "never ")
    reading = cancelled.stream(timeout=30)
    assert next(reading) == Text("never ", 0, eventually(lambda: entries(broker, cancelled.id))[0])
    cancelled.cancel()
    with pytest.raises(JobFailed, match="cancelled"):
        list(reading)

    full = enqueue.chat("hello", stream=True)
    call = provider.call()
    say(call, "seen ")
    reading = full.stream(timeout=30)
    first = next(reading)
    broker.redis.config_set("maxmemory", "1mb")
    try:
        say(call, "unseen", done=True)
        eventually(lambda: "no longer streamed" in worker.said())
    finally:
        broker.redis.config_set("maxmemory", "0")
    assert last_run([first, *reading]) == full.result(30)["text"] == "seen unseen"

    plain = enqueue.chat("hello")
    say(provider.call(), "at the ", "end", done=True)
    assert list(plain.texts(timeout=30)) == ["at the end"]
    assert not broker.redis.exists(broker.keys.stream(plain.id))


def entries(broker: Broker, job_id: str) -> list[str]:
    return [entry.decode() for entry, _ in broker.redis.xrange(broker.keys.stream(job_id))]


def test_a_killed_worker_s_text_is_void(workers: Workers, provider: Told) -> None:
    first = workers.start("chat", OPENAI_BASE_URL=provider.url)
    job = enqueue.chat("hello", stream=True)
    say(provider.call(), "half an ")
    reading = job.stream(timeout=60)
    events = [next(reading)]
    first.kill()
    workers.start("chat", OPENAI_BASE_URL=provider.url)
    say(provider.call(), "a whole ", "answer", done=True)
    events += reading
    assert [type(event) for event in events[:3]] == [Text, Restart, Text]
    assert last_run(events) == job.result(30)["text"] == "a whole answer"


def test_a_reader_goes_on_from_any_event(broker: Broker) -> None:
    chance, delivery = random.Random(7), running(broker, "cut")
    for text in ("void ", "abc\U0001f600"):
        writer = Writer(broker, delivery)
        for _ in range(20):
            writer._flushed_at = writer._flushed_at and 0.0  # as if every piece came late: an entry for each
            writer.text(text)
    whole: list[Event] = []
    with pytest.raises(ResultTimeout):
        read_until(Job("cut"), whole)
    assert last_run(whole) == "abc\U0001f600" * 20
    assert len(whole) == 41
    for cut in chance.sample(range(40), 8):
        rest: list[Event] = []
        with pytest.raises(ResultTimeout):
            read_until(Job("cut"), rest, whole[cut].id)
        assert whole[: cut + 1] + rest == whole
    with pytest.raises(JobRefused, match="no event's id"):
        next(Job("cut").stream("x"))
    with pytest.raises(UnknownJob):
        next(Job("nobody").stream())


def read_until(job: Job, events: list[Event], after: str | None = None) -> None:
    events.extend(job.stream(after, timeout=0.01))


def test_a_late_run_writes_nothing(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    late = running(broker, "late")
    writer = Writer(broker, late)
    writer.text("mine ")
    broker.release(late)
    (fetched,) = broker.fetch("other", 60, ["chat"], 1)
    broker.start(fetched.delivery)
    before = entries(broker, "late")
    assert len(before) == 1
    writer.restart()
    writer.text("not mine")
    assert entries(broker, "late") == before
    assert caplog.text.count("no longer streamed") == 1


def test_the_local_model_is_streamed_and_its_refusals_are_errors(workers: Workers) -> None:
    workers.start("chat")
    job = enqueue.chat("Count to ten.", stream=True, max_tokens=24)
    events = list(job.stream(timeout=60))
    assert sum(isinstance(event, Text) for event in events) > 1
    assert last_run(events) == job.result()["text"]
    unknown = enqueue.chat("hello", model="no-such-model")
    with pytest.raises(JobFailed, match="no-such-model"):
        unknown.result(timeout=60)
