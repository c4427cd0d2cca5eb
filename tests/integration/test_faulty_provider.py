"""The provider with faults to order does what it says: to OpenAI's own client, or on the bare connection."""

import http.client
import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from dev.errors import StackError
from dev.faulty import answers as provider_answers
from dev.faulty import process as faulty_provider
from dev.faulty.log import CLIENT_LEFT
from dev.faulty.process import FaultyProvider
from dev.faulty.settings import ABSENT, ABSURD_RETRY_AFTER, CHAT, EMBEDDINGS
from tests.eventually import eventually

HELLO = [{"role": "user", "content": "hello, world"}]
REPLY = "You said: hello, world"


@pytest.fixture
def client(faulty: FaultyProvider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=faulty.base_url, api_key="any", max_retries=0, timeout=10) as connected:
        yield connected


def chat(client: openai.OpenAI, text: str = "hello, world", **options: Any) -> Any:
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": text}], **options}
    return client.chat.completions.create(**asked)


def embed(client: openai.OpenAI, *texts: str, **options: Any) -> list[Any]:
    return client.embeddings.create(**{"model": "m", "input": list(texts), **options}).data


def ask(provider: FaultyProvider, path: str = CHAT, **body: Any) -> http.client.HTTPResponse:
    """Ask without OpenAI's client; the answer has been read, its body is in ``.text``."""
    connection = http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)
    body = {"model": "m", **({"messages": HELLO} if path == CHAT else {"input": "hello"}), **body}
    connection.request("POST", path, json.dumps(body))
    reply = connection.getresponse()
    reply.text = reply.read().decode()  # type: ignore[attr-defined]
    connection.close()
    return reply


def send(provider: FaultyProvider, **body: Any) -> socket.socket:
    """Ask on a bare socket; nothing has been read."""
    content = json.dumps({"model": "m", "messages": HELLO, **body}).encode()
    asking = socket.create_connection(("127.0.0.1", provider.port), timeout=10)
    asking.sendall(
        b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(content)) + content
    )
    return asking


def read_all(asking: socket.socket) -> tuple[bytes, bool]:
    """Return what comes, and whether a reset ended it."""
    seen = b""
    with asking:
        try:
            while more := asking.recv(65536):
                seen += more
        except ConnectionResetError:
            return seen, True
    return seen, False


def test_chats_are_answered(client: openai.OpenAI, faulty: FaultyProvider) -> None:
    whole = chat(client)
    parts = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert whole.choices[0].message.content == REPLY
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (3, 6, 9)
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == REPLY
    assert [part.choices[0].finish_reason for part in parts if part.choices] == [None] * 4 + ["stop"]
    assert parts[-1].usage == whole.usage
    assert not any(part.usage for part in chat(client, stream=True))
    assert ask(faulty, stream=True, stream_options="usage").status == 200
    cut = chat(client, max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason, cut.usage.completion_tokens) == (
        *(REPLY[:8], "length"),
        2,
    )
    faulty.set(answer_tokens=500, chunks=7)
    parts = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert (len(parts), parts[-1].usage.completion_tokens) == (7 + 2, 500)


def test_texts_are_embedded(client: openai.OpenAI, faulty: FaultyProvider) -> None:
    one, other, again = (each.embedding for each in embed(client, "a", "b", "a"))
    assert one == again != other
    assert one == [float(number) for number in provider_answers.vector("a", 384)]
    assert math.hypot(*one) == pytest.approx(1, abs=1e-5)
    plain = embed(client, "a", encoding_format="float")[0].embedding
    assert plain == one
    assert len(embed(client, "a", dimensions=5)[0].embedding) == 5
    with pytest.raises(openai.BadRequestError, match="from 1 to 384"):
        embed(client, "a", dimensions=385)
    faulty.set(models=["m", "n"])
    assert [model.id for model in client.models.list()] == ["m", "n"]
    with pytest.raises(openai.NotFoundError, match="'x' does not exist"):
        chat(client, model="x")


