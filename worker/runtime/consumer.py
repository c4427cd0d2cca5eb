"""Bury every message that Celery would drop, acknowledge or die on before a task runs."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import NotRegistered
from celery.worker import consumer
from redis.exceptions import RedisError

from worker.errors import JobFailed
from worker.records.reason import Reason
from worker.runtime.process import draining
from worker.runtime.request import heed
from worker.runtime.task import Job

logger = logging.getLogger(__name__)

#: How long events of tasks wait for others, in seconds: a message that holds many costs little more than one.
EVENTS_WAIT_S = 0.1
#: How many do not wait any longer. Celery's own limit, 24, is passed by a batch of ten jobs.
MOST_EVENTS = 1000


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer with a dead letter for every way in which it lets a message go.

    Celery's own handlers are not called: they log the whole message, and what a job carries stays out of logs.
    """

    def stop(self) -> None:
        """Stop fetching, and give back at once what has not started: the channel closes only behind the last run."""
        draining.begin()  # a remote shutdown sends no signal
        super().stop()
        if self.task_consumer:
            self.task_consumer.channel.qos.restore_unacked()

    def shutdown(self) -> None:
        self._flush_events()
        super().shutdown()

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_WAIT_S, self._flush_events)  # ends with the connection, as all that is added here
        if self.event_dispatcher:
            self.event_dispatcher.buffer_limit = MOST_EVENTS

    def on_send_event_buffered(self) -> None:
        """Leave an event of a task to the next flush; Celery sends it in the loop's next turn, mostly alone."""

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        _bury(message, Reason.UNDECODABLE, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        _bury(message, Reason.NO_TASK, None)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        name, job_id = message.headers.get("task"), message.headers.get("id")
        _bury(message, Reason.UNKNOWN_TASK, NotRegistered(name))
        self.app.backend.store_result(job_id, NotRegistered(name), "FAILURE")
        if self.event_dispatcher:
            self.event_dispatcher.send("task-failed", uuid=job_id, exception=f"NotRegistered({name!r})")
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=job_id)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        _bury(message, Reason.INVALID_TASK, exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def _heed(self, what: str, job_id: str) -> None:
        if what == "buried":
            self.app.backend.store_result(job_id, JobFailed(job_id, "dead", "its worker vanished or hung"), "FAILURE")
        else:
            heed(self.pool, what, job_id)

    def _refuse_strangers(self) -> None:
        """End a worker that has a task which is no `Job`: its runs would have no fence and its failures no letter."""
        strangers = sorted(name for name, task in self.app.tasks.items() if not isinstance(task, Job))
        if strangers:
            logger.critical("%s: must have no base, or a worker.runtime.task.Job", ", ".join(strangers))
            sys.exit(os.EX_CONFIG)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return Celery's handler, guarded: other faults of a message would end this worker, and the next one too."""
        handle = super().create_task_handler(*args, **kwargs)
        self._refuse_strangers()
        self.task_consumer.channel.lease.listen(self._heed)

        def guarded(message: Any) -> Any:
            try:
                return handle(message)
            except (OSError, RedisError):  # the consumer's own list of connection errors holds KeyError too
                raise
            except Exception as error:
                return _bury(message, Reason.MALFORMED, error)

        return guarded


def _bury(message: Any, reason: Reason, error: Exception | None) -> None:
    text = f"{type(error).__name__}: {error}"[:10_000] if error else ""
    logger.error("message %s is dead-lettered: %s %s", message.delivery_tag, reason, text)
    message.channel.qos.settle(message.delivery_tag, lambda broker, delivery: broker.bury(delivery, reason, text))
