"""Call a model provider that speaks OpenAI's protocol: the only module that knows the openai package.

``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` choose the provider, ``OPENAI_CHAT_MODEL`` and ``OPENAI_EMBEDDING_MODEL``
the models where a job names none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    stop_before_delay,
    stop_when_event_set,
    wait_exponential,
)

from tasks import tokens
from tasks.call import Call, limited, watch
from worker.errors import ForebayError

if TYPE_CHECKING:  # half a second to import: lanes that call no provider do without
    import openai
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

    Send: TypeAlias = Callable[[openai.OpenAI, openai.Timeout], "T"]

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
#: Host -> default models for chat and embeddings.
DEFAULT_MODELS = {
    "api.openai.com": ("gpt-4o-mini", "text-embedding-3-small"),
    "openrouter.ai": ("openai/gpt-4o-mini", "openai/text-embedding-3-small"),
    "127.0.0.1": ("smollm2-135m-instruct", "all-minilm-l6-v2"),  # the provider that `forebay up` starts
}

#: The time to reach the provider: the one wait that neither a limit nor a cancellation can cut short.
CONNECT_S = 5.0

Message = dict[str, Any]
T = TypeVar("T")


class ProviderError(ForebayError):
    """A call of the provider that gave no usable answer."""


class ProviderBusy(ProviderError):
    """Rate limited: the provider answers later."""


class ProviderRefusesUs(ProviderError):
    """A wrong key, an empty account, a missing setting: no fault of the job, which waits until it is mended."""


class ProviderAway(ProviderError):
    """No connection, no answer in time, a server error, or an answer cut short: a moment may heal it."""


class ProviderRejected(ProviderError):
    """The request itself was refused; the same request will be refused again."""


class Cancelled(ForebayError):
    """The job was cancelled while its call was under way, which has ended."""


@dataclass(frozen=True)
class Completion:
    """A chat model's answer. ``tool_calls`` are passed through as the provider wrote them."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    tool_calls: list[dict[str, Any]]


@dataclass(frozen=True)
class Vectors:
    """One vector for each input, in order, all of one dimension."""

    vectors: list[list[float]]
    model: str
    prompt_tokens: int