def test_exactly_the_limit_passes(faulty: FaultyProvider) -> None:
    faulty.set(limit_requests=20, limit_tokens=1000)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(faulty), range(30)))
    assert sorted(reply.status for reply in replies) == [200] * 20 + [429] * 10
    faulty.clear()
    faulty.set(limit_requests=20, limit_tokens=9 * 4 + 8)
    replies = [ask(faulty) for _ in range(6)]
    assert [reply.status for reply in replies] == [200] * 4 + [429] * 2
    assert [reply.getheader("x-ratelimit-remaining-requests") for reply in replies] == [
        "19",
        "18",
        "17",
        "16",
        "16",
        "16",
    ]
    assert [reply.getheader("x-ratelimit-remaining-tokens") for reply in replies] == ["35", "26", "17", "8", "8", "8"]
    assert replies[0].getheader("x-ratelimit-limit-tokens") == "44"
    assert replies[0].getheader("x-ratelimit-reset-requests") == "1m0s"
    assert json.loads(replies[5].text)["error"]["code"] == "rate_limit_exceeded"  # type: ignore[attr-defined]
    assert json.loads(replies[5].text)["error"]["type"] == "tokens"  # type: ignore[attr-defined]
    assert 0 < int(replies[5].getheader("retry-after") or 0) <= 60
    too_large = ask(faulty, messages=[{"role": "user", "content": "word " * 100}])
    assert (too_large.status, too_large.getheader("retry-after")) == (429, None)
    assert ask(faulty, messages=[]).getheader("x-ratelimit-remaining-requests") == "16"
    assert faulty.counts().limited == 3


@pytest.mark.parametrize(
    ("counted", "options", "cost"),
    [
        ("used", {}, 3 + 6),
        ("used", {"max_tokens": 5}, 3 + 5),
        ("used", {"max_tokens": 50}, 3 + 6),
        ("reckoned", {}, 3 + 40),
        ("reckoned", {"max_tokens": 5}, 3 + 5),
        ("reckoned", {"max_completion_tokens": 50}, 3 + 50),
        ("reckoned", {"path": EMBEDDINGS}, 2),
    ],
)
def test_tokens_count_as_they_are_told_to(
    faulty: FaultyProvider, counted: str, options: dict[str, Any], cost: int
) -> None:
    faulty.set(limit_tokens=3 * cost, tokens_counted=counted, reckoned_answer_tokens=40)
    assert [ask(faulty, **options).status for _ in range(4)] == [200, 200, 200, 429]
    assert {entry.counted for entry in faulty.log()} == {cost}


def test_no_window_holds_more_than_the_limit(faulty: FaultyProvider) -> None:
    window_s = 0.25
    faulty.set(limit_requests=10, limit_window_s=window_s)

    def ask_on() -> None:
        while faulty.counts().answered < 45:
            ask(faulty)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(ask_on) for _ in range(4)]:
            each.result()
    let_in = [entry.at_s for entry in faulty.log() if entry.status == 200]
    assert all(later - one >= window_s for one, later in zip(let_in, let_in[10:], strict=False))
    assert faulty.counts().limited > 0


