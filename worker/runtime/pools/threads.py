"""Celery's pool of threads, which forgets a run whose error left Celery's own code: here its job is settled."""

from typing import Any

from celery.concurrency import thread

from worker.runtime.request import Request


class TaskPool(thread.TaskPool):  # type: ignore[misc]
    """``--pool threads``, see `worker.app`."""

    def on_apply(self, *args: Any, callback: Any = None, **options: Any) -> thread.ApplyResult:
        result = super().on_apply(*args, callback=callback, **options)
        request = getattr(callback, "__self__", None)
        if isinstance(request, Request):
            result.f.add_done_callback(request.ended)
        return result
