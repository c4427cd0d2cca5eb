"""Commands that look: one job, the queues, the configuration."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from cli.following import follow
from cli.output import as_json, out, table
from db import configuration
from tasks.producer.job import Job, status_of
from worker.errors import ForebayError
from worker.inspection import overview
from worker.limits import breaker
from worker.policy.policy import effective
from worker.policy.policy import load as load_policy
from worker.policy.queue_file import Setting
from worker.records import broker

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(job)
    app.command()(cancel)
    app.command()(queues)
    app.command()(config)


def job(
    job_id: Annotated[str, typer.Argument(help="The id that enqueue printed.")],
    wait: Annotated[float | None, typer.Option(help="Wait up to this many seconds for the job to end.", min=0)] = None,
    following: Annotated[bool, typer.Option("--follow", help="Print its text while the model writes it.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Show one job: its status, times, attempts, and its result when it has one. Exit code 1 if it failed."""
    handle = Job(job_id)
    if following:
        follow(handle, wait, as_json_)
        return
    result: Any = None
    error = ""
    try:
        if wait is not None or handle.status in ("SUCCESS", "FAILURE"):
            result = handle.result(wait)
    except ForebayError as failure:
        error = str(failure)
    record = handle.record()
    shown = {"id": job_id, "status": status_of(record), **dict(sorted(record.items())), "result": result}
    if as_json_:
        as_json(shown)
    else:
        rows = [(name, _shown(name, value)) for name, value in shown.items() if value not in (None, "")]
        table(f"job {job_id}", ("field", "value"), rows)
    if error:
        raise typer.Exit(1)


def _shown(name: str, value: Any) -> str:
    """Return a field for people: times as ISO 8601, results as one line."""
    if name.endswith("_at") or name == "deadline":
        return datetime.fromtimestamp(float(value), UTC).isoformat(timespec="milliseconds")
    return json.dumps(value, ensure_ascii=False)[:2000] if name == "result" else str(value)


def cancel(job_id: Annotated[str, typer.Argument(help="The job to cancel.")]) -> None:
    """Cancel a job. One that runs is broken off by its worker within seconds. Exit code 1 if it has ended."""
    handle = Job(job_id)
    if handle.cancel():
        running = handle.record()["state"] == "started"
        out.print(f"job {job_id} is being broken off" if running else f"job {job_id} is cancelled", soft_wrap=True)
        return
    out.print(f"job {job_id} is {handle.status} and cannot be cancelled any more")
    raise typer.Exit(1)


def queues(as_json_: AsJson = False) -> None:
    """Show what is pending by priority, running and delayed, gates, breakers that are not closed, and the workers."""
    policy = load_policy()
    client = broker.connect()
    states, gates, holders = overview.queues(client, policy), overview.gates(client, policy), overview.workers(client)
    troubled = breaker.breakers(client)
    if as_json_:
        shown = {"queues": [state.as_dict() for state in states], "gates": [gate.as_dict() for gate in gates]}
        as_json({**shown, "breakers": [vars(each) for each in troubled], "workers": [vars(each) for each in holders]})
        return
    names = list(states[0].pending)
    table(
        "Queues",
        ("queue", *names, "delayed", "in hand", "running", "completed", "dead", "workers"),
        [
            (
                state.name,
                *state.pending.values(),
                state.delayed,
                state.leased,
                state.started,
                state.counters.get("completed", 0),
                state.counters.get("dead", 0),
                len(state.workers),
            )
            for state in states
        ],
    )
    if gates:
        columns = ("gate", "level", "filled", "shut for (s)", "reason", "refusals", "waiting")
        table("Gates", columns, [_gate(gate) for gate in gates])
    if troubled:
        table(
            "Breakers",
            ("provider and model", "state", "failures", "opened in a row", "tries again in (s)"),
            [(each.name, each.state, each.failures, each.trips, f"{each.half_opens_in_s:.1f}") for each in troubled],
        )
    table(
        "Workers",
        ("node", "pid", "queues", "in hand", "lease left (s)"),
        [(each.node, str(each.pid), ", ".join(each.queues), each.held, f"{each.lease_left_s:.1f}") for each in holders],
    )


def _gate(gate: overview.GateState) -> tuple[object, ...]:
    levels = [f"{name} {level:,.0f} of {most:,.0f}" for name, (level, most, _) in gate.buckets.items()]
    rates = [f"{name} {per_s:,.2f}/s" for name, (_, _, per_s) in gate.buckets.items()]
    learned = [f"learned: {gate.learned:.0%}"] if gate.learned < 1 else []
    return (
        gate.name,
        ", ".join(levels) or "no limit",
        ", ".join([*rates, *learned]) or "-",
        f"{gate.shut_s:.1f}" if gate.shut_s else "-",
        gate.reason or "-",
        gate.refusals,
        ", ".join(gate.waiting) or "-",
    )


def config(as_json_: AsJson = False) -> None:
    """Show every effective value of queues.yaml and the environment, and where it came from."""
    settings = effective() + [
        Setting(each.name, each.value, f"environment variable {each.name}" if each.is_given else "default")
        for each in configuration.effective()
    ]
    if as_json_:
        as_json([vars(setting) for setting in settings])
        return
    table("Configuration", ("key", "value", "from"), [(each.key, str(each.value), each.source) for each in settings])