def test_retry_after_says_when_a_request_fits(faulty: FaultyProvider) -> None:
    faulty.set(limit_requests=3, limit_window_s=0.3)
    replies = [ask(faulty)]
    while replies[-1].status == 200:
        replies.append(ask(faulty))
    wait_s = int(replies[-1].getheader("retry-after-ms") or 0) / 1000
    eventually(lambda: ask(faulty).status == 200)
    refused, *still, fits = faulty.log()[len(replies) - 1 :]
    assert all(entry.status == 429 and entry.at_s < refused.at_s + wait_s for entry in still)
    assert fits.at_s >= refused.at_s + wait_s - 0.002


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ({"kind": "rate_limit"}, openai.RateLimitError, "rate_limit_exceeded"),
        ({"kind": "quota"}, openai.RateLimitError, "insufficient_quota"),
        ({"kind": "server_error"}, openai.InternalServerError, None),
        ({"kind": "server_error", "status": 529}, openai.InternalServerError, None),
        ({"kind": "unauthorized"}, openai.AuthenticationError, "invalid_api_key"),
        ({"kind": "payment_required"}, openai.APIStatusError, "insufficient_credits"),
        ({"kind": "unknown_model"}, openai.NotFoundError, "model_not_found"),
        ({"kind": "invalid_input"}, openai.BadRequestError, None),
        ({"kind": "context_length"}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
def test_refusals(client: openai.OpenAI, faulty: FaultyProvider, fault: Any, error: Any, code: str | None) -> None:
    faulty.fault(**fault, next=1)
    with pytest.raises(error) as refused:
        chat(client)
    assert refused.value.code == code
    assert refused.value.status_code == fault.get("status", refused.value.status_code)
    assert chat(client).choices[0].message.content == REPLY


def test_retry_after_can_be_anything(faulty: FaultyProvider) -> None:
    for value in ABSURD_RETRY_AFTER:
        faulty.fault("rate_limit", next=1, retry_after=value)
        assert ask(faulty).getheader("retry-after") == value
    faulty.fault("rate_limit", next=1, retry_after=ABSENT)
    assert ask(faulty).getheader("retry-after") is None
    faulty.fault("server_error", next=1, status=503)
    reply = ask(faulty)
    assert (reply.status, reply.getheader("retry-after")) == (503, None)
    faulty.fault("server_error", next=1, status=503, retry_after="7")
    assert ask(faulty).getheader("retry-after") == "7"
    assert faulty.counts().limited == 0  # no limit was set
    faulty.fault("rate_limit", for_s=40)
    assert 30 < int(ask(faulty).getheader("retry-after") or 0) <= 40
    faulty.heal()
    faulty.fault("rate_limit", for_s=0.05)
    eventually(lambda: ask(faulty).status == 200)


def test_resets_are_resets(client: openai.OpenAI, faulty: FaultyProvider) -> None:
    faulty.fault("reset", next=1)
    assert read_all(send(faulty)) == (b"", True)
    faulty.fault("reset_midway", next=2)
    seen, was_reset = read_all(send(faulty))
    head, body = seen.split(b"\r\n\r\n")
    assert was_reset
    assert b" 200 " in head
    assert 0 < len(body) < int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    seen, was_reset = read_all(send(faulty, stream=True))
    assert was_reset
    assert seen.count(b"data: ") == 2
    faulty.fault("reset", next=1)
    with pytest.raises(openai.APIConnectionError):
        chat(client)
    assert [(entry.status, entry.fault) for entry in faulty.log()] == [
        *((None, "reset"), (200, "reset_midway"), (200, "reset_midway")),
        (None, "reset"),
    ]


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"path": EMBEDDINGS, "dimensions": 4}])
@pytest.mark.parametrize("kind", ["slow_headers", "slow_body"])
def test_what_is_slow_is_right_in_the_end(faulty: FaultyProvider, kind: Any, body: dict[str, Any]) -> None:
    faulty.set(chunks=1)
    right: Any = ask(faulty, **body)
    faulty.fault(kind, next=1, pause_s=0.0001)
    slow: Any = ask(faulty, **body)
    assert (slow.status, slow.text) == (200, right.text)
    assert slow.getheader("content-type") == right.getheader("content-type")
    assert [entry.fault for entry in faulty.log()] == [None, kind]


def test_what_is_slow_comes_in_bytes(faulty: FaultyProvider) -> None:
    faulty.fault("slow_headers", next=1, pause_s=60)
    with send(faulty) as asking:
        assert asking.recv(65536) == b"H"
    faulty.fault("slow_body", next=1, pause_s=60)
    with send(faulty) as asking:
        seen = b""
        while not seen.endswith(b"\r\n\r\n{"):
            seen += asking.recv(65536)
    eventually(lambda: faulty.counts().ended == 2)
    assert [(entry.status, entry.hung_up) for entry in faulty.log()] == [(200, True)] * 2


def test_who_hangs_up_is_seen(client: openai.OpenAI, faulty: FaultyProvider) -> None:
    impatient = client.with_options(timeout=0.5)
    faulty.fault("hang", next=1)
    with pytest.raises(openai.APITimeoutError):
        chat(impatient)
    faulty.fault("stream_stall", next=1)
    stream = chat(impatient, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(2)] == [REPLY[:6], REPLY[6:12]]
    with pytest.raises(openai.APITimeoutError):
        next(stream)
    stream.close()
    faulty.set(chat_s=60, concurrent=1)
    with send(faulty):
        eventually(lambda: faulty.counts().in_flight == 1)
        with send(faulty):  # it queues
            eventually(lambda: faulty.counts().in_flight == 2)
    eventually(lambda: faulty.counts().in_flight == 0)
    assert [(entry.status, entry.hung_up) for entry in faulty.log()] == [
        *((CLIENT_LEFT, True), (200, True)),
        *((CLIENT_LEFT, True), (CLIENT_LEFT, True)),
    ]
    assert faulty.counts().most_served_at_once == 1
    assert faulty.counts().hung_up == 4
    faulty.set(chat_s=0)
    assert chat(client).choices[0].message.content == REPLY  # the slot is free again


