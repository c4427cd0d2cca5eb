"""Keep results in Redis as Celery does, also when its memory is full: who ends jobs makes room for others.

A result is mostly smaller than the message whose place it takes.
"""

from typing import Any

from celery.backends import redis

KEEP = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], ARGV[1])
if tonumber(ARGV[2]) > 0 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""


class RedisBackend(redis.RedisBackend):  # type: ignore[misc]
    """Stands for ``redis://`` and ``rediss://``, see `worker.app`."""

    def _set(self, key: str, value: Any, expires: float | None = None) -> None:
        lifetime_s = self.expires if expires is None else expires
        self.client.register_script(KEEP)(keys=[key], args=[value, int(lifetime_s or 0)])


class SentinelBackend(RedisBackend, redis.SentinelBackend):  # type: ignore[misc]
    """Stands for ``sentinel://``."""
