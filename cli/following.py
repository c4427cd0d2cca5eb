"""Print a job's text while the model writes it."""

import json

from cli.output import err, lines, out
from tasks.producer.job import Job
from tasks.producer.stream import Restart, Text


def follow(job: Job, wait_s: float | None, as_json: bool) -> None:
    """Print the pieces as they come, or each event as a line of JSON. Raises as `Job.stream` does."""
    try:
        for event in job.stream(timeout=wait_s):
            if as_json:
                print(json.dumps({"event": type(event).__name__.lower(), **vars(event)}), flush=True)
            elif isinstance(event, Text):
                out.print(lines(event.text), end="", markup=False, emoji=False, soft_wrap=True)
            elif isinstance(event, Restart):
                out.print()
                err.print("the answer begins anew; what stands above is void")
            else:
                out.print()
    except KeyboardInterrupt:
        err.print(f"job {job.id} goes on; ask with ./forebay job {job.id}", markup=False)
        raise
