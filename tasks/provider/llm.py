"""Call a model provider that speaks OpenAI's protocol: chat answers, streamed, and vectors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks import tokens
from tasks.provider import endpoint
from tasks.provider.asking import UNBROKEN, Question, ask
from tasks.provider.call import Call
from tasks.provider.errors import (
    BreakerOpen,
    Cancelled,
    ProviderAway,
    ProviderBusy,
    ProviderError,
    ProviderRefusesUs,
    ProviderRejected,
)
from tasks.provider.metering import Meter, Unmetered
from worker.limits.breaker import Breakers
from worker.policy.queue import Fallback

if TYPE_CHECKING:  # half a second to import: lanes that call no provider do without
    import openai
    from openai.types.chat import ChatCompletionChunk
    from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

__all__ = [
    "BreakerOpen",
    "Cancelled",
    "Completion",
    "Message",
    "ProviderAway",
    "ProviderBusy",
    "ProviderError",
    "ProviderRefusesUs",
    "ProviderRejected",
    "Vectors",
    "chat",
    "embed",
]

logger = logging.getLogger(__name__)

Message = dict[str, Any]


@dataclass(frozen=True)
class Completion:
    """A chat model's answer. ``tool_calls`` are passed through as the provider wrote them.

    ``is_fallback``: another model than the one asked for gave it.
    """

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    tool_calls: list[dict[str, Any]]
    is_fallback: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Vectors:
    """One vector for each input, in order, all of one dimension."""

    vectors: list[list[float]]
    model: str
    prompt_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens


def chat(
    messages: Sequence[Message],
    *,
    timeout_s: float,
    job_id: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    tools: list[dict[str, Any]] | None = None,
    fallbacks: Sequence[Fallback] = (),
    answer_tokens: int = tokens.ANSWER,
    meter: Meter | None = None,
    breakers: Breakers = UNBROKEN,
    on_text: Callable[[str], None] | None = None,
    on_restart: Callable[[], None] | None = None,
) -> Completion:
    """Ask the chat model once. Raises `ProviderError`, and `Cancelled` at once when the job is cancelled meanwhile.

    The answer is streamed, so that a provider whose caller hangs up stops writing it. ``on_text`` gets each piece of
    text as it comes, ``on_restart`` is called before what was given begins anew. ``answer_tokens``: what an answer is
    reckoned to cost without ``max_tokens``. The fallbacks are asked in order when the model cannot answer now.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "tools": tools}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"messages": list(messages), "stream": True, "stream_options": {"include_usage": True}}
    listener, first = Listener(on_text, on_restart), endpoint.chosen("chat", model)

    def send(client: openai.OpenAI, named: str, timeout: openai.Timeout, call: Call) -> Completion:
        listener.begin()
        with client.chat.completions.create(**given, model=named, timeout=timeout) as stream:
            answer = _assembled(stream, messages, listener, call)
        return replace(answer, model=answer.model or named, is_fallback=named != first.model)

    cost = tokens.cost_of_chat(messages, tools, max_tokens, answer_tokens)
    question = Question(send, timeout_s, cost, job_id, meter or Unmetered(), breakers)
    return ask(question, first, fallbacks)


def embed(
    texts: Sequence[str],
    *,
    timeout_s: float,
    model: str | None = None,
    meter: Meter | None = None,
    breakers: Breakers = UNBROKEN,
) -> Vectors:
    """Turn texts into vectors in one call. Raises `ProviderError`, also when an answer does not fit the inputs.

    There is no fallback: the vectors of one model mean nothing beside another's.
    """

    def send(client: openai.OpenAI, named: str, timeout: openai.Timeout, _call: Call) -> Vectors:
        reply = client.embeddings.create(model=named, input=list(texts), timeout=timeout)
        vectors = [item.embedding for item in sorted(reply.data, key=lambda item: item.index)]
        _check_vectors(vectors, len(texts), reply.model or named)
        return Vectors(vectors, reply.model, reply.usage.prompt_tokens if reply.usage else cost)

    cost = sum(map(tokens.estimate, texts))
    question = Question(send, timeout_s, cost, meter=meter or Unmetered(), breakers=breakers)
    return ask(question, endpoint.chosen("embedding", model))


