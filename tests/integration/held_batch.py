"""The task of a test's batching lane, in a module of its name: its batches wait until the test lets them go on."""

from collections.abc import Sequence
from typing import Any

from tests.integration.probes import marks
from worker.app import app
from worker.runtime.batching import BatchJob


class HoldBatch(BatchJob):
    """Say that a batch runs, and of which jobs, then wait."""

    abstract = True

    def run_batch(self, jobs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        names = [str(kwargs["name"]) for _, kwargs in jobs]
        marks().rpush("probe:holding", ",".join(names))
        marks().blmove("probe:go:batch", "probe:gone", 60)
        marks().rpush("probe:ran", *names)
        return names


@app.task(name="tests.integration.held_batch", base=HoldBatch)
def hold_batch(name: str) -> None:
    raise AssertionError("a lane that batches runs the batch")
