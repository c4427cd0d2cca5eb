"""How the server would run a statement, with none of the values that it was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Connection, text

from db.tuning import normal_form

Plan = dict[str, Any]

#: EXPLAIN runs nothing, but it waits for locks and folds constants: neither for long.
LIMITS = (text("SET LOCAL statement_timeout = '1s'"), text("SET LOCAL lock_timeout = '100ms'"))
#: What is kept of a plan's step. All else, above all what EXPLAIN adds in later versions, may hold values.
_PLAIN = (
    "Node Type",
    "Operation",
    "Parent Relationship",
    "Join Type",
    "Strategy",
    "Relation Name",
    "Alias",
    "Index Name",
    "Scan Direction",
    "Parallel Aware",
    "Startup Cost",
    "Total Cost",
    "Plan Rows",
    "Plan Width",
)
#: Expressions, which are kept in their normal form.
_EXPRESSIONS = (
    "Index Cond",
    "Recheck Cond",
    "Filter",
    "Join Filter",
    "Hash Cond",
    "Merge Cond",
    "Order By",
    "Sort Key",
    "Presorted Key",
    "Group Key",
)


@dataclass(frozen=True)
class Scan:
    """A table that is read from one end to the other, and how many rows the planner expects to be left of it."""

    table: str
    rows: int


def of(connection: Connection, statement: str, parameters: Any) -> Plan | None:
    """Return the plan of a statement as it was given to the driver, None where there is none to be had.

    The transaction that the connection is in is read-only then, and rolled back.
    """
    form = normal_form.of(statement)
    if not form.has_plan:
        return None
    transaction = connection.begin()
    try:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        for limit in LIMITS:
            connection.execute(limit)
        answer = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    except sqlalchemy.exc.DBAPIError:
        if connection.invalidated:
            raise
        return None
    finally:
        transaction.rollback()
    return without_values(answer[0]["Plan"])


def without_values(step: Plan) -> Plan:
    """Return a plan as EXPLAIN gave it with its values taken out."""
    kept = {name: step[name] for name in _PLAIN if name in step}
    for name in _EXPRESSIONS:
        if name in step:
            given = step[name] if isinstance(step[name], list) else [step[name]]
            forms = [normal_form.of(str(each)).statement for each in given]
            kept[name] = forms if isinstance(step[name], list) else forms[0]
    if "Plans" in step:
        kept["Plans"] = [without_values(each) for each in step["Plans"]]
    return kept


def steps(plan: Plan) -> Iterator[Plan]:
    """Yield every step of a plan, the outermost first."""
    yield plan
    for each in plan.get("Plans", ()):
        yield from steps(each)


def scans(plan: Plan) -> list[Scan]:
    """Return the tables that a plan reads as a whole."""
    return [
        Scan(str(step["Relation Name"]), int(step.get("Plan Rows", 0)))
        for step in steps(plan)
        if str(step["Node Type"]).endswith("Seq Scan") and "Relation Name" in step
    ]


def summary(plan: Plan) -> str:
    """Say in a line what takes a plan's time."""
    whole = sorted({each.table for each in scans(plan)})
    indexes = sorted({str(step["Index Name"]) for step in steps(plan) if "Index Name" in step})
    parts = [f"reads all of {', '.join(whole)}"] if whole else []
    parts += [f"uses {', '.join(indexes)}"] if indexes else []
    return f"{'; '.join(parts) or plan['Node Type']}; cost {plan.get('Total Cost', 0):,.0f}"


def lines(plan: Plan, depth: int = 0) -> Iterator[str]:
    """Yield a plan as text, as EXPLAIN writes it."""
    where = " on " + str(step) if (step := plan.get("Relation Name")) else ""
    using = " using " + str(index) if (index := plan.get("Index Name")) else ""
    cost = f"(cost={plan.get('Startup Cost', 0):.2f}..{plan.get('Total Cost', 0):.2f} rows={plan.get('Plan Rows', 0)})"
    yield f"{'  ' * depth}{plan['Node Type']}{using}{where}  {cost}"
    for name in _EXPRESSIONS:
        if name in plan:
            given = plan[name]
            yield f"{'  ' * depth}    {name}: {', '.join(given) if isinstance(given, list) else given}"
    for each in plan.get("Plans", ()):
        yield from lines(each, depth + 1)
