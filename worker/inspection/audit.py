"""Hold the broker to its promise: every accepted job has ended, or waits where it will be found.

    accepted = succeeded + dead + cancelled + expired + waiting

Works beside live traffic. What can be seen in one step is looked at in one script. What cannot, such as a message that
is in none of a queue's lists, is a finding only if it looked the same three times and its job took no step in between.
Redis is asked for pages, so nobody waits long.
"""

import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from worker.inspection.finding import Finding, Suspect, judge
from worker.inspection.letter import to_bytes, to_text
from worker.policy.policy import Policy
from worker.policy.priority import STEPS
from worker.records.broker import Broker
from worker.records.keys import PERMANENT, STEMS

#: How often what looks wrong is looked at before it is a finding.
LOOKS = 3
PAGE = 500
#: Dead letters may outstay their retention by so long: they are purged now and then, not on the second.
GRACE_S = 3600.0


@dataclass(frozen=True)
class Balance:
    """One queue: ``accepted = succeeded + dead + cancelled + expired + waiting``.

    ``dead`` has purged letters among them. ``unseen`` messages come from plain producers and have no record yet.
    """

    queue: str
    accepted: int
    succeeded: int
    dead: int
    cancelled: int
    expired: int
    waiting: int
    unseen: int


@dataclass(frozen=True)
class Report:
    """What an audit saw. ``states`` counts the records by state."""

    findings: tuple[Finding, ...]
    balances: tuple[Balance, ...]
    states: dict[str, int]


@dataclass(frozen=True)
class Scope:
    """What to look at: jobs with the set in which each was found, queues to walk, keys whose lifetime matters."""

    jobs: list[tuple[str, str]]
    queues: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Sizes:
    """A queue's open jobs and counters at one moment."""

    open: int
    counters: dict[str, int]

    def of(self, name: str) -> int:
        return self.counters.get(name, 0)

    @property
    def accepted(self) -> int:
        return self.of("submitted") + self.of("moved_in") - self.of("moved_out")

    @property
    def dead(self) -> int:
        return self.of("dead") - self.of("replayed")

    @property
    def excess(self) -> int:
        """Open jobs beyond those that the counters know of."""
        ended = self.of("completed") + self.of("cancelled") + self.of("expired") + self.dead
        return self.open + ended - self.accepted


@dataclass
class Look:
    """What one look saw."""

    suspects: set[Suspect] = field(default_factory=set)
    states: Counter[str] = field(default_factory=Counter)
    queued: list[Suspect] = field(default_factory=list)  # lost, if their messages are in no list
    listed: set[str] = field(default_factory=set)
    nameless: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # jobs whose message names none
    unseen: Counter[str] = field(default_factory=Counter)  # messages by queue
    uncounted: Counter[str] = field(default_factory=Counter)  # the same, and surplus copies
    sizes: dict[str, Sizes] = field(default_factory=dict)


Progress = Callable[[int, int], None]


def audit(broker: Broker, policy: Policy, on_progress: Progress | None = None) -> Report:
    """Check every record, list, set and counter; change nothing. Tell the progress as (seen, to see)."""
    first = _look(broker, _everything(broker, policy), policy, on_progress)
    suspects = first.suspects
    for _ in range(LOOKS - 1):
        if suspects:
            suspects &= _look(broker, _again(broker, policy, suspects), policy).suspects
    findings = sorted((judge(suspect, broker.keys) for suspect in suspects), key=lambda each: (each.fault, each.key))
    balances = [_balance(queue, sizes, first) for queue, sizes in sorted(first.sizes.items())]
    return Report(tuple(findings), tuple(balances), dict(first.states))