def test_streams_end_too_early(client: openai.OpenAI, faulty: FaultyProvider) -> None:
    faulty.fault("stream_without_finish", next=1)
    parts = list(chat(client, stream=True))
    assert "".join(part.choices[0].delta.content for part in parts) == REPLY[:12]
    assert {part.choices[0].finish_reason for part in parts} == {None}
    faulty.fault("stream_without_done", next=1)
    text = ask(faulty, stream=True).text  # type: ignore[attr-defined]
    assert '"finish_reason":"stop"' in text
    assert "[DONE]" not in text
    assert "[DONE]" in ask(faulty, stream=True).text  # type: ignore[attr-defined]
    faulty.fault("stream_error", next=1)
    stream = chat(client, stream=True)
    assert next(stream).choices[0].delta.content == REPLY[:6]
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code == "rate_limit_exceeded"
    faulty.fault("stream_stall")
    assert chat(client).choices[0].message.content == REPLY  # no stream, no fault


def test_bodies_are_no_answers(faulty: FaultyProvider) -> None:
    for kind in ("html", "malformed_json", "empty"):
        faulty.fault(kind, next=1)  # type: ignore[arg-type]
        reply = ask(faulty)
        assert reply.status == 200
        with pytest.raises(ValueError, match="Expecting|Unterminated"):
            json.loads(reply.text)  # type: ignore[attr-defined]
        assert (kind == "html") == (reply.getheader("content-type") == "text/html")
        assert (kind == "empty") == (reply.getheader("content-length") == "0")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vectors_are_spoilt(client: openai.OpenAI, faulty: FaultyProvider, encoding: str) -> None:
    options = {"encoding_format": "float"} if encoding == "float" else {}  # the client asks for base64 by itself
    right = [each.embedding for each in embed(client, "a", "b", "c", **options)]

    def spoilt(kind: Any) -> list[Any]:
        faulty.fault(kind, next=1)
        assert chat(client)  # no vectors, no fault
        return embed(client, "a", "b", "c", **options)

    assert [each.embedding for each in spoilt("vectors_missing")] == right[:2]
    assert [each.embedding for each in spoilt("vectors_extra")] == [*right, right[2]]
    assert [each.embedding for each in spoilt("vectors_short")] == [each[:383] for each in right]
    assert [(each.index, each.embedding) for each in spoilt("vectors_shuffled")] == [
        *((2, right[2]), (1, right[1])),
        (0, right[0]),
    ]
    nan = [each.embedding for each in spoilt("vectors_nan")]
    assert nan[:2] == right[:2]
    assert all(map(math.isnan, nan[2]))


def test_a_fault_befalls_whom_it_is_meant_for(faulty: FaultyProvider) -> None:
    faulty.fault("server_error", containing="poison")
    faulty.fault("server_error", model="n", status=502)
    faulty.fault("server_error", path=EMBEDDINGS, next=2, status=503)
    statuses = [
        ask(faulty, **body).status
        for body in (
            *({}, {"model": "n"}, {"messages": [*HELLO, {"role": "user", "content": "some poison"}]}),
            *({"path": EMBEDDINGS, "input": ["a", "poison b"]}, {"path": EMBEDDINGS}, {"path": EMBEDDINGS}),
            {"path": EMBEDDINGS},
        )
    ]
    assert statuses == [200, 502, 500, 500, 503, 503, 200]
    assert [fault["applied"] for fault in faulty.settings()["faults"]] == [2, 1]
    assert faulty.counts().faults == {"server_error": 5}
    faulty.heal()
    assert ask(faulty, model="n").status == 200
    faulty.fault("server_error", probability=0.5)
    assert {ask(faulty).status for _ in range(60)} == {200, 500}


def test_a_fault_instead_of_an_answer_uses_up_no_limit(faulty: FaultyProvider) -> None:
    faulty.set(limit_requests=3)
    faulty.fault("server_error", next=2)
    faulty.fault("stream_without_finish", next=2)
    statuses = [ask(faulty, stream=True).status for _ in range(6)]
    assert statuses == [500, 500, 200, 200, 200, 429]
    faulty.clear()
    faulty.set(limit_requests=1)
    assert ask(faulty).status == 200
    faulty.fault("reset_midway", next=1)
    assert ask(faulty).status == 429
    assert [fault.get("applied") for fault in faulty.settings()["faults"]] == [0]


