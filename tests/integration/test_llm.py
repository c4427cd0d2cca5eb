"""Calls of a provider: how a stream becomes an answer, and that a call ends when it has to, wherever it waits."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from tasks.provider import llm
from tasks.provider.metering import Unmetered
from tests.eventually import eventually
from worker.runtime import cancellation

HELLO = [{"role": "user", "content": "hello"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
FAILED = b"HTTP/1.1 500 Out Of Order\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def part(finish_reason: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"model": "a-model", "choices": [choice]}).encode() + b"\n\n"


class Provider:
    """A server that says to each connection what it was told to, and then ends, repeats itself or is silent."""

    def __init__(self) -> None:
        self.says: list[bytes] = []
        self.then = "silence"
        self.asked = 0
        self.left = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            self.asked += 1
            for said in self.says:
                connection.sendall(said)
            while self.then == "repetition":
                connection.sendall(self.says[-1])
            if self.then == "end":
                connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        self.left += 1


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    started = Provider()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{started.port}/v1")
    yield started
    started.listener.close()


@pytest.fixture
def asking() -> Iterator[Callable[[], Future[llm.Completion]]]:
    """Ask in another thread, as the job that the test then cancels; its limit is far away."""

    def ask() -> llm.Completion:
        with cancellation.running("a-job"):
            return llm.chat(HELLO, timeout_s=600, job_id="a-job")

    with ThreadPoolExecutor(1) as pool:
        yield lambda: pool.submit(ask)
        cancellation.cancel("a-job")  # a test that failed waits for nobody


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ("http", []),  # before the headers
        ("http", [HEAD]),  # before the first token
        ("http", [HEAD, part(content="hel")]),
        ("https", []),  # within the TLS handshake
    ],
)
def test_a_cancelled_call_ends_wherever_it_waits(
    provider: Provider,
    asking: Callable[[], Future[llm.Completion]],
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    says: list[bytes],
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{scheme}://127.0.0.1:{provider.port}/v1")
    provider.says = says
    asked = asking()
    eventually(lambda: provider.asked == 1)
    assert cancellation.cancel("a-job")
    assert isinstance(asked.exception(timeout=20), llm.Cancelled)
    eventually(lambda: provider.left == 1)  # and so the provider stops
    assert provider.asked == 1


def test_a_call_cancelled_between_two_tries_is_not_tried_again(
    provider: Provider, asking: Callable[[], Future[llm.Completion]], caplog: pytest.LogCaptureFixture
) -> None:
    provider.says, provider.then = [FAILED], "end"
    asked = asking()
    eventually(lambda: "Retrying" in caplog.text)
    cancellation.cancel("a-job")
    assert isinstance(asked.exception(timeout=20), llm.Cancelled)
    assert provider.asked == 1


def test_a_job_cancelled_before_it_asks_does_not_ask(provider: Provider) -> None:
    with cancellation.running("early"):
        cancellation.cancel("early")
        with pytest.raises(llm.Cancelled):
            llm.chat(HELLO, timeout_s=600, job_id="early")
    assert provider.asked == 0


class Slow(Unmetered):
    """A gate that lets a call leave only long after the job's time is over."""

    def __init__(self) -> None:
        self.put_back = 0

    def before_call(self, tokens: int) -> float:
        return 1000.0

    def unused(self) -> None:
        self.put_back += 1


def test_a_call_that_could_not_leave_in_time_waits_in_its_queue_instead(provider: Provider) -> None:
    gate = Slow()
    with pytest.raises(llm.ProviderBusy) as raised:
        llm.chat(HELLO, timeout_s=600, meter=gate)
    assert (raised.value.retry_after_s, gate.put_back, provider.asked) == (1000.0, 1, 0)


@pytest.mark.parametrize(
    ("says", "then"),
    [([], "silence"), ([HEAD, part(content="on and on ")], "repetition"), ([HEAD, b": \n\n"], "repetition")],
)
def test_the_limit_is_the_whole_call_s(provider: Provider, says: list[bytes], then: str) -> None:
    provider.says, provider.then = says, then
    with pytest.raises(llm.ProviderAway, match=r"within 0\.5 s"):
        llm.chat(HELLO, timeout_s=0.5)
    eventually(lambda: provider.left == 1)
    assert provider.asked == 1
    with pytest.raises(llm.ProviderAway):
        llm.embed(["text"], timeout_s=0.5)


@pytest.mark.parametrize(
    "says",
    [
        [],
        [HEAD],
        [HEAD, part(content="hel")],
        [HEAD, part(content="hel"), b"data: [DONE]\n\n"],
        [HEAD, part(content="hel"), b'data: {"error": {"message": "overloaded"}}\n\n'],
        [HEAD, b"data: {\n\n"],
        [HEAD, b'data: {"choices": 7}\n\n'],
    ],
)
def test_an_answer_cut_short_is_no_answer(provider: Provider, says: list[bytes]) -> None:
    provider.says, provider.then = says, "end"
    with pytest.raises(llm.ProviderAway):
        llm.chat(HELLO, timeout_s=1)  # less than the pause before a second try


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (408, llm.ProviderAway),
        (409, llm.ProviderAway),
        (500, llm.ProviderAway),
        (529, llm.ProviderAway),
        (400, llm.ProviderRejected),
        (422, llm.ProviderRejected),
        (401, llm.ProviderRefusesUs),
        (402, llm.ProviderRefusesUs),
        (429, llm.ProviderBusy),
    ],
)
def test_each_status_says_whether_to_ask_again(provider: Provider, status: int, raised: type[Exception]) -> None:
    head = f"HTTP/1.1 {status} Out Of Order\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    provider.says, provider.then = [head.encode()], "end"
    with pytest.raises(raised):
        llm.chat(HELLO, timeout_s=1)  # less than the pause before a second try


def test_a_stream_is_put_together(provider: Provider) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    provider.says = [
        HEAD,
        part(role="assistant", content=""),
        part(content="a smile: \ud83d"),
        part(content="\ude00, half \ud83d and NUL \0"),
        part(tool_calls=[{"index": 1, "id": "two", "type": "function", "function": {"name": "g", "arguments": ""}}]),
        part(
            tool_calls=[{"index": 0, "id": "one", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]
        ),
        part(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]),
        part(finish_reason="tool_calls"),
        b'data: {"model": "a-model", "choices": [], "usage": ' + json.dumps(usage).encode() + b"}\n\n",
        b"data: [DONE]\n\n",
    ]
    assert llm.chat(HELLO, timeout_s=60) == llm.Completion(
        text="a smile: \U0001f600, half \ufffd and NUL \ufffd",
        model="a-model",
        finish_reason="tool_calls",
        prompt_tokens=5,
        completion_tokens=7,
        tool_calls=[
            {"id": "one", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "two", "type": "function", "function": {"name": "g", "arguments": ""}},
        ],
    )


def test_a_stream_without_usage_is_estimated(provider: Provider) -> None:
    provider.says = [HEAD, part(content="eight by"), part(finish_reason="length"), b"data: [DONE]\n\n"]
    answer = llm.chat(HELLO, timeout_s=60)
    assert (answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == ("length", 2, 2)


def test_a_request_that_is_no_text_is_refused(provider: Provider) -> None:
    with pytest.raises(llm.ProviderRejected, match="Unicode"):
        llm.chat([{"role": "user", "content": "\ud800"}], timeout_s=60)
    assert provider.asked == 0
