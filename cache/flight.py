"""Let equal questions within one process share one answer, and keep alive what this process computes for others."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence

#: How a flight ends: with a value; without one, and who waits is to try in turn; or is to ask each alone.
VALUE, RETRY, ALONE = "value", "retry", "alone"

#: How often one who waits looks whether it is still wanted.
LOOK_S = 0.05


class Flight:
    """A value that one thread of this process gets, from Redis or by computing it, while others wait."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self.mark = ""
        self.value: bytes | None = None

    def end(self, mark: str, value: bytes | None = None) -> None:
        """Wake who waits; the first end counts."""
        if not self._ended.is_set():
            self.mark, self.value = mark, value
            self._ended.set()

    def wait(self, over: threading.Event | None, until: float) -> str:
        """Wait for the end and return its mark; return nothing when ``over`` is set or the moment has come."""
        while not self._ended.wait(LOOK_S):
            if (over is not None and over.is_set()) or time.monotonic() >= until:
                return ""
        return self.mark


class Flights:
    """The flights of one process, and the claims in Redis that it holds. Safe to share between threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._flights: dict[str, Flight] = {}
        self._held: dict[str, list[str]] = {}

    def join(
        self, wanted: Iterable[str], known: Callable[[str], bytes | None]
    ) -> tuple[dict[str, bytes], dict[str, Flight], dict[str, Flight]]:
        """Return what is known meanwhile, the flights that the caller leads, and those that it may wait for.

        Who leads a flight ends it, whatever happens.
        """
        found: dict[str, bytes] = {}
        led: dict[str, Flight] = {}
        followed: dict[str, Flight] = {}
        with self._guard:
            for key in wanted:
                if key in self._flights:
                    followed[key] = self._flights[key]
                elif (value := known(key)) is not None:  # it landed between the caller's look and now
                    found[key] = value
                else:
                    led[key] = self._flights[key] = Flight()
        return found, led, followed

    def end(self, key: str, mark: str, value: bytes | None = None) -> None:
        """End a flight that the caller leads; nothing happens to one that has ended."""
        with self._guard:
            flight = self._flights.pop(key, None)
        if flight is not None:
            flight.end(mark, value)

    def hold(self, token: str, held: Sequence[str]) -> None:
        """Have claims renewed in the background until they are let go."""
        with self._guard:
            self._held[token] = list(held)

    def let_go(self, token: str) -> None:
        with self._guard:
            self._held.pop(token, None)

    def held(self) -> dict[str, list[str]]:
        """Return the claims that are to be renewed, by token."""
        with self._guard:
            return dict(self._held)
