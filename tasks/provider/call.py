"""One call of a provider: it ends at its time limit, or when its job is cancelled, wherever it waits just then."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tasks.provider import alarm
from worker.runtime import cancellation

_current: ContextVar[Call | None] = ContextVar("call", default=None)


class Call:
    """A call under way; ``over`` is set when it has to end, ``cancelled`` says that its job asked for it.

    The connection is held by a descriptor of our own. Closing a socket wakes nobody who reads from it; shutting it down
    does, and through a duplicate that is safe from any thread: it works during a TLS handshake, which takes the
    original over, and never meets a number that was given to another file since.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.cancelled = False
        self.heard = False  # whether any of the answer has come
        self.headers: Mapping[str, str] = {}  # of the last reply, found by names in lower case
        self.over = threading.Event()
        self._until = time.monotonic() + limit_s
        self._line: socket.socket | None = None
        self._guard = threading.Lock()

    @property
    def left_s(self) -> float:
        """How many seconds are left, at least a trace: zero means no limit to some."""
        return max(0.001, self._until - time.monotonic())

    def cancel(self) -> None:
        """End the call because nobody wants its answer any more."""
        self.cancelled = True
        self.hang_up()

    def hang_up(self) -> None:
        """End the call at once: who waits for its answer, before or after the first byte, reads the end."""
        with self._guard:
            self.over.set()
            self._shut()

    def hang_up_in_silence(self) -> None:
        """End the call unless some of its answer has come."""
        if not self.heard:
            self.hang_up()

    def let_go(self) -> None:
        """Close the descriptor; the connection ends with the client's own."""
        with self._guard:
            if self._line is not None:
                self._line.close()
                self._line = None

    def traced(self, event: str, info: dict[str, Any]) -> None:
        """Take hold of the connection as soon as there is one: the trace extension of httpx."""
        if event.endswith(".connect_tcp.complete"):
            self.let_go()
            with self._guard:
                self._line = info["return_value"].get_extra_info("socket").dup()
                if self.over.is_set():
                    self._shut()

    def _shut(self) -> None:
        if self._line is not None:
            with contextlib.suppress(OSError):  # the other side was faster
                # Reset at its close: one half closed may be taken for a caller that still reads.
                self._line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._line.shutdown(socket.SHUT_RDWR)


@contextmanager
def limited(limit_s: float, job_id: str, silent_s: float | None = None) -> Iterator[Call]:
    """Give the call that the block makes; it is hung up after ``limit_s``, and when the job is cancelled.

    With ``silent_s`` also when nothing of the answer has come by then.
    """
    call = Call(limit_s)
    alarms = [alarm.after(limit_s, call.hang_up)]
    if silent_s is not None:
        alarms.append(alarm.after(silent_s, call.hang_up_in_silence))
    before = _current.set(call)
    try:
        with cancellation.closing(job_id, call.cancel):
            yield call
    finally:
        _current.reset(before)
        for each in alarms:
            each.cancel()
        call.let_go()


def note(response: Any) -> None:
    """Keep a reply's headers for the call that made the request: a response hook of httpx."""
    call = _current.get()
    if call is not None:
        call.headers = response.headers


def watch(request: Any) -> None:
    """Show a request's connection to the call that makes it: a request hook of httpx."""
    call = _current.get()
    if call is not None:
        request.extensions["trace"] = call.traced