def _everything(broker: Broker, policy: Policy) -> Scope:
    jobs: list[tuple[str, str]] = []
    keys: list[str] = []
    sets: list[str] = []
    queues = set(policy.queues)
    record, stats = broker.keys.job(""), broker.keys.stats("")
    permanent = tuple(broker.keys.prefix + stem for stem in PERMANENT)
    walked = tuple(broker.keys.prefix + STEMS[stem][0] for stem in ("delayed", "alone", "leased", "held", "dead"))
    for key in _scan(broker, "forebay:*"):
        if key.startswith(record):
            jobs.append((key.removeprefix(record), ""))
        elif key.startswith(walked):
            sets.append(key)
        elif key.startswith(stats):
            queues.add(key.removeprefix(stats))
        elif not key.startswith(permanent):
            keys.append(key)
    jobs += [(job, each) for each in sets for job in _members(broker, each)]
    return Scope(jobs, sorted(queues), keys)


def _again(broker: Broker, policy: Policy, suspects: set[Suspect]) -> Scope:
    """Return what has to be looked at to see whether the suspects are still the same."""
    queues = {each.queue for each in suspects if each.fault in ("lost", "twice", "surplus", "misplaced", "counters")}
    if any(each.fault == "counters" and not each.queue for each in suspects):
        queues = set(_everything(broker, policy).queues)
    jobs = [(each.job, each.found_in) for each in suspects if each.job]
    return Scope(jobs, sorted(queues), [each.key for each in suspects if each.fault == "stays"])


def _look(broker: Broker, scope: Scope, policy: Policy, on_progress: Progress | None = None) -> Look:
    look = Look()
    before = _sizes(broker, scope.queues)
    total, seen = len(scope.jobs) + sum(sizes.open for sizes in before[1].values()), 0
    for page in _pages(scope.jobs):
        _look_at_jobs(broker, page, look)
        seen += len(page)
        if on_progress:
            on_progress(seen, total)
    for queue, step in ((queue, step) for queue in scope.queues if before[1][queue].open for step in STEPS):
        for read in _look_at_list(broker, queue, step, look):
            seen += read
            if on_progress:
                on_progress(seen, max(seen, total))
    look.suspects |= {each for each in look.queued if each.job not in look.listed}
    after = _sizes(broker, scope.queues)
    look.sizes.update(after[1])
    look.suspects |= set(_imbalances(broker, before, after, look))
    look.suspects |= set(_staying(broker, scope.keys)) | set(_overdue(broker, policy))
    return look


def _look_at_jobs(broker: Broker, jobs: list[tuple[str, str]], look: Look) -> None:
    states, rows = _reply(broker, "audit_jobs", *(text for pair in jobs for text in pair))
    look.states.update(states)
    for job, found_in, state, stamp, queue, owner, *faults in rows:
        key = found_in or broker.keys.job(job)
        for fault in faults:
            name, _, place = fault.partition("not in ")
            look.suspects.add(Suspect(name or "not in", place or key, job, stamp, queue, found_in, owner))
        if state == "queued" and not found_in:
            look.queued.append(Suspect("lost", key, job, stamp, queue))


def _look_at_list(broker: Broker, queue: str, step: int, look: Look) -> Iterator[int]:
    """Look at every message of one list; yield how many each page had."""
    key = broker.keys.waiting(queue, step)
    index, mark = 0, ""
    while True:
        index, mark, rows = _reply(broker, "audit_list", queue, step, index, mark)
        for job, stamp, told, fault, *alike in rows:
            if fault == "nameless":
                _note(look, key, queue, *_named(look, queue, stamp, alike))
            else:
                _note(look, key, queue, job, stamp, told, fault)
        yield len(rows)
        if not mark:
            return


def _note(look: Look, key: str, queue: str, job: str, delivery: str, told: str, fault: str) -> None:
    """Note one message: whose it is, the queue that its record names, what is wrong with it."""
    known = job in look.listed
    if fault == "unseen":
        look.unseen[queue] += 1
    elif fault or known:
        look.suspects.add(Suspect("twice" if known and fault != "surplus" else fault, key, job, delivery, queue))
    if fault == "misplaced" and not known:
        look.uncounted[told] -= 1
    if fault or known:
        look.uncounted[queue] += 1
    if fault in ("", "misplaced"):
        look.listed.add(job)


