"""Ask a model only what was not asked before: the calls of `tasks.provider.llm` behind the cache.

Kept are answers that a second call would repeat: vectors, and chat of a low temperature. Equal questions that are on
their way at the same time, in whatever process, share one call.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache as once
from typing import Any

from cache import store
from cache.errors import GivenUp, Unhashable
from cache.settings import Settings
from cache.statistics import Worth
from cache.store import Cache, Codec, Found
from tasks.provider import endpoint, llm
from tasks.provider.call import Call, limited
from worker.policy.policy import load as load_policy

#: A wait shorter than this is not taken off the time that a call gets.
NO_WAIT_S = 0.1


@dataclass(frozen=True)
class Repeated(llm.Completion):
    """An answer that an earlier or simultaneous call gave; its usage is what that call used."""


def chat(
    messages: Sequence[llm.Message],
    *,
    timeout_s: float,
    job_id: str = "",
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    tools: list[dict[str, Any]] | None = None,
    **terms: Any,
) -> llm.Completion:
    """Do as `llm.chat`; give a `Repeated` answer where one is known. Raises what `llm.chat` raises.

    Known are answers of the kind ``analysis``: those of a temperature of at most ``cache.max_temperature``, for the
    same messages, options, model and provider. ``terms`` are what else `llm.chat` takes, which changes no answer. Who
    listens by ``on_text`` hears nothing of a repeated one. A fallback's answer is not kept.
    """
    asked: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "tools": tools}
    if temperature is None or temperature > load_policy().cache.max_temperature:
        return llm.chat(messages, timeout_s=timeout_s, job_id=job_id, **asked, **terms)
    first = endpoint.chosen("chat", model)
    given = {name: value for name, value in (asked | {"model": first.model}).items() if value is not None}
    try:
        key = results().key("analysis", [first.base_url, given], list(messages))
    except Unhashable:
        return llm.chat(messages, timeout_s=timeout_s, job_id=job_id, **asked, **terms)
    started = time.monotonic()
    with limited(timeout_s, job_id) as call:

        def make() -> llm.Completion:
            return llm.chat(messages, timeout_s=_left_s(timeout_s, started), job_id=job_id, **asked, **terms)

        try:
            found = results().fetch("analysis", key, make, CHAT, over=call.over, wait_s=timeout_s + 1)
        except GivenUp as error:
            raise _given_up(call) from error
    return found.value


def embed(texts: Sequence[str], *, timeout_s: float, model: str | None = None, **terms: Any) -> llm.Vectors:
    """Do as `llm.embed`, but ask only for texts whose vectors are not known, each once. Raises what `llm.embed` raises.

    ``prompt_tokens`` are those of the texts that were asked for now. Vectors that others ask for just now are waited
    for during half of ``timeout_s``. ``terms`` are what else `llm.embed` takes, which changes no vector.
    """
    first = endpoint.chosen("embedding", model)
    try:
        keys = [results().key("embedding", [first.base_url, {"model": first.model}], text) for text in texts]
    except Unhashable:
        return llm.embed(texts, timeout_s=timeout_s, model=model, **terms)
    text_of = dict(zip(keys, texts, strict=True))
    started = time.monotonic()
    with limited(timeout_s, "") as call:

        def make(wanted: Sequence[str]) -> list[Vector]:
            reply = llm.embed(
                [text_of[key] for key in wanted], timeout_s=_left_s(timeout_s, started), model=model, **terms
            )
            return _split(reply, [text_of[key] for key in wanted])

        try:
            found = results().fetch_many("embedding", keys, make, VECTOR, over=call.over, wait_s=timeout_s / 2)
        except GivenUp as error:
            raise _given_up(call) from error
    if len({(each.value.model, len(each.value.numbers)) for each in found}) > 1:  # the name came to mean another model
        return llm.embed(texts, timeout_s=_left_s(timeout_s, started), model=model, **terms)
    return llm.Vectors(
        [each.value.numbers for each in found], found[0].value.model if found else first.model, _spent(found)
    )


def marks(completion: llm.Completion) -> dict[str, bool]:
    """Return what an answer's details say about where it came from: ``cached`` when it was given before."""
    return {"cached": True} if isinstance(completion, Repeated) else {}


