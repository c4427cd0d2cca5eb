"""Commands that run Celery's processes: a lane's worker, Flower, working off a queue in the foreground."""

import os
import signal
import subprocess
import sys
import time
from typing import Annotated

import typer

from cli.output import err, progress
from worker.inspection import overview
from worker.policy.policy import load as load_policy
from worker.policy.queue import Queue
from worker.records import broker


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(worker)
    app.command()(flower)
    app.command("work-off")(work_off)


def worker(
    lane: Annotated[str, typer.Argument(help="A queue of queues.yaml, with its pool, prefetch and recycling.")],
    loglevel: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
) -> None:
    """Run one lane's worker in the foreground, as queues.yaml declares it."""
    from worker.app import app
    from worker.runtime.process import lane as lanes
    from worker.runtime.process.recycling import Recycler

    queue = load_policy().queue(lane)
    recycler = Recycler(queue)
    if queue.pool == "threads":
        recycler.watch()
    try:
        app.worker_main(lanes.command(queue, loglevel=loglevel))
    except SystemExit as ended:
        if not recycler.due or ended.code:
            raise
    if recycler.due:
        recycler.start_anew()


def flower(
    port: Annotated[int, typer.Option(envvar="FLOWER_PORT", help="Loopback port to listen on.")] = 5555,
) -> None:
    """Run Flower on loopback: every lane, queue length and task."""
    arguments = ["-A", "worker.app", "flower", "--address=127.0.0.1", f"--port={port}", "--persistent=False"]
    os.execv(sys.executable, [sys.executable, "-m", "celery", *arguments])


def work_off(
    queue: Annotated[str | None, typer.Argument(help="A queue; all of them when none is given.")] = None,
) -> None:
    """Work off what is pending with workers in the foreground, then exit. Jobs delayed for later stay."""
    policy = load_policy()
    lanes = [policy.queue(queue)] if queue else list(policy.queues.values())
    lanes = [lane for lane in lanes if _left(lane)]
    if not lanes:
        err.print("nothing is pending")
        return
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "cli", "worker", lane.name, "--loglevel", "WARNING"], start_new_session=True
        )
        for lane in lanes
    ]
    # a supervisor's SIGTERM ends the children as Ctrl-C does
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        _watch(lanes, children)
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait()


def _watch(lanes: list[Queue], children: list["subprocess.Popen[bytes]"]) -> None:
    with progress() as bars:
        tasks = {lane.name: bars.add_task(lane.name, total=_left(lane), note="") for lane in lanes}
        while True:
            left = {lane.name: _left(lane) for lane in lanes}
            for name, task in tasks.items():
                total = max(int(bars.tasks[task].total or 0), left[name])
                bars.update(task, total=total, completed=total - left[name])
            if not any(left.values()):
                return
            for lane, child in zip(lanes, children, strict=True):
                if child.poll() is not None:
                    err.print(f"[bold red]error:[/] the worker of {lane.name} ended with {child.returncode}")
                    raise typer.Exit(1)
            time.sleep(0.2)


def _left(lane: Queue) -> int:
    state = next(each for each in overview.queues(broker.connect(), load_policy()) if each.name == lane.name)
    return sum(state.pending.values()) + state.leased
