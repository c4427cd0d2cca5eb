"""What OpenAI's protocol allows in a request, and how it refuses one."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

# OpenAI's own limits for embeddings, so that what works here works there.
MAX_INPUTS = 2048
MAX_TOKENS_PER_INPUT = 8192
MAX_TOKENS_PER_CALL = 300_000
# A small model that is given no limit may ramble until its slot is full, and others wait for the slot.
DEFAULT_ANSWER_TOKENS = 512
_FIELDS_OF_LENGTH = ("max_tokens", "max_completion_tokens", "n_predict")


class ApiError(Exception):
    """A refusal in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the HTTP status, what is wrong, and in which field; `kind` is the error's type if not the usual one."""
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {
            "error": {
                "message": message,
                "type": kind or ("invalid_request_error" if status < 500 else "server_error"),
                "param": param,
                "code": code,
            }
        }


async def json_object(request: Request) -> dict[str, Any]:
    """Return the request's body; raise ApiError when it is no JSON object."""
    return parsed(await request.body())


def parsed(content: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; raise ApiError when it is none."""
    try:
        body = json.loads(content)
        json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is valid JSON and no text
    except UnicodeEncodeError as error:
        raise ApiError(400, f"the text is not valid Unicode: {error}") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def model_of(body: dict[str, Any]) -> str:
    """Return the name of the model that the body asks for; raise ApiError when it names none."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "you must provide a model parameter", param="model")
    return name


def check_model(body: dict[str, Any], wanted: str, other: str) -> None:
    """Raise ApiError unless the body asks for the wanted model."""
    name = model_of(body)
    if name == other:
        raise ApiError(400, f"the model {name!r} cannot do this; {wanted!r} can", param="model")
    if name != wanted:
        raise unknown_model(name, wanted, other)


def unknown_model(name: str, *known: str) -> ApiError:
    """Return the refusal of a model that does not exist."""
    message = f"the model {name!r} does not exist; there are {' and '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def check_messages(body: dict[str, Any]) -> None:
    """Raise ApiError unless the body holds a conversation."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "'messages' must be a list of at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, "each message needs a 'role' and a 'content'", param=f"messages[{index}]")


def answer_limit(body: dict[str, Any]) -> int | None:
    """Return the most tokens that the body allows an answer; raise ApiError when it says something wrong."""
    limits = {field: body[field] for field in _FIELDS_OF_LENGTH if body.get(field) is not None}
    for field, wanted in limits.items():
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise ApiError(400, f"'{field}' must be a positive integer, not {wanted!r}", param=field)
    return min(limits.values(), default=None)


def limit_answer(body: dict[str, Any]) -> None:
    """Put a limit to the answer's length into the body if it has none; raise ApiError when it has a wrong one."""
    if answer_limit(body) is None:
        body["max_tokens"] = DEFAULT_ANSWER_TOKENS


def encoding_of(body: dict[str, Any]) -> str:
    """Return how vectors are to be written; raise ApiError when it is unknown."""
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        message = f"'encoding_format' must be float or base64, not {encoding!r}"
        raise ApiError(400, message, param="encoding_format")
    return str(encoding)


def texts_of(body: dict[str, Any]) -> list[str]:
    """Return the texts to embed; raise ApiError when there are none, too many, or an empty one."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise ApiError(400, "'input' must be a text or a list of at least one text", param="input")
    if len(texts) > MAX_INPUTS:
        raise ApiError(400, f"'input' holds {len(texts)} texts, at most {MAX_INPUTS} are allowed", param="input")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise ApiError(
                400, f"'input[{index}]' must be a text that is not empty (tokens are not read)", param="input"
            )
    return texts


def check_lengths(tokens: list[tuple[int, ...]]) -> None:
    """Raise ApiError when a text, or all together, have more tokens than are allowed."""
    for index, one in enumerate(tokens):
        if len(one) > MAX_TOKENS_PER_INPUT:
            message = f"'input[{index}]' has {len(one)} tokens, at most {MAX_TOKENS_PER_INPUT} are allowed"
            raise ApiError(400, message, param="input", code="context_length_exceeded")
    if (total := sum(map(len, tokens))) > MAX_TOKENS_PER_CALL:
        message = f"the inputs have {total} tokens together, at most {MAX_TOKENS_PER_CALL} are allowed"
        raise ApiError(400, message, param="input", code="max_tokens_per_request")


def translated(status: int, content: bytes) -> ApiError:
    """Put llama.cpp's refusal into OpenAI's words."""
    try:
        error = json.loads(content)["error"]
        message, kind = str(error["message"]), str(error["type"])
    except (ValueError, KeyError, TypeError):
        return ApiError(502, "the chat model gave no usable answer")
    if kind == "exceed_context_size_error":
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    return ApiError(status, message)


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _refuse(request, ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}"))


async def _fail(request: Request, _error: Exception) -> Response:
    return await _refuse(request, ApiError(500, "the provider failed; its log says why"))


EXCEPTION_HANDLERS = {
    ApiError: _refuse,
    HTTPException: _refuse_http,
    Exception: _fail,
}
