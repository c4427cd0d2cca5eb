"""Write an answer's text for its readers as the model gives it; never a reason for the job to fail or to wait."""

import copy
import json
import logging
import time
from functools import cache
from typing import Any

from worker.policy.policy import load as load_policy
from worker.records.broker import Broker, Delivery

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.05
FLUSH_BYTES = 4096
#: A Redis that takes longer for a write costs the answer its stream.
TIMEOUT_S = 2.0
#: More than any answer: 20 entries a second for more than an hour, and what a model writes in one go.
MOST_ENTRIES = 100_000
MOST_BYTES = 16 * 1024 * 1024


class Writer:
    """The stream of one run. Called by the thread that reads the provider's answer.

    The first piece is written at once, the others together, every `FLUSH_EVERY_S` or `FLUSH_BYTES`. After the first
    write that fails nothing more is written: readers then get the rest from the stored result.
    """

    def __init__(self, records: Broker, delivery: Delivery) -> None:
        self._records = records
        self._delivery = delivery
        self._pending = ""
        self._at = 0
        self._written_bytes = 0
        self._flushed_at: float | None = None
        self._given_up = False

    def text(self, piece: str) -> None:
        """Take the next piece of the answer."""
        if self._given_up or not piece:
            return
        self._pending += piece
        now = time.monotonic()
        due = self._flushed_at is None or now - self._flushed_at >= FLUSH_EVERY_S
        if due or len(self._pending.encode("utf-8", "surrogatepass")) >= FLUSH_BYTES:
            self._flush()

    def restart(self) -> None:
        """Say that what was given is void: the provider is asked anew."""
        self._pending, self._at = "", 0
        self._flush(("restart", 0, ""))

    def whole(self, usage: dict[str, Any]) -> None:
        """Say that the text is complete; the job's record says later whether the job succeeded with it."""
        self._flush(("whole", 0, json.dumps(usage)), last=True)

    def _flush(self, *marks: tuple[str, int, str], last: bool = False) -> None:
        if self._given_up:
            return
        text, self._pending = _cut(self._pending, last)
        entries = [("text", self._at, text)] if text else []
        entries += marks
        if not entries:
            return
        first = "1" if self._flushed_at is None else ""
        self._at += len(text)
        self._written_bytes += len(text.encode())
        try:
            said = self._append(first, entries)
        except Exception as error:  # whatever it is, the answer does not depend on it
            said = f"{type(error).__name__}: {error}"
        self._flushed_at = time.monotonic()
        if said == "held" and self._written_bytes > MOST_BYTES:
            said = f"more than {MOST_BYTES} bytes"
        if said != "held":
            self._given_up = True
            logger.warning("job %s is no longer streamed, its readers get the result: %s", self._delivery.id, said)

    def _append(self, first: str, entries: list[tuple[str, int, str]]) -> str:
        lifetime_s = int(load_policy().retention.stream_s)
        parts = [part for entry in entries for part in entry]
        job = (self._delivery.id, self._delivery.number)
        said = _hurried(self._records).run("stream_append", *job, lifetime_s, MOST_ENTRIES, first, *parts)
        return str(said.decode())


def _cut(text: str, last: bool) -> tuple[str, str]:
    """Return what can be stored of a text, as it will be in the result, and what waits for its other half."""
    held = text[-1:] if not last and "\ud800" <= text[-1:] <= "\udbff" else ""
    whole = text.removesuffix(held) if held else text
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\x00", "\ufffd"), held


@cache
def _hurried(records: Broker) -> Broker:
    """Return the same broker by connections that wait for next to nothing and repeat nothing."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = copy.copy(records.redis.connection_pool)
    once = {"retry": Retry(NoBackoff(), 0), "retry_on_error": [], "retry_on_timeout": False}
    waits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    pool.connection_kwargs = {**pool.connection_kwargs, **waits, **once}
    pool.reset()  # the copy has connections and a lock of its own
    return Broker(redis.Redis(connection_pool=pool), records.keys.prefix)
