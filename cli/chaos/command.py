"""Break things while jobs arrive and run, then say of every accepted job what became of it."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from cli.output import as_json, err, out, progress, table
from dev import addresses, ports, stack, valkey
from dev.processes import Log, Process, Runner
from worker.errors import ForebayError

if TYPE_CHECKING:  # they load Celery, for which the settings have to stand
    from cli.chaos.scene import Fault
    from cli.chaos.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
QUEUES = Path(__file__).with_name("chaos.yaml")
LATENCY_S = 0.3
#: A run shorter than the default lease gets a short one, so that it sees rescues too.
SHORT = {"FOREBAY_LEASE_DURATION_S": "2", "FOREBAY_LEASE_RENEW_EVERY_S": "0.5"}
#: On a stack that others use, every key of the suite begins with this, and its workers see no other job.
PREFIX = "chaos:"
RESULTS = "results"

Names = Annotated[list[str] | None, typer.Option("--fault", help="A fault to run, as often as you like; all of them.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(chaos)


def chaos(
    fault: Names = None,
    seconds: Annotated[float, typer.Option(help="How long jobs arrive under each fault.", min=1)] = 20,
    list_: Annotated[bool, typer.Option("--list", help="Show the faults and do nothing.")] = False,
    here: Annotated[bool, typer.Option("--here", help="Use the stack that the environment names.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep what workers and servers say in this folder.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Run a mixed load under each fault and count what was lost or doubled. Exit code 1 if any fault fails.

    On a stack of its own unless --here. Under 8 seconds leases last 2 seconds, so that rescues are seen; from then on
    they are the default ones, and the first rescue has to come within 10 seconds.
    """
    if here and not (list_ or yes):
        typer.confirm(
            "Connections of the broker and the database that the environment names will be cut. Go on?", abort=True
        )
    with _settings(seconds, here):
        from cli.chaos.faults import FAULTS

        chosen = _chosen(FAULTS, fault, here)
        if list_:
            _list(FAULTS, as_json_)
            return
        verdicts = _run(chosen, seconds, here, logs)
    _tell(verdicts, as_json_)
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


def _chosen(faults: Sequence["Fault"], names: Sequence[str] | None, here: bool) -> list["Fault"]:
    known = {fault.name: fault for fault in faults}
    for name in names or ():
        if name not in known:
            raise ForebayError(f"--fault {name!r} is unknown; use {', '.join(known)}")
        if here and known[name].servers:
            raise ForebayError(f"--fault {name} restarts {', '.join(known[name].servers)}: leave --here out")
    return [known[name] for name in names] if names else [each for each in faults if not (here and each.servers)]


@contextlib.contextmanager
def _settings(seconds: float, here: bool) -> Iterator[None]:
    """Put the suite's queues, leases and keys into the environment, before anything reads it."""
    before = dict(os.environ)
    os.environ["FOREBAY_QUEUES"] = str(QUEUES)
    if seconds < 8:
        os.environ.update(SHORT)
    if here:
        os.environ["FOREBAY_KEY_PREFIX"] = PREFIX
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(faults: Sequence["Fault"], seconds: float, here: bool, logs: Path | None) -> list["Verdict"]:
    """Start everything, run one fault after the other, stop everything."""
    from cli.chaos.run import Run
    from dev.faulty import process as faulty_provider

    with contextlib.ExitStack() as open_:
        home = open_.enter_context(stack.temporary_home())
        log = open_.enter_context(stack.log_to_files(logs or home / "log"))
        err.print("starting servers and workers ...")
        provider = open_.enter_context(faulty_provider.started(log, chat_s=LATENCY_S, embedding_s=LATENCY_S))
        running = open_.enter_context(_stack(home, provider.base_url, here, log))
        servers = dict(running.processes)
        results_url = ""
        if any(RESULTS in fault.servers for fault in faults):
            servers[RESULTS], results_url = open_.enter_context(_results(home, log))
        run = Run(ROOT, running.environment, servers, results_url, provider, uuid4().hex[:6], log)
        open_.enter_context(run.prepared(here))
        bars = open_.enter_context(progress())
        return [run.fault(fault, seconds, bars) for fault in faults]


@contextlib.contextmanager
def _stack(home: Path, provider_url: str, here: bool, log: Log) -> Iterator[stack.Started]:
    models = {"OPENAI_CHAT_MODEL": "quick", "OPENAI_EMBEDDING_MODEL": "quick"}
    environ = {**(os.environ if here else stack.without_services(os.environ)), **models}
    environ |= {"OPENAI_BASE_URL": provider_url, "OPENAI_API_KEY": addresses.LOCAL_KEY}
    # Not durable: each write reaches the kernel at once, so that a SIGKILL of Valkey takes nothing that was promised.
    # With a sync each second, a write may wait for one that is under way.
    own = stack.from_environment(ROOT, environ, home=home, durable=False)
    if here and own.embedded:
        raise ForebayError("--here needs CELERY_BROKER_URL and DATABASE_URL; set them, or start ./forebay up")

    def migrate(environment: Mapping[str, str]) -> None:
        from db import migration

        os.environ.update({name: environment[name] for name in (*addresses.SERVICE_VARIABLES, *models)})
        migration.upgrade()

    with stack.started(own, migrate=migrate, log=log) as running:
        yield running


@contextlib.contextmanager
def _results(home: Path, log: Log) -> Iterator[tuple[Process, str]]:
    """Start a Valkey for results alone, which nobody starts again but the fault itself."""
    port = ports.free_port()
    runner = Runner(log, restart=False)
    try:
        yield runner.start(valkey.command(home / RESULTS, port, durable=False)), valkey.url(port, 0)
    finally:
        runner.stop([valkey.NAME], within_s=5)


def _list(faults: Sequence["Fault"], as_json_: bool) -> None:
    if as_json_:
        as_json([{"fault": fault.name, "what": fault.what} for fault in faults])
    else:
        table("Faults", ("fault", "what"), [(fault.name, fault.what) for fault in faults])


def _tell(verdicts: Sequence["Verdict"], as_json_: bool) -> None:
    if as_json_:
        as_json([verdict.as_dict() for verdict in verdicts])
        return
    names = ("accepted", "succeeded", "dead", "cancelled", "expired", "waiting", "lost", "doubled")
    rows = []
    for verdict in verdicts:
        counts = verdict.as_dict()
        rescue = "-" if verdict.rescue_s is None else f"{verdict.rescue_s:.1f}"
        passed = "passed" if verdict.passed else "FAILED"
        rows.append((verdict.fault, *(counts[name] for name in names), rescue, passed))
    table("Chaos", ("fault", *names, "first rescue (s)", "verdict"), rows)
    for verdict in verdicts:
        for complaint in verdict.complaints:
            out.print(f"{verdict.fault}: {complaint}", markup=False, soft_wrap=True)
    failed = sum(not verdict.passed for verdict in verdicts)
    out.print(f"[bold red]FAILED[/]: {failed} of {len(verdicts)} faults" if failed else "[bold green]PASSED[/]")
