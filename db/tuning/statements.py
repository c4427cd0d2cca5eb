"""Times every statement of this process's engine; tells of the slow ones and keeps them, without their values.

A fast statement costs two looks at the clock. A slow one is handed to a thread, which has a connection of its own for
the plan and for what is kept (`db.tuning.seen`): whoever ran it waits for nothing. When the database is away, or so
many are slow that the thread is behind, the log still tells how many were not looked at.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Connection, Engine, ExceptionContext, event

from db.tuning.seen import Seen, add

logger = logging.getLogger(__name__)

#: Slow statements that wait for the thread; those beyond are only counted.
MOST_WAITING = 256
#: The thread gathers for so long before it writes, so that many slow statements are one transaction.
GATHER_S = 0.5
#: A plan is taken anew when the last one of the same kind of statement is older.
PLAN_EVERY_S = 300.0
#: Execution options of a connection whose statements are nobody's work.
UNWATCHED = {"forebay_unwatched": True}
_BEGAN = "forebay_statement_began"


@dataclass(frozen=True)
class Limits:
    """From how many seconds on a statement is kept, is a warning, is an error. Without ``is_on`` nothing is timed."""

    slow_s: float
    warning_s: float
    error_s: float
    is_on: bool = True

    def level(self, longest_s: float) -> int:
        """Return the log's level for a statement that took so long."""
        if longest_s >= self.error_s:
            return logging.ERROR
        return logging.WARNING if longest_s >= self.warning_s else logging.INFO


@dataclass(frozen=True)
class Slow:
    """One slow statement as it was given to the driver; the parameters live until its plan was taken."""

    statement: str
    parameters: Any
    took_s: float
    failed: bool