def chat(
    messages: Sequence[Message],
    *,
    timeout_s: float,
    job_id: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Completion:
    """Ask the chat model once. Raises `ProviderError`, and `Cancelled` at once when the job is cancelled meanwhile.

    The answer is streamed, so that a provider whose caller hangs up stops writing it.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "tools": tools}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"model": model or default_model("chat"), "messages": list(messages)}
    given |= {"stream": True, "stream_options": {"include_usage": True}}

    def send(client: openai.OpenAI, timeout: openai.Timeout) -> Completion:
        with client.chat.completions.create(**given, timeout=timeout) as stream:
            return _assembled(stream, messages)

    return _ask(send, timeout_s, job_id)


def embed(texts: Sequence[str], *, timeout_s: float, model: str | None = None) -> Vectors:
    """Turn texts into vectors in one call. Raises `ProviderError`, also when an answer does not fit the inputs."""
    named = model or default_model("embedding")

    def send(client: openai.OpenAI, timeout: openai.Timeout) -> Vectors:
        reply = client.embeddings.create(model=named, input=list(texts), timeout=timeout)
        vectors = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) > 1:
            raise ProviderAway(
                f"the provider gave {len(vectors)} vectors for {len(texts)} texts, or of unequal dimension"
            )
        return Vectors(vectors, reply.model, reply.usage.prompt_tokens if reply.usage else 0)

    return _ask(send, timeout_s)


def default_model(kind: str) -> str:
    """Return the model for ``chat`` or ``embedding`` where a job names none. Raises `ProviderRefusesUs`."""
    variable = f"OPENAI_{kind.upper()}_MODEL"
    named = os.environ.get(variable)
    if named:
        return named
    host = urlsplit(os.environ.get("OPENAI_BASE_URL") or OPENAI).hostname or ""
    if host not in DEFAULT_MODELS:
        raise ProviderRefusesUs(f"{variable} is not set, and {host} has no known default; set it to a model of its")
    return DEFAULT_MODELS[host][kind == "embedding"]


def _ask(send: Send[T], limit_s: float, job_id: str = "") -> T:
    """Make one call: up to 3 tries, 2 to 10 s apart, for what a moment heals, all within the limit.

    Longer trouble is the queue's retry policy's.
    """
    with _sorted_errors():
        client = _client()  # the first one takes a second to import and make, which is no part of the call
    with limited(limit_s, job_id) as call:
        tries = Retrying(
            retry=retry_if_exception_type(ProviderAway),
            stop=stop_after_attempt(3) | stop_before_delay(limit_s) | stop_when_event_set(call.over),
            wait=wait_exponential(multiplier=1, min=2, max=10),
            sleep=sleep_using_event(call.over),
            before_sleep=before_sleep_log(logger, logging.WARNING),
            reraise=True,
        )
        answer: T = tries(_try, send, client, call)
        return answer


def _try(send: Send[T], client: openai.OpenAI, call: Call) -> T:
    import openai

    try:
        if call.over.is_set():
            raise ProviderAway("not asked")
        with _sorted_errors():
            return send(client, openai.Timeout(None, connect=min(call.left_s, CONNECT_S)))
    except ProviderError as error:
        if call.cancelled:
            raise Cancelled("the job was cancelled while it asked the provider") from error
        if call.over.is_set():
            raise ProviderAway(f"no answer from the provider within {call.limit_s:g} s") from error
        raise


def _assembled(parts: Iterable[ChatCompletionChunk], messages: Sequence[Message]) -> Completion:
    """Put a stream's parts together. Raises `ProviderAway` when it ended before the answer did."""
    texts: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    model = finish_reason = ""
    usage = None
    for part in parts:
        model, usage = part.model or model, part.usage or usage
        for choice in part.choices[:1]:  # the part with the usage has none
            texts.append(choice.delta.content or "")
            for piece in choice.delta.tool_calls or ():
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                _extend(calls.setdefault(piece.index, empty), piece)
            finish_reason = choice.finish_reason or finish_reason
    if not finish_reason:
        raise ProviderAway("the provider's answer was cut short: it names no finish_reason")
    for call in calls.values():
        call["function"]["arguments"] = _storable(call["function"]["arguments"])
    text = _storable("".join(texts))
    return Completion(
        text=text,
        model=model,
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else sum(tokens.estimate(str(m.get("content"))) for m in messages),
        completion_tokens=usage.completion_tokens if usage else tokens.estimate(text),
        tool_calls=[call for _, call in sorted(calls.items())],
    )


def _extend(call: dict[str, Any], piece: ChoiceDeltaToolCall) -> None:
    """Add a piece to a tool call: id, type and name come once, the arguments bit by bit."""
    call["id"], call["type"] = piece.id or call["id"], piece.type or call["type"]
    if piece.function is not None:
        call["function"]["name"] = piece.function.name or call["function"]["name"]
        call["function"]["arguments"] += piece.function.arguments or ""


def _storable(text: str) -> str:
    """Return a text that PostgreSQL stores: no NUL, and no half of a surrogate pair, which two parts may share."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd")


def _client() -> openai.OpenAI:
    return _client_of(os.getpid(), os.environ.get("OPENAI_BASE_URL") or OPENAI, os.environ.get("OPENAI_API_KEY") or "")


@cache
def _client_of(_pid: int, base_url: str, key: str) -> openai.OpenAI:
    import openai

    # A connection for each call, which ends with it: what is hung up belongs to nobody else.
    # Its own retries sleep inside the slot and hide errors from the retry policy.
    return openai.OpenAI(
        base_url=base_url,
        api_key=key or "none",
        max_retries=0,
        default_headers={"Connection": "close"},
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [watch]}),
    )


@contextmanager
def _sorted_errors() -> Iterator[None]:
    """Sort the package's errors once, by what a retry can change."""
    import openai

    try:
        yield
    except openai.RateLimitError as error:
        raise ProviderBusy(f"the provider limits the rate: {error}") from error
    except openai.APIStatusError as error:
        if error.status_code in (401, 402, 403):
            raise ProviderRefusesUs(
                f"the provider refuses the account (status {error.status_code}): {error}; check OPENAI_API_KEY"
            ) from error
        if error.status_code >= 500 or error.status_code in (408, 409):
            raise ProviderAway(f"the provider failed with status {error.status_code}: {error}") from error
        raise ProviderRejected(f"the provider refused with status {error.status_code}: {error}") from error
    except openai.APIConnectionError as error:  # includes timeouts
        raise ProviderAway(f"no answer from the provider: {error.__cause__ or error}") from error
    except UnicodeEncodeError as error:  # half of a surrogate pair is valid JSON and no text
        raise ProviderRejected(f"the request is not valid Unicode: {error}") from error
    except (openai.APIError, ValueError, TypeError, AttributeError) as error:  # not what the protocol says
        raise ProviderAway(f"the provider's answer cannot be read: {error}") from error
