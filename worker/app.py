"""The Celery application: ``celery -A worker.app worker -Q chat``."""

import os

from celery import Celery
from celery.signals import celeryd_init, worker_process_init

from worker.children import die_with_parent

app = Celery("forebay", task_cls="worker.task:Job")
app.config_from_object("celeryconfig")
worker_process_init.connect(die_with_parent)


@celeryd_init.connect  # type: ignore[untyped-decorator]
def name_node(sender: str, **_: object) -> None:
    """Let the lease say which node holds it."""
    os.environ["FOREBAY_NODE"] = sender
