"""Make a worker ready before it fetches: its first job finds loaded what it needs, and what stays is out of the way."""

import gc
from typing import Any

from celery.signals import celeryd_after_setup, worker_ready

from worker.policy.policy import load as load_policy
from worker.runtime.task import Job


def watch() -> None:
    """Prepare each worker of this process when Celery has set it up, before it makes the children of its pool."""
    celeryd_after_setup.connect(_prepare, weak=False)
    worker_ready.connect(_spare_what_stays, weak=False)


def _prepare(instance: Any, **_: object) -> None:
    """Prepare the tasks of the queues that the worker serves.

    Between fetch and call a first import would take half a second or more, and what a gate let through meanwhile would
    leave all at once.
    """
    policy = load_policy()
    for name in instance.app.amqp.queues.consume_from:
        task = instance.app.tasks.get(policy.queues[name].task) if name in policy.queues else None
        if isinstance(task, Job):
            task.prepare()
    _spare_what_stays()


def _spare_what_stays(**_: object) -> None:
    """Take what is loaded out of the search for garbage cycles, which would look through all of it ever again.

    Children of the pool inherit that.
    """
    gc.collect()
    gc.freeze()
