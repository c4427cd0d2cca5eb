"""The local model provider: real models behind OpenAI's protocol, asked through OpenAI's own client."""

from collections.abc import Callable, Iterator

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from dev import stack
from dev.provider.process import CHAT_MODEL, EMBEDDING_MODEL
from tests.eventually import eventually

PARIS: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture
def client(machine: stack.Started) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=machine.addresses["OPENAI_BASE_URL"], api_key="local", max_retries=0, timeout=60
    ) as connected:
        yield connected


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def embed(client: openai.OpenAI, *texts: str) -> list[list[float]]:
    reply = client.embeddings.create(model=EMBEDDING_MODEL, input=list(texts))
    return [item.embedding for item in reply.data]


def test_chat_answers_a_question(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=CHAT_MODEL, messages=PARIS, temperature=0)

    assert "Paris" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == CHAT_MODEL
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 20


def test_chat_stops_at_the_limit_that_was_set(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=CHAT_MODEL, messages=PARIS, max_completion_tokens=2)

    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 2


def test_a_stream_comes_in_parts_and_says_how_it_ended(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=CHAT_MODEL, messages=PARIS, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)

    texts = [part.choices[0].delta.content for part in parts if part.choices and part.choices[0].delta.content]
    assert len(texts) > 3
    assert "Paris" in "".join(texts)
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == "stop"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens >= len(texts)


def test_a_client_that_leaves_stops_the_model(client: openai.OpenAI, machine: stack.Started) -> None:
    story: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell a very long story."}]
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model=CHAT_MODEL, messages=story, max_tokens=3000, extra_body={"ignore_eos": True}
        )
    stream = client.chat.completions.create(
        model=CHAT_MODEL, messages=story, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    stream.close()

    provider = psutil.Process(machine.processes["provider"].pid)
    eventually(lambda: provider.cpu_percent(interval=0.2) < 20, timeout_s=10)


def test_embeddings_are_near_when_meanings_are(client: openai.OpenAI) -> None:
    question, answer, other = embed(
        client,
        "How do I read a JSON document?",
        "Deserialize a string containing a JSON document to a Python object.",
        "The river rose overnight and flooded the market.",
    )

    assert dot(question, answer) > 0.4 > 0.2 > dot(question, other)
    assert dot(question, question) == pytest.approx(1, abs=1e-5)
    assert len(question) == 384


def test_embeddings_keep_their_order_and_do_not_depend_on_their_company(client: openai.OpenAI) -> None:
    texts = [f"text {number} " + "with more words " * (number % 7 * 5) for number in range(40)]
    together = embed(client, *texts)

    for number in (0, 6, 39):
        (alone,) = embed(client, texts[number])
        assert dot(alone, together[number]) > 0.9999


def test_both_encodings_hold_the_same_numbers(client: openai.OpenAI) -> None:
    packed = client.embeddings.create(model=EMBEDDING_MODEL, input="hello", encoding_format="base64")
    plain = client.embeddings.create(model=EMBEDDING_MODEL, input="hello", encoding_format="float")
    default = client.embeddings.create(model=EMBEDDING_MODEL, input="hello")

    raw: object = packed.data[0].embedding
    assert isinstance(raw, str)
    assert default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert plain.usage.prompt_tokens == 3  # [CLS] hello [SEP]


def test_what_is_beyond_the_model_s_window_is_not_read(client: openai.OpenAI) -> None:
    long = "river " * 300
    cut, longer = embed(client, long, long + "and a word that nobody reads")

    assert dot(cut, longer) == pytest.approx(1, abs=1e-5)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [CHAT_MODEL, EMBEDDING_MODEL]
    assert client.models.retrieve(CHAT_MODEL).id == CHAT_MODEL


Call = Callable[[openai.OpenAI], object]


def chat(model: str = CHAT_MODEL, **more: object) -> Call:
    return lambda client: client.post("/chat/completions", cast_to=object, body={"model": model, **more})


def embeddings(model: str = EMBEDDING_MODEL, **more: object) -> Call:
    return lambda client: client.post("/embeddings", cast_to=object, body={"model": model, **more})


@pytest.mark.parametrize(
    ("call", "status", "code", "param", "words"),
    [
        (chat("gpt-9", messages=PARIS), 404, "model_not_found", "model", "'gpt-9' does not exist"),
        (embeddings("ada", input="x"), 404, "model_not_found", "model", "'ada' does not exist"),
        (chat(EMBEDDING_MODEL, messages=PARIS), 400, None, "model", f"'{CHAT_MODEL}' can"),
        (chat(""), 400, None, "model", "must provide a model"),
        (chat(), 400, None, "messages", "at least one message"),
        (chat(messages=[]), 400, None, "messages", "at least one message"),
        (chat(messages=["hello"]), 400, None, "messages[0]", "needs a 'role'"),
        (chat(messages=PARIS, max_tokens=0), 400, None, "max_tokens", "positive integer, not 0"),
        (chat(messages=PARIS, temperature="hot"), 400, None, None, "temperature"),
        (
            chat(messages=[{"role": "user", "content": "word " * 6000}]),
            *(400, "context_length_exceeded", "messages", "exceeds the available context size"),
        ),
        (
            chat(messages=[{"role": "user", "content": "word " * 6000}], stream=True),
            *(400, "context_length_exceeded", "messages", "exceeds the available context size"),
        ),
        (embeddings(), 400, None, "input", "at least one text"),
        (embeddings(input=[]), 400, None, "input", "at least one text"),
        (embeddings(input=["a", ""]), 400, None, "input", "input[1]"),
        (embeddings(input=[[1, 2]]), 400, None, "input", "must be a text"),
        (embeddings(input=["a"] * 2049), 400, None, "input", "at most 2048"),
        (embeddings(input="word " * 9000), 400, "context_length_exceeded", "input", "9002 tokens, at most 8192"),
        (embeddings(input=["word " * 8000] * 38), 400, "max_tokens_per_request", "input", "at most 300000"),
        (embeddings(input="x", encoding_format="hex"), 400, None, "encoding_format", "float or base64"),
        (embeddings(input="x", dimensions=8), 400, None, "dimensions", "384 dimensions"),
        (lambda client: client.get("/nothing", cast_to=object), 404, None, None, "/v1/nothing"),
        (lambda client: client.get("/embeddings", cast_to=object), 405, None, None, "GET /v1/embeddings"),
        (
            lambda client: client.post("/embeddings", cast_to=object, content=b'{"model": '),
            *(400, None, None, "not valid JSON"),
        ),
        (lambda client: client.post("/embeddings", cast_to=object, content=b"[]"), 400, None, None, "JSON object"),
        (
            lambda client: client.post(
                "/embeddings", cast_to=object, content=b'{"model": "all-minilm-l6-v2", "input": "\\ud800"}'
            ),
            *(400, None, None, "not valid Unicode"),
        ),
    ],
)
def test_a_refusal_is_in_openai_s_format(
    client: openai.OpenAI, call: Call, status: int, code: str | None, param: str | None, words: str
) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        call(client)

    error = raised.value
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert error.body["type"] == "invalid_request_error"
    assert (error.body["code"], error.body["param"]) == (code, param)
    assert words in error.body["message"]