def test_capacity_is_strict(faulty: FaultyProvider) -> None:
    faulty.set(concurrent=4, embedding_s=0.03, embedding_per_input_s=0.01)
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: ask(faulty, EMBEDDINGS, input=["a", "b"]), range(16)))
    assert {reply.status for reply in replies} == {200}
    assert faulty.counts().most_served_at_once == 4
    assert faulty.counts().most_in_flight > 4
    log = faulty.log()
    last_s = max(entry.at_s + (entry.took_s or 0) for entry in log)
    assert last_s - log[0].at_s >= 4 * 0.05


def test_the_log_says_what_came(faulty: FaultyProvider) -> None:
    faulty.set(log_texts=True)
    ask(faulty, stream=True)
    ask(faulty, EMBEDDINGS, input=["one", "two and more"], model="n")
    ask(faulty, messages=[])
    chatted, embedded, refused = faulty.log()
    assert (chatted.path, chatted.model, chatted.stream, chatted.inputs) == (CHAT, "m", True, 1)
    assert (chatted.tokens, chatted.status, chatted.fault, chatted.hung_up) == (9, 200, None, False)
    assert (embedded.path, embedded.model, embedded.stream, embedded.inputs) == (EMBEDDINGS, "n", False, 2)
    assert (embedded.tokens, embedded.texts) == (4, ["one", "two and more"])
    assert (refused.status, refused.tokens) == (400, 0)
    assert chatted.at_s < embedded.at_s < refused.at_s
    counts = faulty.counts()
    assert (counts.requests, counts.ended, counts.answered, counts.inputs, counts.tokens) == (3, 3, 2, 3, 13)
    assert counts.paths == {CHAT: 2, EMBEDDINGS: 1}
    assert counts.statuses == {"200": 2, "400": 1}
    connection = http.client.HTTPConnection("127.0.0.1", faulty.port, timeout=10)
    for headers in ({"X-Job-Id": "j-1"}, {"X-Job-Id": "j-1", "Idempotency-Key": "k-1"}):
        connection.request("POST", CHAT, json.dumps({"model": "m", "messages": HELLO}), headers)
        connection.getresponse().read()
    connection.close()
    assert [entry.job for entry in faulty.log()] == [None, None, None, "j-1", "k-1"]
    faulty.forget()
    assert faulty.log() == []
    assert (faulty.counts().requests, faulty.counts().statuses) == (0, {})
    assert faulty.settings()["log_texts"] is True
    faulty.clear()
    assert faulty.settings()["log_texts"] is False


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"chat_z": 1}, "chat_z is unknown; there are chat_s, first_token_s"),
        ({"chat_s": -1}, "chat_s: Input should be greater than or equal to 0, not -1"),
        ({"chunks": "many"}, "chunks: .* not 'many'"),
        ({"first_token_s": 2}, "first_token_s 2 is more than chat_s 0"),
        ({"chat_s": 5, "faults": [{"kind": "boom"}]}, "faults.0.kind: Input should be 'rate_limit', .* not 'boom'"),
        ({"add_faults": [{"kind": "hang", "times": 3}]}, "add_faults.0.times is unknown; there are kind, probability"),
        ({"faults": [{"kind": "rate_limit", "retry_after": "a\r\nb"}]}, "faults.0.retry_after: .*pattern"),
    ],
)
def test_a_wrong_order_changes_nothing(faulty: FaultyProvider, order: dict[str, Any], words: str) -> None:
    before = faulty.settings()
    with pytest.raises(StackError, match=words):
        faulty.set(**order)
    assert faulty.settings() == before


def test_a_process_starts_as_ordered_or_says_why_not() -> None:
    with pytest.raises(StackError, match="chat_s: Input should be a valid number"):
        with faulty_provider.started(chat_s="slow"):
            pass
    port = faulty_provider.ports.free_port()
    fault = json.dumps({"kind": "server_error", "next": 1})
    options = ["--port", str(port), "--chunks", "2", "--models", "a", "b", "--limit-requests", "1", "--fault", fault]
    command = [sys.executable, "-m", "dev.faulty.process", *options]
    with subprocess.Popen(command, cwd=faulty_provider.ROOT) as running:
        provider = FaultyProvider(port)
        try:
            settings = eventually(provider.settings)
            for _ in range(2):
                assert [ask(provider, model="a").status for _ in range(3)] == [500, 200, 429]
                provider.clear()  # faults, limits and what was counted are as at the start
        finally:
            running.terminate()
    assert (settings["chunks"], settings["models"]) == (2, ["a", "b"])
    assert settings["faults"] == [{"kind": "server_error", "next": 1, "applied": 0}]
    with pytest.raises(StackError, match="does not answer"):
        provider.log()
