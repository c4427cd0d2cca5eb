"""The faulty provider's paths that are asked seldom: its control, its log, its counts and its models."""

import os
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dev.faulty import settings as provider_settings
from dev.faulty.state import State
from dev.provider import requests as openai_requests


def application(state: State) -> Starlette:
    """Return the application that shows and changes a state."""
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", list_models),
            Route("/v1/models/{name}", one_model),
            Route("/control", show_control, methods=["GET"]),
            Route("/control", change_control, methods=["POST"]),
            Route("/control", start_anew, methods=["DELETE"]),
            Route("/log", show_log, methods=["GET"]),
            Route("/log", forget, methods=["DELETE"]),
            Route("/counts", show_counts),
        ],
        exception_handlers=openai_requests.EXCEPTION_HANDLERS,
    )
    app.state.provider = state
    return app


async def health(_request: Request) -> Response:
    """Answer with the pid by which a runner knows its own child."""
    return JSONResponse({"status": "ok", "pid": os.getpid()})


async def list_models(request: Request) -> Response:
    """List the models that were set; none when any name will do."""
    return JSONResponse({"object": "list", "data": [_model(name) for name in _state(request).settings.models]})


async def one_model(request: Request) -> Response:
    """Describe one model."""
    name, known = str(request.path_params["name"]), _state(request).settings.models
    if known and name not in known:
        raise openai_requests.unknown_model(name, *known)
    return JSONResponse(_model(name))


async def show_control(request: Request) -> Response:
    """Return the settings, and the faults that are switched on."""
    state = _state(request)
    return JSONResponse({**state.settings.model_dump(), "faults": state.faults.as_dicts(time.monotonic())})


async def change_control(request: Request) -> Response:
    """Change what the body names, all of it or, if anything is wrong with it, nothing."""
    changes = await openai_requests.json_object(request)
    state = _state(request)
    try:
        state.follow(provider_settings.read(state.settings, changes))
    except ValueError as error:
        raise openai_requests.ApiError(400, str(error)) from error
    return await show_control(request)


async def start_anew(request: Request) -> Response:
    """Go back to how the process started."""
    _state(request).start_anew()
    return await show_control(request)


async def show_log(request: Request) -> Response:
    """Return every request since the log was emptied."""
    return JSONResponse([vars(entry) for entry in _state(request).record.entries])


async def forget(request: Request) -> Response:
    """Empty the log and the counts."""
    _state(request).forget()
    return await show_log(request)


async def show_counts(request: Request) -> Response:
    """Return the totals."""
    state = _state(request)
    return JSONResponse(state.record.counts(state.slots.most))


def _state(request: Request) -> State:
    state: State = request.app.state.provider
    return state


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "faulty"}
