"""The pool of one process's connections: who waits gets one in turn, and is told what to change when none comes."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util.queue import Empty

from db.errors import PoolFullError


@dataclass(frozen=True)
class PoolState:
    """Connections of one process: ``in_use`` of at most ``limit``, ``idle`` ones that are open and free.

    ``waiting``: how many threads wait for one.
    """

    in_use: int
    idle: int
    limit: int
    waiting: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the next one who asks has to wait."""
        return self.in_use >= self.limit


class Turns:
    """So many places; a place that is given back goes to whoever has waited longest."""

    def __init__(self, places: int) -> None:
        self._guard = threading.Lock()
        self._free = places
        self._waiting: deque[threading.Lock] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def take(self, timeout_s: float) -> bool:
        """Take a place; return False when none came in time."""
        with self._guard:
            if self._free:
                self._free -= 1
                return True
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        if turn.acquire(timeout=timeout_s):
            return True
        with self._guard:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return False
        return True  # it came at the last moment

    def give(self) -> None:
        """Give a place back."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class FairPool(QueuePool):
    """SQLAlchemy's pool, with an order among those who wait, and an error that names the settings to change.

    QueuePool wakes one of them and lets whoever comes first have the connection. That is mostly the thread that has
    just given it back: under load the others waited until their time was over.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turns = Turns(self._limit)

    @property
    def _limit(self) -> int:
        return self.size() + self._max_overflow

    def _do_get(self) -> ConnectionPoolEntry:
        if not self._turns.take(self.timeout()):
            raise PoolFullError(
                f"all {self._limit} database connections of this process are in use, and none came free within "
                f"{self.timeout():g} s: raise DATABASE_POOL_SIZE={self.size()} or DATABASE_POOL_OVERFLOW="
                f"{self._max_overflow}, run fewer jobs at once, or wait longer with DATABASE_POOL_TIMEOUT_S"
            )
        try:
            return self._idle_or_new()
        except BaseException:
            self._turns.give()
            raise

    def _idle_or_new(self) -> ConnectionPoolEntry:
        """Return a connection without waiting: to each place there is one, or it may be made."""
        while True:
            with suppress(Empty):
                return self._pool.get(block=False)
            if self._inc_overflow():
                try:
                    return self._create_connection()
                except BaseException:
                    self._dec_overflow()
                    raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            super()._do_return_conn(record)
        finally:
            self._turns.give()

    def state(self) -> PoolState:
        """Return the state of this moment; the numbers are read without a lock."""
        return PoolState(max(0, self.checkedout()), self.checkedin(), self._limit, self._turns.waiting)
