"""A provider of OpenAI's protocol without a model: every answer takes a set time and next to no CPU."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from dev.ports import LOOPBACK

VECTOR = [0.6, 0.8]


@contextlib.contextmanager
def serving(latency_s: float, asked: Callable[[dict[str, Any]], None] | None = None) -> Iterator[str]:
    """Serve in threads of this process; give the base URL that OpenAI's clients are to be given.

    ``asked`` gets each request's body as it comes.
    """

    class Handler(_Handler):
        seconds = latency_s
        hears = staticmethod(asked) if asked else None

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    serving_thread = threading.Thread(target=server.serve_forever, name="quick provider", daemon=True)
    serving_thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/v1"
    finally:
        server.shutdown()
        serving_thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    seconds = 0.0
    hears: Callable[[dict[str, Any]], None] | None = None
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        """Answer a chat or an embeddings request, whatever it asks."""
        with contextlib.suppress(ConnectionError):  # the client was killed
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.hears:
                self.hears(request)
            time.sleep(self.seconds)
            kind, body = _answer(self.path, request)
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


def _answer(path: str, request: dict[str, Any]) -> tuple[str, bytes]:
    """Return the answer's content type and its bytes."""
    if path.endswith("/embeddings"):
        return "application/json", json.dumps(_vectors(request)).encode()
    text = f"You said: {request['messages'][-1]['content']}"
    if not request.get("stream"):
        return "application/json", json.dumps(_completion(request, {"message": _said(text)})).encode()
    parts = [_completion(request, {"delta": _said(text)}), "[DONE]"]
    lines = (f"data: {part if isinstance(part, str) else json.dumps(part)}\n\n" for part in parts)
    return "text/event-stream", "".join(lines).encode()


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _completion(request: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "quick",
        "object": "chat.completion.chunk" if "delta" in said else "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", **said}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _vectors(request: dict[str, Any]) -> dict[str, Any]:
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    return {
        "object": "list",
        "model": request["model"],
        "data": [{"object": "embedding", "index": index, "embedding": VECTOR} for index in range(len(texts))],
        "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)},
    }
