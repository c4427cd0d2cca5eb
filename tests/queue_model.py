"""The queue as the scripts promise it, in plain Python: what random histories are held against.

Methods are named for the scripts and answer as they do. A moment that has come is any number, one to come is `LATER`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from worker.policy.priority import FETCH_ORDER
from worker.records.broker import Delivery

LATER = inf
ENDED = ("succeeded", "dead", "cancelled", "expired")
HELD = ("leased", "started")
PROMOTED_AT_ONCE = 64

#: The fields of a record that the model keeps, by kind.
NUMBERS = ("delivery", "settled", "attempts", "orphaned", "deaths")
FLAGS = ("alone", "cancel", "replacing", "purged")
TEXTS = ("state", "queue", "owner", "reason")


@dataclass
class Following:
    """A message that takes the place of the delivery that published it."""

    message: str
    queue: str
    step: int
    due: float


@dataclass
class Job:
    """A record. ``message`` is None while a list has it; ``hung`` means that it has run for too long."""

    id: str
    queue: str
    step: int
    state: str = "queued"
    message: str | None = None
    overdue: bool = False
    delivery: int = 0
    settled: int = 0
    attempts: int = 0
    orphaned: int = 0
    deaths: int = 0
    owner: str = ""
    reason: str = ""
    alone: bool = False
    cancel: bool = False
    replacing: bool = False
    purged: bool = False
    hung: bool = False
    follows: Following | None = None

    def fields(self) -> dict[str, str]:
        """Return the record's fields as Redis has them: what is nothing is not there."""
        kept: dict[str, object] = {"step": str(self.step), "message": self.message}
        kept |= {name: getattr(self, name) for name in (*NUMBERS, *TEXTS)}
        kept |= {name: int(getattr(self, name)) for name in FLAGS}
        kept["follows"] = self.follows and self.follows.message
        return {name: str(value) for name, value in kept.items() if value}


@dataclass
class Owner:
    """What is noted of a worker process: which job it runs alone, up to which number its fetches are given up."""

    alone: str = ""
    lost: int = 0
    tried: bool = False  # to empty itself, not long ago


