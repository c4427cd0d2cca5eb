"""Change and read job records: the one place that calls the scripts, for producers, workers and commands alike."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from worker.errors import BrokerUnavailable, QueueFull
from worker.policy.policy import load as load_policy
from worker.records import fingerprint, scripts
from worker.records.keys import Keys
from worker.records.reason import Reason

if TYPE_CHECKING:  # redis takes a quarter of a second to import: producers load it with their first job
    import redis
    from kombu.transport.redis import Channel

#: A settle or an accept that waits longer than this for Redis is given up and repeated; both may be repeated.
SOCKET_TIMEOUT_S = 5.0
PIPELINE_JOBS = 500
PIPELINE_BYTES = 4 * 1024 * 1024
#: The rules of queues that declare no gate, no share and no batch: see `worker.limits.gates.rules`.
NO_RULES = '{"queues":{},"gates":{}}'


@dataclass(frozen=True)
class Submission:
    """A job as accept takes it. ``due`` and ``deadline`` are moments: ``""``, ``"+5"`` (seconds) or an epoch."""

    id: str
    queue: str
    step: int
    task: str
    message: str
    due: str = ""
    deadline: str = ""
    idempotency_key: str = ""
    max_length: int = 0
    fields: dict[str, str] = field(default_factory=dict)

    def args(self) -> list[str | int]:
        """Return the arguments of the accept script behind the prefix."""
        return [
            self.id,
            self.queue,
            self.step,
            self.task,
            self.message,
            self.due,
            self.deadline,
            self.idempotency_key,
            int(load_policy().retention.idempotency_s),
            self.max_length,
            *(text for pair in self.fields.items() for text in pair),
        ]


#: What to do about a Redis that answers and refuses to write, by a word of its refusal.
REMEDIES = {
    "maxmemory": "give it memory or let the workers drain it",
    "MISCONF": "it cannot write to its disk: make room there or let it write",
    "read only": "it is a replica: let CELERY_BROKER_URL name the primary, or the Sentinels",
    "good replicas": "too few of its replicas are there: bring them back",
    "permission": "let its user write and run scripts",
}

#: The states in which a job's record stays.
ENDED = ("succeeded", "dead", "cancelled", "expired")


@dataclass(frozen=True)
class Delivery:
    """One hand-over of a job to a worker process. The number is the fence: each delivery of a job has a higher one."""

    id: str
    number: int

    @property
    def tag(self) -> str:
        return f"{self.number}:{self.id}"

    @classmethod
    def of_tag(cls, tag: str) -> Delivery:
        number, _, job_id = tag.partition(":")
        return cls(job_id, int(number))


@dataclass(frozen=True)
class Fetched:
    """A fetched message. A plain one, of which no record is kept, has delivery number 0.

    ``charge``: the calls and the cost that a gate charged for it, empty when none did.
    """

    queue: str
    delivery: Delivery
    message: str
    charge: str = ""


@dataclass(frozen=True)
class Wanted:
    """A queue to fetch from. ``mode``: lease, batch (a whole one, of ``room`` that there is room for) or plain."""

    queue: str
    mode: Literal["lease", "batch", "plain"] = "lease"
    room: int = 0


@dataclass(frozen=True)
class Reply:
    """What a fetch brought: jobs; when there may be more (None: when a bell rings); whose bells are not to wake it."""

    jobs: list[Fetched]
    nap_s: float | None
    deaf: frozenset[str]


class Broker:
    """The records of jobs in one Redis. Safe to share between threads.

    Every method is one script, hence one step that happens whole or not at all, and may be repeated: accept knows
    the job's id, a settle carries its delivery's number.
    """

    def __init__(self, client: redis.Redis, prefix: str = "") -> None:
        self.redis: Any = client  # redis-py types each reply as the union of all that it may be
        self.keys = Keys(prefix)
        self.scripts = scripts.load(client)
        self.fetches = itertools.count(1)  # numbers the fetches of this process, so that a lost one can be given up

    def run(self, name: str, *args: str | float) -> Any:
        """Run one script and return its reply. Raises what redis-py raises."""
        return self.scripts[name](args=[self.keys.prefix, *map(_bytes, args)])

    def accept(self, submission: Submission) -> str:
        """Accept one job and return its id, which is an earlier job's when this one repeats it.

        Raises `QueueFull` and `BrokerUnavailable`.
        """
        return self.accept_many([submission])[0]

    def accept_many(
        self, submissions: Sequence[Submission], on_progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """Accept jobs in as few round trips as their size allows; return their ids in order.

        A pipeline whose reply was lost is sent again once: jobs that were accepted by then are not accepted twice.
        Raises `QueueFull` (everything before the refused job in the sequence is in) and `BrokerUnavailable`.
        """
        accepted: list[str] = []
        for chunk in _chunks(submissions):
            for submission, reply in zip(chunk, self._accept_chunk(chunk), strict=True):
                accepted.append(_accepted_id(submission, reply))
            if on_progress:
                on_progress(len(accepted))
        return accepted

    def _accept_chunk(self, chunk: Sequence[Submission]) -> list[Any]:
        from redis.exceptions import ConnectionError as NotConnected
        from redis.exceptions import ResponseError
        from redis.exceptions import TimeoutError as NoAnswer

        for attempt in (1, 2):
            try:
                pipeline = self.redis.pipeline(transaction=False)
                for submission in chunk:
                    self.scripts["accept"](args=[self.keys.prefix, *map(_bytes, submission.args())], client=pipeline)
                return list(pipeline.execute(raise_on_error=False))
            except (NotConnected, NoAnswer) as error:
                if attempt == 2:
                    raise BrokerUnavailable(_unreachable(self.redis, error)) from error
                time.sleep(0.1)
            except ResponseError as error:  # while the scripts are loaded
                raise BrokerUnavailable(_refusing(error)) from error
        raise AssertionError("unreachable")

    def fetch(
        self, owner: str, lease_s: float, queues: Sequence[str | Wanted], most: int, rules: str = NO_RULES
    ) -> list[Fetched]:
        """Lease up to ``most`` jobs of ``queues`` to ``owner``, most urgent first, by the rules of a gate."""
        wanted = [Wanted(each) if isinstance(each, str) else each for each in queues]
        args = fetch_args(owner, lease_s, wanted, most, next(self.fetches), rules)
        return parse_fetched(self.run("fetch", *args)).jobs

    def reclaim(self, owner: str, number: int) -> int:
        """Give up a fetch whose reply never came; return how many jobs it had leased, which go back."""
        return int(self.run("reclaim", owner, number))

    def start(self, delivery: Delivery) -> str:
        """Note that a delivery begins to run; return ``started``, or why it is not to."""
        return _text(self.run("start", delivery.id, delivery.number))

    def confirm(self, delivery: Delivery) -> str:
        """Return ``held`` if a delivery still holds its job, so that its run may write results."""
        return _text(self.run("confirm", delivery.id, delivery.number))

    def follow(self, delivery: Delivery, submission: Submission) -> str:
        """Keep a message that takes the place of the delivery which published it, once that settles as done."""
        to = (submission.queue, submission.step, submission.message, submission.due)
        return _text(self.run("follow", delivery.id, delivery.number, *to))

    def replacing(self, delivery: Delivery) -> str:
        """Note that a delivery puts a canvas in its place; the job ends with the canvas' last task."""
        return _text(self.run("replacing", delivery.id, delivery.number))

    def start_batch(self, queue: str, deliveries: Sequence[Delivery]) -> list[str]:
        """Note that the deliveries of one batch began to run; count the batch."""
        said = self._of_batch("start", deliveries)
        self.run("tally", queue, "batches")
        return said

    def confirm_batch(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Do `confirm` for the deliveries of one batch."""
        return self._of_batch("confirm", deliveries)

    def done_batch(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Do `done` for several deliveries."""
        record_s = int(load_policy().retention.record_s)
        return self._of_batch("done", deliveries, record_s)

    def _of_batch(self, name: str, deliveries: Sequence[Delivery], *more: int) -> list[str]:
        script, prefix = self.scripts[name], self.keys.prefix
        calls = ((script, (), (prefix, _bytes(each.id), each.number, *more)) for each in deliveries)
        return [_text(reply) for reply in scripts.run_all(self.redis, calls)]

    def done(self, delivery: Delivery) -> str:
        """Settle a delivery as succeeded."""
        return _text(self.run("done", delivery.id, delivery.number, int(load_policy().retention.record_s)))

    def reschedule(self, delivery: Delivery, message: str, due: str, spent: int, error: str) -> str:
        """Settle a delivery by letting its job wait until the moment ``due``; ``spent`` attempts are counted."""
        return _text(self.run("reschedule", delivery.id, delivery.number, message, due, spent, error))

    def bury(self, delivery: Delivery, reason: Reason, error: str, traceback: str = "") -> str:
        """Settle a delivery as a dead letter, its message kept untouched."""
        like = fingerprint.of(reason, error, traceback)
        return _text(self.run("bury", delivery.id, delivery.number, reason, error, traceback, like))

    def release(self, delivery: Delivery, unless_started: bool = False) -> str:
        """Give a delivery back to the head of its queue."""
        return _text(self.run("release", delivery.id, delivery.number, "1" if unless_started else ""))

    def drop(self, delivery: Delivery, verdict: str) -> str:
        """Settle a delivery that was cancelled or is past its deadline."""
        record_s = int(load_policy().retention.record_s)
        return _text(self.run("drop", delivery.id, delivery.number, verdict, record_s))

    def cancel(self, job_id: str) -> str:
        """Cancel a job: it is not started, or its worker breaks it off. Return its state before, empty if unknown."""
        return _text(self.run("cancel", job_id))

    def renew(self, owner: str, lease_s: float, about: dict[str, str], heard: int = 0) -> list[tuple[str, str]]:
        """Renew an owner's lease. Return what was said to it: (``cancel`` or ``wedged``, job id) each.

        ``heard``: how much of it the last renewal brought; it is told again until then, as a reply may be lost.
        """
        pairs = [text for pair in about.items() for text in pair]
        lines = [_text(line).partition(" ") for line in self.run("renew", owner, lease_s, heard, *pairs)]
        return [(what, job_id) for what, _, job_id in lines]

    def leave(self, owner: str) -> int:
        """End an owner's lease, give back what it holds and return how many jobs that were."""
        given_back = 0
        while True:
            back, left = self.run("leave", owner, PIPELINE_JOBS)
            given_back += int(back)
            if not left:
                return given_back

    def sweep(self, most: int = 1000) -> tuple[int, float | None, list[str]]:
        """Rescue jobs from owners with an ended lease and from hung runs.

        Return how many, in how many seconds the next lease ends (None: nobody holds one), and which jobs it buried.
        """
        policies: list[str | float] = []
        for queue in load_policy().queues.values():
            policies += [queue.name, queue.max_orphaned, queue.retry.backoff_s, queue.retry.backoff_max_s]
            policies.append(queue.wedged_after_s)
        rescued, next_end, *buried = self.run("sweep", most, *policies)
        return int(rescued), float(next_end) if next_end else None, [_text(job_id) for job_id in buried]


def connect(url: str | None = None) -> Broker:
    """Return this process's broker for a URL, by default the one that CELERY_BROKER_URL or Celery's settings name.

    Connections are made as kombu makes them, so TLS, Sentinel, credentials and the key prefix work the same.
    Raises `BrokerUnavailable`.
    """
    import celeryconfig  # the settings, not Celery

    return _connect(url or os.environ.get("CELERY_BROKER_URL") or celeryconfig.broker_url)


@cache
def _connect(url: str) -> Broker:
    from kombu import Connection

    import celeryconfig

    connection = Connection(
        url,
        transport="sentinel" if url.startswith("sentinel") else "redis",  # only its connections are used
        transport_options=celeryconfig.broker_transport_options,
        ssl=celeryconfig.broker_use_ssl,
    )
    try:
        channel: Channel = connection.channel()
    except connection.connection_errors as error:
        raise BrokerUnavailable(_unreachable_at(connection.as_uri(), error)) from error
    return of_channel(channel)


_shared: dict[tuple[int, str, str], Broker] = {}
_sharing = threading.Lock()


def of_channel(channel: Channel) -> Broker:
    """Return this process's broker for the server and prefix that a channel of kombu's leads to.

    What fetches, what runs and what sends share it, and so one pool of connections.
    """
    name = (os.getpid(), channel.connection.client.as_uri(include_password=True), channel.global_keyprefix)
    with _sharing:
        if name not in _shared:
            _shared[name] = Broker(client_of(channel), channel.global_keyprefix)
        return _shared[name]


def client_of(channel: Channel) -> redis.Redis:
    """Return a client with a pool of its own, connected as the channel is, that outlives the channel."""
    import redis

    pool = channel._get_pool()
    pool.connection_kwargs["socket_timeout"] = SOCKET_TIMEOUT_S
    pool.connection_kwargs["encoding_errors"] = "surrogateescape"  # a job's id may hold any bytes
    pool.max_connections = 2**16  # one a thread; the pool opens what is needed and no more
    return redis.Redis(connection_pool=pool)


def fetch_args(
    owner: str, lease_s: float, queues: Sequence[Wanted], most: int, number: int, rules: str = NO_RULES
) -> list[str | int | float]:
    """Return the arguments of the fetch script behind the prefix."""
    triples = [part for each in queues for part in (each.queue, each.mode, each.room)]
    return [owner, lease_s, most, number, rules, *triples]


def parse_fetched(reply: list[Any]) -> Reply:
    """Return what a fetch script's reply says."""
    jobs = [
        Fetched(
            _text(queue), Delivery(_text(job_id), int(number)), _text(message), f"{_text(calls)} {_text(cost)}".strip()
        )
        for queue, job_id, number, message, calls, cost in reply[2:]
    ]
    return Reply(jobs, float(reply[0]) if reply[0] else None, frozenset(map(_text, reply[1])))


def _accepted_id(submission: Submission, reply: Any) -> str:
    from redis.exceptions import ResponseError

    if isinstance(reply, ResponseError):
        raise BrokerUnavailable(_refusing(reply)) from reply
    if isinstance(reply, Exception):
        raise reply
    if _text(reply[0]) == "full":
        raise full(submission, reply)
    return _text(reply[1])


def full(submission: Submission, reply: list[Any]) -> QueueFull:
    """Return the error that the accept script's ``full`` means, with how long the backlog will last at its pace."""
    length, ended = int(reply[1]), int(reply[2])
    return QueueFull(submission.queue, length, submission.max_length, length * 60 / ended if ended else None)


def _chunks(submissions: Iterable[Submission]) -> Iterator[list[Submission]]:
    chunk: list[Submission] = []
    size_bytes = 0
    for submission in submissions:
        if chunk and (len(chunk) == PIPELINE_JOBS or size_bytes + len(submission.message) > PIPELINE_BYTES):
            yield chunk
            chunk, size_bytes = [], 0
        chunk.append(submission)
        size_bytes += len(submission.message)
    if chunk:
        yield chunk


def _bytes(arg: str | float) -> str | float | bytes:
    """Return text as it came, odd bytes included; an error's text may hold what is no text at all."""
    if not isinstance(arg, str):
        return arg
    try:
        return arg.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return arg.encode("utf-8", "replace")


def _text(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _unreachable(client: redis.Redis, error: Exception) -> str:
    where = client.connection_pool.connection_kwargs
    return _unreachable_at(f"{where.get('host', where.get('path'))}:{where.get('port', '')}", error)


def _unreachable_at(where: str, error: Exception) -> str:
    return f"no answer from the broker at {where} ({error}); start it (./forebay up) or set CELERY_BROKER_URL"


def _refusing(error: Exception) -> str:
    said = str(error)
    remedy = next((remedy for word, remedy in REMEDIES.items() if word in said), "its log says why; mend it")
    return f"the broker takes no jobs now: {said}; {remedy}, then send again"
