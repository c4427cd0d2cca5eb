"""Commands for dead letters: look, edit, replay, purge."""

import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import durations, editor
from cli.output import as_json, err, lines, one_line, out, progress, table
from tasks.producer.kinds import registry
from tasks.producer.kinds.payload import check
from worker.errors import ForebayError, JobRefused, UnknownJob
from worker.inspection import dead_letters
from worker.inspection.dead_letters import Tally
from worker.inspection.letter import Filter, Letter
from worker.records import broker
from worker.records import reason as reasons
from worker.records.broker import Broker

Queue = Annotated[str, typer.Option("--queue", help="Of this queue.", show_default=False)]
Task = Annotated[str, typer.Option("--task", help="Of this task, such as tasks.chat.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="With this reason, such as malformed.", show_default=False)]
Fingerprint = Annotated[str, typer.Option("--fingerprint", help="Died of the same: see groups.", show_default=False)]
Older = Annotated[
    float | None,
    typer.Option("--older-than", help="Dead for longer: 90s, 15m, 2h, 7d.", parser=durations.parse, metavar="AGE"),
]
Newer = Annotated[
    float | None,
    typer.Option("--newer-than", help="Dead for less: 90s, 15m, 2h, 7d.", parser=durations.parse, metavar="AGE"),
]
JobId = Annotated[str, typer.Argument(help="A dead letter's id, as list shows it.", metavar="ID")]
JobIds = Annotated[list[str] | None, typer.Argument(help="Dead letters by id.", metavar="ID", show_default=False)]
Every = Annotated[bool, typer.Option("--all", help="Every letter that the filters leave.")]
AtMost = Annotated[int | None, typer.Option("--most", help="At most so many, the oldest first.", min=1)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say how many that would be.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

#: What `one_line` writes for what cannot be printed.
ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[ntr])")

commands = typer.Typer(no_args_is_help=True, help="Look at dead letters, edit, replay or purge them.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(commands, name="dead")


@commands.command("list")
def list_letters(
    queue: Queue = "",
    task: Task = "",
    reason: Reason = "",
    fingerprint: Fingerprint = "",
    older_than: Older = None,
    newer_than: Newer = None,
    most: Annotated[int, typer.Option(help="At most so many, the newest first.", min=1, max=10_000)] = 50,
    as_json_: AsJson = False,
) -> None:
    """List dead letters, the newest first. Exit code 1 if none matches."""
    want = Filter(queue, task, reason, fingerprint, older_than, newer_than)
    found = dead_letters.find(broker.connect(), want, most)
    if as_json_:
        as_json([letter.as_dict() for letter in found.letters])
    elif found.letters:
        columns = ("id", "died", "queue", "task", "deaths", "fingerprint", "reason", "error")
        table("Dead letters", columns, [_row(letter) for letter in found.letters])
        if found.after:
            err.print(f"there may be more than these {most}: --most shows more, groups counts them")
    else:
        err.print("no dead letter matches")
    if not found.letters:
        raise typer.Exit(1)


@commands.command()
def groups(
    queue: Queue = "",
    task: Task = "",
    reason: Reason = "",
    older_than: Older = None,
    newer_than: Newer = None,
    as_json_: AsJson = False,
) -> None:
    """Count dead letters that died of the same, the most frequent first. Exit code 1 if none matches."""
    found = dead_letters.groups(broker.connect(), Filter(queue, task, reason, "", older_than, newer_than))
    if as_json_:
        as_json([{**vars(group), "example": group.example.as_dict()} for group in found])
    elif found:
        columns = ("fingerprint", "count", "newest", "queue", "task", "reason", "error", "example")
        rows = []
        for each in found:
            example, died, of_queue, of_task, _, mark, because, error = _row(each.example)
            rows.append((mark, each.count, died, of_queue, of_task, because, error, example))
        table("Dead letters by what they died of", columns, rows)
    else:
        err.print("no dead letter matches")
    if not found:
        raise typer.Exit(1)


@commands.command()
def show(
    job_id: JobId,
    payload: Annotated[bool, typer.Option("--payload", help="Show what the job carries, not only its size.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Show one dead letter: how it died, and before. What it carries is shown with --payload only."""
    letter = _letter(broker.connect(), job_id)
    carried: Any = letter.payload
    if carried is None:
        carried = letter.message if payload else "cannot be read"
    elif not payload:
        carried = {name: _size(value) for name, value in carried.items()}
    if as_json_:
        as_json({**letter.as_dict(), "payload": carried})
        return
    fields = letter.as_dict() | {"died_at": _moment(letter.died_at), "accepted_at": _moment(letter.accepted_at)}
    rows = [(name, fields[name]) for name in fields if name not in ("history", "traceback") and fields[name] != ""]
    if known := reasons.named(letter.reason):
        rows += [("meaning", known.explanation), ("next step", known.next_step)]
    table(f"dead letter {_short(letter.id)}", ("field", "value"), rows)
    if letter.history:
        deaths = [(_moment(death.died_at), *list(vars(death).values())[1:]) for death in letter.history]
        table("Earlier deaths", ("died", "reason", "error", "worker", "fingerprint"), deaths)
    if letter.traceback:
        out.print(lines(letter.traceback.rstrip()), markup=False, soft_wrap=True)
    out.print("payload:", style="bold")
    text = carried if isinstance(carried, str) else json.dumps(carried, ensure_ascii=False, indent=2)
    out.print(lines(text), markup=False, soft_wrap=True)


@commands.command()
def edit(
    job_id: JobId,
    source: Annotated[
        str | None, typer.Option("--from", help="A file, or - for standard input; without it $EDITOR opens.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Edit the whole message, not only its payload.")] = False,
) -> None:
    """Replace what a dead letter carries, as JSON. A message that cannot be read is edited as a whole."""
    client = broker.connect()
    letter = _letter(client, job_id)
    payload = None if raw else letter.payload
    before = json.dumps(payload, ensure_ascii=False, indent=2) if payload is not None else letter.message or ""
    after = (editor.open_with(before) if source is None else _given(source)).strip()
    if after == before.strip():
        out.print("nothing is changed")
        return
    if payload is not None:
        said = dead_letters.edit(client, letter, payload=_object(after), validate=_validate)
    else:
        said = dead_letters.edit(client, letter, text=after, validate=_validate)
    if said != "edited":
        raise ForebayError(f"job {one_line(letter.id)}: {_why(said)}")
    out.print(f"job {one_line(letter.id)} is edited; ./forebay dead replay lets it run again", markup=False)


@commands.command()
def replay(
    job_ids: JobIds = None,
    queue: Queue = "",
    task: Task = "",
    reason: Reason = "",
    fingerprint: Fingerprint = "",
    older_than: Older = None,
    newer_than: Newer = None,
    every: Every = False,
    most: AtMost = None,
    rate: Annotated[float | None, typer.Option(help="At most so many a second.", min=0.001, max=1e6)] = None,
    dry_run: DryRun = False,
    as_json_: AsJson = False,
) -> None:
    """Let dead jobs run again: at the tail of their queue, with no attempt spent and no deadline.

    Give ids, or --all with filters. Exit code 1 if nothing matched or a letter had changed meanwhile.
    """
    want = Filter(queue, task, reason, fingerprint, older_than, newer_than)
    client = broker.connect()

    def many(**how: Any) -> Tally:
        return dead_letters.replay_many(client, want, most=most, rate_per_s=rate, **how)

    if _are_named(job_ids, want, every, most, dry_run):
        ids = [_id(client, each) for each in job_ids or ()]
        _tell_each(client, ids, "replayed", dead_letters.replay, dry_run, as_json_)
    else:
        _tell_all(many, "replayed", dry_run, as_json_, lambda _: None)


@commands.command()
def purge(
    job_ids: JobIds = None,
    queue: Queue = "",
    task: Task = "",
    reason: Reason = "",
    fingerprint: Fingerprint = "",
    older_than: Older = None,
    newer_than: Newer = None,
    every: Every = False,
    most: AtMost = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Delete dead letters for good. Their records say so for a day (retention.record_s).

    Give ids, or --all with filters. Exit code 1 if nothing matched or a letter had changed meanwhile.
    """
    want = Filter(queue, task, reason, fingerprint, older_than, newer_than)
    client = broker.connect()

    def many(**how: Any) -> Tally:
        return dead_letters.purge_many(client, want, most=most, **how)

    def ask(matched: int) -> None:
        if not yes:
            typer.confirm(f"Delete what {matched} dead letters carry?", abort=True, err=True)

    if _are_named(job_ids, want, every, most, dry_run):
        ids = [_id(client, each) for each in job_ids or ()]
        if not dry_run:
            ask(len(ids))
        _tell_each(client, ids, "purged", dead_letters.purge, dry_run, as_json_)
    else:
        _tell_all(many, "purged", dry_run, as_json_, ask)


def _are_named(job_ids: list[str] | None, want: Filter, every: bool, most: int | None, dry_run: bool) -> bool:
    """Say whether letters are given by id. Refuses a call that does not say clearly which are meant."""
    if job_ids and (want != Filter() or every or most):
        raise typer.BadParameter("give ids or filters, not both")
    if not (job_ids or every or most or dry_run):
        raise typer.BadParameter("give ids, or --all for every letter that the filters leave, or --most")
    return bool(job_ids)


def _tell_each(
    client: Broker, ids: list[str], done: str, act: Callable[[Broker, str], str], dry_run: bool, as_json_: bool
) -> None:
    if dry_run:
        said = {job_id: done if dead_letters.get(client, job_id) else "not a dead letter" for job_id in ids}
    else:
        said = {job_id: act(client, job_id) for job_id in ids}
    if as_json_:
        as_json({"dry_run": dry_run, "jobs": said})
    else:
        for job_id, what in said.items():
            would = "would be " if dry_run else ""
            text = f"job {one_line(job_id)}: {would + what if what == done else _why(what)}"
            (out if what == done else err).print(text, markup=False, soft_wrap=True)
    if set(said.values()) != {done}:
        raise typer.Exit(1)


def _tell_all(many: Callable[..., Tally], done: str, dry_run: bool, as_json_: bool, ask: Callable[[int], None]) -> None:
    tally = matched = many(dry_run=True)
    if not dry_run and matched.matched:
        ask(matched.matched)
        with progress() as bars:
            bar = bars.add_task(done, total=matched.matched, note="")
            tally = many(on_progress=lambda number: bars.update(bar, completed=number))
    changed = 0 if dry_run else tally.matched - tally.done
    if as_json_:
        as_json({"dry_run": dry_run, "matched": tally.matched, done: tally.done})
    elif dry_run:
        out.print(f"{tally.matched:,} dead letters would be {done}")
    elif tally.matched:
        out.print(f"{tally.done:,} dead letters {done}" + (f"; {changed:,} had changed meanwhile" if changed else ""))
    else:
        err.print("no dead letter matches")
    if changed or not tally.matched:
        raise typer.Exit(1)


def _id(client: Broker, shown: str) -> str:
    """Return a job's id from how it is shown: what cannot be printed may come as its escape."""
    if not ESCAPE.search(shown) or dead_letters.get(client, shown):
        return shown
    return ESCAPE.sub(lambda found: found.group().encode().decode("unicode_escape"), shown)


def _letter(client: Broker, shown: str) -> Letter:
    letter = dead_letters.get(client, _id(client, shown))
    if letter is None:
        raise UnknownJob(f"job {one_line(shown)!r} is not a dead letter; ./forebay dead list shows them")
    return letter


def _why(said: str) -> str:
    """Return what the scripts say of a job that is no letter, or not the one that was read, for people."""
    match said:
        case "":
            return "is not known"
        case "changed":
            return "was edited or died anew meanwhile; look at it again"
        case "purged" | "not a dead letter":
            return f"is {said}" if said != "purged" else "was purged before"
        case state:
            return f"is {state}, not a dead letter"


def _validate(task: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload as a producer would send it; of a task that is not ours, as it is."""
    kind = registry.by_task().get(task)
    return check(kind, **payload).model_dump(mode="json", exclude_none=True) if kind else payload


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobRefused("payload", text, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise JobRefused("payload", text, "must be a JSON object")
    return value


def _given(source: str) -> str:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise JobRefused("--from", source, f"cannot be read: {error}") from error
    return content.decode("utf-8", "surrogateescape")


def _row(letter: Letter) -> tuple[object, ...]:
    fields = (letter.queue, letter.task, letter.deaths, letter.fingerprint or "-", letter.reason)
    return (_short(letter.id), _moment(letter.died_at), *fields, _short(letter.error.partition("\n")[0], 200))


def _short(text: str, most: int = 64) -> str:
    shown = one_line(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _size(value: Any) -> str:
    match value:
        case str():
            return f"{len(value):,} characters"
        case list() | dict():
            return f"{len(value):,} entries"
    return "a number" if isinstance(value, int | float) and not isinstance(value, bool) else "a constant"
