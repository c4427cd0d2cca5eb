"""The main job on real input: flood the queues, kill a worker, ask an urgent question, and count what is left."""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from cli.output import as_json, err, out, progress, table
from dev import addresses, docstrings, stack
from worker.errors import ForebayError

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "How do I split a string at its line breaks?",
    "Which function joins paths of files?",
    "How can I measure the time that a piece of code takes?",
    "How do I parse a date that is written in ISO format?",
)
#: The local model answers so many at a time. With more slots the flood would wait inside the provider, where an urgent
#: job cannot pass it.
PROVIDER_SLOTS = "4"
FLOOD = 60
SHORT_ANSWER_TOKENS = 12
ANSWER_TOKENS = 48
WITHIN_S = 240


@dataclass
class Kind:
    """What the demo sent of one kind of job, and what became of it."""

    name: str
    job_ids: list[str] = field(default_factory=list)
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    doubled: int = 0

    @property
    def accepted(self) -> int:
        return len(self.job_ids)

    @property
    def succeeded(self) -> int:
        return self.states.get("succeeded", 0)

    @property
    def ended_otherwise(self) -> int:
        return sum(self.states.get(state, 0) for state in ("dead", "cancelled", "expired"))

    @property
    def lost(self) -> int:
        return self.states.get("unknown", 0)

    @property
    def waiting(self) -> int:
        return self.accepted - self.succeeded - self.ended_otherwise - self.lost


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(demo)