class Model:
    """Jobs, and where each is. Of a list the last message is fetched next."""

    def __init__(self, max_orphaned: int) -> None:
        self.max_orphaned = max_orphaned
        self.jobs: dict[str, Job] = {}
        self.lists: dict[tuple[str, int], list[str]] = defaultdict(list)
        self.delayed: dict[str, dict[str, float]] = defaultdict(dict)
        self.alone: dict[str, dict[str, float]] = defaultdict(dict)
        self.reserved: dict[str, str] = {}  # queue -> the owner that empties itself for a job that must run alone
        self.leases: dict[str, bool] = {}  # owner -> whether its lease runs
        self.owners: dict[str, Owner] = defaultdict(Owner)
        self.mail: dict[str, list[str]] = defaultdict(list)
        self.once: dict[str, str] = {}
        self.nameless: dict[tuple[str, str], list[str]] = defaultdict(
            list
        )  # (queue, message) -> jobs that wait with it
        self.serial = 0
        self.counters: dict[str, Counter[str]] = defaultdict(Counter)

    def held(self, owner: str) -> list[str]:
        return [job.id for job in self.jobs.values() if job.owner == owner]

    def accept(
        self, job_id: str, queue: str, step: int, message: str, due: float, overdue: bool, key: str
    ) -> list[str]:
        if key in self.once:
            return ["duplicate", self.once[key]]
        job = self.jobs.get(job_id)
        if job and job.state == "replaced":
            self.delayed[job.queue].pop(job_id)
            self._move(job, queue)
            job.step = step
            self._enqueue(job, message, due)
            return ["replacement", job_id]
        if job and job.state in HELD and job.replacing:
            job.follows = Following(message, queue, step, due)
            return ["replacement", job_id]
        if job:
            return ["duplicate", job_id]
        job = self.jobs[job_id] = Job(job_id, queue, step, overdue=overdue)
        if key:
            self.once[key] = job_id
        self._enqueue(job, message, due)
        self.counters[queue]["submitted"] += 1
        return ["accepted", job_id]

    def fetch(self, owner: str, queues: Iterable[str], most: int, number: int) -> list[tuple[str, int, str]]:
        """Return (job, delivery, message) of each fetched job."""
        me = self.owners[owner]
        if number <= me.lost or me.alone in self.held(owner):
            return []
        me.alone = ""
        fetched: list[tuple[str, int, str]] = []
        occupied = False
        for queue in queues:
            self._promote(queue)
            occupied = occupied or self._take_alone(queue, owner, fetched)
        for step in FETCH_ORDER:
            for queue in queues:
                waiting = self.lists[queue, step]
                while waiting and len(fetched) < most and not occupied:
                    self._lease(queue, step, waiting.pop(), owner, fetched)
        if fetched:
            self.leases[owner] = True
        return fetched

    def start(self, delivery: Delivery) -> str:
        said = self._holding(delivery)
        if said != "held":
            return said
        job = self.jobs[delivery.id]
        if job.cancel or job.overdue:
            return "cancelled" if job.cancel else "expired"
        job.state, job.hung = "started", False
        return "started"

    def confirm(self, delivery: Delivery) -> str:
        said = self._holding(delivery)
        self._count_late(delivery, said)
        return said

    def follow(self, delivery: Delivery, queue: str, step: int, message: str, due: float) -> str:
        said = self._holding(delivery)
        if said == "held":
            self.jobs[delivery.id].follows = Following(message, queue, step, due)
        return "follows" if said == "held" else said

    def replacing(self, delivery: Delivery) -> str:
        said = self._holding(delivery)
        if said == "held":
            self.jobs[delivery.id].replacing = True
        return "replacing" if said == "held" else said

    def done(self, delivery: Delivery) -> str:
        said = self._settling(delivery)
        if said != "held":
            return said
        job = self.jobs[delivery.id]
        follows, replaced = job.follows, job.replacing
        self._let_go(job)
        if follows:
            if not replaced:
                job.attempts += 1
                self.counters[job.queue]["retries"] += 1
            job.message, job.step = follows.message, follows.step
            self._move(job, follows.queue)
            self._wait(job, follows.due)
            return "follows"
        if replaced:
            job.state = "replaced"
            job.alone = False
            self.delayed[job.queue][job.id] = LATER
            return "replaced"
        self._finish(job, "succeeded", "completed")
        return "done"

    def reschedule(self, delivery: Delivery, message: str, due: float, spent: int) -> str:
        said = self._settling(delivery)
        if said != "held":
            return said
        job = self.jobs[delivery.id]
        self._let_go(job)
        job.message = message
        job.attempts += spent
        self.counters[job.queue]["retries"] += bool(spent)
        self._wait(job, due)
        return "rescheduled"

    def bury(self, delivery: Delivery, reason: str) -> str:
        said = self._settling(delivery)
        if said == "held":
            self._bury(self.jobs[delivery.id], reason)
        return "buried" if said == "held" else said

    def drop(self, delivery: Delivery, verdict: str) -> str:
        said = self._settling(delivery)
        if said == "held":
            self._let_go(self.jobs[delivery.id])
            self._finish(self.jobs[delivery.id], verdict, verdict)
        return "dropped" if said == "held" else said

    def release(self, delivery: Delivery, unless_started: bool) -> str:
        if unless_started and self._holding(delivery) == "held" and self.jobs[delivery.id].state == "started":
            return "running"
        said = self._settling(delivery)
        if said == "held":
            self._to_head(self.jobs[delivery.id])
        return "released" if said == "held" else said

    def cancel(self, job_id: str) -> str:
        job = self.jobs.get(job_id)
        if not job or job.state in ENDED:
            return job.state if job else ""
        job.cancel = True
        if job.state in HELD:
            self.mail[job.owner].append(f"cancel {job_id}")
        for waiting in (self.delayed, self.alone):
            if job_id in waiting[job.queue]:
                waiting[job.queue][job_id] = 0
        return job.state

    def renew(self, owner: str, heard: int) -> list[str]:
        self.leases[owner] = True
        self.mail[owner] = self.mail[owner][heard:]
        return self.mail[owner]

    def reclaim(self, owner: str, number: int, deliveries: Iterable[Delivery]) -> list[str]:
        """Give up a fetch that leased ``deliveries``; return the jobs that went back."""
        self.owners[owner].lost = max(self.owners[owner].lost, number)
        jobs = [self.jobs[each.id] for each in deliveries if self._holding(each) == "held"]
        back = [job.id for job in jobs if job.state == "leased"]
        for job_id in back:
            self._to_head(self.jobs[job_id])
        return back

    def leave(self, owner: str) -> list[str]:
        back = self.held(owner)
        for job_id in back:
            self._to_head(self.jobs[job_id])
        self._forget(owner)
        return back

    def sweep(self) -> list[str]:
        """Return the jobs that were rescued."""
        rescued = []
        for owner in [owner for owner, alive in self.leases.items() if not alive]:
            rescued += self.held(owner)
            for job_id in self.held(owner):
                self._rescue(self.jobs[job_id])
            self._forget(owner)
        for job in self.jobs.values():
            if job.hung:
                rescued.append(job.id)
                self.mail[job.owner].append(f"wedged {job.id}")
                self._rescue(job)
        return rescued

    def replay(self, job_id: str) -> str:
        job = self.jobs[job_id]
        if job.purged or job.state != "dead":
            return "purged" if job.purged else job.state
        job.reason, job.attempts, job.orphaned, job.overdue = "", 0, 0, False
        self.counters[job.queue]["replayed"] += 1
        self._enqueue(job, job.message or "", 0)
        return "replayed"

    def purge(self, job_id: str) -> str:
        job = self.jobs[job_id]
        if job.purged or job.state != "dead":
            return "purged" if job.purged else job.state
        job.purged, job.message = True, None
        self.counters[job.queue]["purged"] += 1
        return "purged"

    def _enqueue(self, job: Job, message: str, due: float) -> None:
        job.message = None
        if due == LATER:
            job.message, job.state = message, "delayed"
            self.delayed[job.queue][job.id] = due
        else:
            job.state = "queued"
            self._remember(job, message)
            self.lists[job.queue, job.step].insert(0, message)

    def _promote(self, queue: str) -> None:
        delayed = self.delayed[queue]
        for job_id in _due(delayed)[:PROMOTED_AT_ONCE]:
            job = self.jobs[job_id]
            del delayed[job_id]
            if job.state == "replaced" and not job.cancel:
                self._bury(job, "replacement never came")
            else:
                self._enqueue(job, job.message or "", 0)

    def _take_alone(self, queue: str, owner: str, fetched: list[tuple[str, int, str]]) -> bool:
        due = _due(self.alone[queue])
        held = self.held(owner)
        me = self.owners[owner]
        by = self.reserved.get(queue)
        if not due or (held and (by != owner if by else me.tried)):
            return False
        me.tried = me.tried or bool(held and not by)
        self.reserved[queue] = owner
        if not held:
            job = self.jobs[due[0]]
            del self.alone[queue][job.id]
            self.owners[owner].alone = job.id
            self._hold(job, owner, job.message or "", fetched)
        return True

    def _lease(self, queue: str, step: int, message: str, owner: str, fetched: list[tuple[str, int, str]]) -> None:
        job_id = name_of(message) or self._named(queue, message)
        job = self.jobs.get(job_id)
        if not job:
            job = self.jobs[job_id] = Job(job_id, queue, step)
            self.counters[queue]["submitted"] += 1
        elif job.state != "queued":
            self.counters[queue]["duplicates"] += 1
            return
        self._move(job, queue)
        job.step = step
        self._hold(job, owner, message, fetched)

    def _remember(self, job: Job, message: str) -> None:
        if not name_of(message):
            self.nameless[job.queue, message].append(job.id)

    def _named(self, queue: str, message: str) -> str:
        if self.nameless[queue, message]:
            return self.nameless[queue, message].pop(0)
        self.serial += 1
        return f"unreadable-{self.serial}"

    def _hold(self, job: Job, owner: str, message: str, fetched: list[tuple[str, int, str]]) -> None:
        job.state, job.owner, job.message = "leased", owner, message
        job.delivery += 1
        fetched.append((job.id, job.delivery, message))

    def _holding(self, delivery: Delivery) -> str:
        job = self.jobs[delivery.id]
        if job.delivery == delivery.number and job.state in HELD:
            return "held"
        return "settled" if job.settled == delivery.number else "late"

    def _settling(self, delivery: Delivery) -> str:
        said = self._holding(delivery)
        if said == "held":
            self.jobs[delivery.id].settled = delivery.number
        self._count_late(delivery, said)
        return said

    def _count_late(self, delivery: Delivery, said: str) -> None:
        self.counters[self.jobs[delivery.id].queue]["late"] += said == "late"

    def _let_go(self, job: Job) -> None:
        job.owner = ""
        job.replacing = job.hung = False
        job.follows = None

    def _move(self, job: Job, queue: str) -> None:
        if queue != job.queue:
            self.counters[job.queue]["moved_out"] += 1
            self.counters[queue]["moved_in"] += 1
        job.queue = queue

    def _wait(self, job: Job, due: float) -> None:
        job.state = "delayed"
        (self.alone if job.alone else self.delayed)[job.queue][job.id] = 0 if job.cancel else due

    def _to_head(self, job: Job) -> None:
        self._let_go(job)
        if job.alone:
            self._wait(job, 0)
            return
        self._remember(job, job.message or "")
        self.lists[job.queue, job.step].append(job.message or "")
        job.state, job.message = "queued", None

    def _rescue(self, job: Job) -> None:
        self.counters[job.queue]["rescued"] += 1
        job.orphaned += job.state == "started"
        if job.state == "started" and job.orphaned >= self.max_orphaned:
            self._bury(job, "poison")
        elif job.state == "started" and job.orphaned > 1:
            self._let_go(job)
            job.alone = True
            self._wait(job, LATER)
        else:
            self._to_head(job)

    def _finish(self, job: Job, state: str, counter: str) -> None:
        job.state, job.message = state, None
        job.alone = job.cancel = False
        self.counters[job.queue][counter] += 1

    def _bury(self, job: Job, reason: str) -> None:
        self._let_go(job)
        job.state, job.reason = "dead", reason
        job.alone = job.cancel = False
        job.deaths += 1
        self.counters[job.queue].update(("failed", "dead"))

    def _forget(self, owner: str) -> None:
        self.leases.pop(owner, None)
        self.owners.pop(owner, None)
        self.mail.pop(owner, None)


def name_of(message: str) -> str:
    """Return the job that a message names, empty when it cannot be read."""
    return str(json.loads(message)["headers"]["id"]) if message.startswith("{") else ""


def _due(waiting: dict[str, float]) -> list[str]:
    return [
        job_id for moment, job_id in sorted((moment, job_id) for job_id, moment in waiting.items()) if moment != LATER
    ]
