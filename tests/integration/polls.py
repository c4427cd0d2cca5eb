"""A worker that counts the polls of its event loop which only a timer ended although there was room for a job."""

from typing import Any

from celery.signals import worker_ready
from kombu.asynchronous import hub as hubs

from tests.integration.probes import app, marks

__all__ = ["app"]

#: A wake-up that was on its way when the timer ended the poll arrives within this time, in seconds.
RACE_S = 0.02

_channels: list[Any] = []


class Poller:
    """Kombu's poller, observed."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, timeout: float) -> Any:
        events = self._poller.poll(timeout)
        if timeout and not events:
            for channel in _channels:
                could_fetch = channel.qos.can_consume() and channel._wanted(list(channel.active_queues))
                if could_fetch and not channel._in_poll and not self._poller.poll(RACE_S):
                    marks().incr("probe:ended_by_timer")
        return events


@worker_ready.connect  # type: ignore[untyped-decorator]
def watch(sender: Any, **_: object) -> None:
    _channels.append(sender.task_consumer.channel)
    marks().rpush("probe:watched", "1")


original = hubs.poll
hubs.poll = lambda *args: Poller(original(*args))
