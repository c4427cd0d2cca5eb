"""What the database was asked, and how it would go about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event

from db import engine


@dataclass(frozen=True)
class Asked:
    """A statement with its parameters, as it went to the driver."""

    statement: str
    parameters: Any

    def plan(self) -> dict[str, Any]:
        return self._explain("FORMAT JSON")

    def blocks(self) -> int:
        """Run it again, and return how many blocks of tables and indexes it looked at."""
        plan = self._explain("ANALYZE, BUFFERS, TIMING off, FORMAT JSON")
        return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])

    def nodes(self) -> list[dict[str, Any]]:
        """Return every step of the plan."""
        found, left = [], [self.plan()]
        while left:
            found.append(left.pop())
            left += found[-1].get("Plans", [])
        return found

    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes() if "Index Name" in node}

    def scanned_whole(self) -> set[str]:
        """Return the tables that it would read from one end to the other."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"].endswith("Seq Scan")}

    def _explain(self, options: str) -> dict[str, Any]:
        with engine.engine().connect() as connection:
            answer = connection.exec_driver_sql(f"EXPLAIN ({options}) {self.statement}", self.parameters).scalar_one()
            return dict(answer[0]["Plan"])


@contextlib.contextmanager
def recorded() -> Iterator[list[Asked]]:
    """Give a list that fills with every statement of this process."""
    asked: list[Asked] = []

    def keep(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        asked.append(Asked(statement, parameters))

    event.listen(engine.engine(), "before_cursor_execute", keep)
    try:
        yield asked
    finally:
        event.remove(engine.engine(), "before_cursor_execute", keep)
