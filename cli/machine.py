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
        bool, typer.Option("--check", help="Change nothing; exit code 1 if migrations are pending.")
    ] = False,
) -> None:
    """Bring the database's schema up to date. Several processes may call it at once."""
    from db import migration

    pending = migration.pending()
    if check:
        out.print(f"{len(pending)} migrations pending" if pending else "the schema is up to date")
        raise typer.Exit(1 if pending else 0)
    migration.upgrade()
    out.print(f"applied {len(pending)} migrations" if pending else "the schema was up to date")


def upgrade(environment: Mapping[str, str]) -> None:
    """Migrate the database of an environment that a stack has just made."""
    from db import migration

    os.environ["DATABASE_URL"] = environment["DATABASE_URL"]
    migration.upgrade()
