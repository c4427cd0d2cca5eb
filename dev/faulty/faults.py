"""The faulty provider's faults: which one befalls a request, and what comes instead of an answer."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from dev.faulty.answers import Chat, Embeddings
from dev.faulty.limits import rate_limited, right_retry_after
from dev.faulty.settings import ABSENT, CHAT, EMBEDDINGS, RIGHT, Fault, Instead, SpoiltChat, SpoiltVectors
from dev.provider.requests import ApiError, unknown_model

HTML = b"<!doctype html><html><head><title>Bad gateway</title></head><body><h1>Please wait</h1></body></html>"
BROKEN_JSON = b'{"id": "chatcmpl-faulty", "choices": [{"index": 0, "mess'
_INSTEAD = frozenset(get_args(Instead))
_OF_STREAMS = frozenset(get_args(SpoiltChat))
_OF_VECTORS = frozenset(get_args(SpoiltVectors))
_DEFAULT_WAIT_S = 1.0


@dataclass
class Active:
    """A fault that is switched on."""

    fault: Fault
    since_s: float
    applied: int = 0
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = self.fault.kind

    @property
    def is_instead(self) -> bool:
        """Tell whether it comes in place of an answer, rather than spoiling one."""
        return self.kind in _INSTEAD

    def left_s(self, now_s: float) -> float:
        """Return how long it lasts yet."""
        return math.inf if self.fault.for_s is None else self.since_s + self.fault.for_s - now_s

    def is_over(self, now_s: float) -> bool:
        """Tell whether it befalls nobody any more."""
        return self.applied == self.fault.next or self.left_s(now_s) <= 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fault and how often it has been applied."""
        return {**self.fault.model_dump(exclude_defaults=True), "applied": self.applied}


class Faults:
    """The faults that are switched on, in the order of which the first that fits a request befalls it."""

    def __init__(self) -> None:
        """Start with none."""
        self._active: list[Active] = []

    def clear(self) -> None:
        """Switch all off."""
        self._active = []

    def add(self, faults: Iterable[Fault], now_s: float) -> None:
        """Switch more on."""
        self._active += [Active(fault, now_s) for fault in faults]

    def find(self, path: str, asked: Chat | Embeddings, now_s: float) -> Active | None:
        """Return the fault that befalls a request; it counts once it is applied."""
        if not self._active:
            return None
        self._active = [each for each in self._active if not each.is_over(now_s)]
        return next((each for each in self._active if _fits(each.fault, path, asked)), None)

    def as_dicts(self, now_s: float) -> list[dict[str, Any]]:
        """Return those that are not over."""
        return [each.as_dict() for each in self._active if not each.is_over(now_s)]


def _fits(fault: Fault, path: str, asked: Chat | Embeddings) -> bool:
    if fault.kind in _OF_STREAMS and not (path == CHAT and asked.stream):
        return False
    if fault.kind in _OF_VECTORS and path != EMBEDDINGS:
        return False
    return (
        fault.path in (None, path)
        and fault.model in (None, asked.model)
        and (fault.containing is None or any(fault.containing in text for text in asked.texts))
        and (fault.probability == 1 or random.random() < fault.probability)
    )


def refusal(active: Active, asked: Chat | Embeddings, now_s: float) -> ApiError | None:
    """Return the error in OpenAI's format that a fault stands for, None when it is none of these."""
    fault = active.fault
    param = "messages" if isinstance(asked, Chat) else "input"
    match fault.kind:
        case "rate_limit":
            error = rate_limited("rate limit reached (injected)", "requests", None)
            error.headers |= _retry_after(active, now_s)
        case "server_error":
            error = ApiError(fault.status, f"the server failed with {fault.status} (injected)")
            error.headers |= _retry_after(active, now_s) if fault.retry_after else {}
        case "quota":
            message = "you exceeded your current quota, check your plan and billing details (injected)"
            error = ApiError(429, message, code="insufficient_quota", kind="insufficient_quota")
        case "unauthorized":
            error = ApiError(401, "incorrect API key provided (injected)", code="invalid_api_key")
        case "payment_required":
            error = ApiError(402, "insufficient credits, add more (injected)", code="insufficient_credits")
        case "unknown_model":
            error = unknown_model(asked.model, "others (injected)")
        case "invalid_input":
            error = ApiError(400, "invalid input (injected)", param=param)
        case "context_length":
            message = "the input is longer than the model's maximum context length (injected)"
            error = ApiError(400, message, param=param, code="context_length_exceeded")
        case _:
            return None
    return error


def _retry_after(active: Active, now_s: float) -> dict[str, str]:
    given = active.fault.retry_after or RIGHT
    if given == ABSENT:
        return {}
    if given != RIGHT:
        return {"retry-after": given}
    left_s = active.left_s(now_s)
    return right_retry_after(_DEFAULT_WAIT_S if math.isinf(left_s) else left_s)
