"""Commands for what the database keeps: its indexes, and the change from one embedding model to another."""

import hashlib
from typing import Annotated

import typer

from cli.output import as_json, err, out, table
from cli.output import progress as progress_bar

Old = Annotated[str, typer.Argument(help="The model whose vectors are there.")]
New = Annotated[str, typer.Argument(help="The model that takes over.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(indexes)
    vectors = typer.Typer(
        no_args_is_help=True,
        help="Vectors of documents: their indexes, and how far a change of the model is.",
    )
    vectors.command()(index)
    vectors.command()(reembed)
    vectors.command()(progress)
    vectors.command()(retire)
    app.add_typer(vectors, name="vectors")


def indexes(
    unused: Annotated[bool, typer.Option("--unused", help="Only those that nobody used. Exit code 1 if any.")] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show the database's indexes that only reads need, with their size and how often each was scanned."""
    from db.tuning import unused_indexes as kept

    found = kept.unused() if unused else kept.listed()
    if as_json_:
        as_json([vars(each) for each in found])
    else:
        columns = ("index", "table", "KiB", "scans", "last used", "valid")
        rows = [
            (each.name, each.table, each.size_bytes // 1024, each.scans, each.last_used_at or "never", each.is_valid)
            for each in found
        ]
        table("Indexes", columns, rows)
    if unused and found:
        raise typer.Exit(1)


def index(model: Annotated[str, typer.Argument(help="The model as stored with the documents.")]) -> None:
    """Build the index of the nearest documents for one model, while everything goes on."""
    from db.vectors import indexes as vector_indexes

    for built in vector_indexes.build(model):
        what = "built" if built.is_new else "stands already"
        out.print(f"{built.name} for {built.dimensions} dimensions: {what}", markup=False, soft_wrap=True)


def reembed(
    old: Old,
    new: New,
    priority: Annotated[str, typer.Option(help="CRITICAL, HIGH, NORMAL, LOW or BATCH.")] = "BATCH",
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Enqueue an embedding job of the new model for each document that has a vector of the old one alone.

    The old vectors stay and are found until `retire`. Again, it enqueues what is missing and not under way.
    """
    from db.vectors import reembedding
    from tasks import Embedding, enqueue
    from tasks.producer.enqueue import Options

    sent, after = 0, ""
    whole = reembedding.progress(old, new)
    _warn_of_none(old, whole.old)
    with progress_bar() as bars:
        bar = bars.add_task("enqueueing", total=whole.old - whole.done, note="documents")
        while found := reembedding.missing(old, new, after=after):
            after = found[-1][0]
            enqueue.many(
                [
                    (
                        Embedding(text=content, key=key, model=new, add=True),
                        Options(priority, _job_id(new, key, content)),
                    )
                    for key, content in found
                ]
            )
            sent += len(found)
            bars.update(bar, completed=sent)
    if as_json_:
        as_json({"jobs": sent})
    else:
        out.print(f"{sent:,} jobs; `./forebay vectors progress {old} {new}` says how far they are", markup=False)


def _job_id(model: str, key: str, content: str) -> str:
    """Return the same id for the same text of the same document, so that a repeated command makes no second job."""
    return "reembed-" + hashlib.sha256("\0".join((model, key, content)).encode()).hexdigest()[:32]


def _warn_of_none(old: str, count: int) -> None:
    """Tell of a model without vectors: it may have been retired, or its name may be wrong."""
    if count == 0:
        from db.vectors import documents

        known = ", ".join(documents.models()) or "none"
        err.print(f"no document has a vector of {old}; models that have: {known}", markup=False, soft_wrap=True)


def progress(old: Old, new: New) -> None:
    """Say how many documents of the old model have a vector of the new one. Exit code 1 while some have none."""
    from db.vectors import reembedding

    found = reembedding.progress(old, new)
    _warn_of_none(old, found.old)
    out.print(f"{found.done:,} of {found.old:,} documents", markup=False)
    raise typer.Exit(0 if found.is_complete else 1)


def retire(old: Old, new: New) -> None:
    """Delete the old model's vectors of documents that have a new one, and its index when none is left."""
    from db.vectors import indexes as vector_indexes
    from db.vectors import reembedding

    _warn_of_none(old, reembedding.progress(old, new).old)
    deleted = reembedding.retire(old, new)
    left = reembedding.progress(old, new).old
    out.print(f"{deleted:,} old vectors deleted")
    if left:
        err.print(f"{left:,} documents have no vector of {new} and keep the old one", markup=False, soft_wrap=True)
    else:
        vector_indexes.drop(old)
