"""Commands for one machine: start everything, migrate the database, say where things are."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli.output import as_json, err, out
from dev import stack
from dev.processes import terminal_log

ROOT = Path(__file__).resolve().parent.parent


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(up)
    app.command()(env)
    app.command()(migrate)


def up(
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Start no worker and no Flower.")] = False,
) -> None:
    """Start what no environment variable names elsewhere, then the Procfile's processes, until Ctrl-C."""
    machine = stack.from_environment(ROOT)
    stack.run(machine, log=terminal_log(sys.stdout), migrate=upgrade, processes=not servers_only)


def env(as_json_: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False) -> None:
    """Print the running stack's addresses as shell exports: eval "$(./forebay env)"."""
    addresses = stack.running_environment(ROOT)
    if not addresses:
        err.print("no stack runs in this checkout; start it with ./forebay up")
        raise typer.Exit(1)
    if as_json_:
        as_json(addresses)
        return
    for name, value in addresses.items():
        out.print(f"export {name}={shlex.quote(value)}", soft_wrap=True, markup=False)


def migrate(
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; exit code 1 if the schema is not what the models say."),
    ] = False,
    down: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Take back what came after it: 0003, -1, or base for all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before something is taken back.")] = False,
) -> None:
    """Bring the database's schema up to date. Several processes may call it at once: one works, the others wait."""
    from db import migration

    if check and down is not None:
        raise typer.BadParameter("--check changes nothing and --down takes back: give one of them")
    if check:
        found = [f"migration {name} is pending" for name in migration.pending()]
        found = found or [f"no migration for: {difference}" for difference in migration.differences()]
        for line in found or ["the schema is up to date"]:
            out.print(line, markup=False, soft_wrap=True)
        raise typer.Exit(1 if found else 0)
    if down is None:
        applied = migration.upgrade(say=_say)
        out.print(
            f"applied {len(applied)} migrations: {', '.join(applied)}" if applied else "the schema was up to date"
        )
        return
    if not yes:
        typer.confirm(f"Take back what came after {down}, and with it what its tables and columns hold?", abort=True)
    taken = migration.downgrade(down, say=_say)
    out.print(f"took back {len(taken)} migrations: {', '.join(taken)}" if taken else "nothing was to be taken back")


def _say(line: str) -> None:
    err.print(line, markup=False, soft_wrap=True)


def upgrade(environment: Mapping[str, str]) -> None:
    """Migrate the database of an environment that a stack has just made."""
    from db import migration

    os.environ["DATABASE_URL"] = environment["DATABASE_URL"]
    migration.upgrade()