def demo(
    docs: Annotated[int, typer.Option(help="How many docstrings of the standard library to embed.", min=10)] = 2000,
    as_json_: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Do real work on a stack of its own, kill a worker meanwhile, and print a verdict. Exit code 1 on any loss."""
    import os

    with stack.temporary_home() as home:
        own = {**stack.without_services(os.environ), "FOREBAY_CHAT_CONCURRENCY": PROVIDER_SLOTS}
        machine = stack.from_environment(ROOT, own, home=home)
        err.print("starting Valkey, PostgreSQL, the local models, three workers and Flower ...")
        from cli.machine import upgrade

        def prepare(environment: Any) -> None:
            os.environ.update({name: environment[name] for name in addresses.SERVICE_VARIABLES})
            upgrade(environment)

        with stack.started(machine, processes=True, migrate=prepare) as running:
            verdict = _Show(running, docs).run()
            _tell(verdict, running.flower_url, as_json_)
    if not verdict["passed"]:
        raise typer.Exit(1)


class _Show:
    """One showing, on a stack that runs."""

    def __init__(self, running: stack.Started, docs: int) -> None:
        self.running = running
        self.docs = docs
        self.bulk, self.embedding, self.chat = Kind("bulk insert"), Kind("embedding"), Kind("chat")
        self.urgent_s = 0.0
        self.entered_per_s = 0.0
        self.rows = self.keys = 0
        self.answers: list[tuple[str, str, str]] = []

    def run(self) -> dict[str, Any]:
        """Send everything, kill a worker in the middle of it, wait for the end, count."""
        with progress() as bars:
            self._wait_for_workers(bars)
            self._enqueue(bars)
            followed = [self._follow(bars, kind) for kind in (self.bulk, self.embedding, self.chat)]
            urgent = threading.Thread(target=self._ask_urgently, args=(bars,))
            urgent.start()
            self._kill(bars)
            urgent.join()
            for thread in followed:
                thread.join()
            self._ask(bars)
        return self._count()

    def _wait_for_workers(self, bars: Progress) -> None:
        from worker.inspection import overview
        from worker.records import broker

        lanes = sum(name.startswith("worker-") for name in self.running.processes)
        task = bars.add_task("workers", total=lanes, note="")
        began = time.monotonic()
        while (ready := len(overview.workers(broker.connect()))) < lanes:
            if time.monotonic() - began > WITHIN_S:
                raise ForebayError(
                    f"only {ready} of {lanes} workers came up in {WITHIN_S} s; try ./forebay up to see why"
                )
            bars.update(task, completed=ready)
            time.sleep(0.1)
        bars.update(task, completed=lanes)

    def _enqueue(self, bars: Progress) -> None:
        from tasks import BulkInsert, Chat, Embedding, enqueue
        from tasks.producer.enqueue import Options
        from worker.policy.policy import load as load_policy

        characters = list(docstrings.unicode_rows())
        size = load_policy().queue("bulk_insert").rows_per_job or 1000
        columns = list(docstrings.UNICODE_COLUMNS)
        pieces = [
            BulkInsert(table="unicode_characters", columns=columns, rows=characters[at : at + size])
            for at in range(0, len(characters), size)
        ]
        self.rows = len(characters)
        texts = docstrings.standard_library(self.docs)
        self.keys = len(texts)
        flood = [
            Chat(message=f"Say one word about {key}.", max_tokens=SHORT_ANSWER_TOKENS, conversation=f"flood-{number}")
            for number, (key, _) in enumerate(texts[:FLOOD])
        ]
        sent: list[tuple[Kind, list[Any], Options]] = [
            (self.embedding, [Embedding(text=text, key=key) for key, text in texts], Options()),
            (self.bulk, pieces, Options()),
            (self.chat, flood, Options(priority="LOW")),
        ]
        for kind, payloads, options in sent:
            task = bars.add_task(f"enqueue {kind.name}", total=len(payloads), note="")
            began = time.monotonic()
            jobs = enqueue.many(payloads, options=options, on_progress=_advance(bars, task))
            seconds = time.monotonic() - began
            kind.job_ids = [job.id for job in jobs]
            if kind is self.embedding:
                self.entered_per_s = len(jobs) / seconds
            bars.update(task, note=f"{len(jobs) / seconds:,.0f} jobs/s")

    def _follow(self, bars: Progress, kind: Kind) -> threading.Thread:
        """Watch a kind's jobs until the last has ended."""
        task = bars.add_task(f"run {kind.name}", total=kind.accepted, note="")

        def follow() -> None:
            began = time.monotonic()
            while time.monotonic() - began < WITHIN_S:
                kind.states = _states(kind.job_ids)
                bars.update(task, completed=kind.succeeded + kind.ended_otherwise, total=kind.accepted)
                if not kind.waiting:
                    break
                time.sleep(0.4)
            kind.seconds = time.monotonic() - began

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        return thread

    def _kill(self, bars: Progress) -> None:
        """Kill the embedding worker with SIGKILL once it is in the middle of its work."""
        task = bars.add_task("SIGKILL a worker", total=1, note="")
        while self.embedding.succeeded < self.embedding.accepted // 4 and self.embedding.waiting:
            time.sleep(0.02)
        worker = self.running.processes["worker-embedding"]
        pid = worker.pid
        worker.kill()
        bars.update(task, completed=1, note=f"worker-embedding, pid {pid}")

    def _ask_urgently(self, bars: Progress) -> None:
        from tasks import enqueue

        task = bars.add_task("urgent chat", total=1, note="")
        job = enqueue.chat(
            "What is the capital of France?",
            priority="CRITICAL",
            max_tokens=ANSWER_TOKENS,
            temperature=0.0,
            system="You are a helpful assistant. Answer in one sentence.",
            conversation="urgent",
        )
        self.chat.job_ids.append(job.id)
        answer = job.result(WITHIN_S)["text"]
        self.urgent_s = _waited_s(job.id)
        bars.update(task, completed=1, note=f"started after {self.urgent_s:.2f} s")
        self.answers.append(("What is the capital of France?", "", answer))

    def _ask(self, bars: Progress) -> None:
        """Answer questions from the nearest docstrings."""
        from db.vectors import neighbours
        from tasks import enqueue
        from tasks.provider import llm

        task = bars.add_task("questions", total=len(QUESTIONS), note="")
        began = time.monotonic()
        for number, question in enumerate(QUESTIONS):
            vectors = llm.embed([question], timeout_s=60)
            nearest = neighbours.nearest(vectors.vectors[0], limit=3, model=vectors.model)
            found = "\n".join(f"{each.key}: {each.content[:300]}" for each in nearest)
            job = enqueue.chat(
                f"Python documentation:\n{found}\n\nAnswer in one sentence from the documentation: {question}",
                system="You answer questions about Python in one sentence.",
                conversation=f"question-{number}",
                max_tokens=ANSWER_TOKENS,
                temperature=0.0,
            )
            self.chat.job_ids.append(job.id)
            answer = job.result(WITHIN_S)["text"]
            self.answers.append((question, ", ".join(each.key for each in nearest), " ".join(answer.split())))
            bars.update(task, completed=number + 1)
        self.chat.seconds += time.monotonic() - began

    def _count(self) -> dict[str, Any]:
        """Compare what was accepted with what the records and the database hold."""
        from sqlalchemy import text

        from db.engine import transaction
        from worker.inspection import overview
        from worker.policy.policy import load as load_policy
        from worker.records import broker

        kinds = (self.bulk, self.embedding, self.chat)
        for kind in kinds:
            kind.states = _states(kind.job_ids)
        with transaction() as session:
            rows = int(session.execute(text("SELECT count(*) FROM unicode_characters")).scalar_one())
            vectors = int(session.execute(text("SELECT count(*) FROM documents")).scalar_one())
            said = {
                role: int(
                    session.execute(
                        text("SELECT count(*) FROM messages WHERE role = :role AND notice IS NULL"), {"role": role}
                    ).scalar_one()
                )
                for role in ("user", "assistant")
            }
        self.bulk.doubled = max(0, rows - self.rows)
        self.embedding.doubled = max(0, vectors - self.keys)
        self.chat.doubled = max(0, max(said.values()) - self.chat.accepted)
        missing = (self.rows - rows) + (self.keys - vectors) + (self.chat.accepted - min(said.values()))
        states = overview.queues(broker.connect(), load_policy())
        left = sum(state.waiting + state.started for state in states)
        rescued = sum(state.counters.get("rescued", 0) for state in states)
        passed = (
            not (left or missing)
            and rescued > 0
            and all(kind.succeeded == kind.accepted and not kind.lost and not kind.doubled for kind in kinds)
        )
        return {
            "passed": passed,
            "kinds": [
                {
                    "kind": kind.name,
                    "accepted": kind.accepted,
                    "succeeded": kind.succeeded,
                    "waiting": kind.waiting,
                    "lost": kind.lost,
                    "doubled": kind.doubled,
                    "seconds": round(kind.seconds, 1),
                }
                for kind in kinds
            ],
            "rows": rows,
            "vectors": vectors,
            "missing_effects": missing,
            "left_over": left,
            "rescued_after_kill": rescued,
            "enqueued_per_s": round(self.entered_per_s),
            "urgent_started_after_s": round(self.urgent_s, 3),
            "flood_started_after_s": round(
                statistics.median(_waited_s(job_id) for job_id in self.chat.job_ids[:FLOOD]), 3
            ),
            "answers": [{"question": q, "nearest": n, "answer": a} for q, n, a in self.answers],
        }


def _states(job_ids: list[str]) -> dict[str, int]:
    from worker.records import broker

    client = broker.connect()
    pipeline = client.redis.pipeline(transaction=False)
    for job_id in job_ids:
        pipeline.hget(client.keys.job(job_id), "state")
    counted: dict[str, int] = {}
    for state in pipeline.execute():
        name = state.decode() if state else "unknown"
        counted[name] = counted.get(name, 0) + 1
    return counted


def _waited_s(job_id: str) -> float:
    from tasks.producer.job import Job

    record = Job(job_id).record()
    return float(record["started_at"]) - float(record["accepted_at"])


def _advance(bars: Progress, task: TaskID) -> Callable[[int], None]:
    return lambda done: bars.update(task, completed=done)


def _tell(verdict: dict[str, Any], flower_url: str, as_json_: bool) -> None:
    if as_json_:
        as_json(verdict)
        return
    for answer in verdict["answers"]:
        out.print(f"[bold]{answer['question']}[/]")
        if answer["nearest"]:
            out.print(f"  nearest: {answer['nearest']}", markup=False)
        out.print(f"  {answer['answer']}", markup=False)
    table(
        "Verdict",
        ("kind", "accepted", "succeeded", "waiting", "lost", "doubled", "seconds"),
        [tuple(kind.values()) for kind in verdict["kinds"]],
    )
    out.print(
        f"{verdict['rows']:,} rows and {verdict['vectors']:,} vectors are stored; "
        f"{verdict['enqueued_per_s']:,} jobs/s entered through enqueue.many"
    )
    out.print(
        f"one worker was killed with SIGKILL: {verdict['rescued_after_kill']} of its jobs were rescued; "
        f"the urgent chat started {verdict['urgent_started_after_s']:.2f} s after it was sent, "
        f"those of low priority after {verdict['flood_started_after_s']:.2f} s (median)"
    )
    out.print(f"Flower was at {flower_url}")
    out.print("[bold green]PASSED[/]: nothing lost, nothing doubled" if verdict["passed"] else "[bold red]FAILED[/]")
