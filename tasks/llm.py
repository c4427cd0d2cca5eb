"""Call a model provider that speaks OpenAI's protocol: the only module that knows the openai package.

``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` choose the provider, ``OPENAI_CHAT_MODEL`` and ``OPENAI_EMBEDDING_MODEL``
the models where a job names none.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tenacity import before_sleep_log, retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from worker.errors import ForebayError

if TYPE_CHECKING:  # half a second to import: lanes that call no provider do without
    import openai

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
#: Host -> default models for chat and embeddings.
DEFAULT_MODELS = {
    "api.openai.com": ("gpt-4o-mini", "text-embedding-3-small"),
    "openrouter.ai": ("openai/gpt-4o-mini", "openai/text-embedding-3-small"),
    "127.0.0.1": ("smollm2-135m-instruct", "all-minilm-l6-v2"),  # the provider that `forebay up` starts
}

Message = dict[str, Any]


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


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: one for each 4 bytes of UTF-8, rounded up.

    OpenAI's rule of thumb is 4 characters a token of English; counting bytes keeps other scripts from being
    underestimated.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def chat(
    messages: Sequence[Message],
    *,
    timeout_s: float,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    tools: list[dict[str, Any]] | None = None,
) -> Completion:
    """Ask the chat model once. Raises `ProviderError`."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "tools": tools}
    given = {name: value for name, value in options.items() if value is not None}
    reply = _chat(model or default_model("chat"), list(messages), timeout_s, given)
    choice = reply.choices[0] if reply.choices else None
    if choice is None or not choice.finish_reason:
        raise ProviderAway("the provider's answer was cut short: it names no finish_reason")
    calls = [call.model_dump(mode="json") for call in choice.message.tool_calls or []]
    usage = reply.usage
    return Completion(
        text=(choice.message.content or "").replace("\x00", "\ufffd"),  # PostgreSQL stores no NUL
        model=reply.model,
        finish_reason=choice.finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else sum(estimate_tokens(str(m.get("content"))) for m in messages),
        completion_tokens=usage.completion_tokens if usage else estimate_tokens(choice.message.content or ""),
        tool_calls=calls,
    )


def embed(texts: Sequence[str], *, timeout_s: float, model: str | None = None) -> Vectors:
    """Turn texts into vectors in one call. Raises `ProviderError`, also when an answer does not fit the inputs."""
    reply = _embed(model or default_model("embedding"), list(texts), timeout_s)
    vectors = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
    if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) > 1:
        raise ProviderAway(f"the provider gave {len(vectors)} vectors for {len(texts)} texts, or of unequal dimension")
    return Vectors(vectors, reply.model, reply.usage.prompt_tokens if reply.usage else 0)


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


# 3 attempts, 2 to 10 s apart, for what a moment heals; longer trouble is the queue's retry policy's
_briefly = retry(
    retry=retry_if_exception_type(ProviderAway),
    stop=stop_after_attempt(3),
    wait=wait_exponential(multiplier=1, min=2, max=10),
    before_sleep=before_sleep_log(logger, logging.WARNING),
    reraise=True,
)


@_briefly
def _chat(model: str, messages: list[Message], timeout_s: float, given: dict[str, Any]) -> Any:
    with _sorted_errors():
        given = {"model": model, "messages": messages, "timeout": timeout_s, **given}
        return _client().chat.completions.create(**given)


@_briefly
def _embed(model: str, texts: list[str], timeout_s: float) -> Any:
    with _sorted_errors():
        return _client().embeddings.create(model=model, input=texts, timeout=timeout_s)


def _client() -> openai.OpenAI:
    return _client_of(os.getpid(), os.environ.get("OPENAI_BASE_URL") or OPENAI, os.environ.get("OPENAI_API_KEY") or "")


@cache
def _client_of(_pid: int, base_url: str, key: str) -> openai.OpenAI:
    import openai

    # its own retries sleep inside the slot and hide errors from the retry policy
    return openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0)


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
        raise ProviderAway(f"no answer from the provider: {error}") from error
    except (openai.APIError, ValueError) as error:  # an answer that is not what the protocol says
        raise ProviderAway(f"the provider's answer cannot be read: {error}") from error
