"""The faulty provider as a process of its own: its entry point, and the client that starts and orders it.

It speaks OpenAI's protocol on loopback, without a model, at a speed, with limits and with faults to order. Tokens count
when a request is let in: by ``tokens_counted`` those that its answer will have used, or prompt and max_tokens.
"""

import argparse
import contextlib
import http.client
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dev import addresses, ports
from dev.errors import StackError
from dev.faulty.log import Counts, Entry
from dev.faulty.settings import Kind, Settings
from dev.ports import LOOPBACK
from dev.processes import Command, Log, Process, Runner
from dev.provider import process as provider

NAME = "faulty provider"
ROOT = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 30.0
_IDLE_S = 300  # longer than clients keep a connection: one that is closed under a request looks like a fault
_BACKLOG = 4096
_FILES = 10_240  # macOS allows no more, also where it says that there is no limit
Setting = float | str | bool | Sequence[str] | None


class FaultyProvider:
    """A client of one such process. Each method raises StackError when the provider refuses the order."""

    def __init__(self, port: int, process: Process | None = None) -> None:
        """Take the port, and the process if it is ours."""
        self.port = port
        self.process = process

    @property
    def base_url(self) -> str:
        """Return what OpenAI's clients are given."""
        return provider.url(self.port)

    def set(self, **settings: Setting) -> None:
        """Change settings (`provider_settings.Settings`); those not named stay."""
        self._ask("POST", "/control", settings)

    def fault(
        self,
        kind: Kind,
        *,
        next: int | None = None,  # noqa: A002 - the word of the protocol
        for_s: float | None = None,
        probability: float = 1,
        containing: str | None = None,
        model: str | None = None,
        path: str | None = None,
        status: int = 500,
        pause_s: float = 0.5,
        retry_after: str | None = None,
    ) -> None:
        """Switch a fault on besides the others (`provider_settings.Fault`), until it is used up or cleared.

        ``status`` is a server_error's, ``pause_s`` of what is slow. ``retry_after``: RIGHT, ABSENT, or any text.
        """
        conditions = {"next": next, "for_s": for_s, "containing": containing, "model": model, "path": path}
        looks = {"status": status, "pause_s": pause_s, "retry_after": retry_after}
        fault = {"kind": kind, "probability": probability, **looks, **conditions}
        self._ask("POST", "/control", {"add_faults": [fault]})

    def heal(self) -> None:
        """Switch all faults off; settings and log stay."""
        self._ask("POST", "/control", {"faults": []})

    def clear(self) -> None:
        """Behave as at the start: its settings, no faults, nothing counted, an empty log."""
        self._ask("DELETE", "/control")

    def forget(self) -> None:
        """Empty the log and the counts; settings, faults and limits stay."""
        self._ask("DELETE", "/log")

    def settings(self) -> dict[str, Any]:
        """Return all settings, and under ``faults`` those that are on, with how often each was applied."""
        answer: dict[str, Any] = self._ask("GET", "/control")
        return answer

    def log(self) -> list[Entry]:
        """Return every request since the log was emptied, in the order of arrival."""
        return [Entry(**each) for each in self._ask("GET", "/log")]

    def counts(self) -> Counts:
        """Return the totals since the log was emptied."""
        return Counts(**self._ask("GET", "/counts"))

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            answer = json.loads(reply.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StackError(f"the faulty provider on port {self.port} does not answer: {error}") from error
        finally:
            connection.close()
        if reply.status != 200:
            raise StackError(f"{method} {path} of the faulty provider: {answer['error']['message']}")
        return answer


@contextlib.contextmanager
def started(log: Log | None = None, **settings: Setting) -> Iterator[FaultyProvider]:
    """Start a process on a free port with these settings, and end it. Raises StackError.

    The process ends with the thread that starts it.
    """
    port = ports.free_port()
    runner = Runner(log or _unheard, restart=False)
    try:
        yield FaultyProvider(port, runner.start(command(port, **settings)))
    finally:
        runner.stop([NAME], within_s=5)


def _unheard(name: str, line: str) -> None:
    pass


def command(port: int, **settings: Setting) -> Command:
    """Return the command for a provider on a port with these settings."""
    return Command(
        name=NAME,
        argv=(sys.executable, "-m", "dev.faulty.process", "--port", str(port), "--settings", json.dumps(settings)),
        environment={**os.environ, **addresses.for_python(ROOT, os.environ)},
        directory=ROOT,
        is_ready=lambda pid: provider.is_ready(port, pid),
        stop_signal=signal.SIGKILL,  # it keeps nothing, and what hangs would hold up its end
    )


def serve(port: int, changes: dict[str, Any]) -> None:
    """Answer requests until SIGTERM. Raises StackError when settings are wrong or the server is not installed."""
    try:
        import uvicorn

        from dev.faulty import api as faulty_api
        from dev.faulty import settings as provider_settings
        from dev.faulty.connection import Connection
        from dev.faulty.state import State
    except ImportError as error:
        raise StackError(f"the faulty provider needs {error.name}; install the full lock") from error
    try:
        order = provider_settings.read(Settings(), changes)
    except ValueError as error:
        raise StackError(str(error)) from error
    _allow_files()
    uvicorn.run(
        faulty_api.Provider(State(order)),
        host=LOOPBACK,
        port=port,
        http=Connection,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        log_level="warning",
        access_log=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=1,
    )


def _allow_files() -> None:
    """Let the process have a file open for each connection, as far as it may."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, wanted), most))


def main() -> None:
    """Serve on the port given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m dev.faulty.process", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="as POST /control takes them")
    for name, field in Settings.model_fields.items():
        nargs = "*" if name == "models" else None
        parser.add_argument(
            f"--{name.replace('_', '-')}", nargs=nargs, default=argparse.SUPPRESS, help=str(field.default)
        )
    parser.add_argument("--fault", action="append", type=json.loads, metavar="JSON", dest="add_faults", default=[])
    given = vars(parser.parse_args())
    port, settings = given.pop("port"), given.pop("settings")
    try:
        serve(port, {**settings, **given})
    except StackError as error:
        sys.exit(f"{NAME}: {error}")


if __name__ == "__main__":
    main()
