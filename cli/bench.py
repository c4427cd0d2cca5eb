"""Measure against raw limits and against plain Celery, in one run on a stack of its own."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import as_json, err, out, progress, table
from dev import addresses, stack
from dev.processes import Log

if TYPE_CHECKING:  # it loads the policy, for which the settings have to stand
    from bench.line import Line

ROOT = Path(__file__).resolve().parent.parent
QUEUES = ROOT / "bench" / "queues.yaml"
MODEL = "bench"
PARTS = ("chat", "embedding", "limits", "cache", "bulk", "database")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(bench)


def _part(what: str) -> Any:
    return typer.Option(help=what)


def bench(
    chat: Annotated[bool, _part("100 and 1,000 chats at once.")] = False,
    embedding: Annotated[bool, _part("Many texts in one call.")] = False,
    limits: Annotated[bool, _part("A provider's budget used by four workers; what limits cost.")] = False,
    cache: Annotated[bool, _part("Hits, and a stampede of equal jobs.")] = False,
    bulk: Annotated[bool, _part("One-row inserts in batches.")] = False,
    database: Annotated[
        bool, _part("200,000 rows against COPY; reads, search and the query cache; timing statements.")
    ] = False,
    logs: Annotated[Path | None, typer.Option(help="Keep what workers and servers say in this folder.")] = None,
    record: Annotated[bool, _part("Keep the results in bench/results.md.")] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print ratios; all parts unless some are named. Exit code 1 if an aim is missed."""
    given = dict(zip(PARTS, (chat, embedding, limits, cache, bulk, database), strict=True))
    chosen = [part for part in PARTS if given[part]] or list(PARTS)
    with _settings():
        lines = _run(chosen, logs)
        if record:
            import_module("bench.results").record(lines)
    _tell(lines, as_json_)
    if any(line.is_met is False for line in lines):
        raise typer.Exit(1)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    before = dict(os.environ)
    os.environ["FOREBAY_QUEUES"] = str(QUEUES)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(parts: list[str], logs: Path | None) -> list["Line"]:
    """Start everything, measure one part after the other, stop everything."""
    from dev.faulty import process as faulty_provider  # its settings take a tenth of a second to load, in every command

    with contextlib.ExitStack() as open_:
        home = open_.enter_context(stack.temporary_home())
        log = open_.enter_context(stack.log_to_files(logs or home / "log"))
        err.print("starting servers ...")
        provider = open_.enter_context(faulty_provider.started(log))
        running = open_.enter_context(_stack(home, provider.base_url, log))
        from bench.stage import Stage

        stage = Stage(ROOT, running.environment, provider, log)
        bars = open_.enter_context(progress())
        lines: list[Line] = []
        for part in parts:
            bar = bars.add_task(part, total=None, note="running")
            lines += import_module(f"bench.{part}").run(stage)
            bars.update(bar, total=1, completed=1, note="done")
        return lines


@contextlib.contextmanager
def _stack(home: Path, provider_url: str, log: Log) -> Iterator[stack.Started]:
    models = {"OPENAI_CHAT_MODEL": MODEL, "OPENAI_EMBEDDING_MODEL": MODEL, "OPENAI_API_KEY": addresses.LOCAL_KEY}
    environ = {**stack.without_services(os.environ), **models, "OPENAI_BASE_URL": provider_url}
    own = stack.from_environment(ROOT, environ, home=home)

    def migrate(environment: Mapping[str, str]) -> None:
        from db import migration

        os.environ.update({name: environment[name] for name in (*addresses.SERVICE_VARIABLES, *models)})
        migration.upgrade()

    with stack.started(own, migrate=migrate, log=log) as running:
        yield running


def _tell(lines: list["Line"], as_json_: bool) -> None:
    if as_json_:
        as_json([line.as_dict() for line in lines])
        return
    columns = ("part", "what", "measured", "compared with", "ratio", "aim")
    table("Benchmarks", columns, ((line.part, *line.cells()) for line in lines))
    missed = sum(line.is_met is False for line in lines)
    out.print(f"[bold red]{missed} aims missed[/]" if missed else "[green]every aim is met[/]")
