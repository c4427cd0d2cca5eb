"""Print for people (tables, colours on a terminal) or for programs (``--json``)."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

#: A pipe or a file has no width; what is too narrow there cannot be read or copied from.
WIDE = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 200

#: A column narrower than this cannot be read; a table that would need one becomes paragraphs.
FOLDED = 20

out = Console(highlight=False, width=WIDE)
err = Console(stderr=True, highlight=False)


def as_json(value: Any) -> None:
    """Print one JSON document. What a terminal might obey is escaped, which JSON can do with any character."""
    document = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    print(lines(document, escape=lambda each: json.dumps(each)[1:-1]))


def one_line(text: str) -> str:
    """Return text from elsewhere with an escape for whatever breaks a line or a terminal; odd bytes are shown too."""
    return lines(text).replace("\n", "\\n")


def lines(text: str, escape: Callable[[str], str] = lambda each: repr(each)[1:-1]) -> str:
    """Do as `one_line`, but keep the line breaks."""
    return text.translate({ord(each): escape(each) for each in set(text) if not each.isprintable() and each != "\n"})


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns whose cells are all numbers stand to the right.

    Where it is too wide for the terminal, each row becomes a paragraph, led by its first cell.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    out.print(Text(title, style="bold"), soft_wrap=True)
    if not cells:
        out.print("  none")
        return
    if _least_width(columns, cells) > out.width:
        for row in cells:
            _print_paragraph(columns, row)
        return
    drawn = Table()
    for number, name in enumerate(columns):
        numeric = all(row[number].replace(",", "").replace(".", "").lstrip("-").isdigit() for row in cells)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=number == 0)
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))  # as text: an error's "[/]" is no markup
    out.print(drawn)


def _least_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is whose cells are folded no narrower than `FOLDED`; the first column is never folded."""
    width = 1
    for number, name in enumerate(columns):
        longest = max(len(line) for text in (name, *(row[number] for row in cells)) for line in text.split("\n"))
        width += 3 + (longest if number == 0 else min(longest, FOLDED))
    return width


def _print_paragraph(columns: Sequence[str], row: Sequence[str]) -> None:
    """Print one row: its first cell, then ``name: cell`` as many to a line as fit; a long or broken one has its own."""
    out.print(Text(row[0]), soft_wrap=True)
    line = ""
    for name, cell in zip(columns[1:], row[1:], strict=True):
        each = f"{name}: {cell}"
        if line and len(line) + 2 + len(each) > out.width - 2:
            out.print(Text(f"  {line}"), soft_wrap=True)
            line = ""
        line = f"{line}  {each}" if line else each
    if line:
        out.print(Text(f"  {line}"), soft_wrap=True)


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
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else lines(str(value))