#: Model -> the dimension of its vectors, as this process knows it, and how many answers in a row had another.
_dimensions: dict[str, tuple[int, int]] = {}
#: So many in a row are no fault: the model behind the name has changed.
CHANGED = 5


def _check_vectors(vectors: Sequence[Sequence[float]], texts: int, model: str) -> None:
    """Raise `ProviderAway` unless there is a vector for each text, of numbers and of the model's dimension."""
    if len(vectors) != texts:
        raise ProviderAway(f"the provider gave {len(vectors)} vectors for {texts} texts")
    dimension, others = _dimensions.get(model, (len(vectors[0]), 0))
    wrong = next((len(vector) for vector in vectors if len(vector) != dimension), None)
    if wrong is not None:
        _dimensions[model] = (wrong, 0) if others + 1 == CHANGED else (dimension, others + 1)
        raise ProviderAway(f"the provider gave a vector of {wrong} numbers; those of {model} have {dimension}")
    if not dimension or not all(math.isfinite(sum(vector)) for vector in vectors):
        raise ProviderAway(f"the provider gave a vector of {model} that is empty or holds something else than numbers")
    _dimensions[model] = (dimension, 0)


class Listener:
    """Passes on pieces of text as they come, each of them whole characters, and says when they begin anew."""

    def __init__(self, on_text: Callable[[str], None] | None, on_restart: Callable[[], None] | None) -> None:
        self._on_text, self._on_restart = on_text, on_restart
        self._has_given = False
        self._half = ""  # of a surrogate pair, which two parts may share

    def begin(self) -> None:
        """Say that a request is about to be made."""
        self._half = ""
        if self._has_given:
            self._has_given = False
            self._call(self._on_restart)

    def hear(self, text: str) -> None:
        """Take the next piece."""
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        self._give(text[: len(text) - len(self._half)])

    def end(self) -> None:
        """Take the answer as whole."""
        self._give(self._half)

    def _give(self, text: str) -> None:
        if text and self._on_text is not None:
            self._has_given = True
            self._call(self._on_text, _storable(text))

    def _call(self, listener: Callable[..., None] | None, *what: str) -> None:
        try:
            if listener is not None:
                listener(*what)
        except Exception:  # who listens in may fail; the answer is still wanted
            logger.exception("nobody hears the rest of an answer as it comes")
            self._on_text = self._on_restart = None


def _assembled(
    parts: Iterable[ChatCompletionChunk], messages: Sequence[Message], listener: Listener, call: Call
) -> Completion:
    """Put a stream's parts together. Raises `ProviderAway` when it ended before the answer did."""
    texts: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    model = finish_reason = ""
    usage = None
    for part in parts:
        model, usage = part.model or model, part.usage or usage
        for choice in part.choices[:1]:  # the part with the usage has none
            call.heard = True
            texts.append(choice.delta.content or "")
            listener.hear(texts[-1])
            for piece in choice.delta.tool_calls or ():
                empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                _extend(calls.setdefault(piece.index, empty), piece)
            finish_reason = choice.finish_reason or finish_reason
    if not finish_reason:
        raise ProviderAway("the provider's answer was cut short: it names no finish_reason")
    listener.end()
    for each in calls.values():
        each["function"]["arguments"] = _storable(each["function"]["arguments"])
    text = _storable("".join(texts))
    return Completion(
        text=text,
        model=model,
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens if usage else sum(tokens.estimate(str(m.get("content"))) for m in messages),
        completion_tokens=usage.completion_tokens if usage else tokens.estimate(text),
        tool_calls=[each for _, each in sorted(calls.items())],
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
