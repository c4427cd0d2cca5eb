"""Commands for the caches of models' answers and of queries' results: what they saved, and forgetting it."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress, TaskID

from cli.output import as_json, err, out, progress, table
from worker.errors import JobRefused, nearest
from worker.policy.policy import load as load_policy

if TYPE_CHECKING:  # every command loads this module, and few need a cache
    from cache.store import Cache

KindName = Annotated[
    str | None, typer.Option("--kind", help="This kind alone, such as embedding or search.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

#: A kind for which all of these are 0 was not asked for.
USED = ("hits_memory", "hits_redis", "shared", "misses", "calls", "unshared", "redis_entries")

commands = typer.Typer(
    no_args_is_help=True, help="Show what the caches of models' answers and of queries' results saved, or clear them."
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(commands, name="cache")


@commands.command()
def stats(kind: KindName = None, as_json_: AsJson = False) -> None:
    """Show hits, misses, what they saved, and how much is kept. Processes report about every second.

    hits_memory and hits_redis: values found; shared: of another's call under way; misses: values computed, in so many
    calls; unshared: computed while Redis was away; hit_rate: the share that was not computed.
    """
    wanted = _kinds(kind)
    prices = {model: (price.prompt, price.completion) for model, price in load_policy().cache.prices.items()}
    with progress() as bars:
        task = bars.add_task("keys", total=None, note="")
        found = _results().report(prices, partial(_show, bars, task)).as_dict()
        queries = _queries()
        if queries is not None:
            of_queries = queries.report({}, partial(_show, bars, task)).as_dict()
            found["kinds"] += of_queries["kinds"]
            for name in ("memory_entries", "memory_bytes"):
                found[name] += of_queries[name]
            found["processes"] = max(found["processes"], of_queries["processes"])
    found["kinds"] = [each for each in found["kinds"] if each["kind"] in wanted]
    found["enabled"] = load_policy().cache.enabled
    if as_json_:
        as_json(found)
        return
    off = "" if found["enabled"] else ": switched off"
    shown = [each for each in found["kinds"] if kind or any(each[name] for name in USED)]
    _show_kinds(f"Models' answers{off}", shown, bool(prices), answers=True)
    _show_kinds("Results of queries", shown, False, answers=False)
    if unused := [each["kind"] for each in found["kinds"] if each not in shown]:
        out.print(f"nothing yet: {', '.join(unused)}")
    if queries is None:
        out.print("results of queries: switched off, or neither CACHE_URL nor CELERY_BROKER_URL is set")
    memory = f"{found['memory_entries']:,} values, {found['memory_bytes']:,} bytes"
    out.print(f"in the memory of {found['processes']} processes: {memory}")


@commands.command()
def clear(
    kind: KindName = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json_: AsJson = False,
) -> None:
    """Forget what is kept, also in the memory of running processes, which hear of it within about a second."""
    wanted = _kinds(kind)
    if not yes and not typer.confirm(f"forget all that is kept of the kinds {', '.join(wanted)}?", err=True):
        raise typer.Exit(1)
    cleared = {}
    with progress() as bars:
        for each in wanted:
            task = bars.add_task(each, total=None, note="")
            of = _results() if each in _results().settings.kinds else _queries()
            if of is not None:
                cleared[each] = of.clear(each, partial(_show, bars, task))
    if as_json_:
        as_json(cleared)
    else:
        err.print(f"{sum(cleared.values()):,} values forgotten")


def _results() -> "Cache":
    from tasks.provider import cached

    return cached.results()


def _show_kinds(title: str, kinds: list[dict[str, Any]], with_cost: bool, *, answers: bool) -> None:
    rows = [row for row in kinds if (row["kind"] in _results().settings.kinds) is answers]
    if not rows:
        return
    unwanted = (set() if with_cost else {"cost_saved"}) | (set() if answers else {"tokens_saved"})
    names = [name for name in rows[0] if name not in unwanted]
    table(title, names, [[_shown(row[name]) for name in names] for row in rows])


def _queries() -> "Cache | None":
    from db.query_cache import table_versions

    found = table_versions.of_process()
    return None if found is None else found.cache


def _show(bars: Progress, task: TaskID, seen: int, total: int) -> None:
    bars.update(task, completed=seen, total=total)


def _kinds(kind: str | None) -> list[str]:
    queries = _queries()
    known = _results().settings.kinds + ([] if queries is None else queries.settings.kinds)
    if kind is not None and kind not in known:
        raise JobRefused("--kind", kind, f"is not known; known are {', '.join(known)}{nearest(kind, known)}")
    return [kind] if kind else known


def _shown(value: Any) -> object:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else value
