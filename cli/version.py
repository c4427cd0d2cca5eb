"""The version of this checkout, which stands in pyproject.toml alone: the package is not installed anywhere."""

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from cli.output import out

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def register(app: typer.Typer) -> None:
    """Add the option of the whole command line."""
    app.callback()(_root)


def current() -> str:
    """Return the version, such as ``0.1.0``."""
    return str(tomllib.loads(PROJECT.read_text("utf-8"))["project"]["version"])


def _show(wanted: bool) -> None:
    if wanted:
        out.print(f"forebay {current()}", highlight=False)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
