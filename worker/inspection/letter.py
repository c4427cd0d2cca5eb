"""Read dead letters from their records: what a letter is, where it stands among the dead, which ones are meant."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from worker.errors import JobRefused
from worker.policy.priority import of_step
from worker.records import message
from worker.records.broker import Broker

#: Letters that are looked at in one round trip.
PAGE = 500
#: What is read of a record, besides its message.
FIELDS = (
    "state", "queue", "task", "step", "accepted_at", "reason", "error", "traceback", "attempts", "orphaned", "worker",
    "fingerprint", "deaths", "history",
)  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Which letters: those for which everything that is given holds. Ages are seconds since the death."""

    queue: str = ""
    task: str = ""
    reason: str = ""
    fingerprint: str = ""
    older_than_s: float | None = None
    newer_than_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("older_than_s", "newer_than_s"):
            age_s = getattr(self, name)
            if age_s is not None and not (age_s >= 0 and math.isfinite(age_s)):
                raise JobRefused(name, age_s, "must be 0 or more seconds")

    def matches(self, queue: str, task: str, reason: str, fingerprint: str) -> bool:
        """Say whether a letter with these fields is meant; its age is not asked."""
        wanted = (self.queue, self.task, self.reason, self.fingerprint)
        found = (queue, task, reason, fingerprint)
        return all(want in ("", have) for want, have in zip(wanted, found, strict=True))


@dataclass(frozen=True)
class Death:
    """An earlier death of a job that was replayed since. The error is cut to 1000 bytes."""

    died_at: float
    reason: str
    error: str
    worker: str
    fingerprint: str


@dataclass(frozen=True)
class Letter:
    """A dead letter. Moments are seconds since the epoch.

    ``message`` is the text as it came, bytes that are no UTF-8 as surrogates (PEP 383); None when it was not read.
    ``worker`` is the node that held the job at its death, ``deaths`` counts this one, ``history`` has earlier ones,
    the last of them last.
    """

    id: str
    queue: str
    task: str
    priority: str
    died_at: float
    accepted_at: float
    reason: str
    error: str
    traceback: str
    attempts: int
    orphaned: int
    worker: str
    fingerprint: str
    deaths: int
    history: tuple[Death, ...]
    size_bytes: int
    message: str | None = None

    @property
    def payload(self) -> dict[str, Any] | None:
        """The keyword arguments that the message carries; None when it cannot be read or was not."""
        if self.message is None:
            return None
        try:
            return message.arguments(message.read(self.message))[1]
        except ValueError:
            return None

    def as_dict(self) -> dict[str, Any]:
        """Return everything but what the job carries."""
        fields = asdict(self)
        del fields["message"]
        return fields


@dataclass(frozen=True, order=True)
class Place:
    """Where a letter stands among the dead: Redis orders by moment, then by id."""

    died_at: float
    id: bytes
    fingerprint: bytes = field(default=b"", compare=False)

    def __str__(self) -> str:
        return f"{self.died_at!r} {to_text(self.id)}"

    @classmethod
    def parse(cls, text: str) -> Place | None:
        if not text:
            return None
        found = re.fullmatch(r"([0-9]+\.[0-9]+) (.*)", text, re.DOTALL)
        if not found:
            raise JobRefused("after", text, "is not where a portion of letters ended; leave it out")
        return cls(float(found.group(1)), to_bytes(found.group(2)))


def walk(broker: Broker, want: Filter, last: Place | None = None, newest_first: bool = True) -> Iterator[Place]:
    """Yield where the letters that match stand, page by page; what comes or goes meanwhile disturbs nothing."""
    now = now_of(broker)
    oldest = -math.inf if want.newer_than_s is None else now - want.newer_than_s
    newest = now if want.older_than_s is None else now - want.older_than_s
    offset = 0
    while True:
        if last and newest_first:
            newest = min(newest, last.died_at)
        elif last:
            oldest = last.died_at
        ends = (newest, oldest) if newest_first else (oldest, newest)
        page = [
            Place(died_at, job_id)
            for job_id, died_at in broker.redis.zrange(
                broker.keys.dead(), *ends, desc=newest_first, byscore=True, offset=offset, num=PAGE, withscores=True
            )
        ]
        if not page:
            return
        ahead = [each for each in page if not last or (each < last if newest_first else each > last)]
        offset = 0 if ahead else offset + PAGE  # a whole page may have died in one moment
        if ahead:
            yield from _matching(broker, want, ahead)
            last = ahead[-1]


def _matching(broker: Broker, want: Filter, places: list[Place]) -> Iterator[Place]:
    pipeline = broker.redis.pipeline(transaction=False)
    for place in places:
        pipeline.hmget(record_key(broker, place.id), "state", "queue", "task", "reason", "fingerprint")
    for place, values in zip(places, pipeline.execute(), strict=True):
        state, *fields = values
        if state == b"dead" and want.matches(*map(to_text, fields)):
            yield Place(place.died_at, place.id, fields[-1] or b"")


def read(broker: Broker, places: list[Place], *more: str) -> list[Letter]:
    """Return the letters that still stand in these places; ``more`` may be ``"message"``."""
    pipeline = broker.redis.pipeline(transaction=False)
    for place in places:
        pipeline.hmget(record_key(broker, place.id), *FIELDS, *more)
        pipeline.hstrlen(record_key(broker, place.id), "message")
    replies = iter(pipeline.execute())
    letters = []
    for place in places:
        values = dict(zip((*FIELDS, *more), next(replies), strict=True))
        size_bytes = int(next(replies))
        if values["state"] == b"dead":  # else it was replayed since it was found
            letters.append(_letter(place, values, size_bytes))
    return letters


def _letter(place: Place, values: dict[str, bytes | None], size_bytes: int) -> Letter:
    text = {name: (value or b"").decode("utf-8", "replace") for name, value in values.items() if name != "message"}
    return Letter(
        id=to_text(place.id),
        queue=to_text(values["queue"]),
        task=to_text(values["task"]),
        priority=of_step(int(text["step"] or 0)).name,
        died_at=place.died_at,
        accepted_at=float(text["accepted_at"] or 0),
        reason=text["reason"],
        error=text["error"],
        traceback=text["traceback"],
        attempts=int(text["attempts"] or 0),
        orphaned=int(text["orphaned"] or 0),
        worker=text["worker"],
        fingerprint=text["fingerprint"],
        deaths=int(text["deaths"] or 1),
        history=tuple(_death(json.loads(line)) for line in text["history"].split("\n") if line),
        size_bytes=size_bytes,
        message=to_text(values["message"] or b"") if "message" in values else None,
    )


def _death(entry: dict[str, str]) -> Death:
    return Death(**{**entry, "died_at": float(entry["died_at"] or 0)})  # type: ignore[arg-type]


def now_of(broker: Broker) -> float:
    """Return Redis' time, by which letters are dated."""
    seconds, micros = broker.redis.time()
    return float(seconds + micros / 1e6)


def record_key(broker: Broker, job_id: str | bytes) -> bytes:
    """Return a record's key. Ids come from whoever sent the message and may hold any bytes."""
    return broker.keys.job("").encode() + (to_bytes(job_id) if isinstance(job_id, str) else job_id)


def to_bytes(text: str) -> bytes:
    """Return the bytes that `to_text` made a text of; no text that could be asked for is an error."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def to_text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value or ""
