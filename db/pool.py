"""The pool of one process's connections: what it says when it is empty, and its state for health checks."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy.exc
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from db.errors import PoolFullError


@dataclass(frozen=True)
class PoolState:
    """Connections of one process: ``in_use`` of at most ``limit``, and ``idle`` ones that are open and free."""

    in_use: int
    idle: int
    limit: int

    @property
    def is_exhausted(self) -> bool:
        """Whether the next one who asks has to wait."""
        return self.in_use >= self.limit


class NamedPool(QueuePool):
    """SQLAlchemy's pool, whose error names the settings to change."""

    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except sqlalchemy.exc.TimeoutError as error:
            limit = self.size() + self._max_overflow
            raise PoolFullError(
                f"all {limit} database connections of this process are in use, and none came free within "
                f"{self.timeout():g} s: raise DATABASE_POOL_SIZE={self.size()} or DATABASE_POOL_OVERFLOW="
                f"{self._max_overflow}, run fewer jobs at once, or wait longer with DATABASE_POOL_TIMEOUT_S"
            ) from error

    def state(self) -> PoolState:
        """Return the state of this moment; the numbers are read without a lock."""
        return PoolState(max(0, self.checkedout()), self.checkedin(), self.size() + self._max_overflow)
