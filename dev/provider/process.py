"""The local model provider: the command that runs it, whether it is ready, and its entry point."""

import argparse
import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from dev.errors import StackError
from dev.ports import LOOPBACK
from dev.processes import Command

NAME = "provider"
CHAT_MODEL = "smollm2-135m-instruct"
EMBEDDING_MODEL = "all-minilm-l6-v2"
_DRAIN_S = 5  # requests that run at a stop get so long to end


def url(port: int) -> str:
    """Return the base URL that OpenAI's clients are given."""
    return f"http://{LOOPBACK}:{port}/v1"


def command(root: Path, port: int, environment: Mapping[str, str]) -> Command:
    """Return the command for the provider on a port."""
    return Command(
        name=NAME,
        argv=(sys.executable, "-m", "dev.provider.process", "--port", str(port)),
        environment=environment,
        directory=root,
        is_ready=lambda pid: is_ready(port, pid),
        ready_within_s=120.0,  # reading the models from a cold, slow disk
    )


def is_ready(port: int, pid: int) -> bool:
    """Tell whether this very process answers; another one may sit on the port."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()
    return isinstance(health, dict) and health.get("pid") == pid


def serve(port: int) -> None:
    """Load both models, then answer requests until SIGTERM. Raises StackError when the models are not installed."""
    try:
        import uvicorn

        from dev.provider import api as openai_api
    except ImportError as error:
        raise StackError(
            f"the local models are not installed here ({error.name}); set OPENAI_BASE_URL and OPENAI_API_KEY to a "
            "provider of yours, or install the full lock"
        ) from error
    app = openai_api.application(CHAT_MODEL, EMBEDDING_MODEL)
    uvicorn.run(
        app,
        host=LOOPBACK,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_DRAIN_S,
    )


def main() -> None:
    """Serve on the port given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m dev.provider.process", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    try:
        serve(parser.parse_args().port)
    except StackError as error:
        sys.exit(f"provider: {error}")


if __name__ == "__main__":
    main()
