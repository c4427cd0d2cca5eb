"""Find, edit, replay and purge dead letters: jobs that will not run again unless somebody decides so.

A letter is named by its job's id. Each change is one script that knows the letter as it was read, so two people (or a
person and `expire`) who act on the same letter do not act on it twice, nor on what became of it meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from worker.errors import JobRefused
from worker.inspection.letter import Filter, Letter, Place, now_of, read, record_key, to_bytes, to_text, walk
from worker.policy.policy import load as load_policy
from worker.records import message
from worker.records.broker import Broker

logger = logging.getLogger(__name__)

#: Letters that one call of `expire` purges: the thread that calls it has a lease to renew.
EXPIRED_AT_ONCE = 200

#: Gets the task's name and a payload; returns the payload to send or raises `JobRefused`.
Validate = Callable[[str, dict[str, Any]], dict[str, Any]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Found:
    """A portion of letters, the newest first, and where to go on: empty behind the last."""

    letters: list[Letter]
    after: str


@dataclass(frozen=True)
class Group:
    """Letters that died of the same: how many, and the newest of them as an example."""

    fingerprint: str
    count: int
    example: Letter


@dataclass(frozen=True)
class Tally:
    """How many letters matched and on how many it was acted. The others had changed since they were matched."""

    matched: int
    done: int


# Looking.


def find(broker: Broker, want: Filter | None = None, most: int = 50, after: str = "") -> Found:
    """Return up to ``most`` letters, the newest first, without their messages, which may be large.

    ``after`` is where an earlier portion ended. Letters are looked at in pages, so there may be any number of them.
    Raises `JobRefused` for an ``after`` that is none.
    """
    matched = list(islice(walk(broker, want or Filter(), Place.parse(after)), most))
    letters = read(broker, matched)
    return Found(letters, str(matched[-1]) if matched and len(matched) == most else "")


def get(broker: Broker, job_id: str) -> Letter | None:
    """Return one letter with its message, None when there is no dead letter of this id."""
    died_at = broker.redis.zscore(broker.keys.dead(), to_bytes(job_id))
    if died_at is None:
        return None
    letters = read(broker, [Place(float(died_at), to_bytes(job_id))], "message")
    return letters[0] if letters else None


def groups(broker: Broker, want: Filter | None = None) -> list[Group]:
    """Return the letters by fingerprint, the most frequent first."""
    counts: dict[bytes, int] = {}
    newest: dict[bytes, Place] = {}
    for place in walk(broker, want or Filter()):
        counts[place.fingerprint] = counts.get(place.fingerprint, 0) + 1
        newest.setdefault(place.fingerprint, place)
    ordered = sorted(counts, key=lambda fingerprint: counts[fingerprint], reverse=True)
    examples = {letter.id: letter for letter in read(broker, list(newest.values()))}
    found = [(fingerprint, examples.get(to_text(newest[fingerprint].id))) for fingerprint in ordered]
    return [Group(to_text(mark), counts[mark], example) for mark, example in found if example]


# Changing one.


def edit(
    broker: Broker,
    letter: Letter,
    *,
    payload: dict[str, Any] | None = None,
    text: str | None = None,
    validate: Validate | None = None,
) -> str:
    """Give a letter another payload, or another message as a whole, if it is still as it was read by `get`.

    Return ``edited``, ``changed``, or what the job is instead: its state, ``purged``, ``""`` when it is not known.
    Raises `JobRefused`, also what ``validate`` raises.
    """
    assert letter.message is not None, "the letter of get, not of find"
    try:
        envelope = message.read(letter.message if text is None else text)
        carried = message.arguments(envelope)[1] if payload is None else payload
        task = envelope["headers"].get("task")
        if not isinstance(task, str) or not task:
            raise ValueError("message.headers.task: is missing")
        wanted = validate(task, carried) if validate else carried
        if text is None or wanted != carried:
            text = message.with_kwargs(envelope, wanted)
    except ValueError as error:
        part, _, fault = str(error).partition(": ")
        if not part.startswith("message"):  # of json's own, about a value that JSON has no word for
            part, fault = "payload", str(error)
        raise JobRefused(part, payload if text is None else text, f"cannot be sent: {fault}") from error
    named = envelope["headers"].get("id")
    if named != letter.id:
        raise JobRefused("message.headers.id", named, f"must be {letter.id!r}, the letter's id")
    queue = load_policy().queues.get(letter.queue)
    if queue and len(text) > queue.max_payload_bytes:
        remedy = f"must be at most {queue.max_payload_bytes} (queues.yaml, {queue.name})"
        raise JobRefused("payload", f"{len(text)} bytes", remedy)
    said = to_text(broker.run("edit", letter.id, repr(letter.died_at), _digest(to_bytes(letter.message)), text, task))
    if said == "misnamed":
        raise JobRefused("message", text, f"names {letter.id!r} in a way that Redis cannot read; write plain JSON")
    return said


def replay(broker: Broker, job_id: str, died_at: float | None = None) -> str:
    """Let a dead job wait at the tail of its queue again, with no attempt spent and no deadline.

    With ``died_at`` only the letter that died then. Return ``replayed``, ``changed``, or what the job is instead of a
    dead letter: its state, ``purged``, ``""`` when it is not known. So a second replay changes nothing.
    """
    died = "" if died_at is None else repr(died_at)
    while True:
        read = broker.redis.hget(record_key(broker, job_id), "message") or b""
        text = to_text(read)
        fresh = message.first_run(text)
        said = to_text(broker.run("replay", job_id, died, _digest(read), fresh if fresh != text else ""))
        if said != "changed" or died_at is not None:
            return said  # without a moment of death only an edit in between says "changed": read it again


def purge(broker: Broker, job_id: str, died_at: float | None = None) -> str:
    """Delete what a dead letter carries. Its record says ``purged`` until it is past its retention.

    With ``died_at`` only the letter that died then. Return as `replay` does, ``purged`` also when it was before.
    """
    record_s = int(load_policy().retention.record_s)
    return to_text(broker.run("purge", job_id, "" if died_at is None else repr(died_at), record_s))


# Changing many.


def replay_many(
    broker: Broker,
    want: Filter | None = None,
    *,
    most: int | None = None,
    rate_per_s: float | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Tally:
    """Replay every letter that matches and was dead when this began, the oldest first, at most ``rate_per_s``.

    ``on_progress`` gets the number of letters so far. With ``dry_run`` they are only counted.
    """
    if rate_per_s is not None and not (rate_per_s > 0 and math.isfinite(rate_per_s)):
        raise JobRefused("rate_per_s", rate_per_s, "must be more than 0")
    places = _from_oldest(broker, want, most)
    if dry_run:
        return _for_each(places, None, on_progress)
    if rate_per_s is not None:
        places = _paced(places, rate_per_s, pause)
    return _for_each(places, lambda each: replay(broker, to_text(each.id), each.died_at) == "replayed", on_progress)


def purge_many(
    broker: Broker,
    want: Filter | None = None,
    *,
    most: int | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Tally:
    """Purge every letter that matches and was dead when this began, the oldest first. See `replay_many`."""
    places = _from_oldest(broker, want, most)
    if dry_run:
        return _for_each(places, None, on_progress)
    return _for_each(places, lambda each: purge(broker, to_text(each.id), each.died_at) == "purged", on_progress)


def expire(broker: Broker, dead_s: float) -> int:
    """Purge letters that are dead for longer than ``dead_s``, the oldest first, a portion a call; return how many."""
    gone = broker.redis.zrange(
        broker.keys.dead(),
        "-inf",
        now_of(broker) - dead_s,
        byscore=True,
        offset=0,
        num=EXPIRED_AT_ONCE,
        withscores=True,
    )
    pipeline = broker.redis.pipeline(transaction=False)
    record_s = int(load_policy().retention.record_s)
    for job_id, died_at in gone:
        broker.scripts["purge"](args=[broker.keys.prefix, job_id, repr(died_at), record_s], client=pipeline)
    purged = sum(said == b"purged" for said in pipeline.execute()) if gone else 0
    if purged:
        logger.warning("purged %d dead letters older than %g days (retention.dead_s)", purged, dead_s / 86400)
    return purged


def _from_oldest(broker: Broker, want: Filter | None, most: int | None) -> Iterator[Place]:
    """Yield what matches up to now: what is replayed and dies again meanwhile would be met for ever."""
    return islice(walk(broker, want or Filter(), newest_first=False), most)


def _paced(places: Iterator[Place], rate_per_s: float, pause: Callable[[float], None]) -> Iterator[Place]:
    began = time.monotonic()
    for number, place in enumerate(places):
        pause(max(0.0, began + number / rate_per_s - time.monotonic()))
        yield place


def _for_each(places: Iterator[Place], act: Callable[[Place], bool] | None, on_progress: Progress | None) -> Tally:
    matched = done = 0
    for matched, place in enumerate(places, 1):
        done += bool(act and act(place))
        if on_progress:
            on_progress(matched)
    return Tally(matched, done)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
