"""Versions that values depend on: whoever reads one that has ended meanwhile finds nothing that was kept under it.

A version is a random token in Redis, so that one which Redis lost never comes again. Its end is a deleted key: that
needs no memory, and the next reader begins another. A process asks again for what it heard ``fresh_s`` ago.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from uuid import uuid4

from cache.errors import Away
from cache.remote import Remote

logger = logging.getLogger(__name__)

#: How often an end that Redis has not heard of is told again.
AGAIN_S = 0.5
#: Versions that a process remembers; with more it begins anew.
MOST_KNOWN = 20_000


class Versions:
    """The versions as one process knows them. Safe to share between threads, not with a fork.

    ``remote`` gives the Redis. Names that end often or that many values share are `kept`: they begin when they are
    missing. `marks` are there only after an end, so that a name for each value costs nothing.
    """

    def __init__(self, remote: Callable[[], Remote], fresh_s: float) -> None:
        self._remote = remote
        self._fresh_s = fresh_s
        self._guard = threading.Lock()
        self._known: dict[str, tuple[str, float]] = {}
        self._ends = 0
        self._owed: dict[str, bool] = {}
        self._debts = 0
        self._teller: threading.Thread | None = None

    def read(self, kept: Iterable[str], marks: Iterable[str] = ()) -> dict[str, str]:
        """Return the token of each name. Raises `Away`, also for a name whose end Redis has not heard of."""
        is_mark = dict.fromkeys(kept, False) | dict.fromkeys(marks, True)
        now = time.monotonic()
        with self._guard:
            if owed := self._owed.keys() & is_mark:
                raise Away(f"the end of {', '.join(sorted(owed))} is still to be told")
            known = {name: self._known[name] for name in is_mark if name in self._known}
            ends = self._ends
        found = {name: token for name, (token, at) in known.items() if now - at < self._fresh_s}
        missing = [name for name in is_mark if name not in found]
        if not missing:
            return found
        of_kept = [name for name in missing if not is_mark[name]]
        of_marks = [name for name in missing if is_mark[name]]
        heard = self._remote().versions(of_kept, of_marks, uuid4().hex)
        with self._guard:
            # What ended here while Redis was asked may have been heard of as it was before.
            if self._ends == ends:
                if len(self._known) > MOST_KNOWN:
                    self._known.clear()
                self._known.update({name: (token, now) for name, token in heard.items()})
        return found | heard

    def end(self, kept: Iterable[str], marks: Iterable[str] = ()) -> None:
        """End versions. While Redis is away, that is owed: this process reads none of them until Redis has heard."""
        is_mark = dict.fromkeys(kept, False) | dict.fromkeys(marks, True)
        with self._guard:
            # An older debt goes first or with it; it is paid only when Redis has answered.
            ending = self._owed | is_mark
        told = self._tell(ending)
        with self._guard:
            self._ends += 1
            self._debts += not told
            for name in ending:
                self._known.pop(name, None)
                if not told:
                    self._owed[name] = ending[name]
        if not told:
            self._tell_later()

    @property
    def owed(self) -> list[str]:
        """Return the names whose end Redis has not heard of."""
        with self._guard:
            return sorted(self._owed)

    def _tell(self, ending: dict[str, bool]) -> bool:
        try:
            self._remote().end_versions(
                [name for name, mark in ending.items() if not mark], [name for name, mark in ending.items() if mark]
            )
        except Away:
            return False
        return True

    def _tell_later(self) -> None:
        with self._guard:
            if self._teller is not None and self._teller.is_alive():
                return
            self._teller = threading.Thread(target=self._tell_again, name="forebay-versions", daemon=True)
            self._teller.start()

    def _tell_again(self) -> None:
        logger.warning("what was changed cannot be told to the cache's Redis; it is not read until that has heard")
        pause = threading.Event()
        while True:
            pause.wait(AGAIN_S)
            with self._guard:
                owed, debts = dict(self._owed), self._debts
            told = self._tell(owed)
            with self._guard:
                # A name may have ended again meanwhile, and Redis not have heard of that: all are told once more.
                if told and self._debts == debts:
                    self._ends += 1
                    for name in owed:
                        self._owed.pop(name, None)
                        self._known.pop(name, None)
                if not self._owed:
                    self._teller = None
                    return
