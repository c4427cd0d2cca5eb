"""Commands for slow statements of the database: which they are, how they run, which index would help."""

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli import durations
from cli.output import as_json, err, one_line, out, progress, table

if TYPE_CHECKING:  # it loads sqlglot and SQLAlchemy
    from db.tuning.index_advice import Advice

Mark = Annotated[
    str, typer.Argument(help="The fingerprint that `slow` shows, or its beginning.", metavar="FINGERPRINT")
]
Since = Annotated[
    float | None,
    typer.Option("--since", help="Seen within this time: 15m, 2h, 7d.", parser=durations.parse, metavar="AGE"),
]
Limit = Annotated[int, typer.Option(help="At most so many, those that took the most time first.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

commands = typer.Typer(no_args_is_help=True, help="Slow statements of the database, and indexes that would help.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(commands, name="queries")


@commands.command()
def slow(limit: Limit = 20, since: Since = None, as_json_: AsJson = False) -> None:
    """List slow statements, grouped by what they have in common."""
    from db.tuning import slow_statements

    found = slow_statements.listed(limit, datetime.now(UTC) - timedelta(seconds=since) if since else None)
    if as_json_:
        as_json([{**vars(each), "mean_ms": each.mean_ms} for each in found])
        return
    columns = ("fingerprint", "calls", "total s", "mean ms", "longest ms", "failed", "last seen", "statement")
    rows = [
        (
            each.fingerprint,
            each.calls,
            f"{each.total_ms / 1000:.1f}",
            f"{each.mean_ms:.0f}",
            f"{each.longest_ms:.0f}",
            each.failures,
            f"{each.last_at:%Y-%m-%d %H:%M}",
            _beginning(each.statement, 60),
        )
        for each in found
    ]
    table("Slow statements", columns, rows)


@commands.command()
def show(fingerprint: Mark, as_json_: AsJson = False) -> None:
    """Show one kind of statement as a whole, with the plan of its slowest run."""
    from db.tuning import plans, slow_statements

    found = slow_statements.one(fingerprint)
    if as_json_:
        as_json({**vars(found), "mean_ms": found.mean_ms})
        return
    out.print(found.statement, markup=False, soft_wrap=True)
    out.print(
        f"\n{found.calls} times since {found.first_at:%Y-%m-%d %H:%M}, {found.failures} of them failed; "
        f"mean {found.mean_ms:.0f} ms, longest {found.longest_ms:.0f} ms\n",
        markup=False,
        soft_wrap=True,
    )
    for line in plans.lines(found.plan) if found.plan else ("no plan is known",):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


@commands.command()
def recommend(
    fingerprint: Annotated[
        str | None,
        typer.Argument(help="One statement's; without it all that read whole tables are tried.", metavar="FINGERPRINT"),
    ] = None,
    limit: Limit = 20,
    any_size: Annotated[bool, typer.Option("--any-size", help="Also on tables of more than 256 MiB.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Try indexes, each in a transaction that is rolled back, and name those that help.

    While one is tried its table takes no writes. Exit code 1 if any is recommended.
    """
    from db.tuning import index_advice, slow_statements

    chosen = (
        [slow_statements.one(fingerprint)] if fingerprint else index_advice.worth_trying(slow_statements.listed(limit))
    )
    found = []
    with progress() as bars:
        bar = bars.add_task("trying indexes", total=len(chosen), note="")
        for each in chosen:
            began = time.monotonic()
            found.append((each.fingerprint, index_advice.recommend(each.statement, any_size=any_size)))
            bars.update(bar, advance=1, note=f"{each.fingerprint} {time.monotonic() - began:.1f} s")
    if as_json_:
        as_json([{"fingerprint": mark, **vars(advice)} for mark, advice in found])
    else:
        for mark, advice in found:
            out.print(f"{mark}  {_beginning(advice.statement, 100)}", markup=False, highlight=False, soft_wrap=True)
            for line in _told(advice):
                out.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
        if not found:
            err.print("no slow statement reads a whole table; `./forebay queries slow` lists them", soft_wrap=True)
    if any(advice.index for _, advice in found):
        raise typer.Exit(1)


@commands.command()
def forget() -> None:
    """Forget all slow statements, as after an index was built."""
    from db.tuning import slow_statements

    out.print(f"{slow_statements.forget():,} kinds of statements forgotten")


def _beginning(statement: str, length: int) -> str:
    """Return a statement in one line, and with a mark where it is cut."""
    line = one_line(statement)
    return line if len(line) <= length else f"{line[: length - 4]} ..."


def _told(advice: "Advice") -> list[str]:
    if not advice.index:
        return [f"no index: {advice.reason}"]
    costs = f"cost {advice.cost_before:,.0f} -> {advice.cost_after:,.0f}"
    lines = [f"{advice.index};", f"{costs}; the index takes {(advice.size_bytes or 0) >> 10:,} KiB"]
    if advice.redundant:
        lines.append(f"it would do the work of {', '.join(advice.redundant)} too")
    return lines
