"""Commands that enqueue jobs."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import bulk
from cli.following import follow
from cli.output import as_json, err, out, progress
from tasks import enqueue as producer
from tasks.producer.enqueue import Options
from tasks.producer.job import Job
from tasks.producer.kinds.embedding import Embedding
from tasks.producer.kinds.payload import check
from worker.errors import JobRefused

Priority = Annotated[str | None, typer.Option(help="CRITICAL, HIGH, NORMAL, LOW or BATCH.")]
Key = Annotated[str | None, typer.Option("--idempotency-key", help="A repeat returns the first job.")]
Seconds = Annotated[float | None, typer.Option(help="In seconds from now.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Wait = Annotated[float | None, typer.Option(help="Wait up to this many seconds for the result and print it.", min=0)]

commands = typer.Typer(no_args_is_help=True, help="Enqueue a chat, embedding or bulk-insert job.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    commands.command()(bulk.bulk)
    app.add_typer(commands, name="enqueue")


@commands.command()
def chat(
    message: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.")],
    conversation: Annotated[str | None, typer.Option(help="Continue this conversation.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose conversation it is; only they can read it.")] = None,
    priority: Priority = None,
    idempotency_key: Key = None,
    deadline: Seconds = None,
    delay: Seconds = None,
    wait: Wait = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while the model writes it.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Enqueue one turn of a conversation and print the job's id."""
    text = _standard_input() if message == "-" else message
    whose = {"conversation": conversation, "user": user}
    fields: dict[str, Any] = {name: value for name, value in whose.items() if value is not None}
    options = Options(priority, None, idempotency_key, deadline, delay)
    job = producer.chat(text, options=options, stream=stream, **fields)
    follow(job, wait, as_json_) if stream else _tell(job, wait, as_json_)


@commands.command()
def embedding(
    files: Annotated[list[Path], typer.Argument(help="Text files; each is one job under its path as key.")],
    priority: Priority = None,
    wait: Wait = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue one embedding job for each file and print their ids."""
    payloads = [check(Embedding, text=_text(path), key=str(path)) for path in files]
    with _counted("embedding jobs", len(payloads)) as count:
        jobs = producer.many(payloads, options=Options(priority), on_progress=count)
    told: list[dict[str, Any]] = [
        {"id": job.id, "key": payload.key} for job, payload in zip(jobs, payloads, strict=True)
    ]
    if wait is not None:
        for one, result in zip(told, _results(jobs, wait), strict=True):
            one["result"] = result
    if as_json_:
        as_json(told)
        return
    for one in told:
        result = one.get("result")
        out.print(
            f"{one['key']}: {result['dimensions']} numbers by {result['model']}" if result else one["id"], markup=False
        )


def _tell(job: Job, wait: float | None, as_json_: bool) -> None:
    if wait is None:
        as_json({"id": job.id}) if as_json_ else out.print(job.id)
        return
    (result,) = _results([job], wait)
    as_json({"id": job.id, "result": result}) if as_json_ else out.print(result["text"], markup=False)


def _results(jobs: Sequence[Job], wait_s: float) -> list[Any]:
    """Wait for all jobs, at most so long in all, and return their results."""
    until = time.monotonic() + wait_s
    try:
        return [job.result(max(0.0, until - time.monotonic())) for job in jobs]
    except KeyboardInterrupt:
        going_on = f"job {jobs[0].id} goes on" if len(jobs) == 1 else f"{len(jobs)} jobs go on, from {jobs[0].id}"
        err.print(f"{going_on}; ask with ./forebay job {jobs[0].id}", markup=False)
        raise


@contextmanager
def _counted(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show how many are sent: on a terminal by a bar, from the first on; elsewhere in one line at the end."""
    bars, sent = progress(), 0

    def count(done: int) -> None:
        nonlocal sent
        sent = done
        if err.is_interactive:
            bars.start()
            bars.update(task, completed=done)

    task = bars.add_task(what, total=total, note="")
    try:
        yield count
    finally:
        if sent and err.is_interactive:
            bars.stop()
        elif sent:
            err.print(f"{sent} {what} sent")


def _standard_input() -> str:
    given = sys.stdin.buffer.read()
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JobRefused(
            "standard input", given[error.start : error.end], f"at byte {error.start} is not UTF-8; give UTF-8 text"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise JobRefused("file", str(path), f"cannot be read: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise JobRefused("file", str(path), f"is not UTF-8 at byte {error.start}; give UTF-8 text") from error