def _named(look: Look, queue: str, mark: str, alike: list[str]) -> tuple[str, str, str, str]:
    """Give each of the messages that are alike and name no job to one of the jobs that have such a message."""
    left = look.nameless.setdefault((queue, mark), alike)
    return (left.pop(), "", queue, "") if left else ("", "", queue, "unseen")


def _sizes(broker: Broker, queues: list[str]) -> tuple[int, dict[str, Sizes]]:
    """Return the number of dead letters, and each queue's sizes, of one moment."""
    dead, rows = _reply(broker, "sizes", *queues)
    return int(dead), {
        queue: Sizes(pending + delayed + in_hand, dict(counters))
        for queue, pending, delayed, in_hand, _, counters in rows
    }


def _imbalances(
    broker: Broker, before: tuple[int, dict[str, Sizes]], after: tuple[int, dict[str, Sizes]], look: Look
) -> Iterator[Suspect]:
    """Compare counters with sizes. What was fetched while the lists were walked may have been unseen before."""
    for queue, sizes in after[1].items():
        earlier, uncounted = before[1][queue], look.uncounted[queue]
        fetched = sum(sizes.of(name) - earlier.of(name) for name in ("submitted", "duplicates"))
        if earlier.excess > uncounted + fetched or sizes.excess < uncounted - fetched:
            detail = (
                f"accepted {sizes.accepted}, completed {sizes.of('completed')}, dead {sizes.dead}, cancelled "
                f"{sizes.of('cancelled')}, expired {sizes.of('expired')}, open {sizes.open - uncounted}"
            )
            key = broker.keys.stats(queue)
            mend = f"HINCRBY {shlex.quote(key)} submitted {sizes.excess - uncounted}"
            yield Suspect("counters", key, queue=queue, detail=detail, mend=mend)
    letters = sum(sizes.dead - sizes.of("purged") for sizes in after[1].values())
    if letters != after[0]:
        detail = f"holds {after[0]} letters, counted are {letters}"
        yield Suspect("counters", broker.keys.dead(), detail=detail, mend="HINCRBY forebay:stats:QUEUE purged N")


def _staying(broker: Broker, keys: list[str]) -> Iterator[Suspect]:
    for page in _pages(keys):
        pipeline = broker.redis.pipeline(transaction=False)
        for key in page:
            pipeline.ttl(to_bytes(key))
        for key, ttl in zip(page, pipeline.execute(), strict=True):
            if ttl == -1:
                yield Suspect("stays", key)


def _overdue(broker: Broker, policy: Policy) -> Iterator[Suspect]:
    until = broker.redis.time()[0] - policy.retention.dead_s - GRACE_S
    dead = broker.keys.dead()
    for job, died in broker.redis.zrange(dead, 0, until, byscore=True, withscores=True, offset=0, num=PAGE):
        yield Suspect("overdue", dead, to_text(job), repr(died))


def _balance(queue: str, sizes: Sizes, look: Look) -> Balance:
    return Balance(
        queue,
        accepted=sizes.accepted,
        succeeded=sizes.of("completed"),
        dead=sizes.dead,
        cancelled=sizes.of("cancelled"),
        expired=sizes.of("expired"),
        waiting=sizes.open - look.uncounted[queue],
        unseen=look.unseen[queue],
    )


def _reply(broker: Broker, script: str, *args: str | int) -> Any:
    return json.loads(to_text(broker.run(script, *args)))


def _scan(broker: Broker, pattern: str) -> Iterator[str]:
    prefix = re.sub(r"([*?\[\]\\^])", r"\\\1", broker.keys.prefix)
    seen: set[bytes] = set()  # SCAN may give a key twice
    for key in broker.redis.scan_iter(prefix + pattern, count=1000):
        if key not in seen:
            seen.add(key)
            yield to_text(key)


def _members(broker: Broker, key: str) -> Iterator[str]:
    is_set = key.startswith(broker.keys.held(""))
    found = broker.redis.sscan_iter(key, count=PAGE) if is_set else broker.redis.zscan_iter(key, count=PAGE)
    for member in found:
        yield to_text(member if is_set else member[0])


def _pages(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while page := list(islice(rest, PAGE)):
        yield page
