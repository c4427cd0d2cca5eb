"""The command line's root: which commands there are, and what an error looks like."""

import os
import sys
from pathlib import Path

import typer

from cli import (
    bench,
    bulk,
    cache,
    checks,
    database,
    dead,
    demo,
    enqueue,
    jobs,
    machine,
    queries,
    stats,
    version,
    workers,
)
from cli.chaos import command as chaos
from cli.output import err
from dev import addresses, stack
from worker.errors import ForebayError

ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(
    name="forebay",
    help="A Celery task-queue worker system for LLM and database work that loses no job.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
version.register(app)
machine.register(app)
workers.register(app)
enqueue.register(app)
jobs.register(app)
bulk.register(app)
dead.register(app)
stats.register(app)
cache.register(app)
database.register(app)
queries.register(app)
demo.register(app)
chaos.register(app)
bench.register(app)
checks.register(app)


def main() -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 called wrongly."""
    if not any(os.environ.get(name) for name in addresses.SERVICE_VARIABLES):  # all of it or nothing: no mixture
        os.environ.update(stack.running_environment(ROOT))
    try:
        app(prog_name="./forebay")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (said := _said(error)) is None:
            raise
        err.print("error:", style="bold red", end=" ")
        err.print(said, soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _said(error: Exception) -> str | None:
    """Return what to say of an error that the user can mend. Some are known only once their package was loaded."""
    store_errors = getattr(sys.modules.get("db.errors"), "StoreError", ())
    cache_errors = getattr(sys.modules.get("cache.errors"), "CacheError", ())
    if isinstance(error, (ForebayError, stack.StackError, store_errors, cache_errors)):
        return str(error)
    db_errors = sys.modules.get("db.errors")
    said: str | None = db_errors.told(error) if db_errors else None
    return said
