"""Commands for those who change Forebay: tests, checks, the lock."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.output import err, out
from dev import lock

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("worker", "tasks", "db", "cache", "bench", "cli", "dev")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(test)
    app.command()(check)
    app.command("lock")(write_lock)


def test(context: typer.Context) -> None:
    """Run the test suite, which starts its own servers. Further arguments are pytest's."""
    raise typer.Exit(_run([sys.executable, "-m", "pytest", *context.args]))


def check() -> None:
    """Run every check that needs no server: style, types, direction of imports, lock, queues.yaml."""
    python = [sys.executable, "-m"]
    checks = {
        "style": [*python, "ruff", "check", "."],
        "format": [*python, "ruff", "format", "--check", "."],
        "types": [*python, "mypy", *PACKAGES, "celeryconfig.py"],
        "imports": [sys.executable, str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        "configuration": [*python, "cli", "config", "--json"],
    }
    failed = [name for name, command in checks.items() if not _passes(name, command)]
    faults = lock.check(ROOT)
    out.print(f"{'lock':<14} {'[red]failed[/]' if faults else '[green]ok[/]'}")
    for fault in faults:
        err.print(fault)
    if failed or faults:
        raise typer.Exit(1)


def write_lock(
    upgrade: Annotated[bool, typer.Option(help="Take newer versions where pyproject.toml allows them.")] = False,
) -> None:
    """Resolve pyproject.toml and write the hash-pinned lock files. Needs uv and a package index."""
    for path in lock.write(ROOT, upgrade=upgrade):
        out.print(f"wrote {path.name}")


def _passes(name: str, command: list[str]) -> bool:
    ended = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    out.print(f"{name:<14} {'[green]ok[/]' if ended.returncode == 0 else '[red]failed[/]'}")
    if ended.returncode:
        err.print((ended.stdout + ended.stderr).strip(), markup=False, soft_wrap=True)
    return ended.returncode == 0


def _run(command: list[str]) -> int:
    return subprocess.run(command, cwd=ROOT, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
