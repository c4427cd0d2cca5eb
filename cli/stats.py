"""Commands that count: what became of the jobs, and whether they add up."""

from dataclasses import asdict
from typing import Annotated

import typer

from cli.output import as_json, out, progress, table
from worker.inspection import audit as audits
from worker.inspection import overview
from worker.policy.policy import load as load_policy
from worker.records import broker

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

#: Findings that a person is shown; programs get all.
SHOWN = 100


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(stats)
    app.command()(audit)


def stats(
    queue: Annotated[str | None, typer.Option(help="This queue alone; all of them when none is given.")] = None,
    as_json_: AsJson = False,
) -> None:
    """Show exact counts since the first job, by queue and in total, and what is open now."""
    policy = load_policy()
    names = [policy.queue(queue).name] if queue else sorted(policy.queues)
    found = overview.stats(broker.connect(), names)
    if as_json_:
        as_json([each.as_dict() for each in found])
        return
    rows = [each.as_dict() for each in found]
    title = "Statistics (dead: now; success rate: of what succeeded or died and was not replayed)"
    names = [name for name in rows[0] if name != "queue"]
    table(
        title, ("", *(row["queue"] for row in rows)), [(name, *(_shown(row[name]) for row in rows)) for name in names]
    )


def _shown(value: float | None) -> object:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else value


def audit(as_json_: AsJson = False) -> None:
    """Check that no job is lost: accepted = succeeded + dead + cancelled + expired + waiting. Changes nothing.

    Looks at every record, list, set and counter of the broker, beside live traffic. Exit code 1 if something is wrong.
    """
    connected, policy = broker.connect(), load_policy()
    with progress() as bars:
        task = bars.add_task("jobs and messages", total=None, note="")
        report = audits.audit(connected, policy, lambda seen, total: bars.update(task, completed=seen, total=total))
    if as_json_:
        as_json(asdict(report))
    else:
        _print(report)
    if report.findings:
        raise typer.Exit(1)


def _print(report: audits.Report) -> None:
    names = ("queue", "accepted", "succeeded", "dead", "cancelled", "expired", "waiting", "unseen")
    title = (
        "accepted = succeeded + dead + cancelled + expired + waiting (unseen: from plain producers, not fetched yet)"
    )
    table(title, names, [tuple(vars(balance).values()) for balance in report.balances])
    if not report.findings:
        out.print("nothing is wrong")
        return
    columns = ("fault", "key", "what is wrong", "what to do")
    shown = report.findings[:SHOWN]
    table("Findings", columns, [(each.fault, each.key, each.what, each.remedy) for each in shown])
    if len(report.findings) > SHOWN:
        out.print(f"and {len(report.findings) - SHOWN} more: --json shows all")
