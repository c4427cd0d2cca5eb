"""What the faulty provider can be told: its speed, its limits and its faults, and what is wrong with an order."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as validator

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"

#: What comes instead of an answer. It counts against no limit.
Instead = Literal[
    "rate_limit",  # 429 rate_limit_exceeded
    "quota",  # 429 insufficient_quota
    "server_error",  # ``status``: 500, 502, 503, 529 ...
    "unauthorized",  # 401
    "payment_required",  # 402, as OpenRouter says that credits are used up
    "unknown_model",  # 404
    "invalid_input",  # 400
    "context_length",  # 400 context_length_exceeded
    "hang",  # nothing, until the client hangs up
    "reset",  # a TCP reset before any byte
    "html",  # status 200 and a page
    "malformed_json",
    "empty",  # status 200 and no body
]
#: What is wrong with an answer that was given. It counts against the limits and takes its time.
SpoiltChat = Literal[
    "stream_without_finish",  # ends half way, neither finish_reason nor [DONE]
    "stream_without_done",
    "stream_stall",  # half of it, then nothing until the client hangs up
    "stream_error",  # half of it, then an error object
]
SpoiltVectors = Literal["vectors_missing", "vectors_extra", "vectors_short", "vectors_shuffled", "vectors_nan"]
SpoiltSending = Literal[
    "reset_midway",  # a TCP reset after half of the body
    "slow_headers",  # a byte every ``pause_s``, then the body at once
    "slow_body",  # the headers at once, then a byte every ``pause_s``
]
Kind = Literal[Instead, SpoiltChat, SpoiltVectors, SpoiltSending]
Path = Literal["/v1/chat/completions", "/v1/embeddings"]

#: Retry-After values that no client should obey.
ABSURD_RETRY_AFTER = ("99999999", "-5", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "0")
RIGHT = "right"  # what is left of the fault's ``for_s``, or a second
ABSENT = "absent"  # no such header


class Settings(BaseModel):
    """How the provider behaves. Seconds are floats; None is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    chat_s: NonNegativeFloat = 0  # a chat's whole time
    first_token_s: NonNegativeFloat | None = None  # None: the chunks come evenly
    chunks: PositiveInt = 4  # of a stream, if the answer has so many characters
    answer_tokens: PositiveInt | None = None  # None: the answer repeats the question
    embedding_s: NonNegativeFloat = 0
    embedding_per_input_s: NonNegativeFloat = 0
    dimensions: PositiveInt = 384
    concurrent: PositiveInt | None = None  # calls that are worked on at once; others queue
    limit_requests: PositiveInt | None = None  # in every `limit_window_s`
    limit_tokens: PositiveInt | None = None
    limit_window_s: PositiveFloat = 60
    # "used": prompt and answer, as the answer will say; "reckoned": prompt and max_tokens, as OpenAI does beforehand.
    tokens_counted: Literal["used", "reckoned"] = "used"
    reckoned_answer_tokens: PositiveInt = 500  # "reckoned" of a chat that names no max_tokens
    models: tuple[str, ...] = ()  # none: a model of any name exists
    log_texts: bool = False  # keep the texts of requests in the log

    @validator(mode="after")
    def _first_token_is_in_time(self) -> Self:
        if (self.first_token_s or 0) > self.chat_s:
            raise ValueError(f"first_token_s {self.first_token_s:g} is more than chat_s {self.chat_s:g}")
        return self


class Fault(BaseModel):
    """One fault: which, how often, how long and for which requests. All conditions given must be met."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind
    probability: Annotated[float, Field(gt=0, le=1)] = 1
    next: PositiveInt | None = None  # only so many requests
    for_s: PositiveFloat | None = None  # only so long
    containing: str | None = None  # only requests of which a text holds this
    model: str | None = None
    path: Path | None = None
    status: Annotated[int, Field(ge=500, le=599)] = 500  # of a server_error
    pause_s: PositiveFloat = 0.5  # between the bytes of what is slow
    # RIGHT, ABSENT, or any text; None: a rate_limit has a right one, a server_error none, others never.
    retry_after: Annotated[str, Field(pattern="^[!-~]([ -~]*[!-~])?$")] | None = None


class Order(Settings):
    """What `POST /control` takes: settings that change, and faults in place of all others or besides them."""

    faults: tuple[Fault, ...] | None = None
    add_faults: tuple[Fault, ...] = ()

    @property
    def settings(self) -> Settings:
        """Return the settings alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def read(settings: Settings, changes: Mapping[str, Any]) -> Order:
    """Return the order of changes to settings. Raises ValueError that names every fault of it."""
    try:
        return Order.model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise ValueError("; ".join(_explained(each) for each in error.errors())) from error


def _explained(error: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        given = error["input"]
        shown = f", not {given!r}" if isinstance(given, str | int | float) or given is None else ""
        return f"{place}: {error['msg']}{shown}" if place else str(error["ctx"]["error"])
    known = Fault if error["loc"][0] in ("faults", "add_faults") else Order
    return f"{place} is unknown; there are {', '.join(known.model_fields)}"


def whole_ms(seconds: float) -> int:
    """Return the milliseconds after which so many seconds have passed, rounding included."""
    return math.floor(seconds * 1000) + 1
