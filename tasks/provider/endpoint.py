"""Say where a model is asked: a provider's address, its key, the model's name, and the client for it.

``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` choose the provider, ``OPENAI_CHAT_MODEL`` and ``OPENAI_EMBEDDING_MODEL``
the models where a job names none. A fallback of queues.yaml names the variables of its own provider.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tasks.provider.call import note, watch
from tasks.provider.errors import ProviderRefusesUs
from worker.policy.queue import Fallback

if TYPE_CHECKING:  # half a second to import: lanes that call no provider do without
    import openai

OPENAI = "https://api.openai.com/v1"
#: Host -> default models for chat and embeddings.
DEFAULT_MODELS = {
    "api.openai.com": ("gpt-4o-mini", "text-embedding-3-small"),
    "openrouter.ai": ("openai/gpt-4o-mini", "openai/text-embedding-3-small"),
    "127.0.0.1": ("smollm2-135m-instruct", "all-minilm-l6-v2"),  # the provider that `forebay up` starts
}


@dataclass(frozen=True)
class Endpoint:
    """One model at one provider."""

    base_url: str
    api_key: str = field(repr=False)
    model: str

    @property
    def name(self) -> str:
        """Name it for people, and for the breaker's key: without user or password, which a URL may hold."""
        parts = urlsplit(self.base_url)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')} {self.model}"

    def shares_account_with(self, other: Endpoint) -> bool:
        """Return whether a provider counts the calls of both together."""
        return (self.base_url, self.api_key) == (other.base_url, other.api_key)


def chosen(kind: str, model: str | None = None) -> Endpoint:
    """Return where ``chat`` or ``embedding`` goes first. Raises `ProviderRefusesUs`."""
    return Endpoint(_base_url(), os.environ.get("OPENAI_API_KEY") or "", model or default_model(kind))


def of_fallback(fallback: Fallback) -> Endpoint:
    """Return a fallback's endpoint. Raises `ProviderRefusesUs` when its provider's address is not set."""
    base_url = _base_url() if fallback.base_url_env == "OPENAI_BASE_URL" else os.environ.get(fallback.base_url_env)
    if not base_url:
        raise ProviderRefusesUs(f"{fallback.base_url_env} is not set, and fallback {fallback.model} needs it; set it")
    return Endpoint(base_url, os.environ.get(fallback.api_key_env) or "", fallback.model)


def default_model(kind: str) -> str:
    """Return the model for ``chat`` or ``embedding`` where a job names none. Raises `ProviderRefusesUs`."""
    variable = f"OPENAI_{kind.upper()}_MODEL"
    named = os.environ.get(variable)
    if named:
        return named
    host = urlsplit(_base_url()).hostname or ""
    if host not in DEFAULT_MODELS:
        raise ProviderRefusesUs(f"{variable} is not set, and {host} has no known default; set it to a model of its")
    return DEFAULT_MODELS[host][kind == "embedding"]


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    """Return this process's client for an endpoint's provider."""
    return _client(os.getpid(), endpoint.base_url, endpoint.api_key)


def load_client() -> None:
    """Import what calls need, which takes a second: a worker does it before it fetches its first job."""
    import openai.resources  # noqa: F401  the client itself leaves its parts to their first use


def _base_url() -> str:
    return os.environ.get("OPENAI_BASE_URL") or OPENAI


@cache
def _client(_pid: int, base_url: str, key: str) -> openai.OpenAI:
    import openai

    # A connection for each call, which ends with it: what is hung up belongs to nobody else.
    # Its own retries sleep inside the slot and hide errors from the retry policy.
    return openai.OpenAI(
        base_url=base_url,
        api_key=key or "none",
        max_retries=0,
        default_headers={"Connection": "close"},
        http_client=openai.DefaultHttpxClient(event_hooks={"request": [watch], "response": [note]}),
    )
