"""Commands for rows in bulk: a file becomes a group of jobs; how far a group is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from cli.output import as_json, err, out
from cli.output import table as print_table
from cli.rows import file as row_file
from cli.rows.file import RowFile
from tasks import enqueue
from tasks.producer.bulk_group import BulkGroup, Piece, State
from tasks.producer.enqueue import Options
from tasks.producer.job import Job
from tasks.producer.kinds.bulk_insert import BulkInsert
from tasks.producer.kinds.payload import check
from worker.errors import BrokerUnavailable, JobFailed, JobRefused, QueueFull, ResultTimeout
from worker.policy.policy import load as load_policy

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
PORTION = 8  # jobs sent in one go
PAUSE_S = 0.2
MOST_SHOWN = 20  # ids of jobs on a terminal; a program gets all of them
COUNTED = ("inserted", "updated", "skipped", "deleted")
NOT_OVER = 3  # exit code: neither all succeeded nor has one failed


def register(app: typer.Typer) -> None:
    """Add the command that shows a group; `cli.enqueue` adds the other."""
    app.command()(group)


def bulk(
    table: Annotated[str, typer.Argument(help="A table that queues.yaml allows.")],
    file: Annotated[Path, typer.Argument(help="CSV, JSONL (one object a line) or Parquet; - reads standard input.")],
    file_format: Annotated[str | None, typer.Option("--format", help="csv, jsonl or parquet; else by suffix.")] = None,
    columns: Annotated[str | None, typer.Option(help="a,b: of a CSV without a header; else those to take.")] = None,
    null: Annotated[str, typer.Option(help="The unquoted CSV field that is NULL.")] = "",
    operation: Annotated[str | None, typer.Option(help="insert, update, upsert or delete.")] = None,
    key: Annotated[str | None, typer.Option(help="Columns of a unique index: a,b.")] = None,
    on_conflict: Annotated[str | None, typer.Option(help="An insert whose key is there: fail, skip or update.")] = None,
    priority: Annotated[str | None, typer.Option(help="CRITICAL, HIGH, NORMAL, LOW or BATCH.")] = None,
    group: Annotated[str | None, typer.Option(help="A name: the same command again goes on where it stopped.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same as --group.")] = None,
    window: Annotated[int, typer.Option(help="Jobs that may be in and not ended; then it waits.", min=1)] = 1000,
    wait: Annotated[float | None, typer.Option(help="Wait up to this many seconds for the jobs to end.", min=0)] = None,
    as_json_: AsJson = False,
) -> None:
    """Enqueue a file's rows, cut into jobs, and print the group's id and its jobs.

    With --wait, exit code 1 if a job failed or rows were refused.
    """
    given = {"operation": operation, "key": key and key.split(","), "on_conflict": on_conflict}
    how = {"table": table, **{name: value for name, value in given.items() if value is not None}}
    if group and idempotency_key and group != idempotency_key:
        raise JobRefused(
            "--idempotency-key", idempotency_key, f"is --group by another name ({group!r}); give one of them"
        )
    if str(file) != "-" and not file.is_file():
        raise JobRefused("file", str(file), "is not a file; give a .csv, .jsonl or .parquet file, or -")
    names = columns.split(",") if columns else None
    most_bytes = load_policy().queue(BulkInsert.queue).max_payload_bytes
    with (
        _broker_errors("the same command with --group goes on"),
        row_file.opened(file, file_format, names, null, most_bytes) as source,
    ):
        if enqueue.is_inline():
            jobs, name = _run_inline(source, how), ""
        else:
            bulk_group = BulkGroup(group or idempotency_key or uuid4().hex)
            name = bulk_group.name
            count = _send(bulk_group, source, how, Options(priority), window)
            jobs = [Job(bulk_group.job_id(number)) for number in range(count)]
    if wait is not None:
        _tell_rows(_results(jobs, wait), as_json_)
    elif as_json_:
        as_json({"group": name, "jobs": [job.id for job in jobs]})
    else:
        err.print(f"group {name}: {len(jobs):,} jobs; ./forebay group {name}", markup=False, soft_wrap=True)
        cut = out.is_terminal and len(jobs) > MOST_SHOWN
        for job in jobs[: 1 if cut else None]:
            out.print(job.id, markup=False, soft_wrap=True)
        if cut:
            out.print(f"...\n{jobs[-1].id}", markup=False, soft_wrap=True)


def group(
    name: Annotated[str, typer.Argument(help="The group's name, which enqueue bulk printed.")],
    wait: Annotated[float | None, typer.Option(help="Wait up to this many seconds for all jobs.", min=0)] = None,
    as_json_: AsJson = False,
) -> None:
    """Show how far a group is. Exit code 0: all succeeded; 1: some failed; 3: not all sent, or not all ended."""
    with _broker_errors("ask again when it does"), _bar() as bar:
        bar.add_task("jobs ended", total=None, note="")

        def show(state: State) -> None:
            total = sum(state.jobs.values())
            ended = total - sum(state.jobs.get(each, 0) for each in ("QUEUED", "STARTED", "RETRY", "UNSENT"))
            note = ", ".join(f"{count:,} {status}" for status, count in sorted(state.jobs.items()))
            _draw(bar, total=total, completed=ended, note=note)

        state = BulkGroup(name).wait(wait or 0, show)
    if as_json_:
        as_json({**vars(state), "is_over": state.is_over})
    else:
        rows = [(status, count, state.rows[status]) for status, count in sorted(state.jobs.items())]
        print_table(f"group {name}", ("status", "jobs", "rows"), rows)
        for each in state.failed[:20]:
            out.print(f"{each['id']} is {each['status']}: {each['error'][:200]}", markup=False, soft_wrap=True)
        if len(state.failed) > 20:
            out.print(f"and {len(state.failed) - 20} more: --json has all")
        if not state.complete:
            err.print("not all of the input is sent: run the command that sends it again, with this --group")
    if state.failed:
        raise typer.Exit(1)
    if not state.is_over:
        raise typer.Exit(NOT_OVER)


def _send(group: BulkGroup, source: RowFile, how: dict[str, Any], options: Options, window: int) -> int:
    """Send the pieces with at most ``window`` of them open, and return how many there are."""
    rows_per_job = group.rows_per_job(load_policy().queue(BulkInsert.queue).rows_per_job or 1000)
    pieces = _pieces(source, how, rows_per_job)
    began, rows, jobs, new = time.monotonic(), 0, 0, 0
    waiting: list[int] = []
    with _bar() as bar:
        bar.add_task("sent", total=source.total, note="")

        def note(more: str = "") -> None:
            pace = rows / max(0.001, time.monotonic() - began)
            _draw(bar, completed=source.done(), note=f"{rows:,} rows, {jobs:,} jobs, {pace:,.0f} rows/s{more}")

        try:
            while portion := list(islice(pieces, min(PORTION, window))):
                if jobs == 0:
                    _check_columns(how["table"], source.columns)
                    told = f"group {group.name}; broken off, it goes on with --group {group.name}"
                    err.print(told, markup=False, soft_wrap=True)
                while len(waiting) + len(portion) > window and (waiting := group.open_jobs(waiting)):
                    if len(waiting) + len(portion) > window:
                        note(f"; waits for {len(waiting)} jobs to end")
                        time.sleep(PAUSE_S)
                new += _sent(partial(group.send, portion, options, rows_per_job), note)
                waiting += [piece.number for piece in portion]
                rows += sum(len(piece.payload.rows) for piece in portion)
                jobs += len(portion)
                note()
        except (KeyboardInterrupt, JobRefused) as error:
            if jobs:
                when = "once that is mended, " if isinstance(error, JobRefused) else ""
                told = f"{jobs} jobs are in; {when}the same command with --group {group.name} goes on"
                err.print(told, markup=False, soft_wrap=True)
            raise
    if not jobs:
        raise JobRefused("file", source.name, "holds no row; give at least one row")
    group.end(jobs)
    err.print(f"{rows:,} rows sent" + (f"; {jobs - new:,} of {jobs:,} jobs were in before" if new < jobs else ""))
    return jobs


def _sent(send: Callable[[], int], note: Callable[[str], None]) -> int:
    while True:
        try:
            return send()
        except QueueFull as error:
            note(f"; the queue is full ({error.length} jobs), waits")
            time.sleep(PAUSE_S)


def _pieces(source: RowFile, how: dict[str, Any], rows_per_job: int) -> Iterator[Piece]:
    """Cut the rows into payloads; one that is too large is halved, the same way whenever the input is read again."""
    # Escaped twice, JSON in JSON becomes at most twice as long.
    most = load_policy().queue(BulkInsert.queue).max_payload_bytes // 2 - 2000
    number = 0
    while part := list(islice(source.rows, rows_per_job)):
        parts = [part]
        while parts:
            one = parts.pop()
            payload = check(BulkInsert, columns=source.columns, rows=[values for _, values in one], **how)
            place = source.place(one[0][0])
            try:
                written = payload.to_json().encode()
            except (ValueError, TypeError) as error:
                raise JobRefused(f"rows from {place}", how["table"], f"cannot be written as JSON: {error}") from error
            if len(one) > 1 and len(written) > most:
                parts += [one[len(one) // 2 :], one[: len(one) // 2]]
                continue
            yield Piece(number, payload, written, place)
            number += 1


def _run_inline(source: RowFile, how: dict[str, Any]) -> list[Job]:
    rows = (values for _, values in source.rows)
    return enqueue.bulk_insert(rows=rows, columns=source.columns, **how).jobs


def _tell_rows(results: list[dict[str, Any]], as_json_: bool) -> None:
    """Print how many rows the jobs took, and which jobs hold those that were refused: then the exit code is 1."""
    counts = dict.fromkeys(COUNTED, 0)
    for result in results:
        for name in counts:  # inserts that went together tell their rows alone
            counts[name] += result.get(name, result["rows"] if name == "inserted" else 0)
    rows = sum(result["rows"] for result in results)
    rejected = {result["rejected_job"]: len(result["rejected"]) for result in results if "rejected_job" in result}
    if as_json_:
        as_json({"rows": rows, **counts, "rejected": sum(rejected.values()), "rejected_jobs": list(rejected)})
    else:
        done = ", ".join(f"{count:,} rows {name}" for name, count in counts.items() if count) or "0 rows changed"
        out.print(f"{done} by {len(results):,} jobs")
        for job_id, count in rejected.items():
            told = f"{count:,} rows were refused; they are job {job_id}: ./forebay dead show {job_id}"
            err.print(told, markup=False, soft_wrap=True)
    if rejected:
        raise typer.Exit(1)


def _results(jobs: list[Job], wait_s: float) -> list[Any]:
    """Wait for all jobs, at most so long in all, and return their results."""
    until = time.monotonic() + wait_s
    results: list[Any] = []
    try:
        with _bar() as bar:
            bar.add_task("jobs ended", total=len(jobs), note="")
            for job in jobs:
                results.append(job.result(max(0.0, until - time.monotonic())))
                _draw(bar, completed=len(results))
    except (KeyboardInterrupt, ResultTimeout, JobFailed) as error:
        name = jobs[0].id.removesuffix(".0")
        others = "what became of all" if isinstance(error, JobFailed) else "the jobs go on"
        err.print(f"{others}: ./forebay group {name}", markup=False, soft_wrap=True)
        raise
    return results


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


@contextmanager
def _bar() -> Iterator[Progress]:
    """Give a bar that is gone at its end; `_draw` draws it, and on a terminal only."""
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), note)
    bar = Progress(*columns, console=err, transient=True)
    try:
        yield bar
    finally:
        if err.is_interactive:
            bar.stop()


def _draw(bar: Progress, **fields: Any) -> None:
    if err.is_interactive:
        bar.start()
        bar.update(bar.task_ids[0], **fields)


@contextmanager
def _broker_errors(remedy: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from redis.exceptions import RedisError

        if not isinstance(error, RedisError):
            raise
        raise BrokerUnavailable(f"the broker does not answer ({error}); {remedy}") from error
