"""Commands that enqueue jobs."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.following import follow
from cli.output import as_json, err, out, progress
from tasks import enqueue as producer
from tasks.enqueue import Options
from tasks.job import Job
from tasks.payloads import BulkInsert, Embedding, check
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
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while the model writes it.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Enqueue one turn of a conversation and print the job's id."""
    text = _standard_input() if message == "-" else message
    fields: dict[str, Any] = {"conversation": conversation} if conversation else {}
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


@commands.command()
def bulk(
    table: Annotated[str, typer.Argument(help="A table that queues.yaml allows.")],
    file: Annotated[Path, typer.Argument(help="FILE.csv with a header line, or FILE.jsonl with one object a line.")],
    operation: Annotated[str | None, typer.Option(help="insert, update, upsert or delete.")] = None,
    key: Annotated[str | None, typer.Option(help="Columns of a unique index: a,b.")] = None,
    on_conflict: Annotated[str | None, typer.Option(help="An insert whose key is there: fail, skip or update.")] = None,
    priority: Priority = None,
    idempotency_key: Key = None,
    wait: Wait = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue a file's rows, cut into jobs, and print the group's id and its jobs."""
    if not file.is_file():
        raise JobRefused("file", str(file), "is not a file; give a .csv or .jsonl file")
    given = {"operation": operation, "key": key and key.split(","), "on_conflict": on_conflict}
    how = {name: value for name, value in given.items() if value is not None}
    with _counted("rows") as count:
        group = producer.bulk_insert(
            table,
            _checked(table, _rows(file), how),
            **how,
            options=Options(priority, None, idempotency_key),
            on_progress=count,
        )
    if wait is not None:
        _tell_rows(_results(group.jobs, wait), as_json_)
        return
    if as_json_:
        as_json({"group": group.id, "jobs": [job.id for job in group.jobs]})
    else:
        err.print(f"group {group.id}: {len(group.jobs)} jobs")
        for job in group.jobs:
            out.print(job.id)


def _tell_rows(results: list[dict[str, Any]], as_json_: bool) -> None:
    """Print how many rows the jobs took, and which jobs hold those that were refused."""
    counts = {"inserted": 0, "updated": 0, "skipped": 0, "deleted": 0}
    for result in results:
        for name in counts:  # inserts that went together tell their rows alone
            counts[name] += result.get(name, result["rows"] if name == "inserted" else 0)
    rows = sum(result["rows"] for result in results)
    rejected = [result["rejected_job"] for result in results if "rejected_job" in result]
    if as_json_:
        as_json({"rows": rows, **counts, "rejected_jobs": rejected})
        return
    done = ", ".join(f"{count} rows {name}" for name, count in counts.items() if count) or "0 rows changed"
    out.print(f"{done} by {len(results)} jobs")
    for job_id in rejected:
        err.print(f"rows were refused; they are job {job_id}: ./forebay dead show {job_id}", markup=False)


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


def _checked(table: str, rows: Iterator[dict[str, Any]], how: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pass the rows on once the first one's columns are known to be the table's."""
    for number, row in enumerate(rows):
        if number == 0:
            check(BulkInsert, table=table, columns=list(row), rows=[list(row.values())], **how)
            _check_columns(table, list(row))
        yield row


def _check_columns(table: str, columns: list[str]) -> None:
    """Refuse columns that the table does not have, before a job is accepted; the API leaves that to the worker.

    Where no database can be reached from here, it is the worker's here too.
    """
    from db import errors, schema
    from db.engine import transaction

    try:
        with transaction() as session:
            schema.columns(session, table, columns)
    except Exception as error:
        if not isinstance(error, errors.SettingError) and errors.fault_of(error) is not errors.Fault.AWAY:
            raise
        err.print("the columns are not checked: no database here; set DATABASE_URL to have it", markup=False)


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
