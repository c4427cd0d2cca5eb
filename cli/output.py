"""Print for people (tables, colours on a terminal) or for programs (``--json``)."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

#: A pipe or a file has no width; what is too narrow there cannot be read or copied from.
WIDE = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 200

out = Console(highlight=False, width=WIDE)
err = Console(stderr=True, highlight=False)


def as_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers stand to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(columns):
        numeric = all(row[number].replace(",", "").replace(".", "").lstrip("-").isdigit() for row in cells)
        drawn.add_column(name, justify="right" if cells and numeric else "left", overflow="fold", no_wrap=number == 0)
    for row in cells:
        drawn.add_row(*row)
    out.print(drawn)


def progress() -> Progress:
    """Return a progress display: on a terminal bars, elsewhere their final state."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=err,
    )


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
