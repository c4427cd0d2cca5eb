"""Hold jobs: one lease per worker process, renewed by a thread of its own until the last job has settled.

The lease belongs to the process, not to a connection or a channel, so reconnects and drains do not touch it. The same
thread repeats settles that found Redis away, gives up fetches whose reply never came, and rescues what other processes
left behind.
"""

import atexit
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from time import monotonic
from uuid import uuid4

from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer

from worker.inspection import dead_letters
from worker.policy.policy import load as load_policy
from worker.records.broker import Broker, Delivery

logger = logging.getLogger(__name__)

#: How often a process looks for dead letters past their retention.
EXPIRE_EVERY_S = 60.0
#: How long a process that ends waits for a renewal under way; much less than `draining.GIVE_BACK_S`, which ends it.
RENEWAL_ENDS_S = 2.0

Settle = Callable[[Broker, Delivery], str]
#: Gets ``cancel``, ``wedged`` or ``buried`` and a job's id.
Listener = Callable[[str, str], None]


class Lease:
    """What one process holds of one broker. Safe to share between threads."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        policy = load_policy().lease
        self.duration_s = policy.duration_s
        self.renew_every_s = policy.renew_every_s
        self._queues: set[str] = set()
        self._unsettled: deque[tuple[Delivery, Settle]] = deque()
        self._lost: deque[int] = deque()
        self._listener: Listener | None = None
        self._heard = 0
        self._mail: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._woken = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._gathered = threading.local()

    def keep(self, queues: Iterable[str]) -> None:
        """Renew from now on, in the background, until the process ends. Called before each fetch; cheap."""
        self._queues.update(queues)
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="forebay-lease", daemon=True)
                    self._thread.start()
                    atexit.register(self.leave)

    def listen(self, listener: Listener) -> None:
        """Pass on what is said to this owner: jobs that were cancelled or taken away while they run here.

        The listener is called in a thread of its own: what it does may take its time, and renewals may not.
        """
        if self._listener is None:
            threading.Thread(target=self._read_mail, name="forebay-mail", daemon=True).start()
        self._listener = listener

    def settle(self, delivery: Delivery, settle: Settle) -> None:
        """Settle a delivery now, or as soon as Redis answers again; the lease is renewed until then."""
        if settle is Broker.done and (gathered := getattr(self._gathered, "deliveries", None)) is not None:
            gathered.append(delivery)
            return
        try:
            said = settle(self.broker, delivery)
        except RedisError as error:
            logger.warning("job %s cannot be settled yet, will be repeated: %s", delivery.id, error)
            self._unsettled.append((delivery, settle))
            return
        _warn_of_late(delivery, said)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Settle what the block settles in this thread as done at its end, in one round trip."""
        deliveries: list[Delivery] = []
        self._gathered.deliveries = deliveries
        try:
            yield
        finally:
            self._gathered.deliveries = None
            self._settle_done(deliveries)

    def _settle_done(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        try:
            for delivery, said in zip(deliveries, self.broker.done_batch(deliveries), strict=True):
                _warn_of_late(delivery, said)
        except RedisError as error:
            logger.warning("%d jobs cannot be settled yet, will be repeated: %s", len(deliveries), error)
            self._unsettled.extend((delivery, Broker.done) for delivery in deliveries)

    def lose(self, fetch: int) -> None:
        """Give up a fetch whose reply will not be read: whatever it leased goes back, at once or with Redis."""
        self._lost.append(fetch)
        self._woken.set()

    def _run(self) -> None:
        # Who was cut off, or stopped, cannot judge others: they may have been cut off with it, and Redis itself may
        # have been away for longer than any lease. So may it have been before a process that is new.
        renewed = monotonic()
        may_sweep_at = renewed + 2 * self.renew_every_s
        expire_at = renewed
        nap_s = 0.0
        while not self._stopped:
            self._woken.wait(nap_s)
            self._woken.clear()
            nap_s = self.renew_every_s
            try:
                said = self.broker.renew(self.owner, self.duration_s, self._about(), self._heard)
                self._heard = len(said)
                now = monotonic()
                if now - renewed > self.duration_s:
                    may_sweep_at = now + self.duration_s
                renewed = now
                for line in said:
                    self._mail.put(line)
                self._reclaim()
                self._settle_again()
                if now >= may_sweep_at:
                    nap_s = self._sweep()
                if now >= expire_at:
                    expire_at = now + EXPIRE_EVERY_S
                    dead_letters.expire(self.broker, load_policy().retention.dead_s)
            except RedisError as error:
                logger.warning("lease of %s not renewed, will be repeated: %s", self.owner, error)
            except Exception:  # the thread must outlive whatever it meets, or every job here is run again elsewhere
                logger.exception("renewing the lease of %s failed, will be repeated", self.owner)

    def _sweep(self) -> float:
        """Rescue what others left; return when to look again: no later than the next lease ends."""
        rescued, next_end_s, buried = self.broker.sweep()
        for job_id in buried:
            self._mail.put(("buried", job_id))
        if rescued:
            logger.warning("rescued %d jobs from workers that vanished or hang", rescued)
        return min(self.renew_every_s, self.renew_every_s if next_end_s is None else max(0.05, next_end_s))

    def _read_mail(self) -> None:
        while True:
            what, job_id = self._mail.get()
            try:
                if self._listener:
                    self._listener(what, job_id)
            except Exception:
                logger.exception("%s of job %s could not be followed", what, job_id)

    def _reclaim(self) -> None:
        while self._lost:
            back = self.broker.reclaim(self.owner, self._lost[0])
            self._lost.popleft()
            if back:
                logger.warning("a fetch of %d jobs broke off; they went back to their queue", back)

    def _settle_again(self) -> None:
        """Repeat what found Redis away. No lock is held meanwhile: runs that end now must not wait for Redis."""
        for _ in range(len(self._unsettled)):
            try:
                delivery, settle = self._unsettled.popleft()
            except IndexError:  # the process ends, and its other thread took the last one
                return
            try:
                settle(self.broker, delivery)
            except (NotConnected, NoAnswer):
                self._unsettled.append((delivery, settle))
                raise
            except Exception as error:
                self._unsettled.append((delivery, settle))  # behind the others, which may fare better
                logger.warning("job %s cannot be settled yet, will be repeated: %s", delivery.id, error)

    def _about(self) -> dict[str, str]:
        node = os.environ.get("FOREBAY_NODE") or socket.gethostname()
        return {"node": node, "pid": str(os.getpid()), "queues": ",".join(sorted(self._queues))}

    def leave(self) -> None:
        """End the lease: settle what can be settled, give back the rest."""
        if self.owner.split(":")[-2] != str(os.getpid()):  # a forked child inherits the handler, not the lease
            return
        atexit.unregister(self.leave)
        self._stopped = True
        self._woken.set()
        if self._thread is not None:  # a renewal under way would bring the owner back after it has left
            self._thread.join(RENEWAL_ENDS_S)
        try:
            self._settle_again()
            given_back = self.broker.leave(self.owner)
        except RedisError as error:
            logger.warning("lease of %s not ended, it will run out: %s", self.owner, error)
        else:
            if given_back:
                logger.warning("%d jobs were given back", given_back)


def _warn_of_late(delivery: Delivery, said: str) -> None:
    if said == "late":
        logger.warning("job %s was given to another worker meanwhile; this run changes nothing", delivery.id)


_leases: dict[tuple[int, str], Lease] = {}
_guard = threading.Lock()


def leave_all() -> None:
    """End this process's leases, before it becomes another program. A later channel begins a new one."""
    with _guard:
        ended = list(_leases.values())
        _leases.clear()
    for lease in ended:
        lease.leave()


def queues_of_process() -> set[str]:
    """Return the queues from which this process fetches."""
    return {queue for lease in list(_leases.values()) for queue in lease._queues}


def of_process(uri: str, make_broker: Callable[[], Broker]) -> Lease:
    """Return this process's lease on the broker at ``uri``; a forked child gets one of its own."""
    name = (os.getpid(), uri)
    with _guard:
        if name not in _leases:
            _leases[name] = Lease(make_broker())
        return _leases[name]