class Watch:
    """The slow statements of one engine. ``aside``: an engine for the thread, which is not watched itself."""

    def __init__(self, limits: Limits, aside: Engine) -> None:
        self._limits = limits
        self._aside = aside
        self._waiting: queue.Queue[Slow | None] = queue.Queue(MOST_WAITING)
        self._unseen = 0
        self._planned: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def listen(self, engine: Engine) -> None:
        """Time the engine's statements from now on."""
        event.listen(engine, "before_cursor_execute", self._began)
        event.listen(engine, "after_cursor_execute", self._ended)
        event.listen(engine, "handle_error", self._failed)

    @contextmanager
    def timed(self, statement: str) -> Iterator[None]:
        """Time what the block gives to the driver itself, past the engine: COPY."""
        began = time.perf_counter()
        failed = True
        try:
            yield
            failed = False
        finally:
            self._note(Slow(statement, None, time.perf_counter() - began, failed))

    def finish(self, within_s: float = 2.0) -> None:
        """Keep what was seen so far, as the process is about to end."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            try:
                self._waiting.put(None, timeout=within_s)
            except queue.Full:
                return
            thread.join(within_s)

    # In the thread that runs a statement.

    def _began(self, connection: Connection, *_: object) -> None:
        connection.info[_BEGAN] = time.perf_counter()

    def _ended(self, connection: Connection, _: object, statement: str, parameters: Any, *__: object) -> None:
        began = connection.info.pop(_BEGAN, None)
        if began is None or (took_s := time.perf_counter() - began) < self._limits.slow_s:
            return
        if not UNWATCHED.keys() & connection.get_execution_options().keys():
            self._note(Slow(statement, parameters, took_s, failed=False))

    def _failed(self, context: ExceptionContext) -> None:
        began = context.connection.info.pop(_BEGAN, None) if context.connection is not None else None
        if began is not None and context.statement is not None:
            self._note(Slow(context.statement, context.parameters, time.perf_counter() - began, failed=True))

    def _note(self, slow: Slow) -> None:
        if slow.took_s < self._limits.slow_s:
            return
        try:
            self._waiting.put_nowait(slow)
        except queue.Full:
            self._unseen += 1
            return
        if self._thread is None or not self._thread.is_alive():
            with self._starting:
                self._start()

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        if self._thread is None:
            atexit.register(self.finish)
        self._thread = threading.Thread(target=self._run, name="forebay-statements", daemon=True)
        self._thread.start()

    # In the thread of its own.

    def _run(self) -> None:
        is_over = False
        while not is_over:
            found = [self._waiting.get()]
            until = time.monotonic() + GATHER_S
            while None not in found and (left_s := until - time.monotonic()) > 0:
                try:
                    found.append(self._waiting.get(timeout=left_s))
                except queue.Empty:
                    break
            is_over = None in found
            try:
                self._tell([each for each in found if each is not None])
            except Exception:  # the thread must outlive whatever it meets
                logger.exception("slow statements could not be looked at")

    def _tell(self, found: list[Slow]) -> None:
        """Log and keep some slow statements, one line and one row for each kind."""
        from db.tuning import normal_form  # with sqlglot: only those load it who have slow statements

        kinds: dict[str, list[Slow]] = {}
        for slow in found:
            kinds.setdefault(normal_form.of(slow.statement).fingerprint, []).append(slow)
        seen: list[Seen] = []
        fault = ""
        try:
            with self._aside.connect() as connection:
                seen.extend(self._seen(mark, alike, connection) for mark, alike in kinds.items())
                if seen:
                    add(connection, seen)
                    connection.commit()
        except sqlalchemy.exc.SQLAlchemyError as error:
            fault = f"; not kept: {str(getattr(error, 'orig', None) or error).strip()}"
            seen = [self._seen(mark, alike, None) for mark, alike in kinds.items()]
        for each in seen:
            self._log(each, fault)
        unseen, self._unseen = self._unseen, 0
        if unseen:
            logger.warning("%d more slow statements were not looked at: too many at once", unseen)

    def _seen(self, mark: str, alike: Sequence[Slow], connection: Connection | None) -> Seen:
        from db.tuning import normal_form, plans

        slowest = max(alike, key=lambda each: each.took_s)
        plan = None
        now = time.monotonic()
        if connection is not None and now - self._planned.get(mark, -PLAN_EVERY_S) >= PLAN_EVERY_S:
            self._planned[mark] = now
            given = slowest.parameters
            plan = plans.of(connection, slowest.statement, given[0] if isinstance(given, list) and given else given)
        return Seen(
            fingerprint=mark,
            statement=normal_form.of(slowest.statement).statement,
            calls=len(alike),
            total_ms=sum(each.took_s for each in alike) * 1000,
            longest_ms=slowest.took_s * 1000,
            failures=sum(each.failed for each in alike),
            plan=plan,
        )

    def _log(self, seen: Seen, fault: str) -> None:
        from db.tuning import plans

        told = plans.summary(seen.plan) if seen.plan else "its plan: ./forebay queries show " + seen.fingerprint
        whole = bool(seen.plan and plans.scans(seen.plan))
        remedy = f"; ./forebay queries recommend {seen.fingerprint} tries an index" if whole else ""
        logger.log(
            self._limits.level(seen.longest_ms / 1000),
            "slow statement %s, %d times, the longest %.0f ms: %s (%s%s%s)",
            seen.fingerprint,
            seen.calls,
            seen.longest_ms,
            seen.statement[:500],
            told,
            remedy,
            fault,
        )


_watches: dict[int, Watch] = {}


def watch(engine: Engine, limits: Limits, aside: Engine) -> None:
    """Time this process's engine; a forked child has an engine, and so a watch, of its own."""
    if not limits.is_on:
        _watches.pop(os.getpid(), None)
        return
    made = Watch(limits, aside)
    made.listen(engine)
    _watches[os.getpid()] = made


@contextmanager
def timed(statement: str) -> Iterator[None]:
    """Time a statement that goes to the driver past the engine."""
    found = _watches.get(os.getpid())
    if found is None:
        yield
        return
    with found.timed(statement):
        yield


def finish() -> None:
    """Keep what this process has seen so far."""
    found = _watches.get(os.getpid())
    if found is not None:
        found.finish()
