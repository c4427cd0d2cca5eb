"""Run a job in the caller instead of a worker: ``ASYNC_PROCESSING_ENABLED=false``."""

import time
from dataclasses import dataclass
from typing import Any

from tasks.producer.job import Job
from tasks.producer.kinds.payload import JobPayload
from worker.errors import JobFailed


@dataclass(frozen=True)
class Ran:
    """How an inline run ended."""

    job_id: str
    status: str
    result: Any

    def value(self) -> Any:
        """Return the job's value. Raises `JobFailed`."""
        if self.status != "SUCCESS":
            raise JobFailed(self.job_id, "dead", f"{type(self.result).__name__}: {self.result}")
        return self.result


def run(payload: JobPayload, job_id: str) -> Job:
    """Run the job now, with its queue's retries, and return it ended. Needs no broker and no result backend."""
    from worker.app import app

    app.loader.import_default_modules()
    task = app.tasks[payload.task]
    kwargs = payload.model_dump(mode="json", exclude_none=True)
    attempts = 0
    while True:
        ended = task.apply(kwargs=kwargs, task_id=job_id, retries=attempts, throw=False)
        if ended.status != "RETRY":
            return Job(job_id, inline=Ran(job_id, ended.status, ended.result))
        attempts += ended.result.spent
        time.sleep(float(ended.result.when))
