"""Keep results in Redis as Celery does, also when its memory is full: who ends jobs makes room for others.

A result is mostly smaller than the message whose place it takes. Those of a batch go in one round trip.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from celery.backends import redis

from worker.records import scripts

KEEP = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""


@dataclass
class _Batch:
    """What was kept before of the batch's jobs, by key, and what is to be kept: key, value, lifetime in s."""

    known: dict[Any, Any]
    kept: list[tuple[Any, Any, int]] = field(default_factory=list)


_batch: ContextVar[_Batch | None] = ContextVar("batch", default=None)


class RedisBackend(redis.RedisBackend):  # type: ignore[misc]
    """Stands for ``redis://`` and ``rediss://``, see `worker.app`."""

    def get(self, key: Any) -> Any:
        batch = _batch.get()
        return batch.known[key] if batch and key in batch.known else super().get(key)

    def _set(self, key: str, value: Any, expires: float | None = None) -> None:
        lifetime_s = int((self.expires if expires is None else expires) or 0)
        batch = _batch.get()
        if batch is None:
            self.client.register_script(KEEP)(keys=[key], args=[value, lifetime_s])
        else:
            batch.kept.append((key, value, lifetime_s))

    def keep_all(self, batch: _Batch) -> None:
        """Keep a batch's results in one round trip."""
        script = self.client.register_script(KEEP)
        scripts.run_all(self.client, ((script, (key,), (value, lifetime_s)) for key, value, lifetime_s in batch.kept))


class SentinelBackend(RedisBackend, redis.SentinelBackend):  # type: ignore[misc]
    """Stands for ``sentinel://``."""


@contextmanager
def together(backend: Any, job_ids: Sequence[str]) -> Iterator[None]:
    """Keep the results that the block stores at its end, in one round trip. Raises then what storing one raises.

    Celery reads before it stores, and lets an earlier success stand: that is one round trip for all too.
    """
    if not isinstance(backend, RedisBackend) or len(job_ids) < 2:
        yield
        return
    keys = [backend.get_key_for_task(job_id) for job_id in job_ids]
    batch = _Batch(dict(zip(keys, backend.ensure(backend.mget, (keys,)), strict=True)))
    token = _batch.set(batch)
    try:
        yield
    finally:
        _batch.reset(token)
    if batch.kept:
        backend.ensure(backend.keep_all, (batch,))
