"""Read a job's text while the model writes it: from any process, from any point, with nothing missed or repeated."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from worker.errors import JobFailed, JobRefused, ResultTimeout
from worker.records import broker

#: How long one read of the stream waits, and so how often the job's record is looked at while no text comes.
BLOCK_S = 1.0
#: The same once the text is whole and only the record is awaited; it grows to the above.
WHOLE_S = 0.01
MOST_READ = 1000
START = "0-0"
#: An entry of the stream; behind a plus, how many characters of the stored result were given after it.
ID = re.compile(r"(\d{1,20}-\d{1,20})(?:\+(\d{1,12}))?", re.ASCII)


class Followed(Protocol):
    """The job whose text is read: `tasks.producer.job.Job`."""

    id: str
    _inline: Any

    def record(self) -> dict[str, str]: ...

    def result(self, timeout: float | None = None) -> Any: ...


@dataclass(frozen=True)
class Text:
    """A piece of the answer, which begins at character ``offset`` of it."""

    text: str
    offset: int
    id: str


@dataclass(frozen=True)
class Restart:
    """All text given before is void: the answer begins anew."""

    id: str


@dataclass(frozen=True)
class End:
    """The job succeeded and its text is whole. ``usage`` counts tokens, empty for jobs other than chats."""

    state: str
    usage: dict[str, Any]
    id: str


Event = Text | Restart | End


@dataclass
class _Place:
    """How far a reader is: the last entry, the text since the last restart (None: not known any more)."""

    entry: str = START
    text: str | None = ""
    whole: bool = False
    from_result: int | None = None

    def follow(self, entry: str, fields: dict[bytes, bytes]) -> Event | None:
        """Go on by one entry; return what the caller is told of it."""
        self.entry = entry
        kind, at, text = fields[b"kind"], int(fields[b"at"]), fields[b"text"].decode()
        if kind == b"restart":
            self.text, self.whole, self.from_result = "", False, None
            return Restart(entry)
        if kind == b"whole":
            self.whole = True
            return None
        if self.from_result is not None:
            return None
        if self.text is None or at != len(self.text):  # what stood between is gone: the result will have it
            self.text = None
            return None
        self.text += text
        return Text(text, at, entry)


def read(job: Followed, after: str | None, timeout: float | None) -> Iterator[Event]:
    """Yield a job's events behind the one whose id is ``after``: see `tasks.producer.job.Job.stream`."""
    if job._inline is not None:
        yield from _finished(_Place(), job._inline.value())
        return
    until = None if timeout is None else time.monotonic() + timeout
    records, record = broker.connect(), job.record()
    place = _place(records, job.id, after)
    checked_at, pause_s = time.monotonic(), BLOCK_S
    while True:
        ended = record["state"] in broker.ENDED
        entries = _entries(records, place, job.id, 0 if ended else pause_s, until)
        for entry, fields in entries:
            event = place.follow(entry, fields)
            if event is not None:
                yield event
        if not entries and ended:
            break
        if until is not None and time.monotonic() >= until and not ended:
            raise ResultTimeout(f"job {job.id} has not ended after {timeout} s; it goes on, read on from the last id")
        pause_s = min(BLOCK_S, pause_s * 1.5 if not entries else WHOLE_S) if place.whole else BLOCK_S
        if place.whole or not entries or time.monotonic() - checked_at >= BLOCK_S:
            record, checked_at = job.record(), time.monotonic()
    if record["state"] != "succeeded":
        raise JobFailed(job.id, record["state"], record.get("error", ""))
    yield from _finished(place, job.result(timeout))


def _place(records: broker.Broker, job_id: str, after: str | None) -> _Place:
    """Return the place behind an event; the text up to it is read again, and not given again."""
    place = _Place()
    if after is None:
        return place
    given = ID.fullmatch(after)
    if given is None:
        raise JobRefused("after", after, "is no event's id; give the id of the last event that was read")
    if given[2]:
        place.entry, place.from_result = given[1], int(given[2])
        return place
    known = records.redis.xrange(records.keys.stream(job_id), max=given[1])
    for entry, fields in known:
        place.follow(entry.decode(), fields)
    if given[1] not in (place.entry, START):
        place.text = None
    place.entry = given[1]
    return place


def _entries(
    records: broker.Broker, place: _Place, job_id: str, block_s: float, until: float | None
) -> list[tuple[str, dict[bytes, bytes]]]:
    if until is not None:
        block_s = min(block_s, max(0.0, until - time.monotonic()))
    block_ms = int(block_s * 1000) or None  # zero would wait for ever
    reply = records.redis.xread({records.keys.stream(job_id): place.entry}, count=MOST_READ, block=block_ms)
    return [(entry.decode(), fields) for _, entries in reply or () for entry, fields in entries]


def _finished(place: _Place, value: Any) -> Iterator[Event]:
    """Give what the stream had not of the stored result, and the end."""
    result = value if isinstance(value, dict) else {}
    text = str(result.get("text", ""))
    given = place.from_result
    if given is None:
        if place.text is None or not text.startswith(place.text):
            yield Restart(f"{place.entry}+0")
            given = 0
        else:
            given = len(place.text)
    last = f"{place.entry}+{len(text)}"
    if given < len(text):
        yield Text(text[given:], given, last)
    yield End("succeeded", result.get("usage", {}), last)
