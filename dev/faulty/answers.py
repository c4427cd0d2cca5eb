"""The faulty provider's answers: what a request asks for, and the bytes that answer it, whole or spoilt."""

import base64
import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from dev.faulty.settings import Settings
from dev.provider import requests as openai_requests

CHARACTERS_PER_TOKEN = 4
DONE = b"data: [DONE]\n\n"
_ID = "chatcmpl-faulty"


@dataclass(frozen=True)
class Chat:
    """A conversation to continue, and how."""

    model: str
    texts: list[str]
    stream: bool
    include_usage: bool
    answer: str
    finish_reason: str
    reckoned_answer: int | None = None  # tokens; None: as many as are used

    @property
    def counted(self) -> int:
        """Return the tokens that limits count."""
        used = self.usage["completion_tokens"]
        return self.usage["prompt_tokens"] + (used if self.reckoned_answer is None else self.reckoned_answer)

    @functools.cached_property
    def usage(self) -> dict[str, int]:
        """Return the tokens as answers report them."""
        asked, said = sum(map(tokens_of, self.texts)), tokens_of(self.answer)
        return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


@dataclass(frozen=True)
class Embeddings:
    """Texts to turn into vectors, and how to write them."""

    model: str
    texts: list[str]
    dimensions: int
    encoding: str
    stream: bool = False

    @property
    def counted(self) -> int:
        """Return the tokens that limits count."""
        return self.usage["total_tokens"]

    @functools.cached_property
    def usage(self) -> dict[str, int]:
        """Return the tokens as answers report them."""
        asked = sum(map(tokens_of, self.texts))
        return {"prompt_tokens": asked, "total_tokens": asked}


def tokens_of(text: str) -> int:
    """Return how many tokens this provider counts for a text."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def read_chat(body: dict[str, Any], settings: Settings) -> Chat:
    """Return what a body asks for; raise ApiError when it asks for nothing sensible."""
    model = _model(body, settings)
    openai_requests.check_messages(body)
    texts = [_text(message.get("content")) for message in body["messages"]]
    answer = f"You said: {texts[-1]}"
    if settings.answer_tokens:
        length = settings.answer_tokens * CHARACTERS_PER_TOKEN
        answer = (answer + " and more" * (length // 9 + 1))[:length]
    limit, options = openai_requests.answer_limit(body), body.get("stream_options")
    is_cut = limit is not None and tokens_of(answer) > limit
    reckoned = (limit or settings.reckoned_answer_tokens) if settings.tokens_counted == "reckoned" else None
    return Chat(
        model,
        texts,
        stream=bool(body.get("stream")),
        include_usage=isinstance(options, dict) and bool(options.get("include_usage")),
        answer=answer[: limit * CHARACTERS_PER_TOKEN] if limit is not None else answer,
        finish_reason="length" if is_cut else "stop",
        reckoned_answer=reckoned,
    )


def read_embeddings(body: dict[str, Any], settings: Settings) -> Embeddings:
    """Return what a body asks for; raise ApiError when it asks for nothing sensible."""
    model = _model(body, settings)
    texts = openai_requests.texts_of(body)
    dimensions = body.get("dimensions")
    if dimensions is None:
        dimensions = settings.dimensions
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= settings.dimensions:
        message = f"'dimensions' must be a number from 1 to {settings.dimensions}, not {dimensions!r}"
        raise openai_requests.ApiError(400, message, param="dimensions")
    return Embeddings(model, texts, dimensions, openai_requests.encoding_of(body))


def _model(body: dict[str, Any], settings: Settings) -> str:
    name = openai_requests.model_of(body)
    if settings.models and name not in settings.models:
        raise openai_requests.unknown_model(name, *settings.models)
    return name


def _text(content: object) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def chat_body(chat: Chat) -> bytes:
    """Return a whole answer."""
    message = {"role": "assistant", "content": chat.answer}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": chat.finish_reason}
    return _json({**_head(chat, "chat.completion"), "choices": [choice], "usage": chat.usage})


def stream_chunks(chat: Chat, most: int) -> list[bytes]:
    """Return the answer as so many events at most, without its end."""
    size = max(1, -(-len(chat.answer) // most))
    texts = [chat.answer[start : start + size] for start in range(0, len(chat.answer), size)]
    opening: dict[str, str] = {"role": "assistant"}
    return [_chunk(chat, {**(opening if index == 0 else {}), "content": text}) for index, text in enumerate(texts)]


def stream_end(chat: Chat) -> bytes:
    """Return the events after the text, all but [DONE]."""
    end = _chunk(chat, {}, chat.finish_reason)
    if chat.include_usage:
        end += _event({**_head(chat, "chat.completion.chunk"), "choices": [], "usage": chat.usage})
    return end


def stream_error() -> bytes:
    """Return an event that holds an error, as providers send when they fail half way."""
    error = {"message": "rate limit reached in mid-stream", "type": "requests", "code": "rate_limit_exceeded"}
    return _event({"error": {**error, "param": None}})


def embeddings_body(asked: Embeddings, fault: str | None) -> bytes:
    """Return one vector for each text, spoilt by the fault if it is one of vectors."""
    vectors = [vector(text, asked.dimensions) for text in asked.texts]
    if fault == "vectors_missing":
        vectors.pop()
    elif fault == "vectors_extra":
        vectors.append(vectors[-1])
    elif fault == "vectors_short":
        vectors = [each[:-1] for each in vectors]
    elif fault == "vectors_nan":
        vectors[-1] = np.full(asked.dimensions, np.nan, "<f4")
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(each, asked.encoding)}
        for index, each in enumerate(vectors)
    ]
    if fault == "vectors_shuffled":
        data.reverse()
    return _json({"object": "list", "model": asked.model, "data": data, "usage": asked.usage})


def vector(text: str, dimensions: int) -> np.ndarray[Any, Any]:
    """Return a text's vector of length 1 in float32: always the same, and like no other text's."""
    numbers = np.frombuffer(hashlib.shake_128(text.encode()).digest(dimensions * 2), "<i2").astype("<f4") + 0.5
    return numbers / np.linalg.norm(numbers)


def _encoded(each: np.ndarray[Any, Any], encoding: str) -> str | list[float]:
    return base64.b64encode(each.tobytes()).decode("ascii") if encoding == "base64" else each.tolist()


def _head(chat: Chat, kind: str) -> dict[str, Any]:
    return {"id": _ID, "object": kind, "created": 0, "model": chat.model}


def _chunk(chat: Chat, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    usage = {"usage": None} if chat.include_usage else {}
    return _event({**_head(chat, "chat.completion.chunk"), "choices": [choice], **usage})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
