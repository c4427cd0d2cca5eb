"""The Celery application: ``celery -A worker.app worker -Q chat``."""

import os

from celery import Celery, concurrency
from celery.signals import celeryd_init, worker_process_init, worker_shutting_down

from worker.runtime.pools.children import die_with_parent
from worker.runtime.process import draining, readiness

app = Celery("forebay", task_cls="worker.runtime.task:Job")
app.config_from_object("celeryconfig")
app.loader.override_backends = {
    "redis": "worker.runtime.results:RedisBackend",
    "rediss": "worker.runtime.results:RedisBackend",
    "sentinel": "worker.runtime.results:SentinelBackend",
}
concurrency.ALIASES.update(
    threads="worker.runtime.pools.threads:TaskPool", prefork="worker.runtime.pools.prefork:TaskPool"
)
worker_process_init.connect(die_with_parent)
worker_shutting_down.connect(draining.begin)
readiness.watch()


@celeryd_init.connect  # type: ignore[untyped-decorator]
def name_node(sender: str, **_: object) -> None:
    """Let the lease say which node holds it."""
    os.environ["FOREBAY_NODE"] = sender
