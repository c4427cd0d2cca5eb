"""Keep the last results of each part beside the code: as JSON, and as a page made of it."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.line import Line

JSON = Path(__file__).with_name("results.json")
PAGE = Path(__file__).with_name("results.md")
HEAD = """# Last results

Written by `./forebay bench --record`. A part alone is measured by its option, as `./forebay bench --chat`; those of
the database (load, store, query cache, statements) go together, by `--database`. Times differ from run to run and from
machine to machine: the ratios are what counts. What is compared was measured in the same run.
"""


def record(lines: Sequence[Line]) -> None:
    """Replace the results of the parts that were measured, and write the page anew."""
    kept: dict[str, Any] = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    for part in dict.fromkeys(line.part for line in lines):
        of_part = [line.as_dict() for line in lines if line.part == part]
        kept[part] = {"on": datetime.now(UTC).date().isoformat(), "machine": machine, "lines": of_part}
    JSON.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(HEAD + "".join(_section(part, kept[part]) for part in kept), encoding="utf-8")


def _section(part: str, measured: dict[str, Any]) -> str:
    rows = (_row(Line(**{name: each[name] for name in Line.__dataclass_fields__})) for each in measured["lines"])
    head = "| what | measured | compared with | ratio | aim |\n|---|---|---|---|---|\n"
    return f"\n## {part}\n\n{measured['on']}, {measured['machine']}\n\n{head}{''.join(rows)}"


def _row(line: Line) -> str:
    return "| " + " | ".join(line.cells()) + " |\n"