@dataclass(frozen=True)
class Vector:
    """A text's vector; its tokens are its share of what the provider reported for the whole call."""

    numbers: list[float]
    model: str
    prompt_tokens: int


@once
def results() -> Cache:
    """Return this process's cache of models' answers, in the Redis of CACHE_URL, else in the broker's."""
    import celeryconfig  # the settings, not Celery

    policy = load_policy().cache
    own = os.environ.get("CACHE_URL")
    return Cache(
        Settings(
            url=own or os.environ.get("CELERY_BROKER_URL") or celeryconfig.broker_url,
            ttl_s={
                "analysis": policy.analysis_ttl_s,
                "embedding": policy.embedding_ttl_s,
                "model": policy.model_ttl_s,
            },
            enabled=policy.enabled,
            prefix=os.environ.get("FOREBAY_KEY_PREFIX", ""),
            master=os.environ.get("REDIS_SENTINEL_MASTER", ""),
            memory_entries=policy.memory_entries,
            memory_bytes=policy.memory_mib * 1024 * 1024,
            memory_ttl_s=policy.memory_ttl_s,
        )
    )


def cached(*, kind: str = "model", key: Any = None, codec: Codec[Any] = store.JSON) -> Any:
    """Keep what a function of your own returns, in the cache of models' answers: `cache.store.cached` says how."""
    return store.cached(results, kind=kind, key=key, codec=codec)


def _left_s(timeout_s: float, started: float) -> float:
    waited_s = time.monotonic() - started
    return timeout_s if waited_s < NO_WAIT_S else max(0.001, timeout_s - waited_s)


def _given_up(call: Call) -> llm.ProviderError | llm.Cancelled:
    if call.cancelled:
        return llm.Cancelled("the job was cancelled while it waited for the answer to an equal question")
    return llm.ProviderAway(f"no answer to an equal question within {call.limit_s:g} s")


def _split(reply: llm.Vectors, texts: Sequence[str]) -> list[Vector]:
    """Give each text its vector and its share of the tokens; the shares add up."""
    weights = [max(1, len(text)) for text in texts]
    shares = []
    left_tokens, left_weight = reply.prompt_tokens, sum(weights)
    for weight in weights:
        shares.append(left_tokens * weight // left_weight)
        left_tokens, left_weight = left_tokens - shares[-1], left_weight - weight
    return [Vector(numbers, reply.model, share) for numbers, share in zip(reply.vectors, shares, strict=True)]


def _spent(found: Sequence[Found[Vector]]) -> int:
    new = {id(each.value): each.value.prompt_tokens for each in found if each.is_new}
    return sum(new.values())


def _chat_as_bytes(completion: llm.Completion) -> bytes | None:
    return None if completion.is_fallback else json.dumps(asdict(completion)).encode()


def _chat_of_bytes(content: bytes) -> llm.Completion:
    said = json.loads(content)
    return Repeated(**{field.name: said[field.name] for field in fields(llm.Completion)})


def _vector_as_bytes(vector: Vector) -> bytes:
    """Return a line of JSON, then the numbers as little-endian doubles: exact, and read ten times as fast as JSON."""
    head = json.dumps([vector.model, vector.prompt_tokens]).encode()
    return head + b"\n" + struct.pack(f"<{len(vector.numbers)}d", *vector.numbers)


def _vector_of_bytes(content: bytes) -> Vector:
    head, _, packed = content.partition(b"\n")
    model, prompt_tokens = json.loads(head)
    try:
        numbers = struct.unpack(f"<{len(packed) // 8}d", packed)
    except struct.error as error:
        raise ValueError("not a vector") from error
    return Vector(list(numbers), model, prompt_tokens)


CHAT: Codec[llm.Completion] = Codec(
    _chat_as_bytes, _chat_of_bytes, lambda one: Worth(one.model, one.prompt_tokens, one.completion_tokens)
)
VECTOR: Codec[Vector] = Codec(_vector_as_bytes, _vector_of_bytes, lambda one: Worth(one.model, one.prompt_tokens, 0))
