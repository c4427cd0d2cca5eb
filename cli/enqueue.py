"""Commands that enqueue jobs."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import as_json, err, out, progress
from tasks import enqueue as producer
from tasks.enqueue import Options
from tasks.job import Job
from tasks.payloads import Embedding, check
from worker.errors import JobRefused

Priority = Annotated[str | None, typer.Option(help="CRITICAL, HIGH, NORMAL, LOW or BATCH.")]
Key = Annotated[str | None, typer.Option("--idempotency-key", help="A repeat returns the first job.")]
Seconds = Annotated[float | None, typer.Option(help="In seconds from now.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Wait = Annotated[float | None, typer.Option(help="Wait up to this many seconds for the result and print it.", min=0)]

commands = typer.Typer(no_args_is_help=True, help="Enqueue a chat, embedding or bulk-insert job.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(commands, name="enqueue")


@commands.command()
def chat(
    message: Annotated[str, typer.Argument(help="The user's message; - reads it from standard input.")],
    conversation: Annotated[str | None, typer.Option(help="Continue this conversation.")] = None,
    priority: Priority = None,
    idempotency_key: Key = None,
    deadline: Seconds = None,
    delay: Seconds = None,
    wait: Wait = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue one turn of a conversation and print the job's id."""
    text = sys.stdin.read() if message == "-" else message
    fields = {"conversation": conversation} if conversation else {}
    options = Options(priority, None, idempotency_key, deadline, delay)
    _tell(producer.chat(text, options=options, **fields), wait, as_json_)


@commands.command()
def embedding(
    files: Annotated[list[Path], typer.Argument(help="Text files; each is one job under its path as key.")],
    priority: Priority = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue one embedding job for each file and print their ids."""
    payloads = [check(Embedding, text=_text(path), key=str(path)) for path in files]
    with progress() as bars:
        task = bars.add_task("embedding jobs", total=len(payloads), note="")
        jobs = producer.many(
            payloads, options=Options(priority), on_progress=lambda done: bars.update(task, completed=done)
        )
    if as_json_:
        as_json([{"id": job.id, "key": payload.key} for job, payload in zip(jobs, payloads, strict=True)])
    else:
        for job in jobs:
            out.print(job.id)


@commands.command()
def bulk(
    table: Annotated[str, typer.Argument(help="A table that queues.yaml allows.")],
    file: Annotated[Path, typer.Argument(help="FILE.csv with a header line, or FILE.jsonl with one object a line.")],
    priority: Priority = None,
    idempotency_key: Key = None,
    wait: Wait = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue a file's rows, cut into jobs, and print the group's id and its jobs."""
    if not file.is_file():
        raise JobRefused("file", str(file), "is not a file; give a .csv or .jsonl file")
    with progress() as bars:
        task = bars.add_task("rows", total=None, note="")
        group = producer.bulk_insert(
            table,
            _rows(file),
            options=Options(priority, None, idempotency_key),
            on_progress=lambda rows: bars.update(task, completed=rows),
        )
    if wait is not None:
        try:
            result = group.result(wait)
        except KeyboardInterrupt:
            err.print(f"{len(group.jobs)} jobs go on; the first is {group.jobs[0].id}", markup=False)
            raise
        as_json(result) if as_json_ else out.print(f"{result['rows']} rows inserted by {len(group.jobs)} jobs")
        return
    if as_json_:
        as_json({"group": group.id, "jobs": [job.id for job in group.jobs]})
    else:
        err.print(f"group {group.id}: {len(group.jobs)} jobs")
        for job in group.jobs:
            out.print(job.id)


def _tell(job: Job, wait: float | None, as_json_: bool) -> None:
    if wait is None:
        as_json({"id": job.id}) if as_json_ else out.print(job.id)
        return
    try:
        result = job.result(wait)
    except KeyboardInterrupt:
        err.print(f"job {job.id} goes on; ask with ./forebay job {job.id}", markup=False)
        raise
    as_json({"id": job.id, "result": result}) if as_json_ else out.print(result["text"], markup=False)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobRefused("file", str(path), f"cannot be read as UTF-8 text: {error}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's rows. An empty CSV field is NULL."""
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise JobRefused("file", str(path), "must end in .csv or .jsonl")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from readers[path.suffix.lower()](file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise JobRefused("file", str(path), f"cannot be read as UTF-8 text: {error}") from error


def _csv_rows(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise JobRefused(f"{path}:{reader.line_num}", row.get(None), "must have as many fields as the header")
            yield {name: value if value != "" else None for name, value in row.items()}
    except csv.Error as error:
        raise JobRefused(f"{path}:{reader.line_num}", "", f"is not CSV: {error}") from error


def _json_rows(file: Any, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise JobRefused(f"{path}:{number}", line[:80], f"is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise JobRefused(f"{path}:{number}", line[:80], "must be a JSON object")
        yield row
