"""Speak a release's public API for a test: a JSON request a line on stdin, a JSON reply a line on stdout.

Run with the release's folder as PYTHONPATH. One file serves both releases, so it imports only what stays where it is.
"""

import contextlib
import io
import json
import runpy
import sys
from collections.abc import Callable
from typing import Any

import tasks
from tasks import Job, enqueue
from worker.app import app


def folder() -> str:
    """Return where this release's code is."""
    return str(tasks.__file__)


def send(kind: str, *arguments: Any, **options: Any) -> list[str]:
    """Enqueue one job, or a group of them, and return the ids: ``send("chat", "hello", priority="HIGH")``."""
    sent = getattr(enqueue, kind)(*arguments, **options)
    return [job.id for job in getattr(sent, "jobs", [sent])]


def send_many(kind: str, payloads: list[dict[str, Any]]) -> list[str]:
    """Enqueue many jobs of one payload class and return their ids."""
    return [job.id for job in enqueue.many([getattr(tasks, kind)(**payload) for payload in payloads])]


def result(job_id: str) -> Any:
    return Job(job_id).result(60)


def result_by_celery(job_id: str) -> Any:
    return app.AsyncResult(job_id).get(timeout=60)


def streamed(job_id: str) -> str:
    return "".join(Job(job_id).texts(60))


def status(job_id: str) -> str:
    return Job(job_id).status


def record(job_id: str) -> dict[str, str]:
    return Job(job_id).record()


def cancel(job_id: str) -> bool:
    return Job(job_id).cancel()


def command(*arguments: str) -> tuple[int, str, str]:
    """Run a command of ``./forebay`` in this process, which has all loaded; return its exit code and output."""
    sys.argv = ["forebay", *arguments]
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("cli", run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0), printed.getvalue(), errors.getvalue()
    return 0, printed.getvalue(), errors.getvalue()


CALLS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (folder, send, send_many, result, result_by_celery, streamed, status, record, cancel, command)
}


def main() -> None:
    for line in sys.stdin:
        name, arguments, options = json.loads(line)
        try:
            reply = {"returned": CALLS[name](*arguments, **options)}
        except Exception as error:
            reply = {"raised": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
